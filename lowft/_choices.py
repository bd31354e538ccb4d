"""What a Trainer decides from its settings and parts before anything is trained."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

import torch

from lowft._scores import METRICS
from lowft.data.unlabeled import has_label
from lowft.errors import ConfigError
from lowft.loss_choice import balanced_class_weights, resolve_loss
from lowft.metrics import default_metric, greater_is_better
from lowft.stages import MinImprovement, Target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowft._placement import Placement
    from lowft._preparation import Parts
    from lowft.config import TrainingConfig
    from lowft.data.batching import TokenizedRows
    from lowft.data.labels import Task
    from lowft.loop import Loop
    from lowft.losses import Loss
    from lowft.stages import Stage
    from lowft.strategy import Chain

__all__ = ["check_gates", "check_unlabeled", "choose_loss", "choose_metric", "noise_wanted", "run_identity"]


def choose_loss(loss: str | Loss | None, config: TrainingConfig, parts: Parts) -> Loss:
    """Return the loss of each row: the caller's, or the task's, with the settings' weights and smoothing.

    Raises:
        ConfigError: The loss does not suit the task, or the weights do not fit the classes.
    """
    weights: Any = config.class_weights
    labels = parts.labels
    if weights == "balanced":
        known = torch.as_tensor(parts.train_rows.labels)
        weights = balanced_class_weights(known[has_label(known)].numpy(), labels.num_labels)
    if weights is not None and len(weights) != labels.num_labels:
        raise ConfigError(
            f"TrainingConfig.class_weights must have one weight for each of the {labels.num_labels} classes "
            f"{labels.names}; received {len(weights)}"
        )
    return resolve_loss(
        loss,
        labels.task,
        label_smoothing=config.label_smoothing,
        class_weights=weights,
        reduction="none",  # so that a loss that is not finite can be traced to its row
    )


def check_unlabeled(strategy: Chain) -> None:
    """Make sure that some strategy learns from rows without labels.

    Raises:
        ConfigError: None does.
    """
    parts = strategy.strategies
    if not any("unlabeled" in part.contract.provides for part in parts):
        raise ConfigError(
            f"unlabeled_dataset is of no use to strategies=[{', '.join(part.name for part in parts)}]: none of them "
            f"learns from rows without labels. Add one that does, such as lowft.Distill(teacher), or leave "
            f"unlabeled_dataset out"
        )


def choose_metric(config: TrainingConfig, task: Task, *, custom: bool) -> tuple[str, bool]:
    """Return the metric that decides which weights are best, and whether greater is better.

    Args:
        config: Names the metric, or leaves it to the task.
        task: The task.
        custom: Whether the caller measures more than the task's own metrics.

    Raises:
        ConfigError: Nothing of that name is measured, or it is the caller's own and its direction is not said.
    """
    if config.metric_for_best_model is None:
        return default_metric(task)
    name, greater = config.metric_for_best_model, config.greater_is_better
    known = _metrics_of(task)
    bare = name.removeprefix("eval_")
    if bare in known:
        return bare, greater_is_better(bare) if greater is None else greater
    if not custom:
        near = difflib.get_close_matches(bare, known, n=1)
        raise ConfigError(
            f"metric_for_best_model={name!r} is not measured in {task}: choose one of "
            f"{', '.join(known)}{f' (did you mean {near[0]!r}?)' if near else ''}, or pass metrics="
        )
    if greater is None:
        raise ConfigError(
            f"metric_for_best_model={name!r} is your own metric: say which way it is better with "
            f"TrainingConfig(greater_is_better=True or False)"
        )
    return name, greater


def check_gates(stages: Sequence[Stage], parts: Parts, *, custom: bool) -> None:
    """Find now, rather than after a stage, that a gate has nothing to look at.

    Raises:
        ConfigError: There are no validation rows, or they are not measured by what a gate asks for.
    """
    gates = [gate for stage in stages for gate in stage.gates]
    if gates and parts.eval_rows is None:
        raise ConfigError(
            "a stage has a gate, which decides from validation results: pass eval_dataset, or leave the gate "
            "(target=, min_improvement=) out"
        )
    for gate in gates:
        if isinstance(gate, Target | MinImprovement) and not custom:
            gate.decide([dict.fromkeys(_metrics_of(parts.labels.task), 0.0)])


def noise_wanted(stages: Sequence[Stage]) -> frozenset[str]:
    """Return the metrics whose standard error some gate asks for."""
    gates = (gate for stage in stages for gate in stage.gates)
    return frozenset(gate.metric for gate in gates if isinstance(gate, MinImprovement) and gate.noise)


def run_identity(
    recipe: Sequence[dict[str, Any]], config: TrainingConfig, parts: Parts, loop: Loop, placement: Placement
) -> dict[str, Any]:
    """Return what must agree between a run and one that resumes it."""
    rows, held_out = parts.train_rows, parts.eval_rows
    loss = getattr(loop.loss_fn, "func", loop.loss_fn)  # without the settings bound to it
    return {
        "strategies": {part["name"]: part["settings"] for part in recipe},
        "order of strategies": [part["name"] for part in recipe],
        "config": config.identity(),
        "labels": parts.labels.to_json(),
        "model": type(loop.attached.model).__name__,
        "loss": getattr(loss, "__qualname__", type(loss).__name__),
        "max_length": parts.max_length,
        "processes": placement.processes,
        "training rows": _fingerprint(rows),
        "validation rows": None if held_out is None else _fingerprint(held_out),
    }


def _metrics_of(task: Task) -> tuple[str, ...]:
    """Return the names of what every evaluation of a task measures."""
    return ("loss", *METRICS[task])


def _fingerprint(rows: TokenizedRows) -> dict[str, Any]:
    """Return what tells data sets, and the tokens made of them, apart."""
    return {"count": len(rows), "tokens": int(rows.lengths.sum()), "fingerprint": rows.rows.fingerprint()}
