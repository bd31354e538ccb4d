"""The picture of a comparison of deployed models: how well each answers against what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lowft._plots import INK, PALETTE, finish, new_figure, tidy
from lowft.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lowft._deployment_report import Deployed, DeploymentReport, Timing

__all__ = ["draw"]

# Where a name may stand beside its point, in points above its height: the nearest place that is free is taken.
_HEIGHTS = (5, -13, 18, -26, 31, -39)


def draw(report: DeploymentReport, path: str | Path | None, shape: Mapping[str, int | None]) -> Figure:
    """Draw the metric against latency and, beside it, against size on disk; see `DeploymentReport.plot`."""
    timings = {name: _timing_of(each, shape) for name, each in report.candidates.items()}
    places = [{name: 1000 * timing.median_seconds for name, timing in timings.items()}]
    sizes = {name: each.size_bytes / 1e6 for name, each in report.candidates.items() if each.size_bytes is not None}
    if sizes:
        places.append(sizes)
    width = 4.6 * len(places)
    figure, axes = new_figure("DeploymentReport.plot", panels=len(places), width=width, height=3.8, beside=True)
    scale = 100 if report.in_percent else 1
    heights = {name: scale * each.value for name, each in report.candidates.items()}
    colours = {name: PALETTE[1] if name == report.reference else PALETTE[0] for name in report.candidates}
    for panel, at in zip(axes, places, strict=True):
        panel.margins(x=0.2, y=0.15)
        tidy(panel)
        for name, x in at.items():
            low, high = (scale * bound for bound in report.candidates[name].interval)
            panel.vlines(x, low, high, color=colours[name], linewidth=1.5, alpha=0.6)
            panel.scatter(x, heights[name], s=46, color=colours[name], linewidth=0, zorder=3)
    for name, timing in timings.items():
        left, right = (1000 * bound for bound in timing.median_interval)
        axes[0].hlines(heights[name], left, right, color=colours[name], linewidth=1.5, alpha=0.6)
    axes[0].set_xlabel(f"milliseconds for {next(iter(timings.values())).shape}")
    axes[0].set_ylabel(report.metric.replace("_", " ") + (" (%)" if report.in_percent else ""))
    if sizes:
        axes[1].set_xlabel("MB on disk")
    for panel in axes:
        panel.set_xlim(0, panel.get_xlim()[1])  # from 0, so that lengths along it are ratios
    figure.draw_without_rendering()  # decides the layout, which names are placed by
    for panel, at in zip(axes, places, strict=True):
        _label(panel, {name: (x, heights[name]) for name, x in at.items()})
    return finish(figure, path)


def _timing_of(each: Deployed, shape: Mapping[str, int | None]) -> Timing:
    for timing in each.timings:
        if all(value is None or getattr(timing, key) == value for key, value in shape.items()):
            return timing
    timed = "; ".join(timing.shape for timing in each.timings)
    asked = ", ".join(f"{key}={value!r}" for key, value in shape.items() if value is not None)
    raise ConfigError(f"plot: {asked} was not timed; there is {timed} (rows x tokens)")


def _label(panel: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Write each name beside its point, where it hides neither a point nor another name."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    frame = panel.get_window_extent()
    pixels = [panel.transData.transform(point) for point in points.values()]
    taken = [Bbox.from_extents(x - 6, y - 6, x + 6, y + 6) for x, y in pixels]
    for name, point in points.items():
        text = panel.annotate(
            name,
            point,
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=9,
            color=INK,
            zorder=4,
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )
        choices = []
        for aside in (7, -7):
            for up in _HEIGHTS:
                text.set(position=(aside, up), horizontalalignment="left" if aside > 0 else "right")
                box = text.get_window_extent()
                hidden = sum(box.overlaps(other) for other in taken)
                outside = box.x0 < frame.x0 or box.x1 > frame.x1
                choices.append((10 * hidden + 5 * outside, abs(up), aside, up))
        _, _, aside, up = min(choices, key=lambda choice: choice[:2])
        text.set(position=(aside, up), horizontalalignment="left" if aside > 0 else "right")
        taken.append(text.get_window_extent())
