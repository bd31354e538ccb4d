"""How much a run does: its seeds, steps, batches and evaluations, as settings and stages say; nothing here trains."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lowft._inference import tokens_at_once
from lowft._stage_caches import Passes
from lowft.data.epochs import cut_to_tokens, plan_epoch

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from lowft._placement import Placement
    from lowft.attach import Attached
    from lowft.config import TrainingConfig
    from lowft.data.batching import TokenizedRows
    from lowft.data.epochs import MicroBatch
    from lowft.results import Kept
    from lowft.stages import Stage

__all__ = ["Amounts"]


class Amounts:
    """What a run plans, by where it is; `lowft.loop.Loop` carries it out."""

    attached: Attached
    config: TrainingConfig
    placement: Placement
    train_rows: TokenizedRows
    eval_rows: TokenizedRows | None
    kept: Kept

    def planned_steps(self, stage: Stage) -> int:
        """Return the optimizer steps that a stage plans."""
        if stage.max_steps is not None:
            return stage.max_steps
        if stage.epochs is None and self.config.max_steps is not None:
            return self.config.max_steps
        return math.ceil((stage.epochs or self.config.epochs) * self.planned_steps_per_epoch(stage))

    def planned_steps_per_epoch(self, stage: Stage) -> int:
        """Return the optimizer steps of one pass over the training rows in a stage."""
        rows = self.batch_size(stage) * self.config.gradient_accumulation_steps * self.placement.processes
        return math.ceil(len(self.train_rows.labelled if stage.labeled_only else self.train_rows) / rows)

    @property
    def seed(self) -> int:
        """Return what decides all draws: the seed of the settings, and one more for each time the run began again."""
        return self.config.seed + self.kept.restarts

    @property
    def steps_per_epoch(self) -> int:
        """Return the optimizer steps of one pass over the training rows in the current stage."""
        return self.planned_steps_per_epoch(self.attached.state.stage)

    def batch_size(self, stage: Stage) -> int:
        """Return the rows of a micro-batch in a stage."""
        return stage.batch_size or self.config.batch_size

    @property
    def eval_batch_size(self) -> int:
        """Return the rows that go through the model at once in an evaluation."""
        return max(1, self.config.eval_batch_size >> self.kept.eval_halvings)

    @property
    def eval_tokens(self) -> int | None:
        """Return the tokens that go through the model at once in an evaluation at most; None without a limit."""
        most = tokens_at_once(self.placement.device, self.config.tokens_per_batch)
        return None if most is None else max(1, most >> self.kept.eval_halvings)

    @property
    def evaluate_every(self) -> int:
        """Return the optimizer steps from one evaluation to the next."""
        return self.config.eval_steps or self.steps_per_epoch

    @property
    def evaluations(self) -> int:
        """Return how many evaluations the current stage plans."""
        return 0 if self.eval_rows is None else math.ceil(self.attached.state.stage_steps / self.evaluate_every)

    @property
    def is_milestone(self) -> bool:
        """Whether an evaluation falls on the step that was just made: after each epoch, or as the settings say."""
        state = self.attached.state
        at_end = state.stage_step == state.stage_steps or state.stage_is_ended
        return at_end or state.stage_step % self.evaluate_every == 0

    def passes(self) -> list[Passes]:
        """Return how often the rows pass through the model in each stage, as planned."""
        found = []
        for stage in self.attached.stages:
            steps, epoch = self.planned_steps(stage), self.planned_steps_per_epoch(stage)
            found.append(Passes(steps / epoch, steps / (self.config.eval_steps or epoch)))
        return found

    def plan_epoch(self, epoch: int, lengths: npt.NDArray[np.int64] | None = None) -> list[list[MicroBatch]]:
        """Return the optimizer steps of one epoch of the current stage, for the rows or for others of these lengths."""
        config, stage = self.config, self.attached.state.stage
        seed = self.seed if config.data_seed is None else config.data_seed
        lengths = self.train_rows.lengths if lengths is None else lengths
        steps = plan_epoch(
            lengths,
            rows=self.train_rows.labelled if stage.labeled_only else None,
            batch_size=self.batch_size(stage),
            accumulation=config.gradient_accumulation_steps,
            processes=self.placement.processes,
            rank=self.placement.rank,
            seed=(seed, self.attached.state.stage_index, epoch),
            group_by_length=config.group_by_length,
        )
        return steps if config.tokens_per_batch is None else cut_to_tokens(steps, lengths, config.tokens_per_batch)
