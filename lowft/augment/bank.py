"""Changed copies that are made once and used in every epoch: a bank of variants, on disk if wanted."""

from __future__ import annotations

import hashlib
import json
import os
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lowft.errors import DataError
from lowft.registry import to_dict

if TYPE_CHECKING:
    from lowft.augment.augmenter import Augmenter

__all__ = ["Pair", "VariantBank", "change", "is_empty", "prepare_all"]

Pair = tuple[str, str | None]  # the text and the second text, or None, of a row

_MADE_TOGETHER = 256  # rows; a task for one worker


def change(
    texts: Sequence[Pair],
    augmenters: Sequence[Augmenter],
    sources: Sequence[random.Random],
    chosen: Sequence[int] | None,
) -> list[Pair]:
    """Return the texts changed, both where there are two, each augmenter called once for all that it changes.

    Args:
        texts: The texts.
        augmenters: What changes them.
        sources: One source of randomness for each.
        chosen: The number of the augmenter that changes each; None sends each through all of them in turn.

    >>> from lowft.augment.noise import RandomSwap
    >>> change([("a film", "a plot")], [RandomSwap()], [random.Random(0)], None)
    [('film a', 'plot a')]
    """
    changed = list(texts)
    for index, augmenter in enumerate(augmenters):
        places = [at for at in range(len(changed)) if chosen is None or chosen[at] == index]
        paired = [at for at in places if changed[at][1] is not None]
        whole = [changed[at][0] for at in places] + [changed[at][1] or "" for at in paired]
        varied = augmenter(whole, [sources[at] for at in (*places, *paired)])
        seconds = dict(zip(paired, varied[len(places) :], strict=True))
        for at, text in zip(places, varied, strict=False):
            changed[at] = (text, seconds.get(at))
    return changed


def prepare_all(augmenters: Sequence[Augmenter], texts: Sequence[str], *, chained: bool) -> None:
    """Let augmenters do once what they can do for all texts, and find out what they lack.

    In a chain, later augmenters get texts that nobody knows yet: one is enough to see whether they run.
    """
    for index, augmenter in enumerate(augmenters):
        augmenter.prepare(texts[:1] if chained and index else texts)


def is_empty(texts: Pair) -> bool:
    """Say whether one of the texts has nothing in it but spaces."""
    return not texts[0].strip() or (texts[1] is not None and not texts[1].strip())


@dataclass
class VariantBank:
    """Up to `size` variants of each row, a function of (augmenters, mix, number, texts) alone.

    So any number of workers, processes and runs have the same ones. What comes back empty, unchanged or twice is left
    out: a row may have fewer, or none.

    Args:
        augmenters: What makes the variants.
        size: How many are made of each row.
        chained: Whether each goes through all augmenters in turn, and not through one drawn at random.
        workers: Worker processes that make them; 0 makes them in this one.
        folder: Where they are kept between runs, as JSON; None keeps none.

    >>> from lowft.augment.noise import RandomSwap
    >>> VariantBank([RandomSwap()], size=2).of([("a warm film", None)])
    [(('film warm a', None),)]
    """

    augmenters: Sequence[Augmenter]
    size: int
    chained: bool = False
    workers: int = 0
    folder: Path | None = None
    _known: dict[Pair, tuple[Pair, ...]] = field(default_factory=dict, init=False, repr=False)

    def of(self, rows: Sequence[Pair]) -> list[tuple[Pair, ...]]:
        """Return the variants of each row; those that are not known yet are made, and known from then on."""
        missing = [row for row in dict.fromkeys(rows) if row not in self._known]
        self._known.update(zip(missing, self._make(missing), strict=True))
        return [self._known[row] for row in rows]

    def fill(self, rows: Sequence[Pair]) -> None:
        """Make the variants of all rows, or read them from the folder; augmenters prepare only for what is missing.

        Raises:
            DataError: The file in the folder is not what this class wrote, or cannot be written.
        """
        self._read()
        missing = [row for row in dict.fromkeys(rows) if row not in self._known]
        if not missing:
            return
        texts = [text for row in missing for text in row if text is not None]
        prepare_all(self.augmenters, texts, chained=self.chained)
        chunks = [missing[start : start + _MADE_TOGETHER] for start in range(0, len(missing), _MADE_TOGETHER)]
        loader = torch.utils.data.DataLoader(
            _Chunks(self, chunks), batch_size=None, num_workers=min(self.workers, len(chunks)),
            generator=torch.Generator(), collate_fn=_unchanged,
        )  # fmt: skip
        for chunk, made in zip(chunks, loader, strict=True):
            self._known.update(zip(chunk, made, strict=True))
        self._write()

    def _make(self, rows: Sequence[Pair]) -> list[tuple[Pair, ...]]:
        copies = [row for row in rows for _ in range(self.size)]
        sources = [random.Random(repr((number, *row))) for row in rows for number in range(self.size)]
        chosen = None if self.chained else [source.randrange(len(self.augmenters)) for source in sources]
        changed = change(copies, self.augmenters, sources, chosen) if copies else []
        made = []
        for index, row in enumerate(rows):
            own = dict.fromkeys(changed[index * self.size : (index + 1) * self.size])
            made.append(tuple(variant for variant in own if variant != row and not is_empty(variant)))
        return made

    @property
    def _file(self) -> Path | None:
        if self.folder is None:
            return None
        settings = [[to_dict(augmenter) for augmenter in self.augmenters], self.size, self.chained]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return self.folder / f"variants-{digest[:16]}.json"

    def _read(self) -> None:
        file = self._file
        if file is None or not file.exists():
            return
        try:
            for row, variants in json.loads(file.read_text(encoding="utf-8")):
                self._known[_pair(row)] = tuple(_pair(variant) for variant in variants)
        except (OSError, ValueError, TypeError) as error:
            raise DataError(
                f"{file} does not hold the variants that Augment(bank_dir=...) wrote: {error}. Delete it, and they are "
                f"made anew"
            ) from error

    def _write(self) -> None:
        """Put the file in its place at once, so that no reader sees half of it."""
        file = self._file
        if file is None:
            return
        partial: Path | None = None
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
            partial = Path(name)
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                json.dump(list(self._known.items()), stream, ensure_ascii=False)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(file)
        except OSError as error:
            raise DataError(
                f"the variants cannot be kept in Augment(bank_dir={str(self.folder)!r}): {error}. Choose a folder that "
                f"can be written, or leave bank_dir out"
            ) from error
        finally:
            if partial is not None:
                partial.unlink(missing_ok=True)


@dataclass
class _Chunks(torch.utils.data.Dataset[list[tuple[Pair, ...]]]):
    """The rows in tasks for workers."""

    bank: VariantBank
    chunks: list[list[Pair]]

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int) -> list[tuple[Pair, ...]]:
        return self.bank._make(self.chunks[index])


def _pair(value: Any) -> Pair:
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str):
        raise TypeError(f"{value!r} is not a row of two texts")
    if not (value[1] is None or isinstance(value[1], str)):
        raise TypeError(f"{value!r} is not a row of two texts")
    return value[0], value[1]


def _unchanged(value: Any) -> Any:
    return value
