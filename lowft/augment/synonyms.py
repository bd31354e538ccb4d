"""Words replaced by, or joined by, words of the same meaning: from WordNet, a dictionary, a function, embeddings."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from lowft._settings import check_real
from lowft.augment._choosing import PLAIN_WORD, Option, check_choosing, find_options, listed_texts, replace_words
from lowft.augment._tags import tagged_words
from lowft.augment._wordnet import read_synonyms, read_tagged_synonyms
from lowft.augment._words import STOP_WORDS, find_words, how_many, splice
from lowft.augment.augmenter import Augmenter
from lowft.errors import ConfigError

__all__ = ["RandomInsertion", "SynonymReplacement"]


@dataclass(frozen=True)
class SynonymReplacement(Augmenter):
    """Replace some words by synonyms; every other character of the text stays as it was.

    Left alone are stop words (negations among them), contractions, compounds, numbers, tags, addresses, and
    whatever a pattern of yours protects. A synonym takes over the capitals of the word that it replaces. Capitalised
    words inside a sentence are mostly names, and stay, except where a dictionary of yours has them.

    Without a tagger, WordNet replaces only words whose reading does not depend on the sentence: those with one part
    of speech that are not inflected forms too, by synonyms that share their most frequent sense. Plurals and past
    forms stay as they are. In reviews that leaves about one word in sixteen. With `pos_tagger`, words of several
    parts of speech are replaced too, by synonyms that share the most frequent sense of the part that the tagger names.

    Sources: WordNet (Fellbaum 1998); synonym replacement in the manner of EDA (Wei & Zou 2019,
    https://arxiv.org/abs/1901.11196).

    Args:
        source: "wordnet"; a dictionary from single words, whatever their case, to lists of replacements, which is
            followed to the letter; or something that is called with a word in small letters and returns such a list,
            always the same: `EmbeddingNeighbors(...)`, or a function of yours. It is asked once for each word. (A
            Trainer, whose checkpoints name their settings, takes a dataclass under `lowft.register`, no function.)
        path: WordNet's folder; None looks into `$LOWFT_WORDNET`, then where Debian and NLTK put it.
        share: Share of the text's words to replace, at least one, as far as there are synonyms.
        max_words: At most this many words of a text.
        stop_words: Words to leave alone; None is a list of English function words.
        protect: Regular expressions; what they match stays as it is.
        pos_tagger: With WordNet: called with a text's words and punctuation marks, returns the part of speech of each
            as a Universal or Penn tag, or (word, tag) as `nltk.pos_tag` does. Inflected forms are left alone.

    Raises:
        ConfigError: A setting outside its range, an entry of the dictionary that is no word, or a pattern that is no
            regular expression. At use: a function that returns no list of texts, a tagger that returns no tag for each
            word. Or, at first use, a folder that lacks some of WordNet's files.
        MissingExtraError: At first use: WordNet is not installed. The message says how to get it.

    >>> replace = SynonymReplacement({"film": ["movie", "picture"], "dull": ["dreary"]}, share=0.5)
    >>> replace(["A dull film; the film-maker's DULL film."], random.Random(0))
    ["A dreary picture; the film-maker's DREARY picture."]
    >>> SynonymReplacement(lambda word: ["comic"] if word == "funny" else [])(["A funny film"], random.Random(0))
    ['A comic film']
    """

    source: Literal["wordnet"] | Mapping[str, Sequence[str]] | Callable[[str], Collection[str]] = "wordnet"
    path: str | None = None
    share: float = 0.1
    max_words: int | None = None
    stop_words: tuple[str, ...] | None = None
    protect: tuple[str, ...] = ()
    pos_tagger: Callable[[Sequence[str]], Sequence[Any]] | None = None
    _answers: dict[str, tuple[str, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check every setting."""
        if self.source != "wordnet" and (isinstance(self.source, type) or not callable(self.source)):
            object.__setattr__(self, "source", _dictionary(self.source))
        if self.path is not None:
            if self.source != "wordnet" or not isinstance(self.path, str | os.PathLike):
                raise ConfigError(
                    f"SynonymReplacement.path must be WordNet's folder, with source='wordnet'; received {self.path!r}"
                )
            object.__setattr__(self, "path", os.fspath(self.path))
        check_choosing(self)
        if self.pos_tagger is not None and (self.source != "wordnet" or not callable(self.pos_tagger)):
            raise ConfigError(
                f"SynonymReplacement.pos_tagger must be a function from words to tags, with source='wordnet'; received "
                f"{self.pos_tagger!r}"
            )

    def synonyms(self, word: str) -> Sequence[str]:
        """Return what may stand for a word wherever it stands, in whatever case; nothing where there is nothing.

        >>> SynonymReplacement({"film": ["movie"]}).synonyms("FILM")
        ('movie',)
        """
        word = word.lower()
        if word in (STOP_WORDS if self.stop_words is None else self.stop_words):
            return ()
        if isinstance(self.source, str):
            return read_synonyms(self.path).get(word, ())
        if isinstance(self.source, Mapping):
            return self.source.get(word, ())
        if word not in self._answers:
            self._answers[word] = _answer(self.source, word)
        return self._answers[word]

    def options(self, text: str) -> list[Option]:
        """Return where the words of a text stand that may be replaced, and what may stand there.

        >>> SynonymReplacement({"film": ["movie"]}).options("A film")
        [(2, 6, ('movie',))]
        """
        find = partial(find_options, text, protect=self.protect, stop_words=self.stop_words)
        if isinstance(self.source, Mapping):
            return find(self.source.get, names=True)
        if not isinstance(self.source, str):
            return find(self.synonyms, names=False)
        if self.pos_tagger is None:
            return find(read_synonyms(self.path).get, names=False)
        known = read_tagged_synonyms(self.path)
        places = find(lambda word: [word] if any(word in part for part in known.values()) else (), names=False)
        parts = tagged_words(self.pos_tagger, text) if places else {}
        found = [
            (start, end, known.get(parts.get((start, end), ""), {}).get(word, ())) for start, end, (word,) in places
        ]
        return [option for option in found if option[2]]

    def find(self, text: str) -> list[tuple[int, int]]:
        """Return where the words stand that may be replaced.

        >>> SynonymReplacement({"film": ["movie"]}, protect=('"[^"]*"',)).find('A film called "Film".')
        [(2, 6)]
        """
        return [(start, end) for start, end, _ in self.options(text)]

    def vary(self, text: str, rng: random.Random) -> str:
        """Return the text with words replaced."""
        return replace_words(text, self.options(text), share=self.share, max_words=self.max_words, rng=rng)

    def prepare(self, texts: Sequence[str]) -> None:
        """Look up all words, so that worker processes share what was found, and what is missing is known at once."""
        if isinstance(self.source, Mapping):
            return
        if isinstance(self.source, str):
            (read_synonyms if self.pos_tagger is None else read_tagged_synonyms)(self.path)
            texts = texts[:1]  # enough to see whether a tagger does what it should
        for text in texts:
            self.options(text)


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
        found = self.synonyms.options(text)
        if not found:
            return text
        starts = [start for start, _ in find_words(text)]
        changes = []
        for at in sorted(rng.choices(starts, k=how_many(self.share, len(starts)))):
            _, _, words = rng.choice(found)
            changes.append((at, at, f"{rng.choice(words)} "))
        return splice(text, changes)

    def prepare(self, texts: Sequence[str]) -> None:
        """Let the source of synonyms do what it can do beforehand."""
        self.synonyms.prepare(texts)


def _dictionary(source: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(source, Mapping):
        raise ConfigError(
            f"SynonymReplacement.source must be 'wordnet', a dictionary from words to lists of synonyms, or something "
            f"that is called with a word and returns such a list, as lowft.EmbeddingNeighbors(...); received {source!r}"
        )
    found: dict[str, tuple[str, ...]] = {}
    for word, synonyms in source.items():
        if not isinstance(word, str) or not PLAIN_WORD.fullmatch(word):
            raise ConfigError(f"SynonymReplacement.source must have single words as keys; received {word!r}")
        listed = listed_texts(synonyms)
        if not listed:
            raise ConfigError(
                f"SynonymReplacement.source[{word!r}] must be a list of at least one text; received {synonyms!r}"
            )
        found[word.lower()] = found.get(word.lower(), ()) + listed
    return found


def _answer(source: Callable[[str], Any], word: str) -> tuple[str, ...]:
    """Return what a function gives for a word, without the word itself."""
    answer = source(word)
    listed = listed_texts(answer)
    if listed is None:
        raise ConfigError(
            f"SynonymReplacement.source must return a list of texts for each word, an empty one where it knows none; "
            f"for {word!r} it returned {answer!r}"
        )
    return tuple(text for text in listed if text.lower() != word)
