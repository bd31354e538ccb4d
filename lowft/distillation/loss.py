"""How far a student's outputs are from a teacher's, for each task."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from lowft._loss_checks import Reduction, check_temperature, reduce_rows, same_shape
from lowft._tasks import check_task
from lowft.losses import kl_divergence, mean_squared_error

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["distillation_loss"]


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    task: str = "single_label_classification",
    temperature: float = 2.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Measure how far a student's answers are from a teacher's, in the form that suits the task.

    | task | a row costs |
    | --- | --- |
    | single-label | `T² · KL(softmax(teacher ÷ T), softmax(student ÷ T))` |
    | multi-label | the mean over classes of `T² · KL` of two coins, `σ(teacher ÷ T)` and `σ(student ÷ T)` |
    | regression | the squared distance between the two numbers; there is no temperature |

    The first is that of Hinton et al. 2015 (*Distilling the Knowledge in a Neural Network*, section 2,
    https://arxiv.org/abs/1503.02531), the second applies it to each class as a problem of its own. T² keeps the size of
    the gradient when T changes.

    Args:
        student_logits: `[batch, outputs]`.
        teacher_logits: `[batch, outputs]`; no gradient flows to them.
        task: "single_label_classification", "multi_label_classification" or "regression".
        temperature: T, above 0; a higher one shows more of how the teacher ranks the wrong classes.
        reduction: "mean", "sum" or "none", which gives `[batch]`.

    Raises:
        ConfigError: Shapes do not fit, or a setting is out of its range.

    >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    >>> distillation_loss(student, teacher, temperature=1.0)
    tensor(0.3278)
    >>> distillation_loss(student, student)
    tensor(0.)
    """
    task = check_task(task)
    check_temperature(temperature)
    teacher_logits = teacher_logits.detach()
    if task == "single_label_classification":
        return kl_divergence(student_logits, teacher_logits, temperature=temperature, reduction=reduction)
    if task == "regression":
        student, teacher = same_shape("distillation_loss", student_logits, teacher_logits)
        return mean_squared_error(student, teacher, reduction=reduction)
    student, teacher = same_shape("distillation_loss", student_logits, teacher_logits)
    # A class is a choice between yes and no, whose logits are z and 0.
    log_q, log_p = (
        F.log_softmax(torch.stack([logits, torch.zeros_like(logits)], dim=-1) / temperature, dim=-1)
        for logits in (student, teacher)
    )
    classes = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=-1)
    return reduce_rows(classes.mean(dim=1) * temperature**2, reduction)
