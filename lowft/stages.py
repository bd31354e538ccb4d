"""Stages: stretches of training with settings of their own, and the gates between them."""

from __future__ import annotations

import difflib
import enum
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lowft._settings import check_flag, check_real, check_text, check_whole
from lowft.errors import ConfigError, StrategyConflictError
from lowft.registry import register

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Decision", "Gate", "MinImprovement", "Stage", "Target", "Verdict", "check_pace", "narrow"]


class Decision(enum.StrEnum):
    """What follows a stage."""

    CONTINUE = "continue"
    STOP = "stop"
    ROLL_BACK = "roll back"


@dataclass(frozen=True)
class Verdict:
    """A gate's decision and, in words for the history, why.

    >>> Verdict(Decision.STOP, "accuracy 0.84 reached the target 0.83").ends_training
    True
    """

    decision: Decision
    reason: str

    @property
    def ends_training(self) -> bool:
        """Whether no further stage runs: after `STOP` and after `ROLL_BACK`."""
        return self.decision is not Decision.CONTINUE


@dataclass(frozen=True)
class Gate(ABC):
    """Decides after a stage, from validation results, whether to go on, stop, or roll back.

    Declare a subclass as `@dataclass(frozen=True)`; it is registered under its class name.

    >>> @dataclass(frozen=True)
    ... class Enough(Gate):
    ...     loss: float = 0.5
    ...
    ...     def decide(self, results):
    ...         done = results[-1]["loss"] <= self.loss
    ...         return Verdict(Decision.STOP if done else Decision.CONTINUE, "loss")
    >>> Enough().decide([{"loss": 0.4}]).decision
    <Decision.STOP: 'stop'>
    """

    may_roll_back: ClassVar[bool] = True  # if so, the weights from before the stage are kept while it runs

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Register the class, so that files can name it."""
        super().__init_subclass__(**kwargs)
        register(cls)

    @abstractmethod
    def decide(self, results: Sequence[Mapping[str, float]]) -> Verdict:
        """Return what follows the stage that just ended.

        Args:
            results: The validation metrics of the weights kept after each stage so far; the last entry is
                the stage that just ended.
        """


@dataclass(frozen=True)
class Target(Gate):
    """Stop when a validation metric has reached a value: good enough goes straight to the test.

    Args:
        metric: Name of a validation metric, such as `"accuracy"` or `"loss"`.
        value: The value to reach.
        greater_is_better: Whether reaching means at least (True) or at most (False) `value`.

    Raises:
        ConfigError: A setting of another type.

    >>> Target("accuracy", 0.83).decide([{"accuracy": 0.84}]).decision
    <Decision.STOP: 'stop'>
    """

    may_roll_back: ClassVar[bool] = False

    metric: str
    value: float
    greater_is_better: bool = True

    def __post_init__(self) -> None:
        """Check every value."""
        _check_gate(self)

    def decide(self, results: Sequence[Mapping[str, float]]) -> Verdict:
        """Return `STOP` if the last stage's metric reached the value, else `CONTINUE`."""
        got = _metric(results[-1], self.metric, "Target")
        reached = got >= self.value if self.greater_is_better else got <= self.value
        words = "reached" if reached else "did not reach"
        reason = f"{self.metric} {got:.4f} {words} the target {self.value:g}"
        return Verdict(Decision.STOP if reached else Decision.CONTINUE, reason)


@dataclass(frozen=True)
class MinImprovement(Gate):
    """Undo a stage that brought too little, and end there: deeper stages cost more and seldom bring more.

    Args:
        metric: Name of a validation metric.
        value: The least improvement on the stage before that keeps a stage. "noise" is one standard error of the
            metric on these validation rows (see `lowft.bootstrap_error`), which the Trainer measures: an improvement
            that another draw of as many rows could undo does not count. A loop of your own gives it to `decide`
            beside the metric, as `"<metric>_noise"`.
        greater_is_better: Whether improvement means growth (True) or decrease (False).

    Raises:
        ConfigError: A setting of another type.

    >>> MinImprovement("accuracy", 0.01).decide([{"accuracy": 0.80}, {"accuracy": 0.805}]).decision
    <Decision.ROLL_BACK: 'roll back'>
    """

    metric: str
    value: float | Literal["noise"] = 0.0
    greater_is_better: bool = True

    def __post_init__(self) -> None:
        """Check every value."""
        _check_gate(self)

    @property
    def noise(self) -> str | None:
        """The name under which the metric's standard error is expected; None where the value is a number."""
        return f"{self.metric}_noise" if self.value == "noise" else None

    def decide(self, results: Sequence[Mapping[str, float]]) -> Verdict:
        """Return `ROLL_BACK` if the last stage improved by less than the value, else `CONTINUE`."""
        got = _metric(results[-1], self.metric, "MinImprovement")
        if len(results) == 1:
            return Verdict(Decision.CONTINUE, f"{self.metric} {got:.4f} after the first stage")
        before = _metric(results[-2], self.metric, "MinImprovement")
        gain = got - before if self.greater_is_better else before - got
        if isinstance(self.value, str):
            least = _metric(results[-1], f"{self.metric}_noise", "MinImprovement")
            asked = f"the noise of these validation rows, {least:.4f}"
        else:
            least, asked = self.value, f"the improvement of {self.value:g} asked for"
        enough = gain >= least
        reason = f"{self.metric} went from {before:.4f} to {got:.4f}: {'at least' if enough else 'less than'} {asked}"
        return Verdict(Decision.CONTINUE if enough else Decision.ROLL_BACK, reason)


@dataclass(frozen=True)
class Stage:
    """One stretch of training. A setting left at None is that of the `TrainingConfig`.

    Args:
        name: Shown in the history, in progress bars and in messages.
        trainable: Names of the parameters that train; None trains all.
        learning_rate: Peak learning rate of the stage.
        layer_decay: Factor on the learning rate for each depth below the highest one that trains: 1 treats all
            depths alike, 0.9 lets lower layers learn more slowly (Howard & Ruder 2018, section 3.2).
        batch_size: Rows of a micro-batch in one process.
        epochs: Passes over the training rows; may be fractional.
        max_steps: Optimizer steps; replaces `epochs`.
        gates: Asked in turn when the stage has ended; the first that does not say `CONTINUE` decides.
        always: Run the stage even if a gate before it has ended the training: one that makes the model what will be
            deployed, such as pruning, is not to be left out because an earlier stage was good enough.
        rows: Training rows, where they are known, for strategies that plan by them.
        prepares: Whether the stage only prepares the layers below the head and leaves the task to those that follow:
            strategies that set the head, or ask it, wait for these.
        labeled_only: Whether the stage leaves out training rows without a label.

    Raises:
        ConfigError: A value outside its range.

    >>> Stage("head", learning_rate=1e-3, epochs=1).layer_decay
    1.0
    """

    name: str = "training"
    trainable: frozenset[str] | None = None
    learning_rate: float | None = None
    layer_decay: float = 1.0
    batch_size: int | None = None
    epochs: float | None = None
    max_steps: int | None = None
    gates: tuple[Gate, ...] = ()
    always: bool = False
    rows: int | None = None
    prepares: bool = False
    labeled_only: bool = False

    def __post_init__(self) -> None:
        """Check every value."""
        check_text("Stage.name", self.name)
        for flag in ("always", "prepares", "labeled_only"):
            check_flag(f"Stage.{flag}", getattr(self, flag))
        if self.rows is not None:
            check_whole("Stage.rows", self.rows, least=1)
        check_pace(self)
        if self.trainable is not None:
            if isinstance(self.trainable, str) or not isinstance(self.trainable, Collection):
                raise ConfigError(
                    f"Stage.trainable must be a set of names of parameters, or None; received {self.trainable!r}"
                )
            object.__setattr__(self, "trainable", frozenset(self.trainable))
        if not isinstance(self.gates, list | tuple) or not all(isinstance(gate, Gate) for gate in self.gates):
            raise ConfigError(f"Stage.gates must be a tuple of gates; received {self.gates!r}")
        object.__setattr__(self, "gates", tuple(self.gates))

    def decide(self, results: Sequence[Mapping[str, float]]) -> Verdict:
        """Return the verdict of the stage's gates on the results so far: the first that ends training, or all reasons.

        Args:
            results: The validation metrics kept after each stage so far.

        Raises:
            ConfigError: A gate asks for a metric that was not measured.
        """
        reasons = []
        for gate in self.gates:
            verdict = gate.decide(results)
            if verdict.ends_training:
                return verdict
            reasons.append(verdict.reason)
        return Verdict(Decision.CONTINUE, "; ".join(reasons) or "no gate")


def check_pace(settings: Any) -> None:
    """Check what `Stage` and the settings of a strategy that makes stages have in common.

    Args:
        settings: Has `learning_rate`, `batch_size`, `epochs`, `max_steps` and `layer_decay`; None is left out.

    Raises:
        ConfigError: A value outside its range.

    >>> check_pace(Stage(epochs=2))
    """
    owner = type(settings).__name__
    for name in ("batch_size", "max_steps"):
        if getattr(settings, name) is not None:
            check_whole(f"{owner}.{name}", getattr(settings, name), least=1)
    for name in ("learning_rate", "epochs"):
        if getattr(settings, name) is not None:
            check_real(f"{owner}.{name}", getattr(settings, name), above=0)
    if settings.layer_decay is not None:
        check_real(f"{owner}.layer_decay", settings.layer_decay, above=0, most=1)


def narrow(stages: Sequence[Stage], names: frozenset[str], by: str) -> tuple[Stage, ...]:
    """Return the stages with nothing but `names` left to train.

    Args:
        stages: The stages.
        names: The parameters that may train.
        by: The strategy that narrows them, for messages.

    Raises:
        StrategyConflictError: A stage would train nothing, or two stages that trained different layers would
            train the same ones.

    >>> narrow([Stage(trainable=frozenset({"a", "b"}))], frozenset({"b", "c"}), "PartialFreeze")[0].trainable
    frozenset({'b'})
    """
    result = tuple(
        replace(stage, trainable=names if stage.trainable is None else stage.trainable & names) for stage in stages
    )
    for index, stage in enumerate(result):
        if not stage.trainable:
            raise StrategyConflictError(
                f"{by} leaves the stage {stage.name!r} nothing to train: let the two overlap, or leave one out"
            )
        differed = index and stages[index].trainable != stages[index - 1].trainable
        if differed and stage.trainable == result[index - 1].trainable:
            raise StrategyConflictError(
                f"{by} leaves the stages {result[index - 1].name!r} and {stage.name!r} the same layers to train, so "
                f"the second would go no deeper: take it out of the schedule, or let {by} train more"
            )
    return result


def _check_gate(gate: Target | MinImprovement) -> None:
    owner = type(gate).__name__
    check_text(f"{owner}.metric", gate.metric)
    if not (isinstance(gate, MinImprovement) and gate.value == "noise"):
        check_real(f"{owner}.value", gate.value)
    check_flag(f"{owner}.greater_is_better", gate.greater_is_better)


def _metric(results: Mapping[str, float], name: str, gate: str) -> float:
    if name not in results:
        near = difflib.get_close_matches(name, results, n=1)
        raise ConfigError(
            f"{gate}(metric={name!r}): the validation set was measured by {', '.join(sorted(results)) or 'nothing'}"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )
    return results[name]
