"""The look that lowft's figures share, and the one place that imports matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lowft.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["GREY", "INK", "PALETTE", "finish", "new_figure", "tidy"]

# Okabe and Ito (2008), "Color Universal Design": told apart with every common form of colour blindness.
# Their yellow is left out, being too light for a line on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
INK = "#262626"
GREY = "#8C8C8C"


def new_figure(
    purpose: str, *, panels: int = 1, width: float = 7.2, height: float = 3.6, beside: bool = False
) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels below each other that share their x axis, or beside each other that share y.

    A notebook shows it where it is the last value of a cell; pyplot keeps no hold of it, so that plots in a
    loop fill no memory and none is shown twice.

    Args:
        purpose: What asks for it, for the error message.
        panels: How many, from 1.
        width: Inches.
        height: Inches, all panels together.
        beside: Whether the panels stand beside each other.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise MissingExtraError.of("matplotlib", "plot", purpose) from error
    rows, columns = (1, panels) if beside else (panels, 1)
    figure, axes = plt.subplots(
        rows,
        columns,
        sharex=not beside,
        sharey=beside,
        squeeze=False,
        figsize=(width, height),
        dpi=120,
        layout="constrained",
    )
    plt.close(figure)
    return figure, list(axes.flat)


def tidy(axes: Axes) -> None:
    """Take away what carries no information: two spines, tick marks, dark grid lines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.xaxis.label.set(color=INK, size=10)
    axes.yaxis.label.set(color=INK, size=10)
    axes.grid(visible=True, color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)


def finish(figure: Figure, path: str | Path | None) -> Figure:
    """Save the figure where a path is given (the ending names the format), and return it."""
    if path is not None:
        figure.savefig(path, dpi=200)
    return figure
