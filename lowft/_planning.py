"""Foretells what the stages of a run cost: a few steps and evaluations of each, measured and undone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lowft._memory import release_memory
from lowft._peak import settle_memory
from lowft._probing import Memory, eval_batches, longest_step, run_evaluation, run_steps, tokens_of, undone
from lowft._randomness import seeded
from lowft._stage_caches import StageCaches
from lowft.data.epochs import MicroBatch
from lowft.models.prefix_filling import ROWS_TOGETHER, filling_batches
from lowft.planning import PlannedStage

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from lowft.config import TrainingConfig
    from lowft.data.batching import TokenizedRows
    from lowft.loop import Loop
    from lowft.stages import Stage

__all__ = ["probe_stages"]

_EPOCHS = 3  # in which the longest batch is looked for
_STEPS = 6  # measured besides the longest
_EVAL_BATCHES = 3


def probe_stages(
    loop: Loop, stages: tuple[Stage, ...], config: TrainingConfig, max_length: int, halvings: int = 0
) -> tuple[PlannedStage, ...]:
    """Return what stages would cost with some settings; the run is as it was before.

    Args:
        loop: A run that has not begun.
        stages: The stages; they train no more than the run's own.
        config: The settings.
        max_length: Tokens after which a text is cut.
        halvings: How often micro-batches are halved.
    """
    settle_memory()
    with undone(loop) as memory:
        loop.config, loop.kept.halvings = config, halvings
        loop.attached.stages = loop.attached.state.stages = stages
        found = []
        for index in range(len(stages)):
            loop.optimizer.state.clear()
            release_memory()
            memory.meter.restart()
            try:
                found.append(_Probe(loop, memory, index, max_length).measure())
            finally:
                loop.caches.close()
    return tuple(found)


@dataclass
class _Probe:
    """One stage of a loop, measured on some of its rows."""

    loop: Loop
    memory: Memory
    index: int
    max_length: int

    def measure(self) -> PlannedStage:
        """Start the stage, and make some of its steps and evaluations."""
        loop, state = self.loop, self.loop.attached.state
        with seeded(loop.config.seed, self.index):
            loop.attached.start_stage(self.index)
        state.stage_steps = steps = loop.planned_steps(state.stage)
        loop.wrap_model()
        loop.attached.train()
        epochs = steps / loop.steps_per_epoch
        evaluations = loop.evaluations
        lengths = np.minimum(loop.train_rows.lengths, self.max_length)
        longest = longest_step(loop, lengths, min(_EPOCHS, math.ceil(epochs)))
        chosen = [longest, longest, *_spread(loop.plan_epoch(0, lengths), lengths)]
        eval_lengths = None if loop.eval_rows is None else np.minimum(loop.eval_rows.lengths, self.max_length)
        eval_chosen = [] if eval_lengths is None else eval_batches(loop, eval_lengths, _EVAL_BATCHES)
        # The rows that are measured, and those that the cache computes first.
        most = np.argsort(-lengths, kind="stable")[:ROWS_TOGETHER]
        wanted = [index for step in chosen for part in step for index in part.indices]
        rows, chosen = self._part(loop.train_rows, [*wanted, *most.tolist()], chosen)
        eval_rows = None
        if loop.eval_rows is not None:
            eval_rows, batches = self._eval_part(loop.eval_rows, eval_chosen)
        loop.caches = StageCaches(loop.attached, loop.config, loop.placement, rows, eval_rows)
        note = loop.caches.enter(loop.passes(), loop.kept.precision) or {}
        sides = [(lengths, rows), (eval_lengths, eval_rows)]
        cached: list[Any] = [(whole, part) for whole, part in sides if any(held is part for held in loop.caches.rows)]
        cache_seconds = note.get("filling_seconds", 0.0)
        if cached:
            cache_seconds *= sum(_padded(whole, loop) for whole, _ in cached) / sum(
                _padded(part.lengths, loop) for _, part in cached
            )
        self.memory.expect(loop, evaluations)
        seconds = run_steps(loop, rows, chosen)
        tokens = [tokens_of(step, rows.lengths) for step in chosen]
        whole_epoch = [tokens_of(step, lengths) for step in loop.plan_epoch(0, lengths)]
        train_seconds = steps * _mean_seconds(tokens[1:], seconds[1:], whole_epoch)
        peaks = [self.memory.most(), self.memory.while_copying() if evaluations else None]
        eval_seconds = 0.0
        if eval_rows is not None and eval_lengths is not None:
            self.memory.meter.restart()
            run_evaluation(loop, eval_rows, batches, eval_lengths)
            peaks.append(self.memory.most())
            eval_seconds = run_evaluation(loop, eval_rows, batches, eval_lengths)
        missing = 0
        if cached:  # by how much a cache of all rows is larger than that of some
            share = sum(whole.sum() for whole, _ in cached) / sum(part.lengths.sum() for _, part in cached)
            missing = round(loop.caches.bytes_in_memory * (float(share) - 1))
        known = [peak + missing for peak in peaks if peak is not None]
        size = max(len(part.indices) for part in longest)
        return PlannedStage(
            name=state.stage.name,
            steps=steps,
            rows_at_a_time=math.ceil(size / 2**loop.kept.halvings),
            cache_seconds=cache_seconds,
            train_seconds=train_seconds,
            evaluations=evaluations,
            eval_seconds=evaluations * eval_seconds,
            peak_memory_bytes=max(known, default=None),
        )

    def _part(
        self, rows: TokenizedRows, wanted: Sequence[int], steps: list[list[MicroBatch]]
    ) -> tuple[TokenizedRows, list[list[MicroBatch]]]:
        """Return some of the rows, and steps that know them by their new numbers."""
        places = {index: place for place, index in enumerate(dict.fromkeys(wanted))}
        made = rows.select(list(places), max_length=self.max_length)
        return made, [
            [replace(part, indices=tuple(places[index] for index in part.indices)) for part in step] for step in steps
        ]

    def _eval_part(
        self, rows: TokenizedRows, batches: Sequence[npt.NDArray[np.int64]]
    ) -> tuple[TokenizedRows, list[npt.NDArray[np.int64]]]:
        ends = np.cumsum([len(batch) for batch in batches])
        made = rows.select(np.concatenate(batches).tolist(), max_length=self.max_length)
        return made, np.split(np.arange(ends[-1]), ends[:-1])


def _spread(steps: list[list[MicroBatch]], lengths: npt.NDArray[np.int64]) -> list[list[MicroBatch]]:
    """Return some steps of an epoch, from short to long."""
    ordered = sorted(steps, key=lambda step: tokens_of(step, lengths))
    places = (np.arange(_STEPS) + 0.5) / _STEPS * len(ordered)
    return [ordered[int(place)] for place in places]


def _mean_seconds(tokens: Sequence[int], seconds: Sequence[float], epoch: Sequence[int]) -> float:
    """Return the mean seconds of an epoch's steps, by a line through what was measured."""
    if len(set(tokens)) > 1:
        slope, start = np.polyfit(tokens, seconds, 1)
        if slope > 0:
            return float(np.maximum(slope * np.array(epoch) + start, min(seconds)).mean())
    return float(np.mean(seconds))


def _padded(lengths: npt.NDArray[np.int64], loop: Loop) -> int:
    """Return the tokens, padding included, that the prefix cache computes."""
    batches = filling_batches(lengths, loop.placement.device, loop.config.tokens_per_batch)
    return sum(len(batch) * int(lengths[batch[0]]) for batch in batches)
