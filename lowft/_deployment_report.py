"""What a comparison of deployed models found, as figures."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowft._deployment_plot import draw
from lowft._deployment_words import notes, tables, verdicts
from lowft._tables import format_table, html_table
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
        shown = (f"{title}\n{format_table(headers, rows, align=align)}" for title, headers, rows, align in tables(self))
        return "\n\n".join([*shown, "\n".join(notes(self)), "\n".join(verdicts(self))])

    def _repr_html_(self) -> str:
        *others, (title, headers, rows, align) = tables(self)
        shown = [html_table(cells[1], cells[2], align=cells[3], caption=cells[0]) for cells in others]
        last = html_table(headers, rows, align=align, caption=title, notes=[*notes(self), *verdicts(self)])
        return "".join([*shown, last])

    def verdicts(self) -> list[str]:
        """Return one line in words for each candidate against the reference."""
        return verdicts(self)

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


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return intervals as two columns each."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key.endswith("interval"):
            flat[f"{key}_low"], flat[f"{key}_high"] = (math.nan, math.nan) if value is None else value
        else:
            flat[key] = value
    return flat
