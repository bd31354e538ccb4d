from __future__ import annotations

import pickle
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowft.augment import (
    ApertiumTranslator,
    Augmenter,
    BackTranslation,
    ContextualReplacement,
    EmbeddingNeighbors,
    NlpAug,
    PunctuationInsertion,
    RandomDeletion,
    RandomInsertion,
    RandomMasking,
    RandomSwap,
    Seq2SeqTranslator,
    SynonymReplacement,
)
from lowft.errors import ConfigError, DataError
from lowft.registry import from_dict, register, to_dict
from tests.augment.tiny_masked import masked_folder

DICTIONARY = {"film": ["movie", "picture"], "bad": ["awful"], "Café": ["bistro"]}
TEXTS = ("It wasn't a bad, 2-hour film (7.5/10).", "FILM", "", "  ", "...", "Das  café\tist\nzu.")


@register
@dataclass(frozen=True)
class ReverseTranslator:
    """A translator that a recipe can hold: it turns the words around, so that a round trip changes their case."""

    upper: bool = False

    def __call__(self, texts: Sequence[str], /) -> list[str]:
        return [text[::-1].upper() if self.upper else text[::-1] for text in texts]


@register
@dataclass(frozen=True)
class Endings:
    """A source of synonyms that a recipe can hold."""

    ending: str

    def __call__(self, word: str, /) -> list[str]:
        return [word + self.ending]


AUGMENTERS: dict[str, Augmenter] = {
    "back-translation": BackTranslation(ReverseTranslator(), ReverseTranslator(upper=True)),
    "contextual": ContextualReplacement(masked_folder(), min_probability=0.0),
    "deletion": RandomDeletion(0.4),
    "embeddings": SynonymReplacement(EmbeddingNeighbors(masked_folder(), min_similarity=-0.9), share=0.5),
    "function": SynonymReplacement(Endings("zzz"), share=0.5),
    "insertion": RandomInsertion(SynonymReplacement(DICTIONARY), share=0.3),
    "masking": RandomMasking(0.4, longest_span=2),
    "nlpaug": NlpAug("RandomCharAug", {"action": "swap"}),
    "punctuation": PunctuationInsertion(),
    "swap": RandomSwap(0.3),
    "synonyms": SynonymReplacement(DICTIONARY, share=0.5, protect=("2-hour",), stop_words=("zu",)),
}


@pytest.mark.parametrize("name", AUGMENTERS)
def test_one_text_comes_back_for_each(name: str) -> None:
    """As many texts come back as went in, the same for the same seed; the list handed over is as it was."""
    augmenter, texts = AUGMENTERS[name], list(TEXTS)
    varied = augmenter(texts, random.Random(1))
    assert texts == list(TEXTS)
    assert len(varied) == len(TEXTS)
    assert all(isinstance(text, str) for text in varied)
    assert varied == augmenter(TEXTS, random.Random(1))
    assert augmenter([], random.Random(1)) == []


@pytest.mark.parametrize("name", AUGMENTERS)
def test_something_changes(name: str) -> None:
    """Over a few seeds, the text changes."""
    assert any(AUGMENTERS[name](TEXTS[:1], random.Random(seed)) != [TEXTS[0]] for seed in range(20))


@pytest.mark.parametrize("name", AUGMENTERS)
def test_a_source_for_each_text_makes_them_independent(name: str) -> None:
    """With a source of its own, a text's variant is the same whatever texts are beside it."""
    augmenter = AUGMENTERS[name]
    together = augmenter(TEXTS, [random.Random(row) for row in range(len(TEXTS))])
    alone = [augmenter([text], [random.Random(row)])[0] for row, text in enumerate(TEXTS)]
    assert together == alone


@pytest.mark.parametrize("name", AUGMENTERS)
def test_the_global_streams_are_left_alone(name: str) -> None:
    """Neither does an augmenter draw from the global streams, nor do they decide what it makes."""
    augmenter = AUGMENTERS[name]
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global one is what this is about
    torch.manual_seed(1)
    one = augmenter(TEXTS, random.Random(5))
    drawn = random.random(), float(np.random.rand()), torch.rand(()).item()  # noqa: NPY002
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    assert drawn == (random.random(), float(np.random.rand()), torch.rand(()).item())  # noqa: NPY002
    assert one == augmenter(TEXTS, random.Random(5))


@pytest.mark.parametrize("name", AUGMENTERS)
def test_it_survives_pickle_and_recipe(name: str) -> None:
    """An augmenter that was pickled, or written to a recipe and read back, makes the same variants."""
    augmenter = AUGMENTERS[name]
    for again in (pickle.loads(pickle.dumps(augmenter)), from_dict(to_dict(augmenter))):  # noqa: S301 - our own bytes
        assert again == augmenter
        assert again(TEXTS, random.Random(2)) == augmenter(TEXTS, random.Random(2))


@pytest.mark.parametrize("name", [name for name in AUGMENTERS if name not in ("nlpaug", "back-translation")])
@given(text=st.text(alphabet=st.sampled_from("aB9é '\u2019-.,!?\n\t_[]中🙂"), max_size=40), seed=st.integers(0, 99))
def test_any_text_is_taken(name: str, text: str, seed: int) -> None:
    """No text, however odd, makes an augmenter fail."""
    assert len(AUGMENTERS[name]([text], random.Random(seed))) == 1


def test_translators_can_be_part_of_a_recipe() -> None:
    """Back-translation by Apertium or by models is saved with all its settings."""
    for translator in (ApertiumTranslator("eng-cat"), Seq2SeqTranslator("folder", num_beams=3, prompt="to German: ")):
        trip = BackTranslation(translator, translator, remembered=5)
        assert from_dict(to_dict(trip)) == trip


def test_a_function_as_translator_cannot_be_saved() -> None:
    """A recipe cannot hold a function; the message says what it can hold."""
    trip = BackTranslation(lambda texts: [*texts], ReverseTranslator())
    with pytest.raises(
        ConfigError, match=r"BackTranslation\.there .* cannot be saved.* registered with lowft\.register"
    ):
        to_dict(trip)


@pytest.mark.parametrize("texts", ["one text", 3, {"a"}])
def test_texts_must_be_a_list(texts: object) -> None:
    """A single text, or something else, is refused with the form that works."""
    with pytest.raises(DataError, match=r"RandomSwap takes a list of texts; received .* One text is a list too"):
        RandomSwap()(texts, random.Random(0))  # type: ignore[arg-type]


def test_what_is_no_text_is_named() -> None:
    """Entries that are no texts are counted, and the first five placed."""
    with pytest.raises(
        DataError, match=r"6 of the 7 entries are none, at \[1, 2, 3, 4, 5\] and more: the first is None"
    ):
        RandomSwap()(["a", *[None] * 6], random.Random(0))  # type: ignore[list-item]


@pytest.mark.parametrize("rng", [None, 3, random, [random.Random(0)], [0, 0]])
def test_the_source_must_be_a_source(rng: object) -> None:
    """`rng` must be a random.Random, or as many as there are texts."""
    with pytest.raises(ConfigError, match=r"rng must be a random\.Random, or a list of one for each of the 2 texts"):
        RandomSwap()(["a b", "c d"], rng)  # type: ignore[arg-type]


def test_a_subclass_that_loses_texts_is_named() -> None:
    """An augmenter of one's own that returns too few texts is told so."""

    @dataclass(frozen=True)
    class Loser(Augmenter):
        def vary(self, text: str, rng: random.Random) -> str:
            return text

        def vary_all(self, texts: object, rngs: object) -> list[str]:
            return ["one"]

    with pytest.raises(ConfigError, match=r"Loser\.vary_all must return one text for each .* returned 1 for 2"):
        Loser()(["a", "b"], random.Random(0))
