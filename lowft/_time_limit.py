"""A run that must end in time: what a step and an evaluation take is measured, and the last ones are made in time."""

from __future__ import annotations

import math
import weakref
from typing import TYPE_CHECKING

from lowft._fitting import seconds_of_evaluation
from lowft._tables import human_seconds

if TYPE_CHECKING:
    from lowft.loop import Loop

__all__ = ["TimeLimit"]

_EVALUATION, _SAVING, _SLOWEST_SAVE = "evaluation_seconds", "saving_seconds", "slowest_save_seconds"


class TimeLimit:
    """Ends the stages of a loop so that the whole run keeps to `TrainingConfig.max_minutes`.

    A stage that follows in any case (the ones that prune or quantize) is left the share of the time that its steps are
    of all steps to come.
    """

    def __init__(self, loop: Loop) -> None:
        # A loop that nobody holds any more is to go at once, with its weights, and not when Python looks for circles.
        self._loop: Loop = weakref.proxy(loop)
        self._deadline = math.inf
        self._slowest_step = self._before = 0.0

    @property
    def reason(self) -> str:
        """Why a stage was cut, for the history."""
        return f"the time was up (max_minutes={self._loop.config.max_minutes:g})"

    @property
    def _limit(self) -> float:
        minutes = self._loop.config.max_minutes
        return math.inf if minutes is None else 60 * minutes

    @property
    def _spent(self) -> float:
        """Seconds of the run so far, in processes that were stopped too."""
        return self._loop.kept.seconds + self._loop.kept.measured.get(_SAVING, 0.0)

    @property
    def _reserve(self) -> float:
        """Seconds for an evaluation and the checkpoints before and after it."""
        known = self._loop.kept.measured
        return known.get(_EVALUATION, 0.0) + 2 * known.get(_SLOWEST_SAVE, 0.0)

    @property
    def is_up(self) -> bool:
        """Whether too little is left for a step of another stage and its evaluation."""
        if self._loop.config.max_minutes is None:
            return False
        needed = self._slowest_step + self._reserve
        return any(self._loop.placement.gather(self._spent + needed > self._limit))

    def cut_again(self, steps: int) -> int:
        """Return the steps of a stage that is entered: for one that was cut before a resume, those it has made."""
        kept, state = self._loop.kept, self._loop.attached.state
        if kept.cut_stage is None or kept.cut_stage != state.stage_index or state.stage_step == 0:
            return steps
        if self._spent + kept.measured.get(_EVALUATION, 0.0) < self._limit:
            kept.cut_stage = None  # the resumed run has more time
            return steps
        return state.stage_step

    def measure_evaluation(self) -> None:
        """Learn what an evaluation takes before there has been one."""
        loop = self._loop
        if loop.config.max_minutes is None or loop.eval_rows is None or _EVALUATION in loop.kept.measured:
            return
        loop.kept.measured[_EVALUATION] = max(loop.placement.gather(seconds_of_evaluation(loop)))

    def start_stage(self) -> None:
        """Share the time that is left among this stage and those that follow in any case."""
        loop = self._loop
        if loop.config.max_minutes is None:
            return
        stages, index = loop.attached.stages, loop.attached.state.stage_index
        later = sum(loop.planned_steps(stage) for stage in stages[index + 1 :] if stage.always)
        rest = loop.attached.state.stage_steps - loop.attached.state.stage_step + later
        left = max(0.0, self._limit - self._spent)
        self._deadline = self._limit - left * later / max(1, rest)
        self._slowest_step, self._before = 0.0, self._spent

    def after_step(self) -> str:
        """End the stage with the step that was made, if it is time; return what the history should say, if anything."""
        loop = self._loop
        if loop.config.max_minutes is None:
            return ""
        state, kept = loop.attached.state, loop.kept
        self._slowest_step = max(self._slowest_step, self._spent - self._before)
        # An evaluation that is due now is paid for as well as the one after the next step; either may be saved.
        needed = self._slowest_step + self._reserve * (2 if loop.is_milestone else 1)
        up = any(loop.placement.gather(self._spent + needed > self._deadline))
        self._before = self._spent
        if not up or state.stage_step >= state.stage_steps:
            return ""
        message = (
            f"{human_seconds(self._spent)} spent: max_minutes={loop.config.max_minutes:g} leaves no time for another "
            f"step and the evaluation after it, so the stage ends after {state.stage_step:,} of "
            f"{state.stage_steps:,} steps"
        )
        state.stage_steps, kept.cut_stage = state.stage_step, state.stage_index
        return message

    def after_evaluation(self) -> None:
        """Learn what the evaluation took, if there was one."""
        taken = self._spent - self._before
        if self._loop.is_milestone and self._loop.eval_rows is not None:
            known = self._loop.kept.measured
            known[_EVALUATION] = max(taken, known.get(_EVALUATION, 0.0))
        self._before = self._spent

    def count_saving(self, seconds: float) -> None:
        """Add what a checkpoint took, which is not counted as the run's own time."""
        known = self._loop.kept.measured
        known[_SAVING] = known.get(_SAVING, 0.0) + seconds
        known[_SLOWEST_SAVE] = max(known.get(_SLOWEST_SAVE, 0.0), seconds)
        self._before += seconds
