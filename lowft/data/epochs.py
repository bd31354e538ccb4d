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

__all__ = ["MicroBatch", "cut_to_tokens", "epoch_batches", "halved", "longest_first", "plan_epoch"]

_STEPS_ASIDE = 2.0  # how far a row may move from its place by length: batches differ in each epoch, for little padding


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
    rows: npt.NDArray[np.int64] | None = None,
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
        rows: Indices of the rows that take part; None for all.

    >>> steps = plan_epoch(np.array([3, 9, 4, 8, 5]), batch_size=2)
    >>> sorted(index for step in steps for part in step for index in part.indices)
    [0, 1, 2, 3, 4]
    """
    rng = np.random.default_rng(list(seed))
    order = rng.permutation(len(lengths) if rows is None else rows)
    rows_in_step = batch_size * accumulation * processes
    if group_by_length:
        order = order[np.argsort(lengths[order], kind="stable")]
        order = order[np.argsort(np.arange(len(order)) + rng.uniform(0, _STEPS_ASIDE * rows_in_step, len(order)))]
    sizes = np.diff([*range(0, len(order), rows_in_step), len(order)])
    if group_by_length:
        sizes = np.roll(sizes, rng.integers(len(sizes)))  # else a small step would always be of the longest rows
    windows = np.split(order, np.cumsum(sizes)[:-1])
    if group_by_length:
        windows = [windows[index] for index in rng.permutation(len(windows))]
        windows = [window[np.argsort(lengths[window], kind="stable")] for window in windows]
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


def longest_first(
    lengths: npt.NDArray[np.int64], most_rows: int, most_tokens: int | None = None
) -> list[npt.NDArray[np.int64]]:
    """Return the indices of all rows in batches, the longest rows first.

    Args:
        lengths: Tokens of each row, `[rows]`.
        most_rows: Rows in a batch at most.
        most_tokens: Tokens in a batch at most, padding included; a longer row goes alone. None sets no limit.

    >>> [batch.tolist() for batch in longest_first(np.array([3, 9, 4, 8, 5]), 3, most_tokens=16)]
    [[1], [3, 4], [2, 0]]
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = int(lengths[order[start]])
        room = most_rows if most_tokens is None else min(most_rows, most_tokens // longest)
        batches.append(order[start : start + max(1, room)])
        start += len(batches[-1])
    return batches


def cut_to_tokens(
    steps: Sequence[Sequence[MicroBatch]], lengths: npt.NDArray[np.int64], most_tokens: int
) -> list[list[MicroBatch]]:
    """Return a plan whose micro-batches hold no more than so many tokens, padding included.

    Each optimizer step keeps its rows, and each row its share of it, so the gradient stays the same. A micro-batch that
    fits stays as it is; one that does not is cut into as few pieces as its rows sorted by length allow.

    Args:
        steps: What `plan_epoch` returned.
        lengths: Tokens of each row, `[rows]`.
        most_tokens: Tokens at most; a longer row goes alone.

    >>> (step,) = cut_to_tokens([[MicroBatch((0, 1, 2, 3), 1.0)]], np.array([9, 3, 4, 8]), 18)
    >>> [(part.indices, part.share) for part in step]
    [((0, 3), 0.5), ((2, 1), 0.5)]
    """
    return [[piece for part in step for piece in _cut(part, lengths, most_tokens)] for step in steps]


def _cut(part: MicroBatch, lengths: npt.NDArray[np.int64], most_tokens: int) -> list[MicroBatch]:
    indices = np.array(part.indices)
    batches = longest_first(lengths[indices], len(indices), most_tokens)
    if len(batches) == 1:
        return [part]
    return [MicroBatch(tuple(indices[batch].tolist()), part.share * len(batch) / len(indices)) for batch in batches]


def halved(part: MicroBatch, batch: Batch, times: int) -> list[tuple[MicroBatch, Batch]]:
    """Return a micro-batch cut in half so many times over, each piece with its share of the step.

    Args:
        part: The rows that it was made of.
        batch: The batch; it may hold copies of rows, which stay with theirs.
        times: How often to halve.

    >>> batch = Batch({"input_ids": torch.ones(3, 2)}, rows=(7, 8, 9))
    >>> [(part.indices, piece.rows) for part, piece in halved(MicroBatch((0, 1, 2), 0.6), batch, 1)]
    [((0, 1), (7, 8)), ((2,), (9,))]
    """
    pieces = batch.split(2**times)
    if len(pieces) == 1:
        return [(part, batch)]
    rows = [len(piece.places) for piece in pieces]
    # Where a strategy took rows away, the indices do not say which are left.
    known = len(part.indices) == sum(rows)
    own = np.split(np.array(part.indices), np.cumsum(rows)[:-1]) if known else [np.array(part.indices)] * len(rows)
    return [
        (MicroBatch(tuple(indices.tolist()), part.share * count / sum(rows)), piece)
        for indices, count, piece in zip(own, rows, pieces, strict=True)
    ]


def epoch_batches(
    rows: TokenizedRows,
    plan: Sequence[Sequence[MicroBatch]],
    *,
    first: int = 0,
    seed: tuple[int, ...] = (0,),
    transform: Callable[[list[Example], BatchRandom], list[Example]] | None = None,
    workers: int = 0,
    pinned: bool = False,
) -> Iterator[tuple[Sequence[MicroBatch], Iterator[Batch]]]:
    """Yield the micro-batches of each step, collated ahead by worker processes where there are some.

    Args:
        rows: The rows.
        plan: The steps of the epoch, from `plan_epoch`.
        first: The step to begin at.
        seed: Numbers that decide what `transform` draws, such as (seed, stage, epoch).
        transform: Changes the raw rows of a micro-batch and may add copies.
        workers: Number of worker processes.
        pinned: Whether to put batches into memory from which a GPU copies by itself.
    """
    steps = range(first, len(plan))
    parts = [(part, (step, index)) for step in steps for index, part in enumerate(plan[step])]
    loader = iter(
        torch.utils.data.DataLoader(
            _Collated(rows, parts, seed, transform),
            batch_size=None,
            num_workers=workers,
            pin_memory=pinned,
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
