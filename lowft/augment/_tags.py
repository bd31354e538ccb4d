"""Which part of speech each word of a text has, as a tagger of the caller's says."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from lowft.errors import ConfigError

__all__ = ["tagged_words"]

_TOKEN = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")
# Base forms alone, by Universal and Penn tags: WordNet gives base forms, which do not fit where an inflected one stood.
_PARTS = {
    "NOUN": "noun", "NN": "noun", "VERB": "verb", "VB": "verb", "VBP": "verb",
    "ADJ": "adj", "JJ": "adj", "ADV": "adv", "RB": "adv",
}  # fmt: skip


def tagged_words(tagger: Callable[[Sequence[str]], Sequence[Any]], text: str) -> dict[tuple[int, int], str]:
    """Return WordNet's name of the part of speech of each noun, verb, adjective and adverb, by where it stands.

    Args:
        tagger: Called with words and punctuation marks; returns a tag, or (word, tag), for each.
        text: The text.

    Raises:
        ConfigError: The tagger returned something else.

    >>> tagged_words(lambda words: ["DET", "NOUN", "PUNCT"], "A film.")
    {(2, 6): 'noun'}
    """
    tokens = list(_TOKEN.finditer(text))
    words = [token.group() for token in tokens]
    answer = list(tagger(words))
    tags = [entry[-1] if isinstance(entry, tuple | list) and entry else entry for entry in answer]
    if len(tags) != len(words) or not all(isinstance(tag, str) for tag in tags):
        raise ConfigError(
            f"SynonymReplacement.pos_tagger must return a tag for each word that it is given, as 'NOUN' or 'NN'; for "
            f"the {len(words)} of {words[:5]} it returned {len(tags)} entries, the first of them {answer[:3]}"
        )
    return {token.span(): _PARTS[tag] for token, tag in zip(tokens, tags, strict=True) if tag in _PARTS}
