"""What several models answer on the same labelled rows: how well each does, and whether they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowft._scores import Array, calibration_error, checked, predicted_labels, probabilities_of
from lowft.metrics import compute_metrics, default_metric, wilson_interval

if TYPE_CHECKING:
    import numpy.typing as npt

    from lowft._tasks import Task

__all__ = ["Answers", "compare_answers", "in_order"]

_THRESHOLD = 0.5
_DRAWN_TOGETHER = 4_000_000  # counts in memory at a time: 32 MB


@dataclass(frozen=True)
class Answers:
    """How well a model does, by itself and against the reference.

    Attributes:
        value: The metric on all rows.
        interval: Where its true value plausibly lies.
        difference: The value less that of the reference; None for the reference.
        difference_interval: Where the true difference plausibly lies.
        differs: Whether that is more than chance.
        calibration_error: Of the probabilities; None for regression.
        agreement: Share of the rows with the reference's answer; for regression the correlation with its answers, None
            where nothing varies. None for the reference.
    """

    value: float
    interval: tuple[float, float]
    difference: float | None
    difference_interval: tuple[float, float] | None
    differs: bool
    calibration_error: float | None
    agreement: float | None


def compare_answers(
    task: Task,
    logits: Mapping[str, Array],
    labels: Array,
    reference: str,
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> dict[str, Answers]:
    """Return how well each model does on rows that all of them have answered.

    The metric is the task's own. Of an accuracy the interval is Wilson's, of others a bootstrap's. A difference is that
    on the same rows, and its interval comes from drawing rows with replacement, the same ones for both models. An
    accuracy must also differ in the exact test of McNemar (1947) for its difference to count: where a handful of
    answers changed, the bootstrap is too sure.

    Args:
        task: The task.
        logits: `[rows, outputs]` of each model, in one order of the classes.
        labels: As `Labels.encode` returns them.
        reference: The model to compare with.
        confidence: Of the intervals.
        resamples: Draws of the bootstrap.
        seed: Decides the draws.
    """
    metric, _ = default_metric(task)
    parts: dict[str, Array] = {}
    answers: dict[str, Array] = {}
    for name, values in logits.items():
        scores, truth = checked(task, values, labels)
        answers[name] = predicted_labels(task, scores, _THRESHOLD)
        parts[name] = _parts_of(task, answers[name], truth)
    drawn = _resampled(parts, resamples, seed)
    found = {}
    for name, values in logits.items():
        value = compute_metrics(task, values, labels, names=[metric])[metric]
        if metric == "accuracy":
            interval = wilson_interval(int(parts[name].sum()), len(labels), confidence=confidence)
        else:
            interval = _bounds(drawn[name], confidence)
        difference = difference_interval = agreement = None
        differs = False
        if name != reference:
            difference = value - compute_metrics(task, logits[reference], labels, names=[metric])[metric]
            difference_interval = _bounds(drawn[name] - drawn[reference], confidence)
            differs = not difference_interval[0] <= 0 <= difference_interval[1]
            if metric == "accuracy" and differs:
                differs = _mcnemar(parts[reference][:, 0], parts[name][:, 0]) < 1 - confidence
            agreement = _agreement(task, answers[reference], answers[name])
        found[name] = Answers(
            value, interval, difference, difference_interval, differs, _calibration(task, values, labels), agreement
        )
    return found


def _parts_of(task: Task, predicted: Array, truth: Array) -> Array:
    """Return for each row what the metric adds up, `[rows, parts]`."""
    if task == "single_label_classification":
        right: Array = predicted == truth
        return right[:, None].astype(np.float64)
    if task == "regression":
        squares: Array = (predicted - truth) ** 2
        return squares[:, None]
    right = (predicted * truth).sum(axis=1)
    both: Array = np.stack([right, predicted.sum(axis=1) + truth.sum(axis=1)], axis=1)
    return both


def _resampled(parts: Mapping[str, Array], resamples: int, seed: int) -> dict[str, npt.NDArray[np.float64]]:
    """Return the metric of each model in each draw, `[resamples]`; all models see the same draws."""
    rng = np.random.default_rng(seed)
    rows = len(next(iter(parts.values())))
    together = max(1, _DRAWN_TOGETHER // rows)
    found: dict[str, list[Array]] = {name: [] for name in parts}
    for start in range(0, resamples, together):
        # How often each row is drawn: sums over a draw are then one product of matrices.
        size = min(together, resamples - start)
        counts = rng.multinomial(rows, np.full(rows, 1 / rows), size=size).astype(np.float64)
        for name, values in parts.items():
            sums = counts @ values
            if values.shape[1] == 1:
                found[name].append(sums[:, 0] / rows)
            else:  # micro F1: twice the true positives over all that are given and all that are true
                found[name].append(np.divide(2 * sums[:, 0], sums[:, 1], out=np.zeros(size), where=sums[:, 1] > 0))
    return {name: np.concatenate(values) for name, values in found.items()}


def _mcnemar(reference: Array, other: Array) -> float:
    """Return the exact two-sided probability of so uneven a change, were both equally often right."""
    from scipy.stats import binomtest

    lost, won = int(((reference > 0) & (other == 0)).sum()), int(((reference == 0) & (other > 0)).sum())
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def _agreement(task: Task, reference: Array, other: Array) -> float | None:
    if task != "regression":
        same = reference == other
        return float((same if same.ndim == 1 else same.all(axis=1)).mean())
    if len(other) < 2 or np.ptp(reference) == 0 or np.ptp(other) == 0:
        return None
    return float(np.corrcoef(reference, other)[0, 1])


def _calibration(task: Task, logits: Array, labels: Array) -> float | None:
    if task == "regression":
        return None
    return calibration_error(labels, probabilities_of(task, np.asarray(logits)))


def _bounds(values: Array, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def in_order(logits: Array, classes: Sequence[Any], wanted: Sequence[Any]) -> Array:
    """Return logits, `[rows, classes]`, with the classes in the order wanted.

    >>> in_order(np.array([[1, 2]]), ("bad", "good"), ("good", "bad"))
    array([[2, 1]])
    """
    return logits if tuple(classes) == tuple(wanted) else logits[:, [list(classes).index(name) for name in wanted]]
