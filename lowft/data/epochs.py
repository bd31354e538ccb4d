"""The order of an epoch: which rows form which micro-batch of which optimizer step, and the batches themselves.

What a batch holds is a function of (rows, seed, stage, epoch, position) alone, so a run can be resumed at any
step, and any number of worker processes makes the same batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lowft.data.batching import Batch, BatchRandom, Example, TokenizedRows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

__all__ = ["MicroBatch", "epoch_batches", "halved", "plan_epoch"]

_WINDOWS_SORTED_TOGETHER = 50  # enough to leave little padding, few enough to keep the order random
_LEAST_CHUNKS = 4  # else few rows would form the same batches in every epoch


@dataclass(frozen=True)
class MicroBatch:
    """Which rows go through the model together, and what share of the optimizer step they are.

    Attributes:
        indices: Indices of training rows.
        share: Rows here ÷ rows of the whole optimizer step over all processes.
    """

    indices: tuple[int, ...]
    share: float


def plan_epoch(
    lengths: npt.NDArray[np.int64],
    *,
    batch_size: int,
    accumulation: int = 1,
    processes: int = 1,
    rank: int = 0,
    seed: Sequence[int] = (0,),
    group_by_length: bool = True,
) -> list[list[MicroBatch]]:
    """Plan one epoch: for each optimizer step, the micro-batches of this process.

    Every row is in exactly one micro-batch of one process. A last step with too few rows is spread evenly, and
    `share` keeps its gradient that of one big batch.

    Args:
        lengths: Tokens of each row, `[rows]`.
        batch_size: Rows in a micro-batch.
        accumulation: Micro-batches of one process in a step.
        processes: Number of processes.
        rank: This process's number.
        seed: Numbers that together decide the order, such as (seed, stage, epoch).
        group_by_length: Put rows of like length together.

    >>> steps = plan_epoch(np.array([3, 9, 4, 8, 5]), batch_size=2)
    >>> sorted(index for step in steps for part in step for index in part.indices)
    [0, 1, 2, 3, 4]
    """
    rng = np.random.default_rng(list(seed))
    order = rng.permutation(len(lengths))
    rows_in_step = batch_size * accumulation * processes
    if group_by_length:
        together = min(_WINDOWS_SORTED_TOGETHER, len(order) // (rows_in_step * _LEAST_CHUNKS))
        chunk = rows_in_step * max(1, together)
        chunks = [order[start : start + chunk] for start in range(0, len(order), chunk)]
        order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in chunks])
    windows = [order[start : start + rows_in_step] for start in range(0, len(order), rows_in_step)]
    if group_by_length:
        windows = [windows[index] for index in rng.permutation(len(windows))]
    steps = []
    for window in windows:
        # Micro-batch a of rank r is part a·processes + r: ranks that work at the same time get like lengths.
        parts = np.array_split(window, accumulation * processes)[rank::processes]
        step = [MicroBatch(tuple(part.tolist()), len(part) / len(window)) for part in parts if len(part)]
        if not step and processes > 1:
            # Every process must take part in the exchange of gradients: one row that counts for nothing.
            step = [MicroBatch((int(window[0]),), 0.0)]
        steps.append(step)
    return steps


def halved(part: MicroBatch, batch: Batch, times: int) -> list[tuple[MicroBatch, Batch]]:
    """Return a micro-batch cut in half so many times over, each piece with its share of the step.

    Args:
        part: The rows that it was made of.
        batch: The batch; it may hold more rows than `part`, where a strategy added copies.
        times: How often to halve.

    >>> batch = Batch({"input_ids": torch.ones(3, 2)}, rows=(7, 8, 9))
    >>> [(part.indices, piece.rows) for part, piece in halved(MicroBatch((0, 1, 2), 0.6), batch, 1)]
    [((0, 1), (7, 8)), ((2,), (9,))]
    """
    pieces = batch.split(2**times)
    if len(pieces) == 1:
        return [(part, batch)]
    # With copies among them, the pieces hold other rows than the indices say.
    ends = np.cumsum([len(piece) for piece in pieces])[:-1]
    own = np.split(np.array(part.indices), ends) if len(part.indices) == len(batch) else None
    return [
        (
            MicroBatch(
                part.indices if own is None else tuple(own[number].tolist()), part.share * len(piece) / len(batch)
            ),
            piece,
        )
        for number, piece in enumerate(pieces)
    ]


def epoch_batches(
    rows: TokenizedRows,
    plan: Sequence[Sequence[MicroBatch]],
    *,
    first: int = 0,
    seed: tuple[int, ...] = (0,),
    transform: Callable[[list[Example], BatchRandom], list[Example]] | None = None,
    workers: int = 0,
) -> Iterator[tuple[Sequence[MicroBatch], Iterator[Batch]]]:
    """Yield the micro-batches of each step, collated ahead by worker processes where there are some.

    Args:
        rows: The rows.
        plan: The steps of the epoch, from `plan_epoch`.
        first: The step to begin at.
        seed: Numbers that decide what `transform` draws, such as (seed, stage, epoch).
        transform: Changes the raw rows of a micro-batch and may add copies.
        workers: Number of worker processes.
    """
    steps = range(first, len(plan))
    parts = [(part, (step, index)) for step in steps for index, part in enumerate(plan[step])]
    loader = iter(
        torch.utils.data.DataLoader(
            _Collated(rows, parts, seed, transform),
            batch_size=None,
            num_workers=workers,
            collate_fn=_unchanged,
            generator=torch.Generator(),  # else the loader draws from the caller's stream
        )
    )
    for step in steps:
        yield plan[step], (next(loader) for _ in plan[step])


@dataclass
class _Collated(torch.utils.data.Dataset[Batch]):
    """The micro-batches of one epoch, each collated when it is asked for, in whatever process that is."""

    rows: TokenizedRows
    parts: list[tuple[MicroBatch, tuple[int, int]]]
    seed: tuple[int, ...]
    transform: Callable[[list[Example], BatchRandom], list[Example]] | None

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> Batch:
        part, position = self.parts[index]
        if self.transform is None:
            return self.rows.collate(part.indices)
        rng, transform = BatchRandom(*self.seed, position=position), self.transform
        return self.rows.collate(part.indices, lambda examples: transform(examples, rng))


def _unchanged(batch: Any) -> Any:
    return batch
