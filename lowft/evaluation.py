"""Evaluation: how good predictions are, as a report that people read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowft._plots import GREY, INK, finish, new_figure
from lowft._scores import Array, checked, predicted_labels, two_columns
from lowft._tables import format_table, html_table
from lowft._tasks import Task, check_task
from lowft.data._values import near
from lowft.errors import ConfigError
from lowft.metrics import compute_metrics, wilson_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ClassScores", "EvaluationReport", "evaluation_report"]


@dataclass(frozen=True)
class ClassScores:
    """How well one class is told from the others.

    Attributes:
        name: The class.
        precision: Share of the rows given this class that have it; 0 if none is given it.
        recall: Share of the rows that have this class that are given it; 0 if none has it.
        f1: Harmonic mean of both.
        support: Rows that have this class.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class EvaluationReport:
    """Metrics with what lies behind them; print it, or let a notebook show it. See `evaluation_report`.

    Attributes:
        task: The task.
        rows: Rows evaluated.
        metrics: As `compute_metrics` gives them.
        accuracy_interval: 95 % Wilson interval of the accuracy; None for regression.
        classes: Scores of each class; empty for regression.
        confusion: Rows by true class (outer) and predicted class (inner); single-label only, else empty.
    """

    task: Task
    rows: int
    metrics: Mapping[str, float]
    accuracy_interval: tuple[float, float] | None = None
    classes: tuple[ClassScores, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()

    def __getitem__(self, metric: str) -> float:
        """Return a metric by name.

        Raises:
            ConfigError: There is none of that name; the message lists those there are.
        """
        if metric not in self.metrics:
            raise ConfigError(
                f"{metric!r} was not measured; there is {', '.join(self.metrics)}.{near(metric, self.metrics)}"
            )
        return self.metrics[metric]

    def __str__(self) -> str:
        title = f"{self.task}, {self.rows:,} rows"
        return "\n\n".join([title, *(f"{name}\n{format_table(*table)}" for name, table in self._tables())])

    def _repr_html_(self) -> str:
        return "".join(html_table(*table, caption=name) for name, table in self._tables())

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            **asdict(self),
            "metrics": dict(self.metrics),
            "accuracy_interval": self.accuracy_interval and list(self.accuracy_interval),
            "classes": [asdict(scores) for scores in self.classes],
            "confusion": [list(row) for row in self.confusion],
        }

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the confusion matrix: true classes downwards, predicted ones across, shaded by share of a row.

        Args:
            path: Where to save it; the ending names the format.

        Raises:
            ConfigError: The task has no confusion matrix.
            MissingExtraError: matplotlib is not installed.
        """
        if not self.confusion:
            raise ConfigError(f"A confusion matrix needs single_label_classification; this report is of {self.task}.")
        size = len(self.classes)
        edge = min(3.2 + 0.38 * size, 14.0)
        figure, (axes,) = new_figure("EvaluationReport.plot", width=edge + 0.6, height=edge)
        counts = np.array(self.confusion)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        names = [scores.name for scores in self.classes]
        axes.set_xticks(range(size), names, rotation=45 if size > 3 else 0, ha="right" if size > 3 else "center")
        axes.set_yticks(range(size), names)
        axes.tick_params(colors=INK, labelsize=9, length=0)
        axes.spines[:].set_color(GREY)
        axes.set_xlabel("predicted", color=INK)
        axes.set_ylabel("true", color=INK)
        if size <= _READABLE:
            for (true, given), count in np.ndenumerate(counts):
                shade = "white" if shares[true, given] > 0.5 else INK
                axes.text(given, true, f"{count:,}", ha="center", va="center", color=shade, fontsize=10)
        return finish(figure, path)

    def _tables(self) -> list[tuple[str, tuple[list[str], list[list[str]]]]]:
        """Return a name, headers and cells for each table that is shown."""
        metrics = [[name, f"{value:.4f}"] for name, value in self.metrics.items()]
        if self.accuracy_interval:
            low, high = self.accuracy_interval
            metrics.append(["accuracy, 95 % interval", f"{low:.4f} to {high:.4f}"])
        tables = [("Metrics", (["metric", "value"], metrics))]
        if self.classes:
            cells = [
                [c.name, f"{c.precision:.4f}", f"{c.recall:.4f}", f"{c.f1:.4f}", f"{c.support:,}"] for c in self.classes
            ]
            tables.append(("Classes", (["class", "precision", "recall", "F1", "support"], cells)))
        names = [c.name for c in self.classes]
        if 0 < len(self.confusion) <= _READABLE:
            rows = [[name, *(f"{count:,}" for count in row)] for name, row in zip(names, self.confusion, strict=True)]
            tables.append(("Confusion (rows are true, columns predicted)", (["", *names], rows)))
        elif self.confusion:
            errors = [
                (count, true, given)
                for true, row in enumerate(self.confusion)
                for given, count in enumerate(row)
                if true != given and count
            ]
            errors.sort(key=lambda error: (-error[0], error[1:]))
            rows = [[names[true], names[given], f"{count:,}"] for count, true, given in errors[:_READABLE]]
            tables.append(("Most frequent errors", (["true", "predicted", "rows"], rows)))
        return tables


_READABLE = 12  # classes up to which a whole confusion matrix is easier to read than a list


def evaluation_report(
    task: str,
    logits: Array,
    labels: Array,
    class_names: Sequence[str] | None = None,
    *,
    threshold: float = 0.5,
    extra: Callable[[Array, Array], Mapping[str, float]] | None = None,
) -> EvaluationReport:
    """Measure predictions in detail: metrics, an interval, each class, and what is mistaken for what.

    Args:
        task: `"single_label_classification"`, `"multi_label_classification"` or `"regression"`.
        logits: `[rows, classes]`; for regression `[rows]` or `[rows, 1]`.
        labels: Class ids, `[rows]`; for multi-label 0 and 1, `[rows, classes]`; for regression numbers,
            `[rows]`.
        class_names: One for each class, in the order of their ids; None numbers them.
        threshold: The probability from which a class is predicted in a multi-label task.
        extra: The caller's own function of (logits, labels) that returns more numbers by name.

    Raises:
        ConfigError: Shapes, names or the threshold do not fit, or `extra` returns something else than new
            numbers.
        DataError: There are no rows.
        LabelError: A label is not the id of a class, not 0 or 1, or not a finite number.
        NonFiniteError: A logit is NaN.

    >>> logits = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 2.0]])
    >>> labels = np.array([0, 1, 1, 1])
    >>> report = evaluation_report("single_label_classification", logits, labels, ["bad", "good"])
    >>> report.confusion
    ((1, 0), (1, 2))
    """
    task = check_task(task)
    metrics = compute_metrics(task, logits, labels, threshold=threshold, extra=extra)
    scores, truth = checked(task, logits, labels)
    if task == "regression":
        return EvaluationReport(task, len(truth), metrics)
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    ids = list(range(scores.shape[1]))
    names = [str(index) for index in ids] if class_names is None else [str(name) for name in class_names]
    if len(names) != len(ids):
        raise ConfigError(f"class_names must have one name for each of the {len(ids)} classes, not {len(names)}.")
    predicted = predicted_labels(task, scores, threshold)
    single = task == "single_label_classification"
    right = truth == predicted if single else (truth == predicted).all(axis=1)
    columns = precision_recall_fscore_support(*two_columns(truth, predicted), labels=ids, zero_division=0)
    classes = tuple(
        ClassScores(name, float(precision), float(recall), float(f1), int(support))
        for name, precision, recall, f1, support in zip(names, *columns, strict=True)
    )
    matrix = confusion_matrix(truth, predicted, labels=ids).tolist() if single else []
    return EvaluationReport(
        task,
        len(truth),
        metrics,
        accuracy_interval=wilson_interval(int(right.sum()), len(truth)),
        classes=classes,
        confusion=tuple(map(tuple, matrix)),
    )
