"""Words inside a text, found and changed without touching anything between them."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["STOP_WORDS", "count_words", "find_words", "how_many", "like_case", "splice"]

# A contraction, a compound or a number with its point is one word: wasn't, well-made, 7.5.
_WORD = re.compile(r"\w++(?:[^\w\s]\w++)*+")

_FUNCTION_WORDS = """
a about above across after again against all almost alone along already also although always am among an and any
anybody anyone anything anywhere are around as at away back be became because become becomes been before behind
being below beneath beside besides between beyond both but by can cannot could despite did do does doing done down
during each either else enough even ever every everybody everyone everything everywhere except few for from further
had hardly has have having he hence her here hers herself him himself his how however i if in inside instead into is
it its itself just least less like little lot many may maybe me might mine more moreover most much must my myself
near nearly neither never nevertheless no nobody non none nor not nothing now nowhere of off often on once one only
onto or other others otherwise ought our ours ourselves out outside over own per perhaps quite rather same seldom
several shall she should since so some somebody somehow someone something sometimes somewhere still such than that
the their theirs them themselves then there therefore these they this those though through throughout thus till to
together too toward towards under unless unlike until up upon us very was we were what whatever when whenever where
whereas wherever whether which while who whoever whole whom whose why will with within without would yet you your
yours yourself yourselves
"""
STOP_WORDS = frozenset(_FUNCTION_WORDS.split())


def find_words(text: str) -> list[tuple[int, int]]:
    """Return where each word starts and ends.

    >>> text = "It wasn't bad: 7.5/10."
    >>> [text[start:end] for start, end in find_words(text)]
    ['It', "wasn't", 'bad', '7.5/10']
    """
    return [match.span() for match in _WORD.finditer(text)]


def count_words(text: str) -> int:
    """Return how many words a text has.

    >>> count_words("It wasn't bad: 7.5/10.")
    4
    """
    return len(_WORD.findall(text))


def splice(text: str, changes: Iterable[tuple[int, int, str]]) -> str:
    """Return the text with some stretches replaced, each given as (start, end, new), in order and apart.

    >>> splice("a dull film", [(2, 6, "warm")])
    'a warm film'
    """
    parts, at = [], 0
    for start, end, new in changes:
        parts += [text[at:start], new]
        at = end
    return "".join([*parts, text[at:]])


def how_many(share: float, words: int, most: int | None = None) -> int:
    """Return how many of a text's words to change: the share of them, at least one and at most `most`.

    >>> how_many(0.1, 4), how_many(0.1, 50), how_many(0.1, 50, 2)
    (1, 5, 2)
    """
    count = max(1, round(share * words))
    return count if most is None else min(count, most)


def like_case(word: str, model: str) -> str:
    """Return the word with the capitals of another.

    >>> like_case("film", "Movie"), like_case("film", "MOVIE"), like_case("TV", "set")
    ('Film', 'FILM', 'TV')
    """
    if len(model) > 1 and model.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word
