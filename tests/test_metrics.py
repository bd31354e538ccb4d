"""Metrics: known values, defined values where one is undefined, refusals, and the report that people read."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowft.errors import ConfigError, DataError, LabelError, NonFiniteError
from lowft.evaluation import evaluation_report
from lowft.metrics import (
    bootstrap_error,
    calibration_error,
    compute_metrics,
    default_metric,
    greater_is_better,
    wilson_interval,
)

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
# Three classes, six rows, four right: class 2 is taken for class 0 twice.
LOGITS = np.array([[2, 0, 0], [3, 1, 0], [0, 5, 1], [0, 1, 3], [4, 0, 2], [2, 1, 1]], dtype=np.float32)
LABELS = np.array([0, 0, 1, 2, 2, 2])
MULTI_LOGITS = np.array([[3.0, -2.0], [-1.0, 4.0], [2.0, 2.0], [-3.0, -3.0]])
MULTI_LABELS = np.array([[1, 0], [1, 1], [1, 1], [0, 0]])


def test_single_label_values() -> None:
    """Accuracy, F1 and the Matthews coefficient are what one counts by hand."""
    result = compute_metrics(SINGLE, LOGITS, LABELS)
    assert list(result) == ["accuracy", "macro_f1", "micro_f1", "matthews"]
    assert result["accuracy"] == result["micro_f1"] == pytest.approx(4 / 6)
    assert result["macro_f1"] == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    assert result["matthews"] == pytest.approx((4 * 6 - 12) / math.sqrt((36 - 18) * (36 - 14)))


def test_multi_label_values() -> None:
    """F1 counts single decisions; accuracy counts rows in which every decision is right."""
    result = compute_metrics(MULTI, MULTI_LOGITS, MULTI_LABELS)
    assert result == pytest.approx({"micro_f1": 8 / 9, "macro_f1": (4 / 5 + 1) / 2, "accuracy": 3 / 4})


def test_threshold_is_a_probability() -> None:
    """A class is predicted from the threshold on: raising it beyond a row's probability turns the row."""
    logits, labels = np.array([[math.log(3)], [-1.0]]), np.array([[1], [0]])  # probabilities 0.75 and 0.27
    assert compute_metrics(MULTI, logits, labels, threshold=0.74)["accuracy"] == 1
    assert compute_metrics(MULTI, logits, labels, threshold=0.76)["accuracy"] == 0.5
    assert compute_metrics(MULTI, logits, labels, threshold=0.1)["accuracy"] == 0.5


def test_one_class_multi_label_counts_positives_only() -> None:
    """With one class, micro F1 is that of the positives, not the accuracy of yes and no."""
    result = compute_metrics(MULTI, np.array([[1.0], [1.0], [-1.0]]), np.array([[1], [0], [0]]))
    assert result == pytest.approx({"micro_f1": 2 / 3, "macro_f1": 2 / 3, "accuracy": 2 / 3})


def test_regression_values() -> None:
    """Errors and correlations are what one computes by hand; [rows, 1] is [rows]."""
    predictions, labels = np.array([[1.0], [2.0], [4.0]]), np.array([1, 3, 4])
    result = compute_metrics(REGRESSION, predictions, labels)
    assert result["mse"] == pytest.approx(1 / 3)
    assert result["mae"] == pytest.approx(1 / 3)
    assert result["r2"] == pytest.approx(1 - 1 / (14 / 3))
    assert result["pearson"] == pytest.approx(np.corrcoef(predictions[:, 0], labels)[0, 1])
    assert result["spearman"] == pytest.approx(1)


def test_macro_f1_leaves_out_classes_that_do_not_occur() -> None:
    """A class that no row has or is given is left out of macro F1, without a warning, in both tasks."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        single = compute_metrics(SINGLE, np.array([[2.0, 0, -9], [0, 2.0, -9]]), np.array([0, 1]))
        multi = compute_metrics(MULTI, np.array([[2.0, -2], [2.0, -2]]), np.array([[1, 0], [1, 0]]))
    assert single["macro_f1"] == multi["macro_f1"] == 1


@pytest.mark.parametrize(
    ("task", "logits", "labels", "undefined", "why"),
    [
        (SINGLE, [[2.0, 0.0], [0.0, 2.0]], [1, 1], {"matthews"}, "same label"),
        (MULTI, [[-2.0, -1.0]], [[0, 0]], {"micro_f1", "macro_f1"}, "no row has a class"),
        (REGRESSION, [1.0, 1.0], [1.0, 2.0], {"pearson", "spearman"}, "same number"),
        (REGRESSION, [1.0, 2.0], [1.0, 1.0], {"pearson", "spearman", "r2"}, "same number"),
        (REGRESSION, [1.0], [2.0], {"pearson", "spearman", "r2"}, "these 1 rows"),
    ],
)
def test_undefined_metrics(
    task: str, logits: list[object], labels: list[object], undefined: set[str], why: str
) -> None:
    """An undefined metric is 0.0, with one warning that names it and says why."""
    with pytest.warns(UserWarning, match=why) as caught:
        result = compute_metrics(task, np.array(logits), np.array(labels))
    assert len(caught) == 1
    assert all(name in str(caught[0].message) for name in undefined)
    assert {name for name in undefined if result[name] == 0.0} == undefined
    assert all(math.isfinite(value) for value in result.values())


@given(data=st.data(), rows=st.integers(1, 12), classes=st.integers(2, 4))
def test_classification_metrics_are_finite_and_bounded(data: st.DataObject, rows: int, classes: int) -> None:
    """Whatever the labels and predictions, every value is a number in its range."""
    labels = data.draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows))
    predicted = data.draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = compute_metrics(SINGLE, np.eye(classes)[predicted], np.array(labels))
    assert all(-1 <= value <= 1 for value in result.values())
    assert result["accuracy"] == pytest.approx(sum(map(int.__eq__, labels, predicted)) / rows)


def test_names_choose_and_order() -> None:
    """`names` picks metrics in the caller's order."""
    assert list(compute_metrics(SINGLE, LOGITS, LABELS, names=["matthews", "accuracy"])) == [
        "matthews",
        "accuracy",
    ]


def test_extra_metrics_are_merged() -> None:
    """The caller's own function adds numbers, NumPy's included, computed from what was passed."""
    result = compute_metrics(
        SINGLE,
        LOGITS,
        LABELS,
        extra=lambda logits, labels: {"top": logits.max(), "rows": len(labels)},
    )
    assert result["top"] == 5
    assert result["rows"] == 6
    assert result["accuracy"] == pytest.approx(4 / 6)
    assert all(type(value) is float for value in result.values())


def test_extra_nan_is_warned_about() -> None:
    """NaN from the caller's own function is kept, never silently."""
    with pytest.warns(UserWarning, match="NaN for odd"):
        assert math.isnan(compute_metrics(SINGLE, LOGITS, LABELS, extra=lambda *_: {"odd": math.nan})["odd"])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: compute_metrics("ner", LOGITS, LABELS), ConfigError, "task must be one of"),
        (
            lambda: compute_metrics(SINGLE, LOGITS, LABELS, names=["accuraccy"]),
            ConfigError,
            r"'accuraccy' is no metric of single.*Did you mean 'accuracy'\?",
        ),
        (
            lambda: compute_metrics(SINGLE, LOGITS, LABELS[:2]),
            ConfigError,
            r"logits \[6, 3\] and labels \[2\]",
        ),
        (lambda: compute_metrics(SINGLE, LOGITS[:, :1], LABELS), ConfigError, "at least 2 classes"),
        (lambda: compute_metrics(MULTI, LOGITS, LABELS), ConfigError, r"logits \[6, 3\] and labels \[6\]"),
        (lambda: compute_metrics(REGRESSION, LOGITS, LABELS), ConfigError, r"\[rows, 1\]"),
        (lambda: compute_metrics(SINGLE, LOGITS[:0], LABELS[:0]), DataError, "no rows"),
        (
            lambda: compute_metrics(SINGLE, LOGITS, LABELS + 1),
            LabelError,
            r"0 to 2; rows \[3, 4, 5\] hold \[3, 3, 3\]",
        ),
        (lambda: compute_metrics(SINGLE, LOGITS, LABELS + 0.5), LabelError, "class ids"),
        (lambda: compute_metrics(SINGLE, LOGITS, LABELS.astype(str)), LabelError, "map names to ids"),
        (lambda: compute_metrics(MULTI, MULTI_LOGITS, MULTI_LABELS * 2), LabelError, "must be 0 or 1"),
        (
            lambda: compute_metrics(REGRESSION, np.zeros(2), np.array([1, math.nan])),
            LabelError,
            r"finite numbers; rows \[1\] hold \[nan\]",
        ),
        (
            lambda: compute_metrics(SINGLE, LOGITS * math.nan, LABELS),
            NonFiniteError,
            r"18 places, first in rows \[0",
        ),
        (
            lambda: compute_metrics(REGRESSION, np.array([math.inf]), np.zeros(1)),
            NonFiniteError,
            r"rows \[0\]",
        ),
        (
            lambda: compute_metrics(MULTI, MULTI_LOGITS, MULTI_LABELS, threshold=1),
            ConfigError,
            "between 0 and 1",
        ),
        (
            lambda: compute_metrics(SINGLE, LOGITS, LABELS, extra=lambda *_: {"accuracy": 1.0}),
            ConfigError,
            "'accuracy'; use a text that is not taken",
        ),
        (
            lambda: compute_metrics(SINGLE, LOGITS, LABELS, extra=lambda *_: {"loss": 1.0}),
            ConfigError,
            "'loss'",
        ),
        (
            lambda: compute_metrics(SINGLE, LOGITS, LABELS, extra=lambda *_: {"x": "1"}),
            ConfigError,
            r"'x' must be a number, not '1' \(str\)",
        ),
        (
            lambda: compute_metrics(SINGLE, LOGITS, LABELS, extra=lambda *_: 0.5),  # type: ignore[arg-type]
            ConfigError,
            "must return a mapping.*0.5",
        ),
        (lambda: greater_is_better("acuracy"), ConfigError, r"Did you mean 'accuracy'\?"),
        (lambda: wilson_interval(3, 2), ConfigError, "not 3 of 2"),
        (lambda: wilson_interval(0, 0), ConfigError, "at least 1"),
        (lambda: wilson_interval(1, 2, confidence=95), ConfigError, "between 0 and 1, not 95"),
        (
            lambda: evaluation_report(SINGLE, LOGITS, LABELS, ["a"]),
            ConfigError,
            "each of the 3 classes, not 1",
        ),
    ],
)
def test_refusals(call: Callable[[], object], error: type[Exception], words: str) -> None:
    """What does not fit is refused with the rule and what was received."""
    with pytest.raises(error, match=words):
        call()


def test_infinite_logits_still_rank_classes() -> None:
    """A class that is ruled out by a logit of minus infinity is no fault."""
    logits = np.array([[0.0, -math.inf], [-math.inf, 0.0]])
    assert compute_metrics(SINGLE, logits, np.array([0, 1]))["accuracy"] == 1


@pytest.mark.parametrize("task", [SINGLE, MULTI, REGRESSION])
def test_default_metric_is_measured(task: str) -> None:
    """The metric that decides is one that is always computed and whose direction is known."""
    name, greater = default_metric(task)
    logits, labels = {
        SINGLE: (LOGITS, LABELS),
        MULTI: (MULTI_LOGITS, MULTI_LABELS),
        REGRESSION: (LOGITS[:, 0], LABELS),
    }[task]
    assert name in compute_metrics(task, logits, labels)
    assert greater_is_better(name) is greater


@pytest.mark.parametrize("task", [SINGLE, MULTI, REGRESSION])
def test_direction_of_every_metric(task: str) -> None:
    """Errors and losses are better small, all others great, with or without the prefix."""
    logits, labels = {
        SINGLE: (LOGITS, LABELS),
        MULTI: (MULTI_LOGITS, MULTI_LABELS),
        REGRESSION: (LOGITS[:, 0], LABELS),
    }[task]
    for name in [*compute_metrics(task, logits, labels), "loss"]:
        assert greater_is_better(f"eval_{name}") is greater_is_better(name) is (name not in {"mse", "mae", "loss"})


@given(rows=st.integers(1, 3000), share=st.floats(0, 1))
def test_wilson_interval_formula(rows: int, share: float) -> None:
    """The interval solves Wilson's quadratic, stays within 0 and 1, and holds the observed share."""
    right = round(share * rows)
    low, high = wilson_interval(right, rows)
    z, p = 1.959963984540054, right / rows
    centre = (p + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * math.sqrt(p * (1 - p) / rows + z**2 / (4 * rows**2))
    assert low == pytest.approx(max(0, centre - half), abs=1e-9)
    assert high == pytest.approx(min(1, centre + half), abs=1e-9)
    assert low - 1e-9 <= p <= high + 1e-9


@given(st.integers(10, 400), st.integers(0, 100))
def test_the_bootstrap_gives_the_standard_error_of_a_share(rows: int, percent: int) -> None:
    """For an accuracy the error is known: the root of p(1 - p) over the rows."""
    right = np.arange(rows) < rows * percent / 100

    def measure(logits: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> dict[str, float]:
        return {"accuracy": float((logits == labels).mean())}

    error = bootstrap_error(measure, right.astype(int), np.ones(rows), resamples=400)["accuracy"]
    share = right.mean()
    assert error == pytest.approx(math.sqrt(share * (1 - share) / rows), rel=0.2, abs=1e-9)


@pytest.mark.parametrize(("labels", "resamples"), [(np.ones(3), 100), (np.ones(0), 100), (np.ones(4), 1)])
def test_the_bootstrap_needs_rows_and_draws(labels: np.ndarray[Any, Any], resamples: int) -> None:
    """A label for each row, and at least two draws."""
    logits = np.ones(0 if len(labels) == 0 else 4)
    with pytest.raises(ConfigError):
        bootstrap_error(lambda _, __: {}, logits, labels, resamples=resamples)


@given(st.integers(1, 30), st.integers(2, 5), st.integers(1, 20), st.integers(0, 10_000))
def test_calibration_error_is_the_mean_gap_of_the_bins(rows: int, classes: int, bins: int, seed: int) -> None:
    """It is what the formula of Guo et al. gives when it is written down bin by bin."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(classes), size=rows)
    labels = rng.integers(classes, size=rows)
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = 0.0
    for number in range(bins):
        inside = (sure > number / bins) & (sure <= (number + 1) / bins)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    assert calibration_error(labels, probabilities, bins) == pytest.approx(expected)


def test_calibration_error_of_several_classes_counts_each_decision() -> None:
    """Where a row may have several classes, the share that is true is held against the probability, class by class."""
    labels = np.array([[1, 0], [1, 0], [0, 0], [1, 1]])
    assert calibration_error(labels, np.full((4, 2), 0.5)) == pytest.approx(0)
    assert calibration_error(labels, np.full((4, 2), 0.75)) == pytest.approx(0.25)
    assert calibration_error(labels, labels.astype(float)) == 0


@pytest.mark.parametrize(
    ("labels", "probabilities", "bins", "error"),
    [
        ([0, 1], [[0.5, 0.5]], 15, ConfigError),
        ([0], [[3.0, -1.0]], 15, ConfigError),
        ([0], [[0.5, 0.5]], 0, ConfigError),
        ([2], [[0.5, 0.5]], 15, LabelError),
    ],
)
def test_calibration_error_refuses_what_does_not_fit(
    labels: list[int], probabilities: list[list[float]], bins: int, error: type[Exception]
) -> None:
    """Shapes, probabilities, labels and bins that cannot be are errors."""
    with pytest.raises(error):
        calibration_error(np.array(labels), np.array(probabilities), bins)
