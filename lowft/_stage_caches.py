"""Which frozen layers the stages of a run cache, which rows, and for how long.

Stages that follow one another, each with as few frozen blocks as the one before or fewer, form a group: what later
stages need passes by when the first one's cache is filled, so one pass over the rows fills them all while memory
allows. What is cached is decided by the plan of the stages alone, so a resumed run caches the same.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowft._tables import human_bytes
from lowft.data.batching import TokenizedRows
from lowft.errors import ModelError
from lowft.models.prefix_cache import PrefixCache, frozen_below, prefix_digest
from lowft.models.prefix_filling import Filling, cache_prefix
from lowft.strategy import Strategy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from lowft._placement import Placement
    from lowft.attach import Attached
    from lowft.config import TrainingConfig

__all__ = ["Passes", "StageCaches"]

_MEMORY = "prefix cache"  # the name under which the state keeps count


@dataclass(frozen=True)
class Passes:
    """How often the rows pass through the model in a stage, as planned.

    Attributes:
        epochs: Passes over the training rows.
        evaluations: Passes over the validation rows.
    """

    epochs: float
    evaluations: float


@dataclass
class StageCaches:
    """The caches of a run, one for each depth; those that a later stage needs outlive the stage that filled them.

    Args:
        attached: The strategies at work.
        config: Settings.
        placement: Where to compute.
        train_rows: The training rows.
        eval_rows: The validation rows.

    Attributes:
        rows: What the current stage caches: training rows, validation rows, both or none.
    """

    attached: Attached
    config: TrainingConfig
    placement: Placement
    train_rows: TokenizedRows
    eval_rows: TokenizedRows | None
    _caches: dict[int, PrefixCache] = field(default_factory=dict, init=False)
    _now: PrefixCache | None = field(default=None, init=False)
    rows: list[TokenizedRows] = field(default_factory=list, init=False)

    def enter(self, passes: Sequence[Passes], precision: str) -> dict[str, Any] | None:
        """Cache for the current stage what its frozen layers give, unless it is there already.

        Args:
            passes: Of each stage of the run.
            precision: In which to compute.

        Returns:
            A note for the history: what was cached, or why not; None where nothing is frozen that could be.
        """
        self._now = None
        if self.attached.layers is None or not self.config.prefix_cache:
            return None
        stage = self.attached.state.stage_index
        depths = [frozen_below(self.attached.layers, self.attached.trained_in(one)) for one in self.attached.stages]
        against = [part.name for part in self.attached.strategy.strategies if "prefix" in part.contract.invalidates]
        rows: list[TokenizedRows] = []
        told: list[str] = []
        last = stage
        if against and depths[stage] >= 0:
            told.append(f"{against[0]} needs them computed anew")
        elif depths[stage] >= 0:
            first = _group(depths, stage)
            last = next((later for later in range(stage, len(depths)) if _group(depths, later) != first), len(depths))
            rows, told = self._rows(range(first, last), depths, passes)
        self.rows = rows
        wanted = tuple(dict.fromkeys(depths[stage:last])) if rows else ()
        self._keep(wanted)
        if not rows:
            return {"message": f"frozen layers not cached: {told[0]}"} if told else None
        started = time.perf_counter()
        try:
            reused = self._fill(wanted, rows, precision)
            self._now = self._caches[wanted[0]]
        except (ModelError, OSError) as error:
            self._keep(())
            return {"message": f"frozen layers not cached: {error}"}
        return self._described(self._now, told, reused=reused, seconds=time.perf_counter() - started)

    @contextlib.contextmanager
    def serving(self, inputs: dict[str, Tensor], on_cpu: dict[str, Tensor]) -> Iterator[None]:
        """Hand over in the model's forward what is cached for these rows; `on_cpu` are the same inputs."""
        if self._now is None:
            yield
            return
        with self._now.serving(inputs, on_cpu) as served:
            count = self.attached.state.memory_of(_MEMORY)
            count["served"] = count.get("served", 0) + served
            count["asked"] = count.get("asked", 0) + len(next(iter(inputs.values())))
            yield

    def hits(self) -> dict[str, Any] | None:
        """Return a note of what the cache has brought in the current stage; None where there was none."""
        counts = self.placement.gather(self.attached.state.memory.pop(_MEMORY, None))[0]
        if not counts:
            return None
        share = counts["served"] / counts["asked"]
        return {"message": f"{share:.1%} of the rows came from the cache of frozen layers", "hit_rate": share}

    def leave(self) -> None:
        """End the current stage."""
        self.attached.state.memory.pop(_MEMORY, None)  # of what was looked at since the steps ended
        self._now = None

    def close(self) -> None:
        """Give back memory and disk."""
        self._keep(())

    @property
    def bytes_in_memory(self) -> int:
        """What all of them take in memory."""
        return sum(cache.bytes for cache in self._caches.values() if cache.in_memory)

    def _rows(
        self, stages: range, depths: Sequence[int], passes: Sequence[Passes]
    ) -> tuple[list[TokenizedRows], list[str]]:
        """Return the rows for which a group of stages saves more than one pass through its frozen blocks, and why."""
        # Embeddings that are all that is frozen are worth a pass too.
        cost = depths[stages[0]] or 1
        trained = sum(passes[stage].epochs * (depths[stage] or 1) for stage in stages) > cost
        evaluated = sum(passes[stage].evaluations * (depths[stage] or 1) for stage in stages) > cost
        rows, told = [], []
        if trained:
            recurring = self.attached.strategy.recurring(self.train_rows.rows)
            changing = [part.name for part in self.attached.strategy.strategies if _changes_rows(part)]
            if recurring is None:
                told.append(f"training rows not cached, since {changing[0]} changes them")
            elif recurring is self.train_rows.rows:
                rows.append(self.train_rows)
            else:
                rows.append(replace(self.train_rows, rows=recurring, labels=None))
            if recurring is not None and changing:
                told.append(f"rows that {changing[0]} makes anew are computed")
        if evaluated and self.eval_rows is not None:
            rows.append(self.eval_rows)
        return rows, told

    def _fill(self, wanted: Sequence[int], rows: list[TokenizedRows], precision: str) -> bool:
        """Fill the caches of these depths that are not there, and tell whether the first of them was."""
        depth = wanted[0]
        if depth in self._caches:
            return True
        attached = self.attached
        assert attached.layers is not None  # noqa: S101 - else nothing is cached
        held = self.bytes_in_memory
        below = [number for number, cache in self._caches.items() if number < depth and cache.is_whole]
        self._caches |= cache_prefix(
            attached.model,
            attached.layers,
            [depth, *(number for number in wanted[1:] if number not in self._caches)],
            rows,
            Filling(
                precision=precision,
                memory_limit=max(0, self.config.prefix_cache_memory // self.placement.processes - held),
                folder=None if self.config.output_dir is None else Path(self.config.output_dir),
                tokens_per_batch=self.config.tokens_per_batch,
                progress=self.config.progress,
                skip_unread=self.config.skip_unread_tokens,
                narrow=not any(type(part).on_loss is not Strategy.on_loss for part in attached.strategy.strategies),
            ),
            placement=self.placement,
            base=self._caches[max(below)] if below else None,
        )
        return False

    def _keep(self, wanted: Sequence[int]) -> None:
        """Give back all but caches of these depths that are still true of the model's weights."""
        for depth, cache in list(self._caches.items()):
            layers = self.attached.layers
            true = layers is not None and depth in wanted
            if not (true and cache.digest == prefix_digest(self.attached.model, layers, depth)):  # type: ignore[arg-type]
                self._caches.pop(depth).close()

    def _described(self, cache: PrefixCache, told: Sequence[str], *, reused: bool, seconds: float) -> dict[str, Any]:
        what = f"{cache.blocks} frozen blocks" if cache.blocks else "frozen embeddings"
        if reused:
            size = f"{human_bytes(cache.bytes)} of {len(cache):,} distinct rows kept from an earlier stage"
        else:
            size = f"{human_bytes(cache.bytes)} of {len(cache):,} distinct rows cached"
        parts = [f"{what}: {size}", *told]
        if not cache.is_whole:
            parts.append(f"the disk has no room for the other {cache.expected - len(cache):,}, which are computed")
        return {"message": ", ".join(parts), "cached_bytes": cache.bytes, "filling_seconds": seconds}


def _group(depths: Sequence[int], stage: int) -> int:
    """Return the first of the stages up to this one, none of which has fewer frozen blocks than the next.

    >>> [_group([6, 4, 4, 2, 6], stage) for stage in range(5)]
    [0, 0, 0, 0, 4]
    """
    while stage and depths[stage - 1] >= depths[stage]:
        stage -= 1
    return stage


def _changes_rows(strategy: Strategy) -> bool:
    kind = type(strategy)
    return kind.on_examples is not Strategy.on_examples or kind.on_batch is not Strategy.on_batch
