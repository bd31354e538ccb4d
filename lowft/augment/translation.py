"""Round trips through another language, by Apertium, by models, or by functions of your own."""

from __future__ import annotations

import functools
import random
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from lowft._progress import progress_bar
from lowft._settings import check_text, check_whole
from lowft.augment._models import open_model
from lowft.augment.augmenter import Augmenter
from lowft.errors import ConfigError, MissingExtraError, ModelError, TrainingError
from lowft.registry import register

__all__ = ["ApertiumTranslator", "BackTranslation", "Seq2SeqTranslator", "Translator"]

_TOGETHER = 2000  # texts of one call while the progress bar runs: enough that starting a process costs little
_PAIR = re.compile(r"[a-z]{2,3}(_[A-Za-z]+)?-[a-z]{2,3}(_[A-Za-z]+)?")
_BREAKS = re.compile(r"([\x00-\x1f\x7f\x85\u2028\u2029]+)")  # each stretch between them travels as a line of its own


class Translator(Protocol):
    """Anything that is called with texts and returns each in another language; the same text always in the same words.

    A function will do. A frozen dataclass that is registered with `lowft.register` can be part of a recipe too.

    >>> back: Translator = lambda texts: [text.replace("película", "movie") for text in texts]
    >>> back(["a película"])
    ['a movie']
    """

    def __call__(self, texts: Sequence[str], /) -> list[str]:
        """Return the translation of each text."""


@dataclass(frozen=True)
class BackTranslation(Augmenter):
    """Translate each text into another language and back: the same meaning, often in other words.

    Nothing is drawn at random: a text has one variant, which is made once and kept in memory. `lowft.Augment`
    translates all training texts when the Trainer is built, so that training itself does not wait for it.

    Source: Sennrich, Haddow & Birch 2016, https://arxiv.org/abs/1511.06709; for classification Xie et al. 2020, UDA,
    section 2.2, https://arxiv.org/abs/1904.12848.

    Args:
        there: Translates into the other language.
        back: Translates from it.
        remembered: Texts whose variant is kept; beyond it the oldest are forgotten.

    Raises:
        ConfigError: A translator that cannot be called, or one that does not return a text for each text.

    >>> spanish, english = {"film": "película"}, {"película": "movie"}
    >>> def translate(texts, words):
    ...     return [" ".join(words.get(word, word) for word in text.split()) for text in texts]
    >>> trip = BackTranslation(lambda texts: translate(texts, spanish), lambda texts: translate(texts, english))
    >>> trip(["a warm film"], random.Random(0))
    ['a warm movie']
    """

    there: Translator
    back: Translator
    remembered: int = 100_000
    _known: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check every setting."""
        for name in ("there", "back"):
            translator = getattr(self, name)
            if not callable(translator) or isinstance(translator, type):
                raise ConfigError(
                    f"BackTranslation.{name} must be a translator, such as lowft.ApertiumTranslator('eng-spa') or a "
                    f"function from texts to texts; received {translator!r}"
                )
        check_whole("BackTranslation.remembered", self.remembered, least=1)

    def vary(self, text: str, rng: random.Random) -> str:
        """Return the text after its round trip."""
        return self.vary_all([text], [rng])[0]

    def vary_all(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[str]:  # noqa: ARG002
        """Return each text after its round trip, in one call of each translator."""
        new = [text for text in dict.fromkeys(texts) if text.strip() and text not in self._known]
        if new:
            self._known.update(zip(new, self._round_trip(new), strict=True))
        varied = [self._known.get(text, text) for text in texts]
        while len(self._known) > self.remembered:
            del self._known[next(iter(self._known))]
        return varied

    def prepare(self, texts: Sequence[str]) -> None:
        """Translate all texts once, with a progress bar."""
        starts = range(0, min(len(texts), self.remembered), _TOGETHER)
        for start in progress_bar(starts, "translating", shown=None if len(starts) > 1 else False, leave=False):
            self.vary_all(texts[start : min(start + _TOGETHER, self.remembered)], ())

    def _round_trip(self, texts: Sequence[str]) -> list[str]:
        for name in ("there", "back"):
            translated = list(getattr(self, name)(texts))
            if len(translated) != len(texts) or not all(isinstance(text, str) for text in translated):
                raise ConfigError(
                    f"BackTranslation.{name} must return one text for each that it is given; for {len(texts)} texts it "
                    f"returned {len(translated)} entries, the first of them {translated[:1]}"
                )
            texts = translated
        return list(texts)


@register
@dataclass(frozen=True)
class ApertiumTranslator:
    """Translates with Apertium, a free rule-based system that needs no network and no GPU: about 10,000 words a second.

    Its English is rough, but mostly keeps the meaning. It runs as a process of its own, which takes a third of a second
    to start: hand over many texts at a time. Line breaks and tabs stay where they are.

    Source: Forcada et al. 2011, *Apertium: a free/open-source platform for rule-based machine translation*.

    Args:
        pair: The direction, as `apertium -l` lists it.

    Raises:
        ConfigError: `pair` is not of the form "eng-spa".
        MissingExtraError: At first use: Apertium or the pair is not installed.
        TrainingError: At use: Apertium failed, or lost lines.

    >>> BackTranslation(ApertiumTranslator("eng-spa"), ApertiumTranslator("spa-eng")).there.pair
    'eng-spa'
    """

    pair: str

    def __post_init__(self) -> None:
        """Check the pair, which becomes an argument of a command."""
        if not isinstance(self.pair, str) or not _PAIR.fullmatch(self.pair):
            raise ConfigError(f"ApertiumTranslator.pair must be two language codes, as 'eng-spa'; got {self.pair!r}")

    def __call__(self, texts: Sequence[str], /) -> list[str]:
        """Return the translation of each text, from one run of Apertium."""
        pieces = [_BREAKS.split(text) for text in texts]  # line, break, line, break, …
        cores = [(row, at) for row, text in enumerate(pieces) for at in range(0, len(text), 2) if text[at].strip()]
        translated = self._translate([pieces[row][at].strip(" ") for row, at in cores]) if cores else []
        for (row, at), line in zip(cores, translated, strict=True):
            old = pieces[row][at]
            pieces[row][at] = old.replace(old.strip(" "), line.strip(" "), 1)  # between its own outer spaces
        return ["".join(text) for text in pieces]

    def _translate(self, lines: Sequence[str]) -> list[str]:
        program = shutil.which("apertium")
        if program is None:
            raise MissingExtraError(
                f"ApertiumTranslator needs the program apertium, which is not installed. On Debian and Ubuntu: "
                f"apt-get install {self._package}"
            )
        # Empty lines between them, because Apertium would translate neighbouring lines as one sentence.
        done = subprocess.run(  # noqa: S603 - no shell, and the pair has been checked
            [program, "-u", self.pair],
            input="\n\n".join(lines) + "\n",
            encoding="utf-8",
            capture_output=True,
            check=False,
        )
        if "does not exist" in done.stderr:
            there_are = " ".join(done.stderr.partition("Try one of:")[2].split()) or "none"
            raise MissingExtraError(
                f"Apertium has no direction {self.pair!r}; it has: {there_are}. On Debian and Ubuntu: apt-get install "
                f"{self._package}"
            )
        answer = done.stdout.removesuffix("\n").split("\n")
        if done.returncode or len(answer) != 2 * len(lines) - 1 or "".join(answer[1::2]).strip():
            raise TrainingError(
                f"apertium {self.pair} returned {len(answer)} lines for {2 * len(lines) - 1}, with exit status "
                f"{done.returncode}: {done.stderr.strip()[:300] or 'it said nothing'}"
            )
        return answer[::2]

    @property
    def _package(self) -> str:
        """The Debian package, which serves both directions."""
        return "-".join(["apertium", *sorted(code.partition("_")[0] for code in self.pair.split("-"))])


@register
@dataclass(frozen=True)
class Seq2SeqTranslator:
    """Translates with an encoder-decoder model of transformers, such as Marian or T5, by greedy or beam search.

    The model is loaded once a process, on the accelerator where there is one. In one batch with others, a near tie
    between two words may be decided otherwise than alone; with `batch_size=1` a translation depends on its text only.

    Source: Junczys-Dowmunt et al. 2018, Marian, https://arxiv.org/abs/1804.00344.

    Args:
        model: A hub id, such as "Helsinki-NLP/opus-mt-en-fr", or a folder; with safetensors.
        revision: The revision of the hub model.
        batch_size: Texts that are translated together.
        num_beams: Beams; 1 is greedy search.
        max_new_tokens: Tokens after which a translation is cut.
        prompt: Put in front of each text, as T5 wants: "translate English to German: ".

    Raises:
        ConfigError: A setting outside its range.
        ModelError: At first use: a model that cannot be loaded, or not safely.

    >>> from lowft.registry import to_dict
    >>> to_dict(Seq2SeqTranslator("Helsinki-NLP/opus-mt-en-fr"))["settings"]["num_beams"]
    1
    """

    model: str
    revision: str | None = None
    batch_size: int = 16
    num_beams: int = 1
    max_new_tokens: int = 256
    prompt: str = ""

    def __post_init__(self) -> None:
        """Check every setting."""
        check_text("Seq2SeqTranslator.model", self.model)
        if self.revision is not None:
            check_text("Seq2SeqTranslator.revision", self.revision)
        for name in ("batch_size", "num_beams", "max_new_tokens"):
            check_whole(f"Seq2SeqTranslator.{name}", getattr(self, name), least=1)
        if not isinstance(self.prompt, str):
            raise ConfigError(f"Seq2SeqTranslator.prompt must be a text; received {self.prompt!r}")

    def __call__(self, texts: Sequence[str], /) -> list[str]:
        """Return the translation of each text; those of like length are translated together."""
        from lowft.models._quiet import quiet

        model, tokenizer = _load(self.model, self.revision)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        found: dict[int, str] = {}
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            prompted = [self.prompt + texts[index] for index in chosen]
            encoded = tokenizer(prompted, padding=True, truncation=True, return_tensors="pt")
            inputs = {name: encoded[name].to(model.device) for name in ("input_ids", "attention_mask")}
            # Else transformers says each time that max_new_tokens replaces the checkpoint's own length.
            with torch.inference_mode(), quiet():
                tokens = model.generate(
                    **inputs, do_sample=False, num_beams=self.num_beams, max_new_tokens=self.max_new_tokens
                )
            found |= zip(chosen, tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True)
        return [found[index] for index in range(len(texts))]


@functools.lru_cache(maxsize=2)
def _load(name: str, revision: str | None) -> tuple[Any, Any]:
    """Return a model and its tokenizer; there and back are two."""
    from transformers import AutoModelForSeq2SeqLM

    model, tokenizer, missing = open_model(
        AutoModelForSeq2SeqLM, name, revision, purpose="Seq2SeqTranslator", kind="an encoder-decoder model"
    )
    if missing:
        raise ModelError(
            f"Seq2SeqTranslator: {name!r} is no complete encoder-decoder model; it lacks {', '.join(missing[:5])}. "
            f"Give a model that was trained to translate"
        )
    return model, tokenizer
