"""Trainings that have brought nothing: found at their end, told, and begun again where that is wanted."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lowft.checkpoint import load_tensors_

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from lowft.loop import Loop

__all__ = ["begins_again"]

_logger = logging.getLogger("lowft")

# Training rows that are looked at where there are no validation rows: few at first, which most trainings pass by far.
_ROWS = (64, 256)
_BY_FAR = 3.0  # standard errors of a guess


def begins_again(loop: Loop, metrics: Mapping[str, float]) -> bool:
    """At the end of a stage, find out whether the training has ended and has collapsed; say so, and go back if wanted.

    Fine-tuning with few labels now and then ends no better than always answering the most frequent class, by the seed
    alone (Mosbach et al. 2021, https://arxiv.org/abs/2006.04884; Zhang et al. 2021, https://arxiv.org/abs/2006.05987).
    The training ends with the last stage before those that make the model what is deployed (prune, quantize): until
    then, all that it has done is undone by putting the weights back.

    Args:
        loop: A run whose stage has just ended.
        metrics: What the validation rows say of the weights that it has now.

    Returns:
        Whether the run is back at its start.
    """
    if not _training_has_ended(loop) or loop.kept.cut_stage is not None or loop.limit.is_up:
        return False
    found = loop.placement.gather(_collapse_in_words(loop, metrics))[0]  # in every process the same
    if not found:
        return False
    wanted, before = loop.config.restarts, loop.kept.restarts
    again = before < wanted
    if again:
        found += f"; it begins again with seed {loop.seed + 1} (restart {before + 1} of {wanted})"
    elif wanted:
        found += f", after {wanted} {'restart' if wanted == 1 else 'restarts'} too"
    else:
        found += ". Lower learning_rate, make more steps, or set TrainingConfig(restarts=2)"
    loop.record("note", message=found)
    _logger.warning(found)
    if again:
        load_tensors_(loop.attached.model, loop.kept.before_training, "the weights before the training", partial=True)
        loop.attached.rewind()
        loop.kept.forget_best()
        loop.kept.last_metrics = {}
        loop.kept.restarts += 1
    return again


def _training_has_ended(loop: Loop) -> bool:
    """Whether only stages follow that run in any case, and the one that has just ended is none of them."""
    attached = loop.attached
    following = list(attached.remaining_stages())[1:]
    return not attached.state.stage.always and all(attached.stages[index].always for index in following)


def _collapse_in_words(loop: Loop, metrics: Mapping[str, float]) -> str:
    """Say that no more rows are answered rightly than one class would be; nothing where more are, or it is unknown."""
    labels: Any = loop.train_rows.labels
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
        return ""  # several labels a row, or a number
    if loop.eval_rows is None:
        kind = "training"
        right, labels = _training_rows_answered(loop)
    elif "accuracy" in metrics:
        kind, labels = "validation", loop.eval_rows.labels
        right = round(metrics["accuracy"] * len(labels))
    else:
        return ""
    most = _most_frequent(labels)
    if most == len(labels) or right > most:
        return ""
    return (
        f"the training has collapsed: {right:,} of {len(labels):,} {kind} rows are answered rightly, and always "
        f"answering the most frequent class gets {most:,} right"
    )


def _training_rows_answered(loop: Loop) -> tuple[int, npt.NDArray[np.int64]]:
    """Return how many of some labelled training rows are answered rightly, and the labels of these rows."""
    order = np.random.default_rng(0).permutation(loop.train_rows.labelled)
    for count in sorted({min(count, len(order)) for count in _ROWS}):
        rows = loop.train_rows.select(order[:count].tolist())
        labels: Any = rows.labels
        right = int((loop.logits(rows, progress=False).argmax(1) == labels).sum())
        if right - _most_frequent(labels) > _BY_FAR * math.sqrt(count) / 2:
            break
    return right, labels


def _most_frequent(labels: npt.NDArray[np.int64]) -> int:
    """Return how many rows have the most frequent class."""
    return int(np.bincount(labels).max())
