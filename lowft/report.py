"""The trade-off table: what each choice brings in accuracy, and what it costs in time, memory and size."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowft._plots import INK, PALETTE, finish, new_figure, tidy
from lowft._tables import format_table, html_table, human_bytes, human_count, human_seconds
from lowft.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Comparison"]

_UNITS: dict[str, Callable[[float], str]] = {  # a column is worded by how its name ends
    "bytes": human_bytes,
    "seconds": human_seconds,
    "ms": lambda value: human_seconds(value / 1000),
    "parameters": human_count,
}
_HEADERS = {
    "trained_parameters": "trained",
    "total_parameters": "parameters",
    "seconds": "training time",
    "peak_memory_bytes": "peak memory",
    "size_bytes": "size",
    "latency_ms": "latency",
}


class Comparison:
    """Choices side by side, each against a baseline; print it, or let a notebook show it.

    Times and sizes are shown with their ratio to the baseline's. The verdict speaks of accuracy alone, and
    says `within noise` wherever the two intervals overlap: a difference that so few test rows cannot tell
    from chance.

    Args:
        baseline: The name of the choice that others are compared with; None takes the first one added.

    >>> table = Comparison()
    >>> table.add("full", accuracy=0.834, accuracy_interval=(0.810, 0.856), seconds=412)
    >>> table.add("head", accuracy=0.752, accuracy_interval=(0.724, 0.778), seconds=96)
    >>> print(table)
    choice              accuracy       training time  verdict
    ------  --------------------  ------------------  -------------
    full    83.4 % [81.0 - 85.6]  6 min 52 s (1.00x)  baseline
    head    75.2 % [72.4 - 77.8]  1 min 36 s (0.23x)  less accurate
    <BLANKLINE>
    Ratios and verdicts compare with 'full'. Within noise: the accuracy intervals overlap.
    """

    def __init__(self, *, baseline: str | None = None) -> None:
        self._baseline = baseline
        self._rows: dict[str, dict[str, Any]] = {}

    def add(  # noqa: PLR0913 - one keyword for each column
        self,
        name: str,
        *,
        accuracy: float | None = None,
        accuracy_interval: tuple[float, float] | None = None,
        trained_parameters: int | None = None,
        total_parameters: int | None = None,
        seconds: float | None = None,
        peak_memory_bytes: float | None = None,
        size_bytes: float | None = None,
        latency_ms: float | None = None,
        **others: float | str | None,
    ) -> None:
        """Add a choice; what was not measured is left out.

        Args:
            name: What to call it; each once.
            accuracy: Share of the test rows that are right, from 0 to 1.
            accuracy_interval: Its interval, such as `wilson_interval` gives: (low, high).
            trained_parameters: Parameters that were trained at any time.
            total_parameters: Parameters of the finished model.
            seconds: Training time.
            peak_memory_bytes: Greatest memory in use while training, in bytes.
            size_bytes: Size of the exported model on disk, in bytes.
            latency_ms: Time to answer one request, in milliseconds.
            others: More columns, numbers or texts; a name may end in its unit.

        Raises:
            ConfigError: The name is taken, or a figure is out of its range.
        """
        if not isinstance(name, str) or not name.strip() or name in self._rows:
            raise ConfigError(f"Each choice needs a name of its own; {name!r} is taken or empty.")
        figures = {
            "accuracy": accuracy,
            "accuracy_interval": accuracy_interval,
            "trained_parameters": trained_parameters,
            "total_parameters": total_parameters,
            "seconds": seconds,
            "peak_memory_bytes": peak_memory_bytes,
            "size_bytes": size_bytes,
            "latency_ms": latency_ms,
            **others,
        }
        row = {key: _checked(name, key, value) for key, value in figures.items() if value is not None}
        _check_together(name, row)
        self._rows[name] = row

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"<Comparison of {', '.join(self._rows) or 'nothing yet'}>"

    def __str__(self) -> str:
        headers, rows = self._table()
        return "\n\n".join([format_table(headers, rows, align=_align(headers)), *self._notes()])

    def _repr_html_(self) -> str:
        headers, rows = self._table()
        return html_table(headers, rows, align=_align(headers), notes=self._notes())

    def to_frame(self) -> pd.DataFrame:
        """Return a pandas table of plain numbers: one row for each choice, the interval as two columns."""
        import pandas as pd

        frame = pd.DataFrame.from_dict(self._rows, orient="index")
        if "accuracy_interval" in frame:
            intervals = frame.pop("accuracy_interval")
            frame["accuracy_low"], frame["accuracy_high"] = intervals.str[0], intervals.str[1]
        return frame

    def to_json(self) -> str:
        """Write the figures as JSON text."""
        return json.dumps({"baseline": self._baseline, "choices": self._rows}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Comparison:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: The text is not a comparison, or a figure in it is out of its range.

        >>> table = Comparison(baseline="full")
        >>> table.add("full", seconds=12.5)
        >>> Comparison.from_json(table.to_json()).to_json() == table.to_json()
        True
        """
        try:
            content = json.loads(text)
            comparison = cls(baseline=content["baseline"])
            rows = {str(name): dict(row) for name, row in content["choices"].items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"This text is not a comparison that lowft wrote: {error!r}") from error
        for name, row in rows.items():
            comparison.add(name, **row)
        return comparison

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw accuracy against training time: intervals as bars, the area of a marker by size on disk.

        Choices without accuracy or training time are left out; the baseline has a colour of its own.

        Args:
            path: Where to save it; the ending names the format.

        Raises:
            ConfigError: No choice has both figures.
            MissingExtraError: matplotlib is not installed.
        """
        points = {name: row for name, row in self._rows.items() if {"accuracy", "seconds"} <= row.keys()}
        if not points:
            raise ConfigError("A plot needs a choice with accuracy and seconds; add one.")
        figure, (axes,) = new_figure("Comparison.plot", height=4.2)
        from matplotlib.patheffects import withStroke

        times = [row["seconds"] for row in points.values()]
        middle = (min(times) + max(times)) / 2
        if min(times) > 0 and max(times) > 20 * min(times):
            axes.set_xscale("log")
            middle = math.sqrt(min(times) * max(times))
        largest = max(row.get("size_bytes", 0) for row in points.values())
        for name, row in points.items():
            percent = 100 * row["accuracy"]
            area = 40 + 360 * row["size_bytes"] / largest if largest and "size_bytes" in row else 80
            colour = PALETTE[1] if name == self._reference_name() else PALETTE[0]
            if "accuracy_interval" in row:
                low, high = (100 * bound for bound in row["accuracy_interval"])
                axes.vlines(row["seconds"], low, high, color=colour, alpha=0.5, linewidth=1.5)
            axes.scatter(row["seconds"], percent, s=area, color=colour, alpha=0.85, linewidth=0, zorder=3)
            shown = f"{name}, {human_bytes(row['size_bytes'])}" if "size_bytes" in row else name
            left = row["seconds"] > middle  # so that the label stays inside the panel
            axes.annotate(
                shown,
                (row["seconds"], percent),
                xytext=((-1 if left else 1) * (math.sqrt(area) / 2 + 4), 4),
                textcoords="offset points",
                ha="right" if left else "left",
                fontsize=9,
                color=INK,
                zorder=4,
                path_effects=[withStroke(linewidth=3, foreground="white")],
            )
        axes.margins(x=0.15, y=0.12)
        axes.set_xlabel("training time (seconds)")
        axes.set_ylabel("accuracy (%)")
        tidy(axes)
        return finish(figure, path)

    def _reference_name(self) -> str | None:
        """Return the name of the baseline, whether it has been added or not."""
        return self._baseline or next(iter(self._rows), None)

    def _notes(self) -> list[str]:
        """Return what the reader must know to read the table."""
        name = self._reference_name()
        if name is None:
            return []
        if name not in self._rows:
            return [f"The baseline {name!r} has not been added: no ratios, no verdicts."]
        return [f"Ratios and verdicts compare with {name!r}. Within noise: the accuracy intervals overlap."]

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """Return headers and cells; columns that no choice has are left out."""
        keys = list(dict.fromkeys(key for row in self._rows.values() for key in row if key != "accuracy_interval"))
        keys.sort(key=lambda key: _ORDER.index(key) if key in _ORDER else len(_ORDER))
        reference = self._rows.get(self._reference_name() or "", {})
        rows = []
        for name, row in self._rows.items():
            cells = [_cell(key, row, reference) if key in row else "" for key in keys]
            verdict = "baseline" if row is reference else _verdict(row, reference)
            rows.append([name, *cells, verdict])
        return ["choice", *(_HEADERS.get(key, key.replace("_", " ")) for key in keys), "verdict"], rows


_ORDER = ("accuracy", *_HEADERS)


def _checked(choice: str, key: str, value: Any) -> Any:
    """Return a figure once it is in its range, as Python's own number or text."""
    if key == "accuracy_interval":
        bounds = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
        if len(bounds) != 2:
            raise ConfigError(f"accuracy_interval of {choice!r} must be (low, high), not {value!r}.")
        return [_checked(choice, "accuracy", bound) for bound in bounds]
    if isinstance(value, str) and key not in _ORDER:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ConfigError(f"{key} of {choice!r} must be a finite number, not {value!r}.")
    number = int(value) if isinstance(value, numbers.Integral) else float(value)
    if key == "accuracy" and not 0 <= number <= 1:
        raise ConfigError(f"accuracy of {choice!r} must be from 0 to 1, not {value!r}; divide percent by 100.")
    if _unit(key) and number < 0:
        raise ConfigError(f"{key} of {choice!r} must not be negative, not {value!r}.")
    return number


def _check_together(choice: str, row: Mapping[str, Any]) -> None:
    """Make sure that figures of one choice do not contradict each other."""
    if "accuracy_interval" in row:
        low, high = row["accuracy_interval"]
        if not low <= row.get("accuracy", math.nan) <= high:
            raise ConfigError(
                f"accuracy_interval of {choice!r} must enclose its accuracy; received ({low}, {high}) and "
                f"{row.get('accuracy')}."
            )


def _unit(key: str) -> Callable[[float], str] | None:
    """Return how the numbers of a column are worded, if its name ends in a unit."""
    return _UNITS.get(key.rpartition("_")[2])


def _cell(key: str, row: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    """Word one figure, with its ratio to the baseline's where it is a cost."""
    value = row[key]
    if isinstance(value, str):
        return value
    if key == "accuracy":
        interval = [100 * bound for bound in row.get("accuracy_interval", ())]
        return f"{100 * value:.1f} %" + (" [{:.1f} - {:.1f}]".format(*interval) if interval else "")
    unit = _unit(key)
    if unit is None:
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    against = reference.get(key)
    if unit is human_count or not isinstance(against, int | float) or against == 0:
        return unit(value)
    return f"{unit(value)} ({value / against:.2f}x)"


def _verdict(row: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    """Say whether accuracy differs from the baseline's by more than chance."""
    if "accuracy" not in row or "accuracy" not in reference:
        return ""
    if "accuracy_interval" not in row or "accuracy_interval" not in reference:
        return "no interval"
    (low, high), (low_reference, high_reference) = row["accuracy_interval"], reference["accuracy_interval"]
    if low > high_reference:
        return "more accurate"
    return "less accurate" if high < low_reference else "within noise"


def _align(headers: Sequence[str]) -> str:
    """Align the name and the verdict left, figures right."""
    return "l" + "r" * (len(headers) - 2) + "l"
