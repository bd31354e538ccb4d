"""Metrics: how good predictions are, as plain numbers; `lowft.evaluation` makes reports of them.

scikit-learn and SciPy do the arithmetic. What lowft adds is that a value is never NaN: a metric that is
undefined for the rows at hand is given as 0 with one warning that says why.
"""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lowft._scores import METRICS, Array, calibration_error, checked, predicted_labels, two_columns
from lowft._settings import check_whole
from lowft._tasks import Task, check_task
from lowft.data._values import near
from lowft.errors import ConfigError

__all__ = [
    "bootstrap_error",
    "calibration_error",
    "compute_metrics",
    "default_metric",
    "greater_is_better",
    "wilson_interval",
]

_LOWER_IS_BETTER = frozenset({"loss", "mse", "mae"})
_WHY_UNDEFINED: dict[Task, str] = {
    "single_label_classification": "all rows have the same label",
    "multi_label_classification": "no row has a class and none is predicted",
    "regression": "all labels, or all predictions, are the same number",
}


def compute_metrics(
    task: str,
    logits: Array,
    labels: Array,
    *,
    names: Sequence[str] | None = None,
    threshold: float = 0.5,
    extra: Callable[[Array, Array], Mapping[str, float]] | None = None,
) -> dict[str, float]:
    """Measure predictions against labels.

    | task | metrics |
    | --- | --- |
    | single-label | `accuracy`, `macro_f1`, `micro_f1`, `matthews` (correlation coefficient) |
    | multi-label | `micro_f1`, `macro_f1`, `accuracy` (rows with every class right) |
    | regression | `mse`, `mae`, `r2`, `pearson`, `spearman` |

    `macro_f1` is the mean over the classes that some row has or is given; the others would be 0/0. A metric
    that is undefined as a whole is 0.0, with one warning that says why: `matthews` where all labels are the
    same; `pearson`, `spearman` and `r2` where nothing varies; F1 where there is no positive at all.

    Args:
        task: `"single_label_classification"`, `"multi_label_classification"` or `"regression"`.
        logits: `[rows, classes]`; for regression `[rows]` or `[rows, 1]`.
        labels: Class ids, `[rows]`; for multi-label 0 and 1, `[rows, classes]`; for regression numbers,
            `[rows]`.
        names: Which metrics; None gives all of the task.
        threshold: The probability from which a class is predicted in a multi-label task, between 0 and 1.
        extra: The caller's own function of (logits, labels) that returns more numbers by name.

    Raises:
        ConfigError: Shapes, names or the threshold do not fit, or `extra` returns something else than new
            numbers.
        DataError: There are no rows.
        LabelError: A label is not the id of a class, not 0 or 1, or not a finite number.
        NonFiniteError: A logit is NaN.

    >>> logits = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 2.0]])
    >>> compute_metrics("single_label_classification", logits, np.array([0, 1, 1, 1]), names=["accuracy"])
    {'accuracy': 0.75}
    """
    task = check_task(task)
    known = METRICS[task]
    chosen = list(known) if names is None else list(names)
    for name in chosen:
        if name not in known:
            raise ConfigError(f"{name!r} is no metric of {task}; use {', '.join(known)}.{near(name, known)}")
    scores, truth = checked(task, logits, labels)
    truth, predicted = two_columns(truth, predicted_labels(task, scores, threshold))
    result = {name: known[name](truth, predicted) for name in chosen}
    if undefined := [name for name, value in result.items() if math.isnan(value)]:
        warnings.warn(
            f"{', '.join(undefined)} cannot be computed on these {len(truth)} rows, because "
            f"{_WHY_UNDEFINED[task]}: given as 0.0.",
            stacklevel=2,
        )
        result |= dict.fromkeys(undefined, 0.0)
    return result if extra is None else result | _extra(extra, logits, labels, taken=result)


def default_metric(task: str) -> tuple[str, bool]:
    """Return the metric that decides which weights are best, and whether greater is better.

    >>> default_metric("single_label_classification"), default_metric("regression")
    (('accuracy', True), ('mse', False))
    """
    name = next(iter(METRICS[check_task(task)]))
    return name, greater_is_better(name)


def greater_is_better(name: str) -> bool:
    """Say whether a greater value of a metric is better; `"loss"` and the prefix `eval_` are known too.

    Raises:
        ConfigError: The name is not one of lowft's metrics.

    >>> greater_is_better("accuracy"), greater_is_better("eval_loss")
    (True, False)
    """
    bare = name.removeprefix("eval_")
    known = sorted({"loss"}.union(*METRICS.values()))
    if bare not in known:
        raise ConfigError(f"{name!r} is no metric that lowft knows: {', '.join(known)}.{near(bare, known)}")
    return bare not in _LOWER_IS_BETTER


def bootstrap_error(
    measure: Callable[[Array, Array], Mapping[str, float]],
    logits: Array,
    labels: Array,
    *,
    resamples: int = 100,
    seed: int = 0,
) -> dict[str, float]:
    """Return the standard error of each metric: how much another draw of as many rows would change it.

    The bootstrap of Efron (1979, *Bootstrap Methods: Another Look at the Jackknife*): the spread of the metric over
    draws from these very rows, with replacement. For an accuracy it comes close to √(p·(1 − p) ÷ rows).

    Args:
        measure: A function of (logits, labels) that returns numbers by name.
        logits: `[rows, ...]`.
        labels: `[rows, ...]`.
        resamples: How many draws.
        seed: Decides the draws.

    Raises:
        ConfigError: There are fewer than two draws, or not as many labels as logits.

    >>> labels = np.arange(100) % 2
    >>> logits = np.eye(2)[np.where(np.arange(100) < 80, labels, 1 - labels)]  # 80 of 100 right
    >>> measure = lambda logits, labels: {"accuracy": float((logits.argmax(1) == labels).mean())}
    >>> round(bootstrap_error(measure, logits, labels, resamples=1000)["accuracy"], 2)
    0.04
    """
    check_whole("resamples", resamples, least=2)
    if len(logits) != len(labels) or len(labels) == 0:
        raise ConfigError(f"bootstrap_error needs a label for each row; got {len(logits)} rows, {len(labels)} labels")
    rng = np.random.default_rng(seed)
    drawn = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a draw may lack a class: what is then undefined has been said of all rows
        for _ in range(resamples):
            rows = rng.integers(len(labels), size=len(labels))
            drawn.append(dict(measure(logits[rows], labels[rows])))
    return {name: float(np.std([values[name] for values in drawn], ddof=1)) for name in drawn[0]}


def wilson_interval(successes: int, rows: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Bound a proportion such as accuracy: where the true one plausibly lies, given so many rows.

    The score interval of Wilson (1927, *Probable Inference, the Law of Succession, and Statistical
    Inference*), which Brown, Cai and DasGupta (2001, *Interval Estimation for a Binomial Proportion*)
    recommend for few rows. It counts the chance in which rows were drawn for evaluation, not the chance in
    training.

    Args:
        successes: Rows that are right, from 0 to `rows`.
        rows: How many there are, from 1.
        confidence: Between 0 and 1.

    Raises:
        ConfigError: A number is out of its range.

    >>> low, high = wilson_interval(83, 100)
    >>> f"{low:.3f} to {high:.3f}"
    '0.745 to 0.891'
    """
    if not (0 <= successes <= rows and rows >= 1):
        raise ConfigError(f"successes must be from 0 to rows, and rows at least 1, not {successes} of {rows}.")
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must be between 0 and 1, not {confidence!r}.")
    from scipy.stats import binomtest

    interval = binomtest(successes, rows).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def _extra(
    function: Callable[[Array, Array], Mapping[str, float]],
    logits: Array,
    labels: Array,
    taken: Mapping[str, float],
) -> dict[str, float]:
    """Return the caller's own metrics once they are numbers under names of their own."""
    values = function(logits, labels)
    if not isinstance(values, Mapping):
        raise ConfigError(f"Your metric function must return a mapping of names to numbers, not {values!r}.")
    result: dict[str, float] = {}
    for name, value in values.items():
        if not isinstance(name, str) or name in taken or name == "loss":
            raise ConfigError(f"Your metric function returned the name {name!r}; use a text that is not taken.")
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise ConfigError(f"Your metric {name!r} must be a number, not {value!r} ({type(value).__name__}).")
        result[name] = float(value)
    if undefined := [name for name, value in result.items() if math.isnan(value)]:
        warnings.warn(f"Your metric function gave NaN for {', '.join(undefined)}; kept as it is.", stacklevel=3)
    return result
