"""How much a model's answers to a row and to a changed copy of it differ; a loss that needs no label."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F

from lowft._loss_checks import Reduction, check_temperature, reduce_rows, same_shape
from lowft._settings import check_choice, check_real
from lowft._tasks import check_task
from lowft.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from lowft._tasks import Task

__all__ = [
    "Annealing", "confidence_of", "consistency_loss", "first_of_row", "r_drop_loss", "signal_threshold", "task_of",
]  # fmt: skip

Annealing = Literal["linear", "log", "exp"]


def consistency_loss(
    variant_logits: Tensor,
    logits: Tensor,
    *,
    task: str = "single_label_classification",
    temperature: float = 1.0,
    confidence: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Measure how far a model's answer to a changed copy of a row is from its answer to the row itself.

    | task | a row costs |
    | --- | --- |
    | single-label | `KL(softmax(z ÷ T), softmax(z'))` |
    | multi-label | the mean over classes of `KL` of two coins, `σ(z ÷ T)` and `σ(z')` |
    | regression | `(z − z')²` |

    Here z' are `variant_logits` and z are `logits`, to which no gradient flows. A temperature below 1 sharpens what the
    copies are pulled to. Source: Xie et al. 2020, *Unsupervised Data Augmentation for Consistency Training*, equation 1
    and section 3.3, https://arxiv.org/abs/1904.12848.

    Args:
        variant_logits: Of the changed copies, `[batch, outputs]`.
        logits: Of the rows that they were made of, `[batch, outputs]`.
        task: "single_label_classification", "multi_label_classification" or "regression".
        temperature: T, above 0; 1 leaves the probabilities as they are. The paper takes 0.4.
        confidence: Rows cost nothing whose most probable answer has a lower probability than this (with several
            labels: any class that is decided with a lower one). The paper takes 0.8. They count in the mean.
        reduction: "mean", "sum" or "none", which gives `[batch]`.

    Raises:
        ConfigError: Shapes do not fit, a setting is out of its range, or temperature or confidence are set in a
            regression, where there are no probabilities.

    >>> rows, copies = torch.tensor([[2.0, 0.0], [0.1, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    >>> consistency_loss(copies, rows, reduction="none")
    tensor([0.3278, 0.0012])
    >>> consistency_loss(copies, rows, confidence=0.8, reduction="none")
    tensor([0.3278, 0.0000])
    """
    task = check_task(task)
    check_temperature(temperature)
    check_real("confidence", confidence, least=0, below=1)
    variants, targets = same_shape("consistency_loss", variant_logits, logits)
    targets = targets.detach()
    if task == "regression":
        check_regression(temperature=temperature, confidence=confidence)
        return reduce_rows((variants - targets).square().mean(dim=1), reduction)
    log_q, log_p = _log_probabilities(variants, task), _log_probabilities(targets / temperature, task)
    rows = _divergence(log_q, log_p)
    if confidence > 0:
        rows = rows * (confidence_of(targets, task) >= confidence)
    return reduce_rows(rows, reduction)


def check_regression(*, temperature: float, confidence: float) -> None:
    """Refuse in a regression what needs probabilities."""
    if temperature != 1 or confidence > 0:
        raise ConfigError(
            f"a regression has no probabilities to sharpen or to be sure of: leave temperature at 1 and confidence at "
            f"0; received temperature={temperature!r} and confidence={confidence!r}"
        )


def r_drop_loss(
    logits: Tensor, other_logits: Tensor, *, task: str = "single_label_classification", reduction: Reduction = "mean"
) -> Tensor:
    """Measure how much two passes over the same rows differ, of which each drops other units.

    A row costs `½ · (KL(p, q) + KL(q, p))`, p and q being the probabilities of the two passes (with several labels the
    mean over the classes' coins; in a regression the squared difference, as the paper has it in section 3.5). Gradients
    flow into both. Source: Liang et al. 2021, *R-Drop*, equation 2, https://arxiv.org/abs/2106.14448.

    Args:
        logits: Of one pass, `[batch, outputs]`.
        other_logits: Of the other pass, `[batch, outputs]`.
        task: "single_label_classification", "multi_label_classification" or "regression".
        reduction: "mean", "sum" or "none", which gives `[batch]`.

    Raises:
        ConfigError: Shapes do not fit, or a setting is unknown.

    >>> r_drop_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]]))
    tensor(0.3808)
    """
    task = check_task(task)
    one, other = same_shape("r_drop_loss", logits, other_logits)
    if task == "regression":
        return reduce_rows((one - other).square().mean(dim=1), reduction)
    log_p, log_q = _log_probabilities(one, task), _log_probabilities(other, task)
    return reduce_rows((_divergence(log_p, log_q) + _divergence(log_q, log_p)) / 2, reduction)


def signal_threshold(annealing: Annealing, *, done: float, classes: int) -> float:
    """Return the probability of the right class above which a labelled row costs nothing yet.

    It grows from 1 ÷ classes to 1 in the course of the training, so that few labels are not learnt by heart while many
    rows without labels are still being learnt from: "exp" releases the labels late, for few of them, "log" early.
    Source: training-signal annealing of Xie et al. 2020, section 3.2, https://arxiv.org/abs/1904.12848.

    Args:
        annealing: "linear", "log" or "exp".
        done: Share of the training that is done, from 0 to 1.
        classes: Number of classes.

    Raises:
        ConfigError: A value outside its range.

    >>> [round(signal_threshold("linear", done=done, classes=2), 2) for done in (0.0, 0.5, 1.0)]
    [0.5, 0.75, 1.0]
    """
    check_choice("annealing", annealing, ("linear", "log", "exp"))
    check_real("done", done, least=0, most=1)
    released = {"linear": done, "log": 1 - math.exp(-5 * done), "exp": math.exp(5 * (done - 1))}[annealing]
    return released * (1 - 1 / classes) + 1 / classes


def confidence_of(logits: Tensor, task: Task) -> Tensor:
    """Return how sure a model is of each row, `[batch]`: of its class, or of the class that it is least sure of.

    >>> confidence_of(torch.tensor([[0.0, 0.0], [9.0, -9.0]]), "multi_label_classification")
    tensor([0.5000, 0.9999])
    """
    if task == "single_label_classification":
        return logits.softmax(dim=1).amax(dim=1)
    likely = logits.sigmoid()
    return torch.maximum(likely, 1 - likely).amin(dim=1)


def task_of(labels: Tensor) -> Task:
    """Return the task that encoded labels belong to.

    >>> task_of(torch.tensor([1, 0]))
    'single_label_classification'
    """
    if labels.ndim == 2:
        return "multi_label_classification"
    return "regression" if labels.is_floating_point() else "single_label_classification"


def first_of_row(keys: Any) -> list[int]:
    """Return, for each place of a batch, the first place with the same key: that of the row which a copy was made of.

    >>> first_of_row([7, 9, 7, 7, 9])
    [0, 1, 0, 0, 1]
    """
    first: dict[Any, int] = {}
    return [first.setdefault(key, place) for place, key in enumerate(keys)]


def _log_probabilities(logits: Tensor, task: Task) -> Tensor:
    """Return `[batch, classes]`, or with several labels `[batch, classes, 2]`: yes and no of each class."""
    if task == "single_label_classification":
        return F.log_softmax(logits, dim=-1)
    return torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=-1)


def _divergence(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Return KL(p, q) of each row, `[batch]`."""
    rows = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=-1)
    return rows if rows.ndim == 1 else rows.mean(dim=1)
