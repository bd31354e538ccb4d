"""Whatever synonyms come from, nothing but the replaced words changes: in real reviews and in texts that are hard."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowft.augment import ContextualReplacement, EmbeddingNeighbors, RandomInsertion, SynonymReplacement
from lowft.augment._choosing import Option
from tests.augment.tiny_masked import masked_folder
from tests.augment.tiny_wordnet import write_wordnet

DICTIONARY = {"film": ["movie"], "good": ["fine"], "story": ["tale"], "Rome": ["Paris"], "café": ["bistro"]}
# Joined at random, these make contractions, numbers, tags, addresses, names, quotes and odd spaces.
PIECES = (
    "film", "Film", "FILM", "movie", "good", "dull", "story", "café", "Rome", "the", "not", "n't", "wasn't", "'s",
    "-", "/", ".", ",", "!", "?", "...", ":", ";", "@", "#", "&", "<br />", "<", ">", '"', "(", ")", "[MASK]", "7.5",
    "10", "\u2019", "2-hour", "%", "$", "_", "*", " ", "  ", "\t", "\n", "\u00a0", "\u2028", "\u0301", "中", "🙂",
    "ﬁlm", "ß",
)  # fmt: skip
texts = st.lists(st.sampled_from(PIECES), max_size=20).map("".join)


def shouted(word: str) -> list[str]:
    """Return made-up synonyms of every word."""
    return [f"{word}x", "two words", "Eigenname"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SynonymReplacement | ContextualReplacement]:
    """Return an augmenter for each source, all of which replace every word that they can."""
    wordnet = str(write_wordnet(tmp_path_factory.mktemp("wordnet") / "files"))
    return {
        "wordnet": SynonymReplacement(path=wordnet, share=1.0),
        "wordnet with a tagger": SynonymReplacement(
            path=wordnet, share=1.0, pos_tagger=lambda words: ["NOUN" if len(word) % 2 else "VERB" for word in words]
        ),
        "dictionary": SynonymReplacement(DICTIONARY, share=1.0, stop_words=()),
        "function": SynonymReplacement(shouted, share=1.0, protect=("<[^>]*>",)),
        "embeddings": SynonymReplacement(EmbeddingNeighbors(masked_folder(), min_similarity=-0.9), share=1.0),
        "masked model": ContextualReplacement(masked_folder(), share=1.0, min_probability=0.0),
    }


SOURCES = ("wordnet", "wordnet with a tagger", "dictionary", "function", "embeddings", "masked model")


def check(text: str, varied: str, options: Sequence[Option]) -> int:
    """Make sure that a text and its variant differ in words that could be replaced alone; return in how many."""
    pattern, at = "", 0
    for start, end, words in options:
        assert text[start:end].isalpha()
        choices = "|".join(re.escape(word) for word in (text[start:end], *words))
        pattern, at = f"{pattern}{re.escape(text[at:start])}((?i:{choices}))", end
    found = re.fullmatch(pattern + re.escape(text[at:]), varied, re.DOTALL)
    assert found is not None, (text, varied)
    changed = 0
    for (start, end, words), new in zip(options, found.groups(), strict=True):
        old = text[start:end]
        if new != old:
            changed += 1
            assert new.lower() in [word.lower() for word in words]
            if old[0].isupper():
                assert new[0].isupper() or new[0].upper() == new[0]
            if len(old) > 1 and old.isupper():
                assert new == new.upper()
    return changed


@pytest.mark.parametrize("name", SOURCES)
@given(text=texts, seed=st.integers(0, 9))
def test_only_words_change_in_any_text(
    name: str, sources: dict[str, SynonymReplacement | ContextualReplacement], text: str, seed: int
) -> None:
    """Strip out the words that could be replaced, and the variant is the text."""
    augmenter = sources[name]
    check(text, augmenter([text], random.Random(seed))[0], augmenter.options(text))


@pytest.mark.parametrize("name", SOURCES)
def test_only_words_change_in_real_reviews(
    name: str,
    sources: dict[str, SynonymReplacement | ContextualReplacement],
    rotten_tomatoes: tuple[list[str], list[int]],
) -> None:
    """The same in sentences that people wrote, in three ways to write capitals; and something does change."""
    chosen = [
        text.title() if row % 3 == 1 else text.upper() if row % 3 == 2 else text
        for row, text in enumerate(rotten_tomatoes[0][:150])
    ]
    augmenter = sources[name]
    varied = augmenter(chosen, random.Random(0))
    changed = [check(text, new, augmenter.options(text)) for text, new in zip(chosen, varied, strict=True)]
    assert sum(changed) > 10


def test_neighbours_of_a_real_model_change_only_words(
    minilm_path: Path, rotten_tomatoes: tuple[list[str], list[int]]
) -> None:
    """MiniLM's embeddings have something to say about real sentences, and touch nothing else."""
    augmenter = SynonymReplacement(EmbeddingNeighbors(minilm_path), share=0.3)
    chosen = rotten_tomatoes[0][:100]
    varied = augmenter(chosen, random.Random(0))
    changed = [check(text, new, augmenter.options(text)) for text, new in zip(chosen, varied, strict=True)]
    assert sum(map(bool, changed)) > 40


@pytest.mark.parametrize("name", SOURCES[:-1])
def test_insertion_takes_synonyms_from_every_source(
    name: str, sources: dict[str, SynonymReplacement | ContextualReplacement]
) -> None:
    """What is put in are synonyms of the text's own words; with them taken out, the text is as it was."""
    synonyms = sources[name]
    assert isinstance(synonyms, SynonymReplacement)
    text = "A good film, and a brilliant story."
    known = {word for _, _, words in synonyms.options(text) for word in words}
    assert known
    choices = "|".join(map(re.escape, known))
    pattern = re.sub(r"\\?\b(?=\w)", lambda _: f"(?:(?:{choices}) )*", text)
    for seed in range(10):
        varied = RandomInsertion(synonyms, share=0.3).vary(text, random.Random(seed))
        assert len(varied) > len(text)
        assert re.fullmatch(pattern, varied)
