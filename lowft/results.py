"""What a run hands out after each step, and what it keeps to choose weights by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Kept", "StepResult"]


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step brought.

    Attributes:
        step: Optimizer steps done so far in the run.
        stage: Name of the stage.
        epoch: Passes over the training rows so far in the stage.
        loss: Mean loss of the step's rows.
        learning_rate: Of the highest layers.
        grad_norm: L2 norm of the gradient before clipping.
        metrics: Validation metrics where this step was followed by an evaluation, else None.
    """

    step: int
    stage: str
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    metrics: dict[str, float] | None = None


@dataclass
class Kept:
    """What the run remembers to choose weights by: values that JSON holds, and copies of weights."""

    best_value: float | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    last_metrics: dict[str, float] = field(default_factory=dict)
    evaluations_without_gain: int = 0
    skipped_steps: int = 0
    seconds: float = 0.0
    precision: str = "float32"
    measured: dict[str, float] = field(default_factory=dict)  # seconds and bytes, which no two runs share
    cut_stage: int | None = None  # the last stage that ended because the time was up
    restarts: int = 0  # times that the training has begun again, having brought nothing
    halvings: int = 0  # of micro-batches, each time that memory ran out
    eval_halvings: int = 0  # of evaluation batches, so that they keep to max_memory
    best: dict[str, Tensor] = field(default_factory=dict)
    before_stage: dict[str, Tensor] = field(default_factory=dict)
    before_training: dict[str, Tensor] = field(default_factory=dict)  # while the training may begin again

    def forget_best(self) -> None:
        """Let the next evaluation be the first to choose weights by."""
        self.best_value, self.best_metrics, self.best = None, {}, {}
        self.evaluations_without_gain = 0

    def values(self) -> dict[str, Any]:
        """Return all but the weights."""
        weights = ("best", "before_stage", "before_training")
        return {name: value for name, value in vars(self).items() if name not in weights}
