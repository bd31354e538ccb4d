"""Trainings that have brought nothing: found at their end, told, and begun again where that is wanted."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from lowft.checkpoint import load_tensors_

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowft.data.batching import TokenizedRows
    from lowft.loop import Loop

__all__ = ["begins_again"]

_logger = logging.getLogger("lowft")

_ROWS = 256  # training rows that are looked at where there are no validation rows


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
    rows, kind = (loop.eval_rows, "validation") if loop.eval_rows is not None else (_some(loop.train_rows), "training")
    labels = rows.labels
    most = int(np.bincount(labels).max())
    if most == len(rows) or (loop.eval_rows is not None and "accuracy" not in metrics):
        return ""
    right = round(metrics["accuracy"] * len(rows)) if loop.eval_rows is not None else _count_right(loop, rows)
    if right > most:
        return ""
    return (
        f"the training has collapsed: {right:,} of {len(rows):,} {kind} rows are answered rightly, and always "
        f"answering the most frequent class gets {most:,} right"
    )


def _some(rows: TokenizedRows) -> TokenizedRows:
    """Return labelled rows, enough to tell and not so many that it takes long."""
    known = rows.labelled
    if len(known) > _ROWS:
        known = np.random.default_rng(0).choice(known, _ROWS, replace=False)
    return rows.select(known.tolist())


def _count_right(loop: Loop, rows: TokenizedRows) -> int:
    return int((loop.logits(rows, progress=False).argmax(1) == rows.labels).sum())
