from __future__ import annotations

import logging
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from lowft.augment import ApertiumTranslator, BackTranslation, Seq2SeqTranslator
from lowft.errors import ConfigError, MissingExtraError, ModelError, TrainingError
from tests.tiny import VOCABULARY, tiny_model, tiny_tokenizer


class Counted:
    """A translator that remembers what it was asked."""

    def __init__(self, change: Callable[[str], str]) -> None:
        self.change = change
        self.calls: list[list[str]] = []

    def __call__(self, texts: Sequence[str], /) -> list[str]:
        self.calls.append(list(texts))
        return [self.change(text) for text in texts]


def test_a_text_goes_there_and_back() -> None:
    """Both translators are called once for all texts, in turn; each text once, blank ones not at all."""
    there, back = Counted(str.upper), Counted(lambda text: f"<{text}>")
    varied = BackTranslation(there, back)(["a", "", "b", " ", "a"], random.Random(0))
    assert varied == ["<A>", "", "<B>", " ", "<A>"]
    assert there.calls == [["a", "b"]]
    assert back.calls == [["A", "B"]]


def test_what_is_known_is_not_translated_again() -> None:
    """`prepare` translates all texts; later calls ask for new ones only."""
    there = Counted(str.upper)
    trip = BackTranslation(there, Counted(str))
    trip.prepare(["a", "b"])
    assert trip(["b", "c", "a"], random.Random(0)) == ["B", "C", "A"]
    assert there.calls == [["a", "b"], ["c"]]


def test_the_oldest_are_forgotten() -> None:
    """No more variants are kept than asked for, and forgetting changes no answer."""
    there = Counted(str.upper)
    trip = BackTranslation(there, Counted(str), remembered=2)
    trip.prepare(["a", "b", "c", "d"])
    assert there.calls == [["a", "b"]]
    assert trip(["b", "c", "d", "e"], random.Random(0)) == ["B", "C", "D", "E"]
    assert trip(["d", "e", "a"], random.Random(0)) == ["D", "E", "A"]
    assert there.calls == [["a", "b"], ["c", "d", "e"], ["a"]]


@pytest.mark.parametrize("answer", [["a"], ["a", "b", "c"], ["a", None]])
def test_a_translator_that_loses_texts_is_named(answer: Any) -> None:
    """Each text must come back as one text."""
    trip = BackTranslation(Counted(str), lambda texts: answer)
    with pytest.raises(ConfigError, match=r"BackTranslation\.back must return one text for each .* for 2 texts it"):
        trip(["a", "b"], random.Random(0))


@pytest.mark.parametrize("translator", [None, "eng-spa", ApertiumTranslator])
def test_a_translator_must_be_callable(translator: Any) -> None:
    """A name, or a class instead of an object, is refused with what would do."""
    with pytest.raises(ConfigError, match=r"BackTranslation\.there must be a translator, such as lowft\.Apertium"):
        BackTranslation(translator, Counted(str))
    with pytest.raises(ConfigError, match=r"BackTranslation\.remembered must be a whole number of at least 1"):
        BackTranslation(Counted(str), Counted(str), remembered=0)


PROGRAM = """#!{python}
import sys
assert sys.argv[1:] == ["-u", "eng-spa"], sys.argv
sys.stdin.reconfigure(encoding="utf-8", newline="\\n")
sys.stdout.reconfigure(encoding="utf-8", newline="\\n")
{body}
"""


@pytest.fixture
def apertium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ApertiumTranslator]:
    """Return a function that puts a stand-in for the program apertium on the path, and makes its translator."""

    def install(body: str) -> ApertiumTranslator:
        program = tmp_path / "apertium"
        program.write_text(PROGRAM.format(python=sys.executable, body=body), "utf-8")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        return ApertiumTranslator("eng-spa")

    return install


SHOUT = "sys.stdout.write(sys.stdin.read().upper())"


def test_breaks_and_outer_spaces_stay(apertium: Callable[[str], ApertiumTranslator]) -> None:
    """Apertium sees one line for each stretch of text, and every break and outer space stands where it stood."""
    texts = ["one\ntwo", "  three \t\r\n four", "", " \n ", "\x00five\x00", "s\u00e9ven\u2028eight"]
    assert apertium(SHOUT)(texts) == [text.upper() for text in texts]


def test_texts_travel_in_one_run_apart_from_each_other(
    apertium: Callable[[str], ApertiumTranslator], tmp_path: Path
) -> None:
    """All lines go into one process, with empty lines between them."""
    translate = apertium(
        f"text = sys.stdin.read(); open({str(tmp_path / 'log')!r}, 'a').write(text); print(text, end='')"
    )
    translate(["one", "two\nthree"])
    assert (tmp_path / "log").read_text() == "one\n\ntwo\n\nthree\n"


def test_no_text_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blank texts come back without Apertium being there."""
    monkeypatch.setenv("PATH", "")
    assert ApertiumTranslator("eng-spa")(["", " \n"]) == ["", " \n"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("print('only one line')", r"apertium eng-spa returned 1 lines for 3, with exit status 0: it said nothing"),
        ("print('a\\nb\\nc')", r"apertium eng-spa returned 3 lines for 3"),
        ("sys.exit('out of memory')", r"exit status 1: out of memory"),
    ],
)
def test_a_failing_apertium_is_an_error(apertium: Callable[[str], ApertiumTranslator], body: str, message: str) -> None:
    """Lost or shifted lines and a bad exit status are errors, with what Apertium said."""
    with pytest.raises(TrainingError, match=message):
        apertium(body)(["one", "two"])


def test_a_missing_direction_names_the_package(apertium: Callable[[str], ApertiumTranslator]) -> None:
    """Where Apertium lacks the direction, the message lists those it has and names the package."""
    body = "sys.exit('Error: Mode eng-spa does not exist. Try one of:\\n  eng-cat\\n  cat-eng')"
    with pytest.raises(MissingExtraError, match=r"it has: eng-cat cat-eng\. .* apt-get install apertium-eng-spa"):
        apertium(body)(["one"])


@pytest.mark.parametrize("pair", ["eng-spa", "spa-eng", "spa-eng_US"])
def test_a_missing_apertium_names_the_package(pair: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the program, the message names the Debian package, which serves both directions."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingExtraError, match=r"apertium, which is not installed.*apt-get install apertium-eng-spa$"):
        ApertiumTranslator(pair)(["one"])


@pytest.mark.parametrize("pair", ["english", "-d-e", "eng-spa;ls", "", None, "eng-"])
def test_a_pair_is_two_codes(pair: Any) -> None:
    """What becomes an argument of a command must be two language codes."""
    with pytest.raises(ConfigError, match=r"ApertiumTranslator\.pair must be two language codes, as 'eng-spa'; got"):
        ApertiumTranslator(pair)


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny random encoder-decoder model."""
    folder = tmp_path_factory.mktemp("t5")
    sizes: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    config = T5Config(vocab_size=len(VOCABULARY), **sizes, decoder_start_token_id=0)  # type: ignore[call-arg]
    torch.manual_seed(3)
    model: Any = T5ForConditionalGeneration(config)
    model.generation_config.suppress_tokens = list(range(5))  # else a random model ends at once
    model.generation_config.max_length = 7  # which max_new_tokens replaces, and transformers would warn
    model.save_pretrained(folder)
    tiny_tokenizer("t5").save_pretrained(folder)
    return folder


def test_a_model_translates_in_batches(t5_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Texts come back in their order, whatever batch they were in, and without warnings."""
    texts = ["a dull and lazy film", "love", "a warm , funny story about love", "plot"]
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)  # its records do not reach the root logger
    alone = Seq2SeqTranslator(str(t5_folder), batch_size=1, max_new_tokens=6)(texts)
    together = Seq2SeqTranslator(str(t5_folder), batch_size=3, max_new_tokens=6)(texts)
    logger.removeHandler(caplog.handler)
    assert together == alone
    assert len(set(alone)) > 1
    assert all(isinstance(text, str) and "[" not in text for text in alone)
    assert not caplog.records


def test_settings_of_the_search_matter(t5_folder: Path) -> None:
    """Prompt, beams and length reach the model."""
    texts = ["a dull and lazy film", "love"]
    plain = Seq2SeqTranslator(str(t5_folder), max_new_tokens=6)(texts)
    assert Seq2SeqTranslator(str(t5_folder), max_new_tokens=6, prompt="the bad and the good ")(texts) != plain
    assert Seq2SeqTranslator(str(t5_folder), max_new_tokens=2)(texts) != plain
    assert Seq2SeqTranslator(str(t5_folder), max_new_tokens=6, num_beams=4)(texts) != plain


def test_a_model_makes_a_round_trip(t5_folder: Path) -> None:
    """A model serves as translator of BackTranslation."""
    translator = Seq2SeqTranslator(str(t5_folder), max_new_tokens=4)
    varied = BackTranslation(translator, translator)(["love", "plot"], random.Random(0))
    assert varied == translator(translator(["love", "plot"]))


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    """A classifier does not translate."""
    tiny_model("bert").save_pretrained(tmp_path)
    tiny_tokenizer("bert").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"cannot be loaded as an encoder-decoder model with safetensors"):
        Seq2SeqTranslator(str(tmp_path))(["a"])


def test_an_incomplete_model_is_refused(tmp_path: Path) -> None:
    """A checkpoint without its decoder would translate at random."""
    tiny_model("t5").save_pretrained(tmp_path)
    tiny_tokenizer("t5").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    from safetensors.torch import load_file, save_file

    kept = {name: value for name, value in load_file(weights).items() if "decoder" not in name}
    save_file(kept, weights, {"format": "pt"})
    with pytest.raises(ModelError, match=r"is no complete encoder-decoder model; it lacks .*decoder"):
        Seq2SeqTranslator(str(tmp_path))(["a"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": ""}, r"model must be a text"),
        ({"revision": ""}, r"revision must be a text"),
        ({"batch_size": 0}, r"batch_size must be a whole number of at least 1"),
        ({"num_beams": 1.5}, r"num_beams must be a whole number"),
        ({"max_new_tokens": True}, r"max_new_tokens must be a whole number"),
        ({"prompt": None}, r"prompt must be a text; received None"),
    ],
)
def test_settings_of_models_are_checked(settings: dict[str, Any], message: str) -> None:
    """A setting outside its range is refused with the rule and the value."""
    with pytest.raises(ConfigError, match=rf"Seq2SeqTranslator\.{message}"):
        Seq2SeqTranslator(**({"model": "folder"} | settings))
