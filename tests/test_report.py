"""Comparison and tables: human figures, alignment, cautious verdicts, and every refusal."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowft._tables import format_table, html_table, human_bytes, human_count, human_seconds
from lowft.errors import ConfigError
from lowft.report import Comparison


def filled() -> Comparison:
    """Return three choices: a baseline, one within noise, one clearly below."""
    table = Comparison()
    table.add(
        "full",
        accuracy=0.834,
        accuracy_interval=(0.81, 0.856),
        trained_parameters=22_713_600,
        total_parameters=22_713_600,
        seconds=412,
        peak_memory_bytes=1.42e9,
        size_bytes=90_900_000,
        latency_ms=12.1,
    )
    table.add("top 2", accuracy=0.822, accuracy_interval=(0.797, 0.844), seconds=148, size_bytes=90_900_000)
    table.add(
        "small",
        accuracy=0.75,
        accuracy_interval=(0.72, 0.78),
        size_bytes=9_090_000,
        drift=0.0123,
        form="onnx",
    )
    return table


def column(table: Comparison, header: str) -> list[str]:
    """Return the cells of a column."""
    headers, rows = table._table()
    return [row[headers.index(header)] for row in rows]


@pytest.mark.parametrize(
    ("words", "value", "text"),
    [
        (human_bytes, 0, "0 B"),
        (human_bytes, 999, "999 B"),
        (human_bytes, 999_499, "999 kB"),
        (human_bytes, 999_500, "1.00 MB"),
        (human_bytes, 90_900_000, "90.9 MB"),
        (human_bytes, 3e18, "3000 PB"),
        (human_count, 770, "770"),
        (human_count, 22_713_600, "22.7 M"),
        (human_count, 135_000_000, "135 M"),
        (human_count, -1500, "-1.50 k"),
        (human_count, math.nan, "nan"),
        (human_seconds, 0, "0 s"),
        (human_seconds, 2.55e-5, "25.5 us"),
        (human_seconds, 0.0042, "4.20 ms"),
        (human_seconds, 0.9996, "1.00 s"),
        (human_seconds, 59.94, "59.9 s"),
        (human_seconds, 59.96, "1 min 00 s"),
        (human_seconds, 3599.6, "1 h 00 min"),
        (human_seconds, 86_399, "1 d 00 h"),
        (human_seconds, -125, "-2 min 05 s"),
        (human_seconds, math.inf, "inf s"),
    ],
)
def test_figures_in_words(words: Callable[[float], str], value: float, text: str) -> None:
    """Figures are rounded to three digits in the unit that suits them, and never to a whole next unit."""
    assert words(value) == text


@given(cells=st.lists(st.lists(st.text(max_size=8), min_size=3, max_size=3), max_size=6))
def test_table_is_aligned(cells: list[list[str]]) -> None:
    """Whatever the cells, there is one line for each row, without trailing blanks, under a ruled header."""
    lines = format_table(["a", "b", "c"], cells, align="lrc").split("\n")
    assert len(lines) == 2 + len(cells)
    assert set(lines[1]) == {"-", " "}
    assert all(line == line.rstrip() for line in lines)


def test_table_counts_terminal_columns() -> None:
    """Wide characters take two columns and combining marks none, so that the next column starts in line."""
    table = format_table(["name", "n"], [["日本語", "1"], ["e\u0301te\u0301", "2"]], align="lr")
    assert table.splitlines()[2:] == ["日本語  1", "e\u0301te\u0301     2"]


def test_html_table_escapes() -> None:
    """Every text of an HTML table is escaped, and the same table is aligned as in plain text."""
    text = html_table(["<h>"], [["<c>"]], caption="<t>", notes=["<n>"])
    for letter in "hctn":
        assert f"&lt;{letter}&gt;" in text
        assert f"<{letter}>" not in text
    assert "text-align:left" in text


def test_costs_are_worded_with_ratios() -> None:
    """Costs are in human units with their ratio to the first row's; what was not measured is blank."""
    table = filled()
    assert column(table, "training time") == ["6 min 52 s (1.00x)", "2 min 28 s (0.36x)", ""]
    assert column(table, "size") == ["90.9 MB (1.00x)", "90.9 MB (1.00x)", "9.09 MB (0.10x)"]
    assert column(table, "peak memory") == ["1.42 GB (1.00x)", "", ""]
    assert column(table, "latency") == ["12.1 ms (1.00x)", "", ""]
    assert column(table, "trained") == ["22.7 M", "", ""]
    assert column(table, "accuracy")[0] == "83.4 % [81.0 - 85.6]"
    assert column(table, "drift") == ["", "", "0.0123"]
    assert column(table, "form") == ["", "", "onnx"]


def test_verdict_is_within_noise_where_intervals_overlap() -> None:
    """Overlapping intervals are within noise; only intervals that lie apart make a verdict."""
    table = filled()
    table.add("best", accuracy=0.9, accuracy_interval=(0.87, 0.92))
    table.add("bare", accuracy=0.99)
    table.add("timed", seconds=3)
    assert column(table, "verdict") == [
        *["baseline", "within noise", "less accurate", "more accurate", "no interval", ""],
    ]


@given(
    first=st.lists(st.floats(0, 1), min_size=3, max_size=3).map(sorted),
    second=st.lists(st.floats(0, 1), min_size=3, max_size=3).map(sorted),
)
def test_no_claim_beyond_noise(first: list[float], second: list[float]) -> None:
    """A printed comparison never claims a difference between intervals that share a point."""
    table = Comparison()
    for name, (low, accuracy, high) in (("a", first), ("b", second)):
        table.add(name, accuracy=accuracy, accuracy_interval=(low, high))
    overlap = first[0] <= second[2] and second[0] <= first[2]
    assert (column(table, "verdict")[1] == "within noise") is overlap
    assert any(word in str(table) for word in ("more accurate", "less accurate")) is not overlap


def test_named_baseline() -> None:
    """The baseline may be any row; until it is added, the table says so and claims nothing."""
    table = Comparison(baseline="full")
    table.add("half", accuracy=0.7, accuracy_interval=(0.6, 0.8), seconds=5)
    assert "'full' has not been added" in str(table)
    assert column(table, "training time") == ["5.00 s"]
    table.add("full", accuracy=0.7, accuracy_interval=(0.6, 0.8), seconds=10)
    assert column(table, "verdict") == ["within noise", "baseline"]
    assert column(table, "training time") == ["5.00 s (0.50x)", "10.0 s (1.00x)"]


def test_a_cost_of_nothing_has_no_ratio() -> None:
    """A baseline that took no time divides nothing."""
    table = Comparison()
    table.add("zero-shot", seconds=0)
    table.add("full", seconds=10)
    assert column(table, "training time") == ["0 s", "10.0 s"]


def test_units_come_from_names() -> None:
    """Further columns are worded by the unit at the end of their names."""
    table = Comparison()
    table.add("full", load_seconds=0.25, cache_bytes=2e6, rows=8530, latency_p99_ms=4)
    headers, (row,) = table._table()
    assert headers == ["choice", "load seconds", "cache bytes", "rows", "latency p99 ms", "verdict"]
    assert row == ["full", "250 ms (1.00x)", "2.00 MB (1.00x)", "8,530", "4.00 ms (1.00x)", "baseline"]


def test_json_round_trip() -> None:
    """JSON text brings the same table back, ratios, baseline and all."""
    table = filled()
    again = Comparison.from_json(table.to_json())
    assert str(again) == str(table)
    assert again.to_json() == table.to_json()
    assert json.loads(table.to_json())["choices"]["top 2"]["seconds"] == 148


def test_to_frame() -> None:
    """The pandas table holds plain numbers, the interval as two columns, gaps for what is missing."""
    frame = filled().to_frame()
    assert list(frame.index) == ["full", "top 2", "small"]
    assert frame.loc["top 2", "accuracy_low"] == 0.797
    assert frame.loc["top 2", "accuracy_high"] == 0.844
    assert math.isnan(frame.loc["small", "seconds"])


def test_html_and_repr() -> None:
    """A notebook shows the same table with its note, names escaped."""
    table = Comparison()
    table.add("<b>", seconds=1)
    assert "&lt;b&gt;" in table._repr_html_()
    assert "<b>" not in table._repr_html_()
    assert "Ratios and verdicts" in table._repr_html_()
    assert repr(filled()) == "<Comparison of full, top 2, small>"
    assert len(filled()) == 3
    assert str(Comparison()).splitlines()[0] == "choice  verdict"


def test_plot(tmp_path: Path) -> None:
    """Choices with accuracy and time are drawn, larger models larger, and the file is written."""
    table = filled()
    table.add("lean", accuracy=0.82, seconds=20, size_bytes=18e6)
    (axes,) = table.plot(tmp_path / "trade.png").axes
    labels = [text.get_text() for text in axes.texts]
    assert labels == ["full, 90.9 MB", "top 2, 90.9 MB", "lean, 18.0 MB"]
    areas = [float(marker.get_sizes()[0]) for marker in axes.collections if hasattr(marker, "get_sizes")]
    assert areas[0] == areas[1] > areas[2]
    assert axes.get_xscale() == "log"
    assert (tmp_path / "trade.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"accuracy": 83.4}, "accuracy of 'x' must be from 0 to 1, not 83.4; divide percent by 100"),
        (
            {"accuracy": 0.8, "accuracy_interval": (0.81, 0.9)},
            r"must enclose its accuracy; received \(0.81, 0.9\)",
        ),
        ({"accuracy_interval": (0.8, 0.9)}, "must enclose its accuracy.*None"),
        ({"accuracy": 0.8, "accuracy_interval": 0.02}, r"must be \(low, high\), not 0.02"),
        ({"seconds": -1}, "seconds of 'x' must not be negative, not -1"),
        ({"seconds": math.nan}, "finite number, not nan"),
        ({"size_bytes": "90 MB"}, "size_bytes of 'x' must be a finite number, not '90 MB'"),
        ({"drift": True}, "drift of 'x' must be a finite number, not True"),
    ],
)
def test_figures_out_of_range(figures: dict[str, Any], words: str) -> None:
    """A figure out of its range is refused, and the choice is not added."""
    table = Comparison()
    with pytest.raises(ConfigError, match=words):
        table.add("x", **figures)
    assert len(table) == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: filled().add("full", seconds=1), "'full' is taken"),
        (lambda: filled().add(" ", seconds=1), "taken or empty"),
        (lambda: Comparison().plot(), "accuracy and seconds"),
        (lambda: Comparison.from_json("[]"), "not a comparison"),
        (lambda: Comparison.from_json('{"baseline": null}'), "not a comparison.*choices"),
        (lambda: format_table([], []), "at least one column"),
        (lambda: format_table(["a", "b"], [["1", "2"], ["1"]]), "needs 2 cells.*row 1 has 1"),
        (lambda: format_table(["a"], [], align="x"), "1 letters out of l, r and c.*'x'"),
    ],
)
def test_refusals(call: Callable[[], object], words: str) -> None:
    """What cannot be added, read or laid out is refused with the rule and what was received."""
    with pytest.raises(ConfigError, match=words):
        call()
