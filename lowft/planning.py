"""What a run will cost, foretold: seconds and memory of each stage, and settings that keep to a limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowft._tables import format_table, html_table, human_bytes, human_seconds
from lowft.registry import to_dict

if TYPE_CHECKING:
    from lowft.config import TrainingConfig
    from lowft.strategy import Strategy

__all__ = ["Plan", "PlannedStage"]

_HEADERS = ("stage", "steps", "rows at a time", "caching", "training", "evaluations", "total", "peak memory")


@dataclass(frozen=True)
class PlannedStage:
    """What one stage of a run will cost.

    Attributes:
        name: The stage.
        steps: Its optimizer steps.
        rows_at_a_time: Rows that go through the model together.
        cache_seconds: To compute what the frozen lowest layers give, once.
        train_seconds: For all optimizer steps.
        evaluations: How many there are.
        eval_seconds: For all evaluations.
        peak_memory_bytes: The most memory at any time; None where it cannot be measured.

    >>> PlannedStage("training", 40, 16, 0.0, 20.0, 2, 4.0, 600_000_000).seconds
    24.0
    """

    name: str
    steps: int
    rows_at_a_time: int
    cache_seconds: float
    train_seconds: float
    evaluations: int
    eval_seconds: float
    peak_memory_bytes: int | None

    @property
    def seconds(self) -> float:
        """Of the whole stage."""
        return self.cache_seconds + self.train_seconds + self.eval_seconds


@dataclass(frozen=True)
class Plan:
    """What a run will cost on this machine, and settings for it; print it, or let a notebook show it.

    Made by `Trainer.plan`. Every stage is taken to run to its end: gates and early stopping make a run shorter.
    Memory is measured as in `History.peak_memory_bytes`. Checkpoints, and what follows training (cutting, integers,
    export), come on top of the time.

    Attributes:
        stages: What each stage costs.
        config: The settings it was made for: the Trainer's, or those that keep to the limits.
        strategies: The strategies it was made for.
        max_minutes: The limit on time that was asked for.
        max_memory: The limit on memory that was asked for, in bytes.
        changes: In words, what differs from the Trainer's settings, and why.

    >>> stage = PlannedStage("training", 40, 16, 0.0, 20.0, 2, 4.0, 600_000_000)
    >>> from lowft.config import TrainingConfig
    >>> plan = Plan((stage,), TrainingConfig(), (), max_minutes=0.1)
    >>> print(plan)
    stage     steps  rows at a time  caching  training  evaluations   total  peak memory
    --------  -----  --------------  -------  --------  -----------  ------  -----------
    training     40              16      0 s    20.0 s   2 x 2.00 s  24.0 s       600 MB
    total        40                      0 s    20.0 s       4.00 s  24.0 s       600 MB
    <BLANKLINE>
    It does not keep to max_minutes=0.1 (6.00 s).
    >>> plan.fits
    False
    """

    stages: tuple[PlannedStage, ...]
    config: TrainingConfig
    strategies: tuple[Strategy, ...]
    max_minutes: float | None = None
    max_memory: int | None = None
    changes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Of all stages together."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def peak_memory_bytes(self) -> int | None:
        """The most memory of any stage; None where it cannot be measured."""
        peaks = [stage.peak_memory_bytes for stage in self.stages if stage.peak_memory_bytes is not None]
        return max(peaks, default=None)

    @property
    def fits_time(self) -> bool:
        """Whether it keeps to `max_minutes`."""
        return self.max_minutes is None or self.seconds <= 60 * self.max_minutes

    @property
    def fits_memory(self) -> bool:
        """Whether it keeps to `max_memory`."""
        peak = self.peak_memory_bytes
        return self.max_memory is None or (peak is not None and peak <= self.max_memory)

    @property
    def fits(self) -> bool:
        """Whether it keeps to both limits."""
        return self.fits_time and self.fits_memory

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "stages": [{**vars(stage), "seconds": stage.seconds} for stage in self.stages],
            "seconds": self.seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "max_minutes": self.max_minutes,
            "max_memory": self.max_memory,
            "fits": self.fits,
            "changes": list(self.changes),
            "config": self.config.to_dict(),
            "strategies": [to_dict(part.recorded()) for part in self.strategies],
        }

    def __str__(self) -> str:
        return "\n\n".join([format_table(_HEADERS, self._rows()), *filter(None, ["\n".join(self._notes())])])

    def _repr_html_(self) -> str:
        return html_table(_HEADERS, self._rows(), notes=self._notes())

    def _rows(self) -> list[list[str]]:
        rows = [
            [
                stage.name,
                f"{stage.steps:,}",
                f"{stage.rows_at_a_time:,}",
                human_seconds(stage.cache_seconds),
                human_seconds(stage.train_seconds),
                f"{stage.evaluations} x {human_seconds(stage.eval_seconds / stage.evaluations)}"
                if stage.evaluations
                else "none",
                human_seconds(stage.seconds),
                _bytes(stage.peak_memory_bytes),
            ]
            for stage in self.stages
        ]
        sums = [
            human_seconds(sum(getattr(stage, name) for stage in self.stages))
            for name in ("cache_seconds", "train_seconds", "eval_seconds")
        ]
        steps = f"{sum(stage.steps for stage in self.stages):,}"
        return [*rows, ["total", steps, "", *sums, human_seconds(self.seconds), _bytes(self.peak_memory_bytes)]]

    def _notes(self) -> list[str]:
        notes = [f"- {change}" for change in self.changes]
        if notes:
            notes.insert(0, "Changed to keep to the limits:")
        if not self.fits_time:
            notes.append(
                f"It does not keep to max_minutes={self.max_minutes:g} ({human_seconds(60 * (self.max_minutes or 0))})."
            )
        if not self.fits_memory:
            notes.append(f"It does not keep to max_memory={_bytes(self.max_memory)}.")
        return notes


def _bytes(size: int | None) -> str:
    return "unknown" if size is None else human_bytes(size)
