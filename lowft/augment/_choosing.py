"""Which words of a text may be replaced, how many of them are, and how."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from lowft._settings import check_real, check_whole
from lowft.augment._words import STOP_WORDS, count_words, how_many, like_case, splice
from lowft.errors import ConfigError

__all__ = ["PLAIN_WORD", "Option", "check_choosing", "find_options", "listed_texts", "replace_words"]

Option = tuple[int, int, Sequence[str]]  # where a word starts and ends, and what may stand there

# Letters alone, and not a part of something longer: no contraction, compound, number, tag, address or entity.
_JOINTS = r"\w'\u2019@#&/\\<>=$%^*\-\u0300-\u036f"
PLAIN_WORD = re.compile(rf"(?<![{_JOINTS}])(?<!\w[.:])[^\W\d_]++(?![{_JOINTS}]|[.:]\w)")
_SENTENCE_ENDS = (".", "!", "?", "\n", ">", ":")
_LOOKED_BACK = 8  # characters in which the end of the sentence before must stand


def check_choosing(augmenter: Any) -> None:
    """Check the settings that say which words to replace, and make them what a frozen dataclass should hold."""
    name = type(augmenter).__name__
    check_real(f"{name}.share", augmenter.share, above=0, most=1)
    if augmenter.max_words is not None:
        check_whole(f"{name}.max_words", augmenter.max_words, least=1)
    if augmenter.stop_words is not None:
        object.__setattr__(augmenter, "stop_words", _texts(f"{name}.stop_words", augmenter.stop_words))
    object.__setattr__(augmenter, "protect", _texts(f"{name}.protect", augmenter.protect))
    for pattern in augmenter.protect:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"{name}.protect must hold regular expressions; {pattern!r} is none: {error}") from error


def find_options(
    text: str,
    look_up: Callable[[str], Sequence[str] | None],
    *,
    protect: Collection[str],
    stop_words: Collection[str] | None,
    names: bool,
) -> list[Option]:
    """Return where the words of a text stand that are nothing but a word and have others that may stand there.

    Args:
        text: The text.
        look_up: Returns the others for a word in small letters.
        protect: Regular expressions; what they match is left out.
        stop_words: Words to leave out, in small letters; None is a list of English function words.
        names: Whether capitalised words inside a sentence, which are mostly names, belong to them.

    >>> find_options("It wasn't a dull film.", {"dull": ["flat"]}.get, protect=(), stop_words=None, names=True)
    [(12, 16, ['flat'])]
    """
    # Most words have no others, so that is asked first.
    found = [(match, words) for match in PLAIN_WORD.finditer(text) if (words := look_up(match[0].lower()))]
    stopped = STOP_WORDS if stop_words is None else stop_words
    protected = [match.span() for pattern in protect for match in re.finditer(pattern, text)]
    return [
        (*match.span(), words)
        for match, words in found
        if match.group().lower() not in stopped
        and (names or not _is_name(text, *match.span()))
        and not any(match.start() < until and since < match.end() for since, until in protected)
    ]


def replace_words(
    text: str, options: Sequence[Option], *, share: float, max_words: int | None, rng: random.Random
) -> str:
    """Return the text with some words replaced, in the capitals of those that stood there.

    Args:
        text: The text.
        options: What may be replaced, and by what.
        share: Share of all words of the text to replace, at least one.
        max_words: At most this many.
        rng: The source to draw from.

    >>> replace_words("A DULL film", [(2, 6, ("flat",))], share=0.5, max_words=None, rng=random.Random(0))
    'A FLAT film'
    """
    count = min(how_many(share, count_words(text), max_words), len(options))
    chosen = sorted(rng.sample(options, count), key=lambda option: option[0])
    return splice(text, [(start, end, like_case(rng.choice(words), text[start:end])) for start, end, words in chosen])


def listed_texts(values: Any) -> tuple[str, ...] | None:
    """Return the texts of a collection in an order that every process has; None where it is no such collection."""
    if not isinstance(values, list | tuple | set | frozenset):
        return None
    if not all(isinstance(value, str) and value.strip() for value in values):
        return None
    # Sets have no order of their own, and that of another process would draw other synonyms.
    return tuple(sorted(values) if isinstance(values, set | frozenset) else values)


def _is_name(text: str, start: int, end: int) -> bool:
    """Say whether a word is capitalised, but neither begins a sentence nor is all in capitals."""
    word = text[start:end]
    if not word[0].isupper() or (word.isupper() and len(word) > 1):
        return False
    before = text[max(0, start - _LOOKED_BACK) : start].rstrip(" \t\"'\u201c\u2018([*")
    return bool(before) and not before.endswith(_SENTENCE_ENDS)


def _texts(name: str, values: Any) -> tuple[str, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence) or not all(isinstance(item, str) for item in values):
        raise ConfigError(f"{name} must be a tuple of texts; received {values!r}")
    return tuple(values)
