"""A comparison of deployed models in tables and in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lowft._tables import human_bytes, human_count, human_seconds

if TYPE_CHECKING:
    from lowft._deployment_report import Deployed, DeploymentReport, Timing

__all__ = ["notes", "tables", "verdicts"]


def tables(report: DeploymentReport) -> list[tuple[str, list[str], list[list[str]], str]]:
    """Return title, headers, cells and alignment of each table."""
    every = list(report.candidates.values())
    word = report.metric.replace("_", " ")
    answers = [
        [
            each.name, f"{_number(report, each.value)} [{_span(report, each.interval)}]", _difference(report, each),
            _or_dash(each.calibration_error, "{:.3f}".format),
            _or_dash(each.agreement, _percent if report.in_percent else "{:.3f}".format),
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
    alike = "correlation" if report.task == "regression" else "same answers"
    share = f"{100 * report.confidence:g} %"
    return [
        (
            f"Answers on {report.rows:,} rows",
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
            _times(report),
            "llrrrrl",
        ),
    ]


def _times(report: DeploymentReport) -> list[list[str]]:
    shapes = range(len(report.candidates[report.reference].timings))
    rows = []
    for at in shapes:
        for each in report.candidates.values():
            timing = each.timings[at]
            speed = "" if timing.speed is None else f"{timing.speed:.2f}x {_ratio(timing)}"
            rows.append([
                timing.shape, each.name, human_seconds(timing.median_seconds), human_seconds(timing.p95_seconds),
                f"{timing.rows_per_second:,.0f}", speed, timing.verdict,
            ])  # fmt: skip
    return rows


def notes(report: DeploymentReport) -> list[str]:
    share = f"{100 * report.confidence:g} %"
    turns = sorted({len(timing.seconds) for each in report.candidates.values() for timing in each.timings})
    passes = f"{turns[0]}" if len(turns) == 1 else f"{turns[0]} to {turns[-1]}"
    found = [
        f"Compared with {report.reference!r}, on the same rows and in the same turns ({passes} of each shape).",
        f"Each interval is {share}: of {round(1 / (1 - report.confidence))} pairs of equals, one will seem unequal.",
    ]
    if any(each.memory_bytes is not None for each in report.candidates.values()):
        found.append("Memory: what loading and one batch add, at most, to a process that has imported transformers.")
    if any(each.files is None for each in report.candidates.values()):
        found.append("A model in memory has no files, so no size on disk and no loading: export it to measure them.")
    if report.warning is not None:
        found.append(f"WARNING: {report.warning}")
    return found


def _answers(report: DeploymentReport, each: Deployed) -> str:
    assert each.difference is not None  # noqa: S101 - asked of others than the reference only
    assert each.difference_interval is not None  # noqa: S101
    word = report.metric.replace("_", " ")
    how = f"{_number(report, each.difference, sign=True)}, {_span(report, each.difference_interval, sign=True)}"
    unit = " points" if report.in_percent else ""
    how = how.replace(" %", unit)
    if not each.differs:
        return f"no difference in {word} seen ({how})"
    better = (each.difference > 0) == report.greater_is_better
    return f"{'better' if better else 'worse'}: {word} {how}"


def _size(report: DeploymentReport, each: Deployed) -> str:
    base = report.candidates[report.reference].size_bytes
    if each.size_bytes is None or not base:
        return ""
    return f"; {100 * each.size_bytes / base:.0f} % of its size on disk"


def _difference(report: DeploymentReport, each: Deployed) -> str:
    if each.difference_interval is None:
        return "reference"
    return f"{_number(report, each.difference, sign=True)} [{_span(report, each.difference_interval, sign=True)}]"


def _number(report: DeploymentReport, value: float | None, *, sign: bool = False) -> str:
    assert value is not None  # noqa: S101
    plus = "+" if sign else ""
    return f"{100 * value:{plus}.1f} %" if report.in_percent else f"{value:{plus}.4g}"


def _span(report: DeploymentReport, bounds: tuple[float, float], *, sign: bool = False) -> str:
    plus, to = ("+", " to ") if sign else ("", " - ")
    scale, digits = (100, ".1f") if report.in_percent else (1, ".4g")
    return to.join(f"{scale * bound:{plus}{digits}}" for bound in bounds)


def verdicts(report: DeploymentReport) -> list[str]:
    """Return one line in words for each candidate against the reference."""
    others = (each for name, each in report.candidates.items() if name != report.reference)
    return [
        f"{each.name} against {report.reference}: {_answers(report, each)}; {_speed(each)}{_size(report, each)}."
        for each in others
    ]


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
