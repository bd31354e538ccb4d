"""The arithmetic behind metrics: logits and labels that fit each other, what they predict, each metric."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lowft._settings import check_whole
from lowft._tasks import Task
from lowft.errors import ConfigError, DataError, LabelError, NonFiniteError

__all__ = [
    "METRICS",
    "Array",
    "Metric",
    "calibration_error",
    "checked",
    "predicted_labels",
    "probabilities_of",
    "two_columns",
]

Array = np.ndarray[Any, Any]
Metric = Callable[[Array, Array], float]


def _accuracy(labels: Array, predicted: Array) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predicted))


def _macro_f1(labels: Array, predicted: Array) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, average="macro", zero_division=np.nan))


def _micro_f1(labels: Array, predicted: Array) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, average="micro", zero_division=np.nan))


def _matthews(labels: Array, predicted: Array) -> float:
    from sklearn.metrics import matthews_corrcoef

    return math.nan if np.ptp(labels) == 0 else float(matthews_corrcoef(labels, predicted))


def _pearson(labels: Array, predicted: Array) -> float:
    from scipy.stats import pearsonr

    constant = np.ptp(labels) == 0 or np.ptp(predicted) == 0
    return math.nan if constant else float(pearsonr(labels, predicted).statistic)


def _spearman(labels: Array, predicted: Array) -> float:
    from scipy.stats import spearmanr

    constant = np.ptp(labels) == 0 or np.ptp(predicted) == 0
    return math.nan if constant else float(spearmanr(labels, predicted).statistic)


def _mse(labels: Array, predicted: Array) -> float:
    from sklearn.metrics import mean_squared_error

    return float(mean_squared_error(labels, predicted))


def _mae(labels: Array, predicted: Array) -> float:
    from sklearn.metrics import mean_absolute_error

    return float(mean_absolute_error(labels, predicted))


def _r2(labels: Array, predicted: Array) -> float:
    from sklearn.metrics import r2_score

    return math.nan if np.ptp(labels) == 0 else float(r2_score(labels, predicted))


# Each gives NaN where it is undefined; compute_metrics puts a number in its place. The first is the usual
# one.
METRICS: dict[Task, dict[str, Metric]] = {
    "single_label_classification": {
        "accuracy": _accuracy,
        "macro_f1": _macro_f1,
        "micro_f1": _micro_f1,
        "matthews": _matthews,
    },
    "multi_label_classification": {"micro_f1": _micro_f1, "macro_f1": _macro_f1, "accuracy": _accuracy},
    "regression": {"mse": _mse, "mae": _mae, "r2": _r2, "pearson": _pearson, "spearman": _spearman},
}


def checked(task: Task, logits: Array, labels: Array) -> tuple[Array, Array]:
    """Return logits as float64 and labels as the task has them, once they fit each other.

    Regression comes back as `[rows]`, multi-label labels as 0 and 1 in `[rows, classes]`.
    """
    scores, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if task == "regression":
        scores, truth = (part[:, 0] if part.ndim == 2 and part.shape[1] == 1 else part for part in (scores, truth))
    ndims = {
        "single_label_classification": (2, 1),
        "multi_label_classification": (2, 2),
        "regression": (1, 1),
    }[task]
    fits = (scores.ndim, truth.ndim) == ndims and (
        scores.shape == truth.shape if task == "multi_label_classification" else len(scores) == len(truth)
    )
    if not fits or (task == "single_label_classification" and scores.shape[1] < 2):
        raise ConfigError(
            f"{task} needs {_SHAPES[task]}; received logits {list(np.shape(logits))} and labels "
            f"{list(np.shape(labels))}."
        )
    if len(scores) == 0:
        raise DataError("There are no rows to evaluate; pass at least one.")
    bad = np.isnan(scores) if scores.ndim == 2 else ~np.isfinite(scores)
    if bad.any():
        raise NonFiniteError(
            f"The model's output is not a number in {int(bad.sum())} places, first in rows {_rows(bad)}: "
            "metrics of it would mean nothing. Lower the learning rate, or train in float32."
        )
    return scores, _checked_labels(task, truth, classes=scores.shape[-1])


def predicted_labels(task: Task, scores: Array, threshold: float) -> Array:
    """Return what the scores predict, in the form of the task's labels."""
    if not 0 < threshold < 1:
        raise ConfigError(f"threshold must be a probability between 0 and 1, not {threshold!r}.")
    if task == "single_label_classification":
        best: Array = scores.argmax(axis=1)
        return best
    if task == "multi_label_classification":
        # Compared as logits: no sigmoid, which would overflow for sure predictions.
        return (scores >= math.log(threshold / (1 - threshold))).astype(np.int64)
    return scores


def probabilities_of(task: Task, logits: Array) -> Array:
    """Return the probabilities that logits of a classification stand for, `[rows, classes]`."""
    if task == "multi_label_classification":
        # By tanh, which does not overflow for large negative logits.
        each: Array = (1 + np.tanh(logits / 2)) / 2
        return each
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    together: Array = powers / powers.sum(axis=1, keepdims=True)
    return together


def two_columns(truth: Array, predicted: Array) -> tuple[Array, Array]:
    """Return labels and predictions that scikit-learn takes for multi-label even where there is one class.

    It would take one column for two classes; a second one without positives changes no metric.
    """
    if truth.ndim == 1 or truth.shape[1] > 1:
        return truth, predicted
    return np.hstack([truth, np.zeros_like(truth)]), np.hstack([predicted, np.zeros_like(predicted)])


def calibration_error(labels: Array, probabilities: Array, bins: int = 15) -> float:
    """Return how far a classifier's probabilities are from how often it is right, from 0 to 1.

    The expected calibration error of Guo et al. 2017, *On Calibration of Modern Neural Networks*, section 2
    (https://arxiv.org/abs/1706.04599): answers are put into bins of equal width by the probability of the class given;
    in each bin the share that is right is held against the mean probability; the differences are averaged, each bin by
    its answers. Where a row may have several classes, every class of every row counts as one answer, and the share
    of those that are true is held against the mean of their probabilities.

    With few rows it is above 0 for a perfect classifier too: 15 bins of 100 rows each differ by chance.

    Args:
        labels: Class ids, `[rows]`; or 0 and 1, `[rows, classes]`.
        probabilities: From 0 to 1, `[rows, classes]`.
        bins: How many bins.

    Raises:
        ConfigError: Shapes do not fit, or there is no bin.
        DataError: There are no rows.
        LabelError: A label is not the id of a class, or not 0 or 1.

    >>> sure = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])
    >>> round(calibration_error(np.array([0, 0, 1, 0]), sure), 2)  # 90 % sure, 75 % right
    0.15
    """
    check_whole("bins", bins, least=1)
    several = np.ndim(labels) == 2
    task: Task = "multi_label_classification" if several else "single_label_classification"
    chances, truth = checked(task, probabilities, labels)
    if not ((chances >= 0) & (chances <= 1)).all():
        raise ConfigError(
            f"probabilities must be from 0 to 1; received {chances.min():g} to {chances.max():g}: softmax or sigmoid "
            "turns logits into them"
        )
    sure = chances.ravel() if several else chances.max(axis=1)
    right = (truth.ravel() if several else chances.argmax(axis=1) == truth).astype(np.float64)
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)  # a bin holds its upper edge, not its lower
    gaps = np.abs(np.bincount(place, right, bins) - np.bincount(place, sure, bins))
    return float(gaps.sum() / len(sure))


_SHAPES: dict[Task, str] = {
    "single_label_classification": "logits [rows, classes] of at least 2 classes and labels [rows]",
    "multi_label_classification": "logits and labels [rows, classes]",
    "regression": "logits [rows] or [rows, 1] and labels [rows]",
}


def _checked_labels(task: Task, labels: Array, classes: int) -> Array:
    """Return labels that are class ids, 0 and 1, or finite numbers, as the task asks."""
    if labels.dtype.kind not in "biuf":
        raise LabelError(f"Labels of {task} must be numbers, not {labels.dtype}; map names to ids first.")
    if task == "single_label_classification":
        wrong = (labels != np.floor(labels)) | (labels < 0) | (labels >= classes)
        rule = f"class ids from 0 to {classes - 1}"
    elif task == "multi_label_classification":
        wrong, rule = (labels != 0) & (labels != 1), "0 or 1"
    else:
        wrong, rule = ~np.isfinite(labels), "finite numbers"
    if wrong.any():
        raise LabelError(f"Labels of {task} must be {rule}; rows {_rows(wrong)} hold {labels[wrong][:5].tolist()}.")
    return labels.astype(np.float64 if task == "regression" else np.int64)


def _rows(wrong: Array) -> list[int]:
    """Return the numbers of up to five rows in which something is wrong."""
    found: list[int] = np.unique(np.nonzero(wrong)[0])[:5].tolist()
    return found
