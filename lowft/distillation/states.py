"""How far a student's hidden states, and the relations between its tokens, are from a teacher's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from lowft._loss_checks import Reduction, received, reduce_rows
from lowft.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["hidden_state_loss", "relation_loss"]

_NEVER = -1e9


def hidden_state_loss(student: Tensor, teacher: Tensor, mask: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Measure how far a student's hidden states are from a teacher's, token by token.

    A row costs the mean over its real tokens and over the width of `(student − teacher)²`: the hint of Romero et al.
    2015 (*FitNets*, equation 3, https://arxiv.org/abs/1412.6550) as TinyBERT has it (Jiao et al. 2020, equation 8,
    https://arxiv.org/abs/1909.10351). Where the widths differ, pass the student's states through a linear layer that
    learns with the student.

    Args:
        student: `[batch, tokens, width]`.
        teacher: The same shape; no gradient flows to it.
        mask: `[batch, tokens]`, not 0 for real tokens.
        reduction: "mean", "sum" or "none", which gives `[batch]`.

    Raises:
        ConfigError: Shapes or dtypes do not fit, or a row has no real token.

    >>> student, teacher = torch.zeros(1, 3, 4), torch.ones(1, 3, 4)
    >>> teacher[0, 2] = 100  # padding
    >>> hidden_state_loss(student, teacher, torch.tensor([[1, 1, 0]]))
    tensor(1.)
    """
    student, teacher, mask = _checked("hidden_state_loss", student, teacher, mask)
    if student.shape != teacher.shape:
        raise ConfigError(
            f"hidden_state_loss needs two tensors of the same shape; received {received(student, teacher)}. Pass the "
            f"student's through a linear layer of the teacher's width"
        )
    tokens = (student - teacher.detach()).square().mean(dim=2).masked_fill(~mask, 0.0)
    return reduce_rows(tokens.sum(dim=1) / mask.sum(dim=1), reduction)


def relation_loss(
    student: Tensor, teacher: Tensor, mask: Tensor, *, heads: int, reduction: Reduction = "mean"
) -> Tensor:
    """Measure how differently a student's tokens relate to each other than a teacher's: of any two widths.

    The vectors are split into `heads` parts of width d. In each part the relation of a token to all others is
    `softmax(X Xᵀ ÷ √d)`, and a row costs `KL(teacher ‖ student)`, the mean over real tokens and parts. In MiniLM
    X are the values of the last layer (Wang et al. 2020, section 3, https://arxiv.org/abs/2002.10957); in MiniLMv2 its
    queries, keys and values, whose losses add up (Wang et al. 2021, section 3, https://arxiv.org/abs/2012.15828).

    Args:
        student: `[batch, tokens, width]`: queries, keys or values of all heads of a layer.
        teacher: `[batch, tokens, width of the teacher]`; no gradient flows to it.
        mask: `[batch, tokens]`, not 0 for real tokens.
        heads: Into how many parts both are split; divides both widths, and need not be the number of attention heads.
        reduction: "mean", "sum" or "none", which gives `[batch]`.

    Raises:
        ConfigError: Shapes or dtypes do not fit, a row has no real token, or `heads` does not divide a width.

    >>> student, teacher = torch.zeros(1, 2, 4), torch.eye(2)[None].repeat(1, 1, 4)
    >>> relation_loss(student, teacher, torch.ones(1, 2), heads=2)
    tensor(0.1109)
    """
    student, teacher, mask = _checked("relation_loss", student, teacher, mask)
    widths = [student.shape[2], teacher.shape[2]]
    if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1 or any(width % heads for width in widths):
        raise ConfigError(
            f"heads of relation_loss must divide both widths, {widths[0]} and {widths[1]}; received {heads!r}."
        )
    log_q, log_p = (_relations(side, mask, heads) for side in (student, teacher.detach()))
    tokens = (log_p.exp() * (log_p - log_q)).sum(dim=3).mean(dim=1).masked_fill(~mask, 0.0)
    return reduce_rows(tokens.sum(dim=1) / mask.sum(dim=1), reduction)


def _relations(vectors: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Return the logarithms of the relations, `[batch, heads, tokens, tokens]`."""
    parts = vectors.view(*vectors.shape[:2], heads, -1).transpose(1, 2)
    scores = parts @ parts.transpose(2, 3) / parts.shape[3] ** 0.5
    # Far below any score, and yet finite: minus infinity would make gradients that are not numbers.
    return F.log_softmax(scores.masked_fill(~mask[:, None, None, :], _NEVER), dim=3)


def _checked(loss: str, student: Tensor, teacher: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return both sides in float32 or float64, and the mask of truth values."""
    for name, side in (("student", student), ("teacher", teacher)):
        if not hasattr(side, "ndim") or side.ndim != 3 or not side.is_floating_point():
            raise ConfigError(f"{name} of {loss} must be floats, [batch, tokens, width]; received {received(side)}.")
    if student.shape[:2] != teacher.shape[:2] or getattr(mask, "shape", None) != student.shape[:2]:
        raise ConfigError(
            f"{loss} needs the same [batch, tokens] of student, teacher and mask; received "
            f"{received(student, teacher, mask)}."
        )
    mask = mask.bool()
    if mask.device.type == "cpu" and not bool(mask.any(dim=1).all()):
        raise ConfigError(f"{loss} needs at least one real token in each row; the mask of some row has none.")
    student, teacher = (side if side.dtype == torch.float64 else side.float() for side in (student, teacher))
    return student, teacher, mask
