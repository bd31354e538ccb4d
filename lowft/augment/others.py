"""Augmenters of nlpaug, made to behave: seeded, one instance a process, spacing put back."""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from lowft._settings import check_text
from lowft.augment.augmenter import Augmenter
from lowft.errors import ConfigError

__all__ = ["NlpAug"]

_HOMES = ("char", "word", "sentence")
# It asks tokenizers for methods that transformers 5 has not, and ends in an AttributeError.
_BROKEN = "ContextualWordEmbsAug"
_TOKEN = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class NlpAug(Augmenter):
    """Use any augmenter of nlpaug, by name or as an object.

    nlpaug draws from the global random streams: they are seeded from `rng` for each text and put back after it. It
    also parts words from punctuation and joins them anew, which is undone wherever both texts have the same words.
    One instance is made in each process, since some cannot be pickled or shared, and none runs in threads.

    Source: nlpaug, https://github.com/makcedward/nlpaug.

    Args:
        augmenter: The name of a class of `nlpaug.augmenter`, such as "RandomWordAug"; or an object with a method
            `augment`, which no recipe can hold: a Trainer asks for the name.
        settings: What the named class is made with, as JSON values.

    Raises:
        ConfigError: Neither a name nor such an object, settings that JSON cannot hold, or `ContextualWordEmbsAug`,
            which does not run with transformers 5. Or, at first use, a name or settings that nlpaug does not know.

    >>> swap = NlpAug("RandomWordAug", {"action": "swap", "aug_max": 1})
    >>> swap(["It wasn't a dull film."], random.Random(0))
    ["It wasn't dull a film."]
    """

    augmenter: Any
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what can be checked before nlpaug is imported."""
        if isinstance(self.augmenter, str):
            check_text("NlpAug.augmenter", self.augmenter)
        elif isinstance(self.augmenter, type) or not callable(getattr(self.augmenter, "augment", None)):
            raise ConfigError(
                f"NlpAug.augmenter must be the name of a class of nlpaug, such as 'RandomWordAug', or an object with "
                f"a method augment; received {self.augmenter!r}"
            )
        elif self.settings:
            raise ConfigError(
                f"NlpAug.settings go with a name; the object {type(self.augmenter).__name__} has its own already"
            )
        _refuse_broken(self.augmenter)
        try:
            object.__setattr__(self, "settings", json.loads(_as_json(self.settings)))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"NlpAug.settings must be a dictionary of JSON values; received {self.settings!r} ({error}). Hand over "
                f"an augmenter object instead"
            ) from error

    def vary(self, text: str, rng: random.Random) -> str:
        """Return what nlpaug makes of the text, and the text itself where it makes nothing."""
        if not text.strip():
            return text
        augment = self._augment()
        with _seeded_globals(rng.getrandbits(32)):
            answer = augment(text)
        if isinstance(answer, list):
            answer = answer[0] if answer else text
        if not isinstance(answer, str):
            raise ConfigError(
                f"NlpAug: {self.augmenter!r} must return texts; it returned {answer!r}. Leave include_detail out"
            )
        return _with_spacing_of(text, answer)

    def prepare(self, texts: Sequence[str]) -> None:  # noqa: ARG002
        """Make the augmenter, so that a name or setting that nlpaug does not know is found before training."""
        self._augment()

    def _augment(self) -> Callable[[str], Any]:
        made = self.augmenter
        if isinstance(made, str):
            made = _make(made, _as_json(self.settings), os.getpid())
        augment: Callable[[str], Any] = made.augment
        return augment


@functools.lru_cache(maxsize=8)
def _make(name: str, settings: str, process: int) -> Any:  # noqa: ARG001 - each process has its own
    """Return an augmenter by the name of its class; only nlpaug's own classes are looked at."""
    from importlib import import_module

    from nlpaug.base_augmenter import Augmenter as Base

    known: dict[str, type] = {}
    for home in _HOMES:
        classes = vars(import_module(f"nlpaug.augmenter.{home}")).values()
        known |= {cls.__name__: cls for cls in classes if isinstance(cls, type) and issubclass(cls, Base)}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise ConfigError(
            f"NlpAug.augmenter must be the name of a class of nlpaug; received {name!r}. "
            + (f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(sorted(known))}")
        )
    try:
        return known[name](**json.loads(settings))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"NlpAug: {name} does not take the settings {settings}: {error}") from error


def _refuse_broken(augmenter: Any) -> None:
    parts = [augmenter, *(augmenter if isinstance(augmenter, list) else ())]  # nlpaug's flows are lists
    names = [part if isinstance(part, str) else type(part).__name__ for part in parts]
    if _BROKEN in names:
        raise ConfigError(
            f"NlpAug: {_BROKEN} of nlpaug 1.1.11 does not run with transformers 5. Use lowft.SynonymReplacement or "
            f"lowft.BackTranslation"
        )


def _as_json(settings: Any) -> str:
    if not isinstance(settings, Mapping):
        raise TypeError("not a dictionary")
    return json.dumps(dict(settings), sort_keys=True)


@contextlib.contextmanager
def _seeded_globals(seed: int) -> Iterator[None]:
    """Let Python's, NumPy's and torch's CPU streams start from `seed` in a block, then put the caller's back.

    CUDA is not asked: a forked worker process may not.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - nlpaug uses the global one
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _with_spacing_of(text: str, changed: str) -> str:
    """Return the changed text with the original's spaces between words, or parts of words, that have not moved."""
    before, after = list(_TOKEN.finditer(text)), list(_TOKEN.finditer(changed))
    if not before or not after:
        return changed
    matcher = difflib.SequenceMatcher(None, [m.group() for m in before], [m.group() for m in after], autojunk=False)
    came_from: dict[int, int] = {}
    for kind, start, end, other, until in matcher.get_opcodes():
        if kind == "equal" or end - start == until - other:  # replaced one by one, each stands where the old one stood
            came_from |= dict(zip(range(other, until), range(start, end), strict=True))
    parts = [text[: before[0].start()] if came_from.get(0) == 0 else "", after[0].group()]
    for one, two in pairwise(range(len(after))):
        origin = came_from.get(one)
        if origin is not None and came_from.get(two) == origin + 1:
            parts.append(text[before[origin].end() : before[origin + 1].start()])
        else:
            parts.append(changed[after[one].end() : after[two].start()])
        parts.append(after[two].group())
    last = came_from.get(len(after) - 1) == len(before) - 1
    return "".join([*parts, text[before[-1].end() :] if last else ""])
