"""Reports of evaluations: what they hold, print and draw."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from lowft.errors import ConfigError, MissingExtraError
from lowft.evaluation import evaluation_report
from lowft.metrics import compute_metrics, wilson_interval
from tests.test_metrics import LABELS, LOGITS, MULTI, REGRESSION, SINGLE


def test_report_of_single_label() -> None:
    """The report holds the confusion matrix, each class's scores, and the interval of the accuracy."""
    report = evaluation_report(SINGLE, LOGITS, LABELS, ["bad", "fair", "good"])
    assert report.rows == 6
    assert report.confusion == ((2, 0, 0), (0, 1, 0), (2, 0, 1))
    assert [scores.support for scores in report.classes] == [2, 1, 3]
    assert report.classes[0].precision == 0.5
    assert report.classes[2].recall == pytest.approx(1 / 3)
    assert report.accuracy_interval == wilson_interval(4, 6)
    assert report.metrics == compute_metrics(SINGLE, LOGITS, LABELS)
    text = str(report)
    assert "single_label_classification, 6 rows" in text
    assert "accuracy, 95 % interval  0.3000 to 0.9032" in text
    lines = text.splitlines()
    assert "good    2     0     1" in lines
    assert all(line == line.rstrip() for line in lines)


def test_report_of_multi_label_with_one_class() -> None:
    """Each class's scores are those of its positives, also where it is the only class."""
    report = evaluation_report(MULTI, np.array([[1.0], [1.0], [-1.0]]), np.array([[1], [0], [0]]), ["spam"])
    (scores,) = report.classes
    assert (scores.precision, scores.recall, scores.support) == (0.5, 1.0, 1)
    assert report.confusion == ()
    assert report.accuracy_interval == wilson_interval(2, 3)


def test_report_of_regression() -> None:
    """Without classes the report is rows and metrics."""
    report = evaluation_report(REGRESSION, np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 4.0]))
    assert report.accuracy_interval is None
    assert report.classes == ()
    assert "pearson" in str(report)


def test_report_of_many_classes_lists_the_most_frequent_errors() -> None:
    """Beyond a dozen classes, the printed report lists errors by frequency in place of a matrix."""
    labels = np.array([3, 3, 3, 5, *range(20)])
    predicted = np.array([4, 4, 4, 6, *range(20)])
    text = str(evaluation_report(SINGLE, np.eye(20)[predicted], labels))
    assert "Confusion" not in text
    errors = text.split("Most frequent errors\n")[1].splitlines()
    assert [line.split() for line in errors[2:]] == [["3", "4", "3"], ["5", "6", "1"]]


def test_report_as_json_and_html() -> None:
    """The report goes to JSON and back, and escapes class names in HTML."""
    report = evaluation_report(SINGLE, LOGITS, LABELS, ["<b>", "fair", "good"])
    loaded = json.loads(json.dumps(report.to_dict()))
    assert loaded["confusion"] == [[2, 0, 0], [0, 1, 0], [2, 0, 1]]
    assert loaded["classes"][1] == {"name": "fair", "precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1}
    assert loaded["metrics"] == report.metrics
    assert loaded == report.to_dict()
    assert "&lt;b&gt;" in report._repr_html_()
    assert "<b>" not in report._repr_html_()


def test_report_plot(tmp_path: Path) -> None:
    """The confusion matrix is drawn with a number in each cell and saved where asked."""
    figure = evaluation_report(SINGLE, LOGITS, LABELS, ["bad", "fair", "good"]).plot(tmp_path / "confusion.png")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["2", "0", "0", "0", "1", "0", "2", "0", "1"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["bad", "fair", "good"]
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_report_plot_needs_a_matrix() -> None:
    """A report without a confusion matrix says which task has one."""
    report = evaluation_report(REGRESSION, np.array([1.0, 2.0]), np.array([1.0, 2.0]))
    with pytest.raises(ConfigError, match="needs single_label_classification; this report is of regression"):
        report.plot()


def test_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where matplotlib is missing, the error names the extra that brings it."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"EvaluationReport.plot needs.*lowft\[plot\]"):
        evaluation_report(SINGLE, LOGITS, LABELS).plot()
