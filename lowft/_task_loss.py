"""The loss on labels, where perhaps not every row has one: exact for any size of micro-batch and any processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from lowft.data.unlabeled import has_label
from lowft.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lowft._placement import Placement
    from lowft.data.batching import Batch
    from lowft.data.epochs import MicroBatch
    from lowft.losses import Loss

__all__ = ["label_weights", "task_loss"]


def label_weights(pieces: Sequence[tuple[MicroBatch, Batch]], placement: Placement) -> list[tuple[float, float]]:
    """Return by what to multiply each micro-batch's mean over labelled rows, and that over the others.

    A micro-batch enters the optimizer step with its share of all rows; times its weights, that is its share of the
    labelled ones and of those without a label.

    Args:
        pieces: The micro-batches of this process.
        placement: The processes of the run.
    """
    known = [int(batch.labelled.sum()) for _, batch in pieces]
    counts = np.array([[count, len(batch) - count] for count, (_, batch) in zip(known, pieces, strict=True)])
    shares = np.array([[part.share] for part, _ in pieces])
    counts[shares[:, 0] == 0] = 0  # a row that is there so that every process has one counts for nothing
    totals = np.sum(placement.gather(counts.sum(axis=0)), axis=0)
    # Where nothing was counted there is no mean to be multiplied.
    weights = counts / np.where(totals > 0, totals, 1) / np.where(shares > 0, shares, 1)
    return [(labelled, others) for labelled, others in weights.tolist()]


def task_loss(
    loss_fn: Loss, logits: Tensor, labels: Tensor, weight: float | None, row_weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the loss on the labels, and that of each row, 0 where it has no label; one for all if no more is known.

    Args:
        loss_fn: Of the logits and labels of labelled rows.
        logits: `[batch, outputs]`.
        labels: `[batch]` or `[batch, classes]`.
        weight: What the mean over labelled rows is multiplied by; None where every row has a label.
        row_weights: What the loss of each row is multiplied by before the mean, `[batch]`; None leaves it.

    Raises:
        ConfigError: Rows are to be weighed, and the loss is one number for all of them.

    >>> logits, labels = torch.tensor([[1.0], [5.0]]), torch.tensor([3.0, torch.nan])
    >>> task_loss(lambda logits, labels: (logits[:, 0] - labels) ** 2, logits, labels, 0.5)
    (tensor(2.), tensor([4., 0.]))
    """
    if weight is None:
        losses = loss_fn(logits, labels)
        return _weighed(losses, row_weights).mean(), losses.detach()
    known = has_label(labels)
    if not known.any():
        return logits[:0].sum(), torch.zeros_like(logits[:, 0])  # 0, with a gradient that is 0
    losses = loss_fn(logits[known], labels[known])
    rows = losses.detach()
    if rows.ndim:
        rows = torch.zeros_like(logits[:, 0], dtype=rows.dtype).masked_scatter(known, rows)
    weighed = _weighed(losses, None if row_weights is None else row_weights[known])
    return weighed.mean() * weight, rows


def _weighed(losses: Tensor, row_weights: Tensor | None) -> Tensor:
    if row_weights is None:
        return losses
    if losses.ndim == 0:
        raise ConfigError(
            "the loss returned one number for the batch, and a strategy weighs its rows one by one: let your loss "
            "return [batch], or leave out the setting that weighs rows (such as Augment's label_weight, annealing or "
            "drop_misread)"
        )
    return losses * row_weights.to(losses.dtype)
