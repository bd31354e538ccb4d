"""What every loss checks before it computes: shapes, dtypes, label ranges, and how rows become one number."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lowft.errors import ConfigError, LabelError

__all__ = [
    "Reduction",
    "check_ids",
    "check_label_smoothing",
    "check_range",
    "check_temperature",
    "is_integer",
    "logits_and_ids",
    "logits_and_targets",
    "matrix",
    "per_class",
    "predictions_and_numbers",
    "received",
    "reduce_rows",
    "same_shape",
]

Reduction = Literal["none", "mean", "sum"]


def reduce_rows(rows: Tensor, reduction: Reduction) -> Tensor:
    """Return the losses of rows, `[batch]`, as they are, their sum, or their mean."""
    if reduction not in get_args(Reduction):
        raise ConfigError(f"reduction must be one of {', '.join(get_args(Reduction))}, not {reduction!r}.")
    if reduction == "none":
        return rows
    if reduction == "sum":
        return rows.sum()
    if len(rows) == 0:
        raise ConfigError("The mean loss of a batch without rows is undefined; leave such batches out.")
    return rows.mean()


def received(*tensors: Any) -> str:
    """Describe shapes and dtypes for a message."""
    return " and ".join(
        f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        if isinstance(tensor, Tensor)
        else f"{type(tensor).__name__}"
        for tensor in tensors
    )


def is_integer(tensor: Tensor) -> bool:
    """Say whether a tensor can hold class ids."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def matrix(loss: str, name: str, value: Tensor, *, columns: str = "hidden") -> Tensor:
    """Return a floating `[batch, columns]` tensor in float32, or in float64 if it is that already."""
    if not isinstance(value, Tensor) or value.ndim != 2 or not value.is_floating_point():
        raise ConfigError(f"{name} of {loss} must be floats, [batch, {columns}]; received {received(value)}.")
    return value if value.dtype == torch.float64 else value.float()


def same_shape(loss: str, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return two floating tensors of one shape, `[batch, columns]`, in float32 or float64."""
    if getattr(first, "shape", 0) != getattr(second, "shape", 1):
        raise ConfigError(f"{loss} needs two tensors of the same shape; received {received(first, second)}.")
    first, second = matrix(loss, "The first", first), matrix(loss, "The second", second)
    return first, second


def check_ids(loss: str, logits: Tensor, labels: Tensor) -> None:
    """Make sure that there is one integer label for each row."""
    if not isinstance(labels, Tensor) or labels.shape != logits.shape[:1] or not is_integer(labels):
        raise ConfigError(
            f"labels of {loss} must be class ids, one integer for each of the {len(logits)} rows, [batch]; "
            f"received {received(labels)}."
        )


def check_range(labels: Tensor, wrong: Tensor, rule: str) -> None:
    """Make sure that no label is wrong. Only on the CPU: elsewhere the answer would stall the device."""
    if wrong.device.type == "cpu" and bool(wrong.any()):
        rows = sorted(set(wrong.nonzero()[:, 0].tolist()))[:5]
        raise LabelError(f"{rule}; rows {rows} hold {labels[wrong][:5].tolist()}. Correct these labels.")


def check_label_smoothing(label_smoothing: float) -> None:
    """Make sure that smoothing leaves something of the label."""
    if not 0 <= label_smoothing < 1:
        raise ConfigError(f"label_smoothing must be at least 0 and below 1, not {label_smoothing!r}.")


def check_temperature(temperature: float) -> None:
    """Make sure that a temperature divides to something finite."""
    if not 0 < temperature < float("inf"):
        raise ConfigError(f"temperature must be above 0 and finite, not {temperature!r}.")


def logits_and_ids(loss: str, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits, `[batch, classes]`, and class ids, `[batch]`, that fit each other."""
    logits = matrix(loss, "logits", logits, columns="classes")
    classes = logits.shape[1]
    if classes < 2:
        raise ConfigError(f"{loss} needs logits of at least 2 classes; received {received(logits)}.")
    check_ids(loss, logits, labels)
    check_range(labels, (labels < 0) | (labels >= classes), f"A label of {loss} must be from 0 to {classes - 1}")
    return logits, labels.long()


def logits_and_targets(loss: str, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and multi-label targets, both `[batch, classes]` and floating."""
    logits = matrix(loss, "logits", logits, columns="classes")
    if not isinstance(labels, Tensor) or labels.shape != logits.shape:
        raise ConfigError(
            f"labels of {loss} must have the shape of the logits, [batch, classes]; "
            f"received logits {received(logits)} and labels {received(labels)}."
        )
    return logits, labels.to(logits.dtype)


def predictions_and_numbers(loss: str, predictions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return predictions and labels, both `[batch, targets]`, where `[batch]` means one target."""
    columns = [
        value[:, None] if isinstance(value, Tensor) and value.ndim == 1 else value for value in (predictions, labels)
    ]
    if getattr(columns[0], "shape", 0) != getattr(columns[1], "shape", 1):
        # Broadcasting [batch, 1] against [batch] would compare every row with every other.
        raise ConfigError(
            f"{loss} needs one prediction for each label; received predictions {received(predictions)} "
            f"and labels {received(labels)}."
        )
    predicted = matrix(loss, "predictions", columns[0], columns="targets")
    return predicted, columns[1].to(predicted.dtype)


def per_class(name: str, weights: Tensor, logits: Tensor) -> Tensor:
    """Return weights, `[classes]`, with the dtype and on the device of the logits."""
    if not isinstance(weights, Tensor) or weights.shape != logits.shape[1:]:
        raise ConfigError(
            f"{name} must be a tensor with one weight for each of the {logits.shape[1]} classes; "
            f"received {received(weights)}."
        )
    return weights.to(logits)
