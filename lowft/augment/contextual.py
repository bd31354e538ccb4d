"""Words replaced by what a masked language model expects in their place."""

from __future__ import annotations

import random
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from lowft._inference import evaluation_mode
from lowft._placement import device_of
from lowft._progress import progress_bar
from lowft._settings import check_flag, check_real, check_whole
from lowft.augment._choosing import Option, check_choosing, find_options, replace_words
from lowft.augment._models import WordTokens, check_source, open_source
from lowft.augment._words import find_words
from lowft.augment.augmenter import Augmenter
from lowft.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ContextualReplacement"]


@dataclass(frozen=True)
class ContextualReplacement(Augmenter):
    """Replace some words by words that a masked language model finds likely in their place.

    Each word is hidden in turn and the model asked what stood there; what is drawn is one of its likeliest answers, in
    the capitals of the word. Every other character stays as it was, and so do stop words, contractions, compounds,
    numbers, names and what you protect, as in `SynonymReplacement`. Answers that are no whole word, a function word, a
    number or the word itself are passed over.

    A model that sees only the rest of a sentence cannot know what was said: for "a [MASK] film" it may say "bad". With
    `show_word` it reads the unchanged text beside, which draws it to what means the same; opposites still occur. Let
    `Augment(drop_misread=...)` or `drop_harmful` watch.

    A text costs one pass of the model for each word that could be replaced. `lowft.Augment` makes them when the
    Trainer is built; answers are kept in memory and depend on the text alone.

    Sources: Kobayashi 2018, https://arxiv.org/abs/1805.06201; the text beside: Qiang et al. 2020, LSBert,
    https://arxiv.org/abs/2006.14939.

    Args:
        model: A hub id or a folder, with safetensors, of a model with a trained head for hidden words, such as
            "distilroberta-base"; or such a model that you hold, which no checkpoint can name.
        tokenizer: Its tokenizer, or a folder or hub id of it; that of the model if None.
        share: Share of the text's words to replace, at least one.
        max_words: At most this many words of a text.
        top: From how many of the likeliest answers to draw.
        min_probability: Least probability of an answer, among all whole words but the one that stands there.
        show_word: Whether the model reads the unchanged text beside the one with the word hidden.
        context: Words on each side of the hidden one that the model reads.
        stop_words: Words to leave alone; None is a list of English function words.
        protect: Regular expressions; what they match stays as it is.
        batch_size: Hidden words that go through the model together.
        remembered: Texts whose answers are kept; beyond it the oldest are forgotten.
        revision: The revision of the hub model.

    Raises:
        ConfigError: A setting outside its range; at first use, a tokenizer without a mask token or whole words.
        ModelError: At first use: a model that cannot be loaded, or has no trained head for hidden words.

    >>> from lowft.registry import to_dict
    >>> to_dict(ContextualReplacement("distilroberta-base", share=0.2))["settings"]["top"]
    5
    """

    model: Any
    tokenizer: Any = None
    share: float = 0.1
    max_words: int | None = None
    top: int = 5
    min_probability: float = 0.02
    show_word: bool = True
    context: int = 32
    stop_words: tuple[str, ...] | None = None
    protect: tuple[str, ...] = ()
    batch_size: int = 32
    remembered: int = 100_000
    revision: str | None = None
    _known: dict[str, tuple[Option, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _opened: list[_Asked] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check every setting."""
        check_source(self)
        check_choosing(self)
        for name in ("top", "context", "batch_size", "remembered"):
            check_whole(f"ContextualReplacement.{name}", getattr(self, name), least=1)
        check_real("ContextualReplacement.min_probability", self.min_probability, least=0, below=1)
        check_flag("ContextualReplacement.show_word", self.show_word)

    def options(self, text: str) -> Sequence[Option]:
        """Return where the words of a text stand that may be replaced, and what may stand there."""
        if text not in self._known:
            self._known[text] = self._ask(text)
            while len(self._known) > self.remembered:
                del self._known[next(iter(self._known))]
        return self._known[text]

    def vary(self, text: str, rng: random.Random) -> str:
        """Return the text with words replaced."""
        return replace_words(text, self.options(text), share=self.share, max_words=self.max_words, rng=rng)

    def prepare(self, texts: Sequence[str]) -> None:
        """Ask the model about all texts once, with a progress bar."""
        self._model  # noqa: B018 - opened, so that one that cannot be used is found even where no word is asked about
        texts = list(dict.fromkeys(texts))[: self.remembered]
        for text in progress_bar(texts, "hiding words", shown=None if len(texts) > 1 else False, leave=False):
            self.options(text)

    @property
    def _model(self) -> _Asked:
        if not self._opened:
            self._opened.append(_Asked(self))
        return self._opened[0]

    def _ask(self, text: str) -> tuple[Option, ...]:
        protect = (*self.protect, re.escape(self._model.tokenizer.mask_token))
        places = find_options(text, lambda word: [word], protect=protect, stop_words=self.stop_words, names=False)
        spans = [(start, end) for start, end, _ in places]
        # A batch holds words of one text alone: in company, rounding could decide a near tie otherwise.
        found: list[Option] = []
        for first in range(0, len(spans), self.batch_size):
            chosen = spans[first : first + self.batch_size]
            answers = self._model.answers(text, chosen)
            found += [(start, end, words) for (start, end), words in zip(chosen, answers, strict=True) if words]
        return tuple(found)


class _Asked:
    """An opened model, and how it is asked.

    Args:
        settings: What names or holds it.
    """

    def __init__(self, settings: ContextualReplacement) -> None:
        from transformers import AutoModelForMaskedLM

        kind = "a model with a head for hidden words"
        self.settings = settings
        self.model, self.tokenizer, missing = open_source(settings, AutoModelForMaskedLM, kind=kind)
        if missing:
            raise ModelError(
                f"ContextualReplacement: {settings.model!r} is no complete masked language model; it lacks "
                f"{', '.join(missing[:5])}. Give one whose head for hidden words was trained"
            )
        if self.tokenizer.mask_token is None:
            raise ConfigError(
                f"ContextualReplacement hides words behind a mask token, and this {type(self.tokenizer).__name__} has "
                f"none: give a masked language model, such as BERT or RoBERTa, with its own tokenizer"
            )
        self.tokens = WordTokens(self.tokenizer, len(self.model.get_input_embeddings().weight))

    def answers(self, text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[str, ...]]:
        """Return the likely words for each place of a text, the likeliest first."""
        mask, settings = self.tokenizer.mask_token, self.settings
        shown, hidden, numbers = [], [], []
        for start, end, first, last in _windows(text, spans, settings.context):
            before, after = text[first:start], text[end:last]
            shown.append(text[first:last])
            hidden.append(f"{before}{mask}{after}")
            # A text may hold the mask token already: this one's number among all masks.
            numbers.append(before.count(mask) + (shown[-1].count(mask) if settings.show_word else 0))
        pair = (shown, hidden) if settings.show_word else (hidden,)
        encoded = self.tokenizer(*pair, padding=True, truncation=True, return_tensors="pt")
        places, asked = [], []
        for row, (ids, number) in enumerate(zip(encoded["input_ids"], numbers, strict=True)):
            masks = (ids == self.tokenizer.mask_token_id).nonzero()[:, 0].tolist()
            if number < len(masks):  # else the text was cut before it
                asked.append(row)
                places.append(masks[number])
        found: list[tuple[str, ...]] = [()] * len(spans)
        if asked:
            device = device_of(self.model)
            inputs = {name: tensor[asked].to(device) for name, tensor in encoded.items()}
            likely = self.tokens.probabilities(self._logits(inputs, places)).cpu()
            for row, values in zip(asked, likely, strict=True):
                start, end = spans[row]
                found[row] = self._likeliest(values, text[start:end].lower())
        return found

    @torch.no_grad()
    def _logits(self, inputs: dict[str, Tensor], places: list[int]) -> Tensor:
        """Return the scores of all tokens at one place of each row, `[rows, tokens]`, computed at no other."""
        rows = list(range(len(places)))

        def only_there(module: Any, arguments: Any, output: Any) -> Any:  # noqa: ARG001 - as torch calls it
            states = output[0][rows, places][:, None]
            if isinstance(output, tuple):
                return (states, *output[1:])
            output["last_hidden_state"] = states
            return output

        with evaluation_mode(self.model):
            hook = self.model.base_model.register_forward_hook(only_there)
            try:
                logits: Tensor = self.model(**inputs).logits[:, 0]
            finally:
                hook.remove()
        return logits

    def _likeliest(self, likely: Tensor, word: str) -> tuple[str, ...]:
        own = self.tokens.places.get(word)
        if own is not None:
            likely[own] = 0
        values, places = likely.topk(min(self.settings.top, len(likely)))
        least = self.settings.min_probability * likely.sum()
        return tuple(
            self.tokens.words[place]
            for value, place in zip(values, places.tolist(), strict=True)
            if value >= least and self.tokens.words[place] != word
        )


def _windows(text: str, spans: Sequence[tuple[int, int]], context: int) -> list[tuple[int, int, int, int]]:
    """Return for each place where it starts and ends, and where the words around it do.

    >>> _windows("it is a warm film", [(8, 12)], 1)
    [(8, 12, 6, 17)]
    """
    words = find_words(text)
    starts = [start for start, _ in words]
    found = []
    for start, end in spans:
        at = bisect_right(starts, start) - 1
        first = 0 if at < context else starts[at - context]
        last = len(text) if at + context + 1 >= len(words) else words[at + context][1]
        found.append((start, end, first, max(last, end)))
    return found
