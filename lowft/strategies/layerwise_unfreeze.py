"""Train from the output side downwards, stage by stage, and stop as soon as it is good enough."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from lowft._settings import check_flag, check_real, check_text
from lowft.errors import ConfigError, StrategyConflictError
from lowft.models import find_layers, trainable_names
from lowft.registry import register
from lowft.stages import Gate, MinImprovement, Stage, Target, check_pace, narrow
from lowft.strategy import Contract, Strategy

if TYPE_CHECKING:
    import torch

    from lowft.models import Layers

__all__ = ["LayerwiseUnfreeze", "Unfreeze"]

_FEW_ROWS = 1000  # with fewer, what a random head sends back would spoil the layers before it has learnt
_DEFAULT_SHARES = (1 / 3, 2 / 3)  # of the blocks, before the stage that trains everything


@register
@dataclass(frozen=True)
class Unfreeze:
    """The settings of one stage of `LayerwiseUnfreeze`; what is None is as in the stage that is split.

    That is the `TrainingConfig`'s, unless you gave `lowft.attach` a stage with settings of its own.

    Args:
        top: How many of the uppermost blocks train with the head; "all" trains the embeddings too.
        learning_rate: Peak learning rate of the stage.
        batch_size: Rows in a micro-batch.
        epochs: Passes over the training rows; may be fractional.
        max_steps: Optimizer steps; replaces `epochs`.
        layer_decay: Factor on the learning rate for each depth further down (Howard & Ruder 2018, section 3.2).

    Raises:
        ConfigError: A value outside its range.

    >>> Unfreeze(top=2, learning_rate=2e-4, epochs=1).top
    2
    """

    top: int | Literal["all"]
    learning_rate: float | None = None
    batch_size: int | None = None
    epochs: float | None = None
    max_steps: int | None = None
    layer_decay: float | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        if self.top != "all" and (isinstance(self.top, bool) or not isinstance(self.top, int) or self.top < 0):
            raise ConfigError(f"Unfreeze.top must be a number of blocks, at least 0, or 'all'; received {self.top!r}")
        check_pace(self)


@dataclass(frozen=True)
class LayerwiseUnfreeze(Strategy):
    """Train the head and the last layers first, then deeper, with an evaluation and a decision after each stage.

    A stage that reaches the target ends the training; the deeper, dearer ones are then never run. The best
    weights so far are what the next stage starts from, and what remains at the end. Gradual unfreezing is from
    Howard & Ruder 2018 (ULMFiT, section 3.3, https://arxiv.org/abs/1801.06146).

    Args:
        schedule: Settings of each stage, from shallow to deep; None makes three: a third of the blocks, two
            thirds, and everything. With fewer than 1,000 training rows the head alone comes before them: gradients
            through a head that knows nothing yet spoil the layers below (Kumar et al. 2022,
            https://arxiv.org/abs/2202.10054).
        target: Value of the metric at which training ends; None goes through all stages.
        min_improvement: A stage that improves the metric by less is undone, and training ends; "noise" is one standard
            error of the metric on the validation rows; None keeps whatever is best and goes on.
        metric: The validation metric that both look at.
        greater_is_better: Whether a greater value of it is better.

    Raises:
        ConfigError: An empty schedule, a value of another type, or a stage that trains no more than the one before
            (when the Trainer is built, where that depends on the model).

    >>> LayerwiseUnfreeze((Unfreeze(top=2, epochs=1), Unfreeze(top="all", epochs=1)), target=0.85).metric
    'accuracy'
    """

    contract: ClassVar[Contract] = Contract(
        provides=frozenset({"trainable", "stages"}), invalidates=frozenset({"stages"})
    )

    schedule: tuple[Unfreeze, ...] | None = None
    target: float | None = None
    min_improvement: float | Literal["noise"] | None = None
    metric: str = "accuracy"
    greater_is_better: bool = True

    def __post_init__(self) -> None:
        """Check the schedule and the gates' settings."""
        check_text("LayerwiseUnfreeze.metric", self.metric)
        check_flag("LayerwiseUnfreeze.greater_is_better", self.greater_is_better)
        for name in ("target", "min_improvement"):
            if getattr(self, name) is not None and (name, getattr(self, name)) != ("min_improvement", "noise"):
                check_real(f"LayerwiseUnfreeze.{name}", getattr(self, name))
        if self.schedule is None:
            return
        if not isinstance(self.schedule, list | tuple) or not self.schedule:
            raise ConfigError(
                f"LayerwiseUnfreeze.schedule must be a tuple with at least one Unfreeze(...), or None; "
                f"received {self.schedule!r}"
            )
        schedule = tuple(self.schedule)
        object.__setattr__(self, "schedule", schedule)
        for part in schedule:
            if not isinstance(part, Unfreeze):
                raise ConfigError(f"LayerwiseUnfreeze.schedule must hold Unfreeze(...) settings; received {part!r}")
        for before, after in itertools.pairwise(schedule):
            if before.top == "all" or (after.top != "all" and after.top <= before.top):
                raise ConfigError(
                    f"LayerwiseUnfreeze.schedule must go deeper with each stage; top={after.top!r} follows "
                    f"top={before.top!r}"
                )

    def stages(self, stages: tuple[Stage, ...], model: torch.nn.Module) -> tuple[Stage, ...]:
        """Split the one stage there is into those of the schedule."""
        if len(stages) > 1:
            raise StrategyConflictError(
                f"{self.name} splits one stage into several, and an earlier strategy has made "
                f"{len(stages)}: {', '.join(stage.name for stage in stages)}. Leave one of the two out"
            )
        layers = find_layers(model)
        (stage,) = stages
        schedule = self.schedule_for(model, stage.rows)
        made = tuple(self._stage(part, stage, model, layers) for part in schedule)
        made = self._without_idle(made)
        return made if stage.trainable is None else narrow(made, stage.trainable, self.name)

    def schedule_for(self, model: torch.nn.Module, rows: int | None) -> tuple[Unfreeze, ...]:
        """Return the settings of each stage; for a model and a number of training rows, where none were given."""
        return self.schedule or _default_schedule(find_layers(model), rows)

    def _stage(self, part: Unfreeze, stage: Stage, model: torch.nn.Module, layers: Layers) -> Stage:
        top = layers.num_blocks if part.top == "all" else part.top
        names = trainable_names(model, top=top, embeddings=part.top == "all", layers=layers)
        settings = {name: value for name, value in vars(part).items() if name != "top" and value is not None}
        gates = stage.gates + self._gates()
        return dataclasses.replace(stage, name=_name(part.top), trainable=names, gates=gates, **settings)

    def _without_idle(self, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        """Leave out default stages, and refuse given ones, that the next one does not deepen: nothing lies below."""
        idle = [one for one, deeper in itertools.pairwise(stages) if one.trainable == deeper.trainable]
        if idle and self.schedule is not None:
            raise ConfigError(
                f"LayerwiseUnfreeze.schedule: the stage after {idle[0].name!r} trains the same layers, since this "
                f"model has nothing below them: leave one of the two out"
            )
        return tuple(stage for stage in stages if stage not in idle)

    def _gates(self) -> tuple[Gate, ...]:
        gates: tuple[Gate, ...] = ()
        if self.target is not None:
            gates += (Target(self.metric, self.target, self.greater_is_better),)
        if self.min_improvement is not None:
            gates += (MinImprovement(self.metric, self.min_improvement, self.greater_is_better),)
        return gates


def _default_schedule(layers: Layers, rows: int | None) -> tuple[Unfreeze, ...]:
    tops = sorted({max(1, round(layers.num_blocks * share)) for share in _DEFAULT_SHARES})
    head = [0] if rows is not None and rows < _FEW_ROWS else []
    return (*(Unfreeze(top=top) for top in [*head, *tops]), Unfreeze(top="all"))


def _name(top: int | Literal["all"]) -> str:
    if top == "all":
        return "all layers"
    return "head" if top == 0 else f"top {top} {'block' if top == 1 else 'blocks'}"
