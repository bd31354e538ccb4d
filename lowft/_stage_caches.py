"""Which rows a stage can serve from a prefix cache, and why not where it cannot."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowft._tables import human_bytes
from lowft.errors import ModelError
from lowft.models.prefix_cache import PrefixCache, frozen_blocks
from lowft.strategy import Strategy

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from lowft._placement import Placement
    from lowft.attach import Attached
    from lowft.config import TrainingConfig
    from lowft.data.batching import TokenizedRows

__all__ = ["StageCaches", "fill_caches"]


@dataclass(frozen=True)
class StageCaches:
    """The caches of one stage; none where the stage has no use for them.

    Attributes:
        train: Of the training rows.
        evaluation: Of the validation rows.
        note: What was cached, or why not, for the history; empty where nothing is frozen that could be.
    """

    train: PrefixCache | None = None
    evaluation: PrefixCache | None = None
    note: str = ""

    def serving(self, indices: Sequence[int]) -> AbstractContextManager[Any]:
        """Return the context of a training forward pass over these rows."""
        return contextlib.nullcontext() if self.train is None else self.train.serving(indices)

    def close(self) -> None:
        """Give back memory and disk."""
        for cache in (self.train, self.evaluation):
            if cache is not None:
                cache.close()


def fill_caches(
    attached: Attached,
    config: TrainingConfig,
    placement: Placement,
    train_rows: TokenizedRows,
    eval_rows: TokenizedRows | None,
    *,
    precision: str,
    epochs: float,
    evaluations: float,
) -> StageCaches:
    """Compute what the stage's frozen prefix gives for all rows that will pass through it more than once.

    Args:
        attached: The strategies at work; what trains in the stage is set.
        config: Settings.
        placement: Where to compute.
        train_rows: The training rows.
        eval_rows: The validation rows.
        precision: In which to compute.
        epochs: Passes over the training rows that the stage plans.
        evaluations: Evaluations that it plans.
    """
    if attached.layers is None or not config.prefix_cache:
        return StageCaches()
    blocks = frozen_blocks(attached.model, attached.layers)
    if blocks == 0:
        return StageCaches()
    strategies = attached.strategy.strategies
    against = [part.name for part in strategies if "prefix" in part.contract.invalidates]
    if against or placement.processes > 1:
        why = f"{against[0]} needs them computed anew" if against else "several processes train together"
        return StageCaches(note=f"frozen layers not cached: {why}")
    make = partial(
        PrefixCache,
        attached.model,
        attached.layers,
        blocks,
        precision=precision,
        folder=None if config.output_dir is None else Path(config.output_dir),
        progress=config.progress,
    )
    changing = [part.name for part in strategies if _changes_rows(part)]
    train = evaluation = None
    left = config.prefix_cache_memory
    notes = []
    try:
        if epochs > 1 and changing:
            notes.append(f"training rows not cached, since {changing[0]} changes them")
        elif epochs > 1:
            train = make(train_rows, memory_limit=left)
            left -= train.bytes if train.in_memory else 0
            notes.append(f"{human_bytes(train.bytes)} of training rows cached")
        if eval_rows is not None and evaluations > 1:
            evaluation = make(eval_rows, memory_limit=left)
            notes.append(f"{human_bytes(evaluation.bytes)} of validation rows cached")
    except (ModelError, OSError) as error:
        StageCaches(train, evaluation).close()
        return StageCaches(note=f"frozen layers not cached: {error}")
    return StageCaches(train, evaluation, f"{blocks} frozen blocks: {', '.join(notes)}" if notes else "")


def _changes_rows(strategy: Strategy) -> bool:
    kind = type(strategy)
    return kind.on_examples is not Strategy.on_examples or kind.on_batch is not Strategy.on_batch
