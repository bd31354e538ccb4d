"""The choice of the loss that suits a task, and what the classes weigh in it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lowft._loss_checks import Reduction, check_label_smoothing, check_range, is_integer, received
from lowft._tasks import Task, check_task
from lowft.errors import ConfigError
from lowft.losses import Loss, binary_cross_entropy, cross_entropy, focal, mean_absolute_error, mean_squared_error

__all__ = ["balanced_class_weights", "resolve_loss"]


def balanced_class_weights(labels: Any, num_classes: int) -> Tensor:
    """Weigh each class by how rare it is, so that every class has the same say in the loss.

    A class with `n_c` of `n` rows, among `k` classes that occur, gets `n / (k · n_c)` (after King and Zeng
    2001, *Logistic Regression in Rare Events Data*). The mean weight over these rows is 1, so that the loss
    keeps its scale and the learning rate its meaning. A class without a row gets 1.

    Args:
        labels: Class ids of the training rows: a list, an array or a tensor, `[rows]`.
        num_classes: How many classes the model tells apart.

    Returns:
        float32, `[classes]`: `class_weights` of `cross_entropy` and `focal`.

    Raises:
        ConfigError: There are no labels, or they are not integers in one dimension.
        LabelError: A label is not the id of a class.

    >>> balanced_class_weights([0, 0, 0, 1], 2)
    tensor([0.6667, 2.0000])
    """
    ids = torch.as_tensor(labels).cpu()
    if ids.ndim != 1 or len(ids) == 0 or not is_integer(ids):
        raise ConfigError(f"labels must be class ids, [rows], at least one; received {received(ids)}.")
    check_range(ids, (ids < 0) | (ids >= num_classes), f"A label must be from 0 to {num_classes - 1}")
    counts = torch.bincount(ids, minlength=num_classes).double()
    occurring = int((counts > 0).sum())
    return torch.where(counts > 0, len(ids) / (occurring * counts), 1.0).float()


_FOR_TASK: dict[Task, dict[str, Callable[..., Tensor]]] = {  # the first of each is the usual one
    "single_label_classification": {"cross_entropy": cross_entropy, "focal": focal},
    "multi_label_classification": {"binary_cross_entropy": binary_cross_entropy, "focal": focal},
    "regression": {"mean_squared_error": mean_squared_error, "mean_absolute_error": mean_absolute_error},
}
_SINGLE_LABEL_USERS = {"label_smoothing": ("cross_entropy",), "class_weights": ("cross_entropy", "focal")}


def resolve_loss(
    loss: str | Loss | None,
    task: str,
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | Sequence[float] | None = None,
    reduction: Reduction = "mean",
) -> Loss:
    """Find the loss for a task: by name, by default, or the caller's own function.

    Args:
        loss: A name; `None` for the task's usual loss (cross-entropy, binary cross-entropy for multi-label,
            mean squared error for regression); or a function of (logits, labels), which is returned as it is
            and may return `[batch]` or a mean.
        task: `"single_label_classification"`, `"multi_label_classification"` or `"regression"`.
        label_smoothing: For `"cross_entropy"`.
        class_weights: `[classes]`, not negative; for `"cross_entropy"` and `"focal"` with one class a row.
        reduction: What becomes of the rows' losses, unless the function is the caller's own.

    Returns:
        A function of logits, `[batch, classes]`, and labels; it can be pickled.

    Raises:
        ConfigError: The name is unknown or does not suit the task, or the loss has no use for a setting.

    >>> loss = resolve_loss("cross_entropy", "single_label_classification", label_smoothing=0.1)
    >>> loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
    tensor(0.2269)
    """
    task = check_task(task)
    suiting = _FOR_TASK[task]
    if loss is None:
        loss = next(iter(suiting))
    elif isinstance(loss, str) and loss not in suiting:
        raise ConfigError(f"loss {loss!r} does not suit {task}; use {' or '.join(suiting)}, or your own function.")
    elif not isinstance(loss, str) and not callable(loss):
        raise ConfigError(f"loss must be a name, a function of (logits, labels) or None, not {loss!r}.")

    settings = _settings(label_smoothing, class_weights)
    for setting in settings:
        users = _SINGLE_LABEL_USERS[setting]
        if task != "single_label_classification" or loss not in users:
            chosen = repr(loss) if isinstance(loss, str) else "your own function"
            raise ConfigError(
                f"{setting} has no effect on {chosen} for {task}: {' and '.join(users)} for "
                "single_label_classification can use it. Leave it out, or bind what your loss needs with "
                "functools.partial."
            )
    if not isinstance(loss, str):
        return loss
    if reduction != "mean":
        settings["reduction"] = reduction
    return functools.partial(suiting[loss], **settings) if settings else suiting[loss]


def _settings(label_smoothing: float, class_weights: Tensor | Sequence[float] | None) -> dict[str, Any]:
    """Return the settings that differ from their defaults, checked."""
    settings: dict[str, Any] = {}
    if label_smoothing != 0:
        check_label_smoothing(label_smoothing)
        settings["label_smoothing"] = label_smoothing
    if class_weights is not None:
        weights = torch.as_tensor(class_weights, dtype=torch.float32)
        if weights.ndim != 1 or not bool((weights.isfinite() & (weights >= 0)).all()):
            raise ConfigError(f"class_weights must be finite and not negative, [classes], not {class_weights}.")
        settings["class_weights"] = weights
    return settings
