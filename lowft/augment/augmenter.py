"""What an augmenter is: a frozen dataclass of settings, called with texts and a source of randomness."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lowft.errors import ConfigError, DataError
from lowft.registry import register

__all__ = ["Augmenter"]

_SHOWN = 5


@dataclass(frozen=True)
class Augmenter(ABC):
    """Makes a changed copy of each text, with all randomness from the source that it is given.

    Declare a subclass as `@dataclass(frozen=True)` with settings that JSON can hold and a method `vary`. It is
    registered under its class name, so that recipes can name it, and works alone as well as in `lowft.Augment`.

    >>> @dataclass(frozen=True)
    ... class Shout(Augmenter):
    ...     probability: float = 0.5
    ...
    ...     def vary(self, text, rng):
    ...         return text.upper() if rng.random() < self.probability else text
    >>> Shout()(["a warm film", "dull"], random.Random(0))
    ['a warm film', 'dull']
    >>> Shout(1.0)(["a warm film", "dull"], random.Random(0))
    ['A WARM FILM', 'DULL']
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Register the class, so that files can name it."""
        super().__init_subclass__(**kwargs)
        register(cls)

    def __call__(self, texts: Sequence[str], rng: random.Random | Sequence[random.Random]) -> list[str]:
        """Return one variant of each text; a text may come back unchanged.

        Args:
            texts: The texts, which stay as they are.
            rng: The source to draw from; or one for each text, so that its variant does not depend on the others.

        Raises:
            DataError: Something among `texts` is not a text.
            ConfigError: `rng` is no such source, or not one for each text.
        """
        _check_texts(type(self).__name__, texts)
        sources = [rng] * len(texts) if isinstance(rng, random.Random) else rng
        if not _are_sources(sources) or len(sources) != len(texts):
            raise ConfigError(
                f"{type(self).__name__}: rng must be a random.Random, or a list of one for each of the {len(texts)} "
                f"texts; received {rng!r}"
            )
        varied = self.vary_all(texts, sources)
        if len(varied) != len(texts):
            raise ConfigError(
                f"{type(self).__name__}.vary_all must return one text for each that it is given; it returned "
                f"{len(varied)} for {len(texts)}"
            )
        return varied

    @abstractmethod
    def vary(self, text: str, rng: random.Random) -> str:
        """Return a variant of one text."""

    def vary_all(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[str]:
        """Return a variant of each text; override it where many texts together are faster than one by one."""
        return [self.vary(text, rng) for text, rng in zip(texts, rngs, strict=True)]

    def prepare(self, texts: Sequence[str]) -> None:  # noqa: B027 - most have nothing to do
        """Do what can be done before training, such as reading a dictionary; `texts` are those that will come."""


def _check_texts(name: str, texts: Any) -> None:
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise DataError(f"{name} takes a list of texts; received {texts!r}. One text is a list too: [text]")
    wrong = [index for index, text in enumerate(texts) if not isinstance(text, str)]
    if wrong:
        raise DataError(
            f"{name} takes texts; {len(wrong)} of the {len(texts)} entries are none, at {wrong[:_SHOWN]}"
            f"{' and more' if len(wrong) > _SHOWN else ''}: the first is {texts[wrong[0]]!r}. Leave them out"
        )


def _are_sources(rngs: Any) -> bool:
    return isinstance(rngs, Sequence) and all(isinstance(rng, random.Random) for rng in rngs)
