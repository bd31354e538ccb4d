from __future__ import annotations

import random
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowft.augment import PunctuationInsertion, RandomDeletion, RandomMasking, RandomSwap
from lowft.augment._words import find_words
from lowft.errors import ConfigError

TEXT = st.text(alphabet=st.sampled_from("abC9 '-.,!\n\t"), max_size=60)
SEED = st.integers(0, 1000)


def words_of(text: str) -> list[str]:
    """Return the words of a text."""
    return [text[start:end] for start, end in find_words(text)]


def between(text: str) -> list[str]:
    """Return what stands before, between and after the words."""
    parts, at = [], 0
    for start, end in find_words(text):
        parts.append(text[at:start])
        at = end
    return [*parts, text[at:]]


@given(text=TEXT, seed=SEED, share=st.floats(0.01, 1), span=st.integers(1, 5))
def test_masking_replaces_words_and_nothing_else(text: str, seed: int, share: float, span: int) -> None:
    """The share of words, at least one, becomes the mask; all other words and all gaps stay."""
    varied = RandomMasking(share, mask="§", longest_span=span).vary(text, random.Random(seed))
    words = words_of(text)
    assert varied.count("§") == (max(1, round(share * len(words))) if words else 0)
    rest = varied
    for gap, word in zip(between(text), [*words, ""], strict=True):
        assert rest.startswith(gap)
        rest = rest.removeprefix(gap)
        rest = rest.removeprefix("§") if rest.startswith("§") else rest.removeprefix(word)
    assert rest == ""


def test_masks_come_in_spans() -> None:
    """With longer spans, masked words stand together more often."""
    text = " ".join(["word"] * 100)

    def runs(span: int) -> int:
        varied = RandomMasking(0.3, mask="[MASK]", longest_span=span).vary(text, random.Random(0))
        assert varied.count("[MASK]") == 30
        return len(re.findall(r"\[MASK\](?: \[MASK\])*", varied))

    assert runs(10) < runs(1) - 5


@given(text=TEXT, seed=SEED, share=st.floats(0.01, 1))
def test_swapping_keeps_words_and_gaps(text: str, seed: int, share: float) -> None:
    """The same words stand between the same gaps, in another order."""
    varied = RandomSwap(share).vary(text, random.Random(seed))
    assert between(varied) == between(text)
    assert sorted(words_of(varied)) == sorted(words_of(text))


@given(text=TEXT, seed=SEED, share=st.floats(0.01, 0.99))
def test_deletion_keeps_order_punctuation_and_a_word(text: str, seed: int, share: float) -> None:
    """What remains is part of the original, in order; everything that is neither word nor blank remains."""
    varied = RandomDeletion(share).vary(text, random.Random(seed))
    words = words_of(text)
    gaps = ["".join(f"{c}?" if c in " \t" else re.escape(c) for c in gap) for gap in between(text)]
    optional = [f"(?:{re.escape(word)})?" for word in words]
    pattern = "".join(part for pair in zip(gaps, [*optional, ""], strict=True) for part in pair)
    assert re.fullmatch(pattern, varied)
    assert bool(words) == bool(re.search(r"\w", varied))


def test_deletion_takes_one_space_with_the_word() -> None:
    """No doubled space and no space at the edge is left behind."""
    text = "Dark, sad (warm) film about love"
    for seed in range(200):
        varied = RandomDeletion(0.5).vary(text, random.Random(seed))
        assert "  " not in varied
        assert varied == varied.strip()
        assert "( " not in varied
        assert " )" not in varied


@given(text=TEXT, seed=SEED, share=st.floats(0.01, 1))
def test_punctuation_goes_in_front_of_words(text: str, seed: int, share: float) -> None:
    """From one mark to the share of the words; with the marks taken out, the text is as before."""
    varied = PunctuationInsertion(share).vary(text, random.Random(seed))
    words, added = words_of(text), len(varied) - len(text)
    assert added % 2 == 0
    assert (1 if words else 0) <= added // 2 <= (max(1, round(share * len(words))) if words else 0)
    rest = iter(varied)
    assert all(character in rest for character in text)
    assert [word for word in words_of(varied) if re.search(r"\w", word)] == words


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (
            RandomMasking,
            {"share": 0},
            r"RandomMasking\.share must be a finite number above 0 and at most 1; received 0",
        ),
        (RandomMasking, {"mask": ""}, r"RandomMasking\.mask must be a text that is not empty"),
        (RandomMasking, {"longest_span": 0}, r"RandomMasking\.longest_span must be a whole number of at least 1"),
        (RandomSwap, {"share": 1.5}, r"RandomSwap\.share must be .* received 1\.5"),
        (RandomDeletion, {"share": 1}, r"RandomDeletion\.share must be .* above 0 and below 1; received 1"),
        (PunctuationInsertion, {"share": "much"}, r"PunctuationInsertion\.share must be a finite number"),
    ],
)
def test_settings_are_checked(make: Any, settings: dict[str, Any], message: str) -> None:
    """A setting outside its range is refused with the rule and the value."""
    with pytest.raises(ConfigError, match=message):
        make(**settings)
