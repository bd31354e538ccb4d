"""Noise that needs no knowledge of a language: words masked, swapped or left out, punctuation put in."""

from __future__ import annotations

import random
from dataclasses import dataclass

from lowft._settings import check_real, check_text, check_whole
from lowft.augment._words import find_words, how_many, splice
from lowft.augment.augmenter import Augmenter

__all__ = ["PunctuationInsertion", "RandomDeletion", "RandomMasking", "RandomSwap"]

_MARKS = (".", ";", "?", ":", "!", ",")  # those of the paper
_BLANKS = " \t"


@dataclass(frozen=True)
class RandomMasking(Augmenter):
    """Put the mask token in the place of some words, so that no single word decides the label.

    This is noise on the input; the model is not asked what stood there. A word is a stretch without spaces or outer
    punctuation, and becomes one mask token. Masking whole spans makes the rest harder to guess (Joshi et al. 2020,
    SpanBERT, section 3.1, https://arxiv.org/abs/1907.10529).

    Args:
        share: Share of the words to mask, at least one.
        mask: The mask token: your tokenizer's `mask_token`, such as "<mask>" for RoBERTa.
        longest_span: Masks come in runs of neighbouring words whose length is drawn from 1 to this.

    Raises:
        ConfigError: A setting outside its range.

    >>> RandomMasking(share=0.3)(["A warm, funny film about love."], random.Random(0))
    ['A warm, funny [MASK] about [MASK].']
    """

    share: float = 0.15
    mask: str = "[MASK]"
    longest_span: int = 1

    def __post_init__(self) -> None:
        """Check every setting."""
        check_real("RandomMasking.share", self.share, above=0, most=1)
        check_text("RandomMasking.mask", self.mask)
        check_whole("RandomMasking.longest_span", self.longest_span, least=1)

    def vary(self, text: str, rng: random.Random) -> str:
        """Return the text with words masked."""
        words = find_words(text)
        count = min(how_many(self.share, len(words)), len(words))
        masked: set[int] = set()
        for start in rng.sample(range(len(words)), len(words)):
            length = min(rng.randint(1, self.longest_span), count - len(masked))
            masked.update(range(start, min(start + length, len(words))))
            if len(masked) == count:
                break
        return splice(text, [(*words[index], self.mask) for index in sorted(masked)])


@dataclass(frozen=True)
class RandomSwap(Augmenter):
    """Let some pairs of words change places; spaces and punctuation stay where they are.

    Source: Wei & Zou 2019, EDA, https://arxiv.org/abs/1901.11196.

    Args:
        share: Swaps as a share of the number of words, at least one.

    Raises:
        ConfigError: `share` is not above 0 and at most 1.

    >>> RandomSwap()(["A warm, funny film."], random.Random(1))
    ['A funny, warm film.']
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        """Check the setting."""
        check_real("RandomSwap.share", self.share, above=0, most=1)

    def vary(self, text: str, rng: random.Random) -> str:
        """Return the text with words swapped."""
        places = find_words(text)
        if len(places) < 2:
            return text
        words = [text[start:end] for start, end in places]
        for _ in range(how_many(self.share, len(words))):
            one, other = rng.sample(range(len(words)), 2)
            words[one], words[other] = words[other], words[one]
        return splice(text, [(*place, word) for place, word in zip(places, words, strict=True)])


@dataclass(frozen=True)
class RandomDeletion(Augmenter):
    """Leave out some words, each with the space beside it; punctuation stays, and so does at least one word.

    Source: Wei & Zou 2019, EDA, https://arxiv.org/abs/1901.11196.

    Args:
        share: Probability with which each word is left out.

    Raises:
        ConfigError: `share` is not above 0 and below 1.

    >>> RandomDeletion(0.3)(["A warm, funny film about love."], random.Random(0))
    ['A warm, funny about love.']
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        """Check the setting."""
        check_real("RandomDeletion.share", self.share, above=0, below=1)

    def vary(self, text: str, rng: random.Random) -> str:
        """Return the text with words left out."""
        places = find_words(text)
        left_out = [rng.random() < self.share for _ in places]
        if places and all(left_out):
            left_out[rng.randrange(len(places))] = False
        parts, at, gap_is_doubled = [], 0, False
        for (start, end), out in zip(places, left_out, strict=True):
            gap = text[at:start].lstrip(_BLANKS) if gap_is_doubled else text[at:start]
            at = end
            if out:
                parts.append(gap.rstrip(_BLANKS))
                gap_is_doubled = parts[-1] == gap  # no space before the word, so the one after it goes
            else:
                parts += [gap, text[start:end]]
                gap_is_doubled = False
        tail = text[at:]
        return "".join([*parts, tail.lstrip(_BLANKS) if gap_is_doubled else tail])


@dataclass(frozen=True)
class PunctuationInsertion(Augmenter):
    """Put punctuation marks in front of some words; every word stays, in its order.

    The marks are . ; ? : ! and the comma. Source: Karimi, Rossi & Prati 2021, AEDA, https://arxiv.org/abs/2108.13230.

    Args:
        share: At most this share of the words get a mark; how many is drawn, at least one.

    Raises:
        ConfigError: `share` is not above 0 and at most 1.

    >>> PunctuationInsertion()(["A warm, funny film about love."], random.Random(3))
    ['A warm, funny film ! about love.']
    """

    share: float = 1 / 3

    def __post_init__(self) -> None:
        """Check the setting."""
        check_real("PunctuationInsertion.share", self.share, above=0, most=1)

    def vary(self, text: str, rng: random.Random) -> str:
        """Return the text with marks put in."""
        words = find_words(text)
        if not words:
            return text
        count = rng.randint(1, how_many(self.share, len(words)))
        starts = sorted(start for start, _ in rng.sample(words, count))
        return splice(text, [(start, start, f"{rng.choice(_MARKS)} ") for start in starts])
