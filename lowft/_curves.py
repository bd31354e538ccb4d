"""Curves of a run or of several, drawn from the records of a history."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lowft._plots import GREY, INK, PALETTE, new_figure, tidy
from lowft.errors import ConfigError
from lowft.metrics import greater_is_better

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PREFIX", "draw_comparison", "draw_curves", "metric_names"]

PREFIX = "eval_"
_NOT_METRICS = frozenset({"eval_rows", "eval_seconds"})
_MARKERS = (
    "o",
    "s",
    "^",
    "D",
    "v",
    "P",
)  # beside colours, for those who cannot tell them apart, and for print
_Records = Sequence[Mapping[str, Any]]
_Line = tuple[tuple[float, ...], tuple[float, ...]]


def metric_names(records: _Records) -> list[str]:
    """Return the names of all evaluated numbers, prefix included, in the order of their first appearance."""
    return list(
        dict.fromkeys(
            name
            for record in records
            if record["event"] == "evaluate"
            for name, value in record.items()
            if name.startswith(PREFIX) and name not in _NOT_METRICS and isinstance(value, int | float)
        )
    )


def draw_curves(records: _Records, *, purpose: str) -> Figure:
    """Draw the losses, below them the metrics that are better great, and below those the better small."""
    training, validation = _line(records, "train", "loss"), _line(records, "evaluate", "eval_loss")
    groups: dict[bool, dict[str, _Line]] = {True: {}, False: {}}
    for name in metric_names(records):
        if name != "eval_loss":
            groups[_greater_is_better(name)][name.removeprefix(PREFIX)] = _line(records, "evaluate", name)
    below = [(label, _merged(groups[greater])) for greater, label in ((True, "metric"), (False, "error"))]
    panels = [(label, lines) for label, lines in below if lines]
    if not (training[0] or validation[0] or panels):
        raise ConfigError("This history holds no loss and no metric; plot it after the first evaluation.")

    has_loss = bool(training[0] or validation[0])
    count = has_loss + len(panels)
    figure, axes = new_figure(purpose, panels=count, height=1.6 + 2.0 * count)
    if has_loss:
        if training[0]:
            axes[0].plot(*training, color=PALETTE[0], alpha=0.3, linewidth=1)
            smooth = _smoothed(training[1])
            axes[0].plot(training[0], smooth, color=PALETTE[0], linewidth=1.8, label="training")
        panels.insert(0, ("loss", {"validation": validation} if validation[0] else {}))
    for panel, (label, lines) in zip(axes, panels, strict=True):
        _draw(panel, lines, first=label == "loss")
        panel.set_ylabel(label)
        _finish_panel(panel)
    axes[-1].set_xlabel("optimizer step")
    _mark_stages(axes, records)
    return figure


def draw_comparison(runs: Mapping[str, _Records], metric: str, x: str, *, purpose: str) -> Figure:
    """Draw one metric of several runs into one panel."""
    figure, (axes,) = new_figure(purpose)
    _draw(axes, {name: _line(records, "evaluate", metric, x=x) for name, records in runs.items()})
    axes.set_xlabel({"step": "optimizer step", "seconds": "seconds"}[x])
    axes.set_ylabel(metric.removeprefix(PREFIX))
    _finish_panel(axes)
    return figure


def _draw(axes: Axes, lines: Mapping[str, _Line], *, first: int = 0) -> None:
    """Draw lines with a marker at each point, in colours from `first` on."""
    for index, (name, line) in enumerate(lines.items(), start=first):
        marker = _MARKERS[index % len(_MARKERS)]
        colour = PALETTE[index % len(PALETTE)]
        axes.plot(*line, color=colour, marker=marker, markersize=4.5, linewidth=1.8, label=name)


def _finish_panel(axes: Axes) -> None:
    """Put the legend where it hides no line, and tidy."""
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    tidy(axes)


def _line(records: _Records, event: str, name: str, *, x: str = "step") -> _Line:
    """Return the points of one value; records without it are left out."""
    points = [(r[x], r[name]) for r in records if r["event"] == event and isinstance(r.get(name), int | float)]
    return tuple(point[0] for point in points), tuple(point[1] for point in points)


def _merged(lines: Mapping[str, _Line]) -> dict[str, _Line]:
    """Put lines that share all points under one name: with one class a row, accuracy is micro F1."""
    names: dict[_Line, list[str]] = {}
    for name, line in lines.items():
        names.setdefault(line, []).append(name)
    return {" = ".join(same): line for line, same in names.items()}


def _smoothed(values: Sequence[float]) -> list[float]:
    """Return a moving average: exponential, over about a twentieth of the values, without a start from zero.

    Values that are not finite are passed over.
    """
    keep = 1 - 1 / max(1.0, len(values) / 20)
    total = weight = 0.0
    smooth = []
    for value in values:
        if math.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1
        smooth.append(total / weight if weight else math.nan)
    return smooth


def _greater_is_better(name: str) -> bool:
    """Say which way a metric is better; one that lowft does not know is taken to be better great."""
    try:
        return greater_is_better(name)
    except ConfigError:
        return True


def _mark_stages(panels: Sequence[Axes], records: _Records) -> None:
    """Draw a line where each stage begins, and its name above the first panel, if there are several."""
    last, begins = 0, dict[int, tuple[int, str]]()
    for record in records:
        begins.setdefault(record["stage"], (last, record["stage_name"] or f"stage {record['stage']}"))
        last = max(last, record["step"])
    if len(begins) < 2:
        return
    starts = [step for step, _ in begins.values()]
    room = zip(starts, [*starts[1:], last], begins.values(), strict=True)
    # About seventy letters fit above the panel.
    crowded = any(70 * (end - start) < len(name) * max(last, 1) for start, end, (_, name) in room)
    for step, name in begins.values():
        for axes in panels:
            axes.axvline(step, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        panels[0].annotate(
            name,
            (step, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            fontsize=9,
            color=INK,
            rotation=30 if crowded else 0,
        )
