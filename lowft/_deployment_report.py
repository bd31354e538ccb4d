"""What a comparison of deployed models found, as figures, tables, words and a picture."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowft._deployment_plot import draw
from lowft._tables import format_table, html_table, human_bytes, human_count, human_seconds
from lowft.checkpoint import write_json
from lowft.data._values import near
from lowft.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from lowft._tasks import Task

__all__ = ["Deployed", "DeploymentReport", "Timing"]


@dataclass(frozen=True)
class Timing:
    """How long one candidate's forward passes of one shape take.

    Attributes:
        batch_size: Rows in a pass.
        length: Tokens of each.
        threads: Threads that compute it.
        seconds: Each pass that was timed; value `n` of every candidate was measured in turn `n`.
        median_seconds: Their median.
        median_interval: Where the true median plausibly lies: (low, high), in seconds.
        p95_seconds: 95 of 100 passes take no longer.
        rows_per_second: `batch_size` over the median.
        speed: The reference's median over this one: 2 is twice as fast. None for the reference.
        speed_interval: Where the true ratio plausibly lies.
    """

    batch_size: int
    length: int
    threads: int
    seconds: tuple[float, ...]
    median_seconds: float
    median_interval: tuple[float, float]
    p95_seconds: float
    rows_per_second: float
    speed: float | None
    speed_interval: tuple[float, float] | None

    @property
    def shape(self) -> str:
        """Return rows, tokens and threads in words."""
        return f"{self.batch_size} x {self.length}, {self.threads} thread{'s' * (self.threads > 1)}"

    @property
    def verdict(self) -> str:
        """Return "faster" or "slower" where the interval of the ratio excludes 1, else "no difference seen"."""
        if self.speed_interval is None:
            return "reference"
        low, high = self.speed_interval
        return "faster" if low > 1 else "slower" if high < 1 else "no difference seen"


@dataclass(frozen=True)
class Deployed:
    """What was found of one candidate; see `deployment_report` for what the figures mean.

    Attributes:
        name: The candidate.
        format: "safetensors", "onnx", "openvino" or "in memory".
        precision: Of the weights in the folder; None for a model in memory.
        parameters: How many; None for a graph whose folder does not say.
        files: Bytes of each file that holds the model; None for a model in memory.
        load_seconds: Time to load the folder in a fresh process; None where that was not measured.
        memory_bytes: What loading and predicting add to a fresh process at most; None where that was not measured, or
            the system does not say (it is Linux that does).
        value: The metric.
        interval: Where its true value plausibly lies.
        difference: The metric less that of the reference; None for the reference.
        difference_interval: Where the true difference plausibly lies.
        differs: Whether the difference is more than chance.
        calibration_error: Expected calibration error; None for regression.
        agreement: Share of the rows with the reference's answer; for regression the correlation with its answers.
        timings: One for each combination of batch size, length and threads.
    """

    name: str
    format: str
    precision: str | None
    parameters: int | None
    files: Mapping[str, int] | None
    load_seconds: float | None
    memory_bytes: int | None
    value: float
    interval: tuple[float, float]
    difference: float | None
    difference_interval: tuple[float, float] | None
    differs: bool
    calibration_error: float | None
    agreement: float | None
    timings: tuple[Timing, ...]

    @property
    def size_bytes(self) -> int | None:
        """Bytes of the model's files together; None for a model in memory."""
        return None if self.files is None else sum(self.files.values())


@dataclass(frozen=True)
class DeploymentReport:
    """Candidates for deployment side by side; print it, or let a notebook show it. Made by `deployment_report`.

    The last lines put each candidate against the reference in words. "faster", "slower", "better" and "worse" stand
    only where the interval of the difference excludes none; for an accuracy the exact test of McNemar must agree.

    Attributes:
        task: The task.
        metric: The metric, that of the task.
        greater_is_better: Whether more of it is better.
        rows: Rows that were answered.
        reference: The candidate that the others are compared with.
        confidence: Of all intervals.
        candidates: What was found, by name.
        load_average: Of the minute before the timing; None where the system has none.
        busy_processors: Processors that other programs used during the timing, on average; None where the system does
            not say.
        warning: What is to be known of the timing; None where the machine was quiet.
    """

    task: Task
    metric: str
    greater_is_better: bool
    rows: int
    reference: str
    confidence: float
    candidates: Mapping[str, Deployed]
    load_average: float | None
    busy_processors: float | None
    warning: str | None

    @property
    def in_percent(self) -> bool:
        """Whether the metric is a share, and shown as a percentage."""
        return self.task != "regression"

    def __getitem__(self, name: str) -> Deployed:
        """Return a candidate by name.

        Raises:
            ConfigError: There is none of that name; the message lists those there are.
        """
        if name not in self.candidates:
            raise ConfigError(
                f"{name!r} was not compared; there is {list(self.candidates)}.{near(name, self.candidates)}"
            )
        return self.candidates[name]

    def __str__(self) -> str:
        tables = (
            f"{title}\n{format_table(headers, rows, align=align)}" for title, headers, rows, align in self._tables()
        )
        return "\n\n".join([*tables, "\n".join(self._notes()), "\n".join(self.verdicts())])

    def _repr_html_(self) -> str:
        tables = [
            html_table(headers, rows, align=align, caption=title) for title, headers, rows, align in self._tables()
        ]
        last = tables.pop()
        title, headers, rows, align = self._tables()[-1]
        notes = [*self._notes(), *self.verdicts()]
        last = html_table(headers, rows, align=align, caption=title, notes=notes)
        return "".join([*tables, last])

    def verdicts(self) -> list[str]:
        """Return one line in words for each candidate against the reference."""
        others = (each for name, each in self.candidates.items() if name != self.reference)
        return [f"{each.name} against {self.reference}: {self._answers(each)}; {_speed(each)}{self._size(each)}."
                for each in others]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values: each timed pass, too."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        for name, each in self.candidates.items():
            values["candidates"][name]["size_bytes"] = each.size_bytes
            for timing, shown in zip(each.timings, values["candidates"][name]["timings"], strict=True):
                shown["verdict"] = timing.verdict
        return values | {"verdicts": self.verdicts()}

    def to_json(self) -> str:
        """Write everything as JSON text."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def save(self, path: str | Path) -> Path:
        """Write everything to a JSON file, which is there as a whole or not at all; an older one is replaced.

        Raises:
            CheckpointError: It cannot be written.
        """
        target = Path(path)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            write_json(partial, self.to_dict())
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(target)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise CheckpointError(f"the report cannot be written to {target}: {error}") from error
        return target

    def to_frame(self) -> pd.DataFrame:
        """Return a pandas table of plain numbers: one row for each candidate and shape."""
        import pandas as pd

        records = []
        for each in self.candidates.values():
            own = {key: value for key, value in vars(each).items() if key not in {"files", "timings"}}
            own["size_bytes"] = each.size_bytes
            for timing in each.timings:
                shape = {key: value for key, value in vars(timing).items() if key != "seconds"}
                records.append({**_flat(own), **_flat(shape), "speed_verdict": timing.verdict})
        return pd.DataFrame.from_records(records)

    def plot(
        self,
        path: str | Path | None = None,
        *,
        batch_size: int | None = None,
        length: int | None = None,
        threads: int | None = None,
    ) -> Figure:
        """Draw the metric against latency and, beside it, against size on disk, with intervals as bars.

        A model in memory has no size and is left out there.

        Args:
            path: Where to save it; the ending names the format.
            batch_size: Whose latency; the first that was timed if None.
            length: As `batch_size`.
            threads: As `batch_size`.

        Raises:
            ConfigError: That shape was not timed.
            MissingExtraError: matplotlib is not installed.
        """
        return draw(self, path, {"batch_size": batch_size, "length": length, "threads": threads})

    def _tables(self) -> list[tuple[str, list[str], list[list[str]], str]]:
        """Return title, headers, cells and alignment of each table."""
        every = list(self.candidates.values())
        word = self.metric.replace("_", " ")
        answers = [
            [
                each.name, f"{self._number(each.value)} [{self._span(each.interval)}]",
                "reference" if each.difference_interval is None
                else f"{self._number(each.difference, sign=True)} [{self._span(each.difference_interval, sign=True)}]",
                _or_dash(each.calibration_error, "{:.3f}".format),
                _or_dash(each.agreement, _percent if self.in_percent else "{:.3f}".format),
            ]
            for each in every
        ]  # fmt: skip
        sizes = [
            [
                each.name, ", ".join(filter(None, (each.format, each.precision))),
                _or_dash(each.parameters, human_count), _or_dash(each.size_bytes, human_bytes),
                _or_dash(each.load_seconds, human_seconds), _or_dash(each.memory_bytes, human_bytes),
                ", ".join(each.files or ()) or "-",
            ]
            for each in every
        ]  # fmt: skip
        alike = "correlation" if self.task == "regression" else "same answers"
        share = f"{100 * self.confidence:g} %"
        return [
            (
                f"Answers on {self.rows:,} rows",
                ["candidate", f"{word} [{share}]", f"difference [{share}]", "calibration error", alike],
                answers,
                "lrrrr",
            ),
            (
                "Size",
                ["candidate", "format", "parameters", "on disk", "loading", "memory", "files"],
                sizes,
                "llrrrrl",
            ),
            (
                "Time of a forward pass",
                [
                    "rows x tokens",
                    "candidate",
                    "median",
                    "95th percentile",
                    "rows a second",
                    f"speed [{share}]",
                    "verdict",
                ],
                self._times(),
                "llrrrrl",
            ),
        ]

    def _times(self) -> list[list[str]]:
        shapes = range(len(self.candidates[self.reference].timings))
        rows = []
        for at in shapes:
            for each in self.candidates.values():
                timing = each.timings[at]
                speed = "" if timing.speed is None else f"{timing.speed:.2f}x {_ratio(timing)}"
                rows.append([
                    timing.shape, each.name, human_seconds(timing.median_seconds), human_seconds(timing.p95_seconds),
                    f"{timing.rows_per_second:,.0f}", speed, timing.verdict,
                ])  # fmt: skip
        return rows

    def _notes(self) -> list[str]:
        share = f"{100 * self.confidence:g} %"
        turns = sorted({len(timing.seconds) for each in self.candidates.values() for timing in each.timings})
        passes = f"{turns[0]}" if len(turns) == 1 else f"{turns[0]} to {turns[-1]}"
        notes = [
            f"Compared with {self.reference!r}, on the same rows and in the same turns ({passes} of each shape).",
            f"Each interval is {share}: of {round(1 / (1 - self.confidence))} pairs of equals, one will seem unequal.",
        ]
        if any(each.memory_bytes is not None for each in self.candidates.values()):
            notes.append(
                "Memory: what loading and one batch add, at most, to a process that has imported transformers."
            )
        if any(each.files is None for each in self.candidates.values()):
            notes.append(
                "A model in memory has no files, so no size on disk and no loading: export it to measure them."
            )
        if self.warning is not None:
            notes.append(f"WARNING: {self.warning}")
        return notes

    def _answers(self, each: Deployed) -> str:
        assert each.difference is not None  # noqa: S101 - asked of others than the reference only
        assert each.difference_interval is not None  # noqa: S101
        word = self.metric.replace("_", " ")
        how = (
            f"{self._number(each.difference, sign=True)}, {self._span(each.difference_interval, sign=True, to=' to ')}"
        )
        unit = " points" if self.in_percent else ""
        how = how.replace(" %", unit)
        if not each.differs:
            return f"no difference in {word} seen ({how})"
        better = (each.difference > 0) == self.greater_is_better
        return f"{'better' if better else 'worse'}: {word} {how}"

    def _size(self, each: Deployed) -> str:
        base = self.candidates[self.reference].size_bytes
        if each.size_bytes is None or not base:
            return ""
        return f"; {100 * each.size_bytes / base:.0f} % of its size on disk"

    def _number(self, value: float | None, *, sign: bool = False) -> str:
        assert value is not None  # noqa: S101
        plus = "+" if sign else ""
        return f"{100 * value:{plus}.1f} %" if self.in_percent else f"{value:{plus}.4g}"

    def _span(self, bounds: tuple[float, float], *, sign: bool = False, to: str = " - ") -> str:
        plus = "+" if sign else ""
        if sign and to == " - ":
            to = " to "
        scale, digits = (100, ".1f") if self.in_percent else (1, ".4g")
        return to.join(f"{scale * bound:{plus}{digits}}" for bound in bounds)


def _speed(each: Deployed) -> str:
    """Say how fast a candidate is, the shapes with one verdict together."""
    said = {
        "faster": "faster at {}",
        "slower": "slower at {}",
        "no difference seen": "no difference in speed seen at {}",
    }
    parts = []
    for verdict, words in said.items():
        alike = [timing for timing in each.timings if timing.verdict == verdict]
        if len(alike) > 2:
            bounds = [bound for timing in alike for bound in timing.speed_interval or ()]
            shapes = f"{len(alike)} of {len(each.timings)} shapes [{min(bounds):.2f} - {max(bounds):.2f}]"
        else:
            shapes = ", ".join(f"{timing.shape} {_ratio(timing)}" for timing in alike)
        if alike:
            parts.append(words.format(shapes))
    return "; ".join(parts)


def _ratio(timing: Timing) -> str:
    """Write the interval of the speed, with as many digits as it takes to tell it from 1."""
    assert timing.speed_interval is not None  # noqa: S101 - asked of others than the reference only
    low, high = timing.speed_interval
    digits = next(n for n in range(2, 9) if n == 8 or all(b == 1 or float(f"{b:.{n}f}") != 1 for b in (low, high)))
    return f"[{low:.{digits}f} - {high:.{digits}f}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _or_dash(value: Any, words: Callable[[Any], str]) -> str:
    return "-" if value is None else words(value)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return intervals as two columns each."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key.endswith("interval"):
            flat[f"{key}_low"], flat[f"{key}_high"] = (math.nan, math.nan) if value is None else value
        else:
            flat[key] = value
    return flat
