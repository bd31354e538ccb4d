"""Words replaced by, or joined by, words of the same meaning, from WordNet or a dictionary of your own."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lowft._settings import check_real, check_whole
from lowft.augment._wordnet import read_synonyms
from lowft.augment._words import STOP_WORDS, find_words, how_many, like_case, splice
from lowft.augment.augmenter import Augmenter
from lowft.errors import ConfigError

__all__ = ["RandomInsertion", "SynonymReplacement"]

# Letters alone, and not a part of something longer: no contraction, compound, number, tag, address or entity.
_JOINTS = r"\w'\u2019@#&/\\<>=$%^*\-\u0300-\u036f"
_PLAIN_WORD = re.compile(rf"(?<![{_JOINTS}])(?<!\w[.:])[^\W\d_]+(?![{_JOINTS}]|[.:]\w)")
_SENTENCE_ENDS = (".", "!", "?", "\n", ">", ":")
_LOOKED_BACK = 8  # characters in which the end of the sentence before must stand


@dataclass(frozen=True)
class SynonymReplacement(Augmenter):
    """Replace some words by synonyms; every other character of the text stays as it was.

    Left alone are stop words (negations among them), contractions, compounds, numbers, tags, addresses, and
    whatever a pattern of yours protects. A synonym takes over the capitals of the word that it replaces.

    There is no tagger, so with WordNet only words are replaced whose reading does not depend on the sentence: those
    with one part of speech that are not inflected forms too, by synonyms that share their most frequent sense. Plurals
    and past forms stay as they are, and so do capitalised words inside a sentence, which are mostly names. In
    reviews that leaves about one word in sixteen. A dictionary of yours is followed to the letter.

    Sources: WordNet (Fellbaum 1998); synonym replacement in the manner of EDA (Wei & Zou 2019,
    https://arxiv.org/abs/1901.11196).

    Args:
        source: "wordnet", or a dictionary from single words, whatever their case, to lists of replacements.
        path: WordNet's folder; None looks into `$LOWFT_WORDNET`, then where Debian and NLTK put it.
        share: Share of the text's words to replace, at least one, as far as there are synonyms.
        max_words: At most this many words of a text.
        stop_words: Words to leave alone; None is a list of English function words.
        protect: Regular expressions; what they match stays as it is.

    Raises:
        ConfigError: A setting outside its range, an entry of the dictionary that is no word, or a pattern that is no
            regular expression. Or, at first use, a folder that lacks some of WordNet's files.
        MissingExtraError: At first use: WordNet is not installed. The message says how to get it.

    >>> replace = SynonymReplacement({"film": ["movie", "picture"], "dull": ["dreary"]}, share=0.5)
    >>> replace(["A dull film; the film-maker's DULL film."], random.Random(0))
    ["A dreary picture; the film-maker's DREARY picture."]
    """

    source: Literal["wordnet"] | Mapping[str, Sequence[str]] = "wordnet"
    path: str | None = None
    share: float = 0.1
    max_words: int | None = None
    stop_words: tuple[str, ...] | None = None
    protect: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check every setting."""
        if self.source != "wordnet":
            object.__setattr__(self, "source", _dictionary(self.source))
        if self.path is not None:
            if self.source != "wordnet" or not isinstance(self.path, str | os.PathLike):
                raise ConfigError(
                    f"SynonymReplacement.path must be WordNet's folder, with source='wordnet'; received {self.path!r}"
                )
            object.__setattr__(self, "path", os.fspath(self.path))
        check_real("SynonymReplacement.share", self.share, above=0, most=1)
        if self.max_words is not None:
            check_whole("SynonymReplacement.max_words", self.max_words, least=1)
        if self.stop_words is not None:
            object.__setattr__(self, "stop_words", _texts("stop_words", self.stop_words))
        object.__setattr__(self, "protect", _texts("protect", self.protect))
        for pattern in self.protect:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(
                    f"SynonymReplacement.protect must hold regular expressions; {pattern!r} is none: {error}"
                ) from error

    def synonyms(self, word: str) -> Sequence[str]:
        """Return what may stand for a word, in whatever case that is written; nothing for a word without synonyms.

        >>> SynonymReplacement({"film": ["movie"]}).synonyms("FILM")
        ('movie',)
        """
        known = read_synonyms(self.path) if isinstance(self.source, str) else self.source
        found = known.get(word.lower(), ())
        stop_words = STOP_WORDS if self.stop_words is None else self.stop_words
        return () if found and word.lower() in stop_words else found

    def find(self, text: str) -> list[tuple[int, int]]:
        """Return where the words stand that may be replaced.

        >>> SynonymReplacement({"film": ["movie"]}, protect=('"[^"]*"',)).find('A film called "Film".')
        [(2, 6)]
        """
        protected = [match.span() for pattern in self.protect for match in re.finditer(pattern, text)]
        return [
            (start, end)
            for start, end in (match.span() for match in _PLAIN_WORD.finditer(text))
            if self.synonyms(text[start:end])
            and not (isinstance(self.source, str) and _is_name(text, start, end))
            and not any(start < until and since < end for since, until in protected)
        ]

    def vary(self, text: str, rng: random.Random) -> str:
        """Return the text with words replaced."""
        found = self.find(text)
        count = min(how_many(self.share, len(find_words(text)), self.max_words), len(found))
        changes = []
        for start, end in sorted(rng.sample(found, count)):
            word = text[start:end]
            changes.append((start, end, like_case(rng.choice(self.synonyms(word)), word)))
        return splice(text, changes)

    def prepare(self, texts: Sequence[str]) -> None:  # noqa: ARG002
        """Read WordNet, so that worker processes share it, and a missing one is found before training."""
        if isinstance(self.source, str):
            read_synonyms(self.path)


@dataclass(frozen=True)
class RandomInsertion(Augmenter):
    """Put synonyms of a text's own words in front of words at random; everything else stays.

    Source: Wei & Zou 2019, EDA, https://arxiv.org/abs/1901.11196.

    Args:
        synonyms: Where synonyms come from, and of which words.
        share: Insertions as a share of the number of words, at least one.

    Raises:
        ConfigError: `synonyms` is something else, or `share` not above 0 and at most 1.

    >>> RandomInsertion(SynonymReplacement({"film": ["movie"]}))(["A warm, funny film."], random.Random(0))
    ['A warm, funny movie film.']
    """

    synonyms: SynonymReplacement = field(default_factory=SynonymReplacement)
    share: float = 0.1

    def __post_init__(self) -> None:
        """Check every setting."""
        if not isinstance(self.synonyms, SynonymReplacement):
            raise ConfigError(
                f"RandomInsertion.synonyms must be a lowft.SynonymReplacement(...); received {self.synonyms!r}"
            )
        check_real("RandomInsertion.share", self.share, above=0, most=1)

    def vary(self, text: str, rng: random.Random) -> str:
        """Return the text with synonyms put in."""
        found = self.synonyms.find(text)
        if not found:
            return text
        starts = [start for start, _ in find_words(text)]
        changes = []
        for at in sorted(rng.choices(starts, k=how_many(self.share, len(starts)))):
            start, end = rng.choice(found)
            changes.append((at, at, f"{rng.choice(self.synonyms.synonyms(text[start:end]))} "))
        return splice(text, changes)

    def prepare(self, texts: Sequence[str]) -> None:
        """Read WordNet where that is the source."""
        self.synonyms.prepare(texts)


def _is_name(text: str, start: int, end: int) -> bool:
    """Say whether a word is capitalised, but neither begins a sentence nor is all in capitals."""
    word = text[start:end]
    if not word[0].isupper() or (word.isupper() and len(word) > 1):
        return False
    before = text[max(0, start - _LOOKED_BACK) : start].rstrip(" \t\"'\u201c\u2018([*")
    return bool(before) and not before.endswith(_SENTENCE_ENDS)


def _dictionary(source: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(source, Mapping):
        raise ConfigError(
            f"SynonymReplacement.source must be 'wordnet' or a dictionary from words to lists of synonyms; "
            f"received {source!r}"
        )
    found: dict[str, tuple[str, ...]] = {}
    for word, synonyms in source.items():
        if not isinstance(word, str) or not _PLAIN_WORD.fullmatch(word):
            raise ConfigError(f"SynonymReplacement.source must have single words as keys; received {word!r}")
        listed = synonyms if isinstance(synonyms, list | tuple | set | frozenset) else ()
        if not listed or not all(isinstance(synonym, str) and synonym.strip() for synonym in listed):
            raise ConfigError(
                f"SynonymReplacement.source[{word!r}] must be a list of at least one text; received {synonyms!r}"
            )
        # Sets have no order of their own, and that of another process would draw other synonyms.
        ordered = sorted(listed) if isinstance(listed, set | frozenset) else listed
        found[word.lower()] = found.get(word.lower(), ()) + tuple(ordered)
    return found


def _texts(name: str, values: Any) -> tuple[str, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence) or not all(isinstance(item, str) for item in values):
        raise ConfigError(f"SynonymReplacement.{name} must be a tuple of texts; received {values!r}")
    return tuple(values)
