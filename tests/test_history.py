"""History: records in and out, the printed table, and the drawings."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowft.errors import ConfigError
from lowft.history import History, plot_histories

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def staged() -> History:
    """Return the history of a run of two stages."""
    history = History()
    for step in range(1, 41):
        stage = 0 if step <= 20 else 1
        place: dict[str, Any] = {
            "stage": stage,
            "stage_name": ["head", "top 2"][stage],
            "epoch": step / 20,
            "seconds": 3.0 * step,
        }
        history.append("train", step=step, loss=1 / step, learning_rate=1e-4, grad_norm=1.0, rows=16, **place)
        if step % 10 == 0:
            accuracy = 0.5 + step / 100
            history.append(
                "evaluate",
                step=step,
                eval_loss=1 / step,
                eval_accuracy=accuracy,
                eval_micro_f1=accuracy,
                eval_macro_f1=accuracy - 0.1,
                eval_seconds=0.5,
                **place,
            )
        if step % 20 == 0:
            decision, reason = ("continue", "below 0.8") if step == 20 else ("stop", "reached 0.8")
            history.append("stage", step=step, trainable_parameters=770, decision=decision, reason=reason, **place)
    history.append("note", step=40, stage=1, stage_name="top 2", seconds=121.0, message="saved")
    return history


def same(first: Any, second: Any) -> bool:
    """Compare JSON values exactly: types, signs of zero, and NaN with itself."""
    return repr(first) == repr(second)


@given(values=st.dictionaries(st.text(min_size=1).map("x".__add__), VALUES, max_size=4))
def test_json_is_lossless(values: dict[str, Any]) -> None:
    """Strict JSON text brings every record back as it was: floats to the bit, NaN and infinities too."""
    history = History()
    history.append("note", step=3, **values)
    text = history.to_json()
    assert same(History.from_json(text).records, history.records)
    json.loads(text, parse_constant=pytest.fail)


def test_records_are_plain() -> None:
    """Single numbers of NumPy and PyTorch, and enumerations of texts, become Python's own values."""

    class Decision(enum.StrEnum):
        STOP = "stop"

    history = History()
    history.append(
        "stage",
        step=1,
        a=np.float64(0.5),
        b=np.int64(3),
        c=torch.tensor(2.0),
        d=Decision.STOP,
        e=(1, np.float32(2)),
    )
    record = history[0]
    common = {"event": "stage", "step": 1, "stage": 0, "stage_name": "", "epoch": 0.0, "seconds": 0.0}
    assert record == common | {"a": 0.5, "b": 3, "c": 2.0, "d": "stop", "e": [1, 2.0]}
    assert [type(record[name]) for name in "abcde"] == [float, int, float, str, list]


def test_records_are_copies() -> None:
    """What a caller does with records, or with what was appended, leaves the history as it was."""
    values = [1]
    history = History()
    history.append("note", step=1, values=values)
    values.append(2)
    history[0]["values"].append(3)
    history.records[0]["values"].append(4)
    history.filter("note")[0]["values"].append(5)
    next(iter(history))["values"].append(6)
    assert history[0]["values"] == [1]


def test_reads_like_a_list() -> None:
    """Length, index, slice, iteration, filter and equality work as for a list of dicts."""
    history = staged()
    assert len(history) == 47
    assert history[-1]["message"] == "saved"
    assert history[:2] == history.records[:2] == list(history)[:2]
    assert [record["step"] for record in history.filter("evaluate")] == [10, 20, 30, 40]
    assert history == staged() == History(history.records)
    assert history != History(history.records[:-1])
    assert history != history.records
    assert repr(history) == "<History: 40 train, 4 evaluate, 2 stage, 1 note>"


def test_table_shows_evaluations_and_stages() -> None:
    """An evaluation's row has the mean training loss since the last; the end of a stage has its verdict."""
    lines = str(staged()).splitlines()
    assert lines[0].split() == [
        *["step", "stage", "epoch", "time", "train", "loss"],
        *["loss", "accuracy", "micro_f1", "macro_f1", "verdict"],
    ]
    assert len(lines) == 2 + 4 + 2
    assert lines[2].split() == [
        "10",
        "head",
        "0.50",
        "30.0",
        "s",
        "0.2929",
        "0.1000",
        "0.6000",
        "0.6000",
        "0.5000",
    ]
    assert lines[4].endswith("continue: below 0.8 (770 trained)")
    assert "stop: reached 0.8" in staged()._repr_html_()


def test_empty_history() -> None:
    """Before the first evaluation there is a line in place of a table, and an error in place of a plot."""
    assert str(History()) == "No evaluation yet."
    assert History()._repr_html_() == "<p>No evaluation yet.</p>"
    with pytest.raises(ConfigError, match="no loss and no metric"):
        History().plot()


def test_html_escapes_names() -> None:
    """Names of stages cannot inject HTML into a notebook."""
    history = History([{"event": "evaluate", "step": 1, "stage_name": "<script>", "eval_loss": 1.0}])
    assert "&lt;script&gt;" in history._repr_html_()
    assert "<script>" not in history._repr_html_()


def test_to_frame() -> None:
    """The pandas table has a row for each record, and gaps where a record lacks a value."""
    frame = staged().to_frame()
    assert len(frame) == 47
    assert frame.loc[frame["event"] == "evaluate", "eval_accuracy"].tolist() == [0.6, 0.7, 0.8, 0.9]
    assert frame["message"].notna().sum() == 1


def test_plot(tmp_path: Path) -> None:
    """Losses stand above metrics, equal metrics share a line, stages are named, the file is written."""
    figure = staged().plot(tmp_path / "run.png")
    top, below = figure.axes
    assert top.get_legend_handles_labels()[1] == ["training", "validation"]
    assert below.get_legend_handles_labels()[1] == ["accuracy = micro_f1", "macro_f1"]
    assert [text.get_text() for text in top.texts] == ["head", "top 2"]
    raw, smooth = top.lines[:2]
    assert np.asarray(raw.get_ydata()).tolist() == [1 / step for step in range(1, 41)]
    assert np.ptp(np.asarray(smooth.get_ydata())) < np.ptp(np.asarray(raw.get_ydata()))
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_plot_keeps_errors_apart() -> None:
    """Metrics that are better small have a panel of their own; one that lowft does not know is with the rest."""
    history = History(
        [{"event": "evaluate", "step": step, "eval_mse": 9.0, "eval_r2": 0.5, "eval_own": 0.1} for step in (1, 2)]
    )
    good, bad = history.plot().axes
    assert good.get_legend_handles_labels()[1] == ["r2", "own"]
    assert bad.get_legend_handles_labels()[1] == ["mse"]


def test_plot_survives_nan() -> None:
    """A loss that became NaN leaves a gap, not an error, and the smoothed line goes on."""
    history = History(
        [{"event": "train", "step": step, "loss": math.nan if step == 1 else 0.5} for step in range(1, 5)]
    )
    (axes,) = history.plot().axes
    smooth = np.asarray(axes.lines[1].get_ydata(), dtype=float)
    assert math.isnan(smooth[0])
    assert smooth[1:].tolist() == pytest.approx([0.5] * 3)


def test_crowded_stage_names_are_tilted() -> None:
    """Names of stages that lie close together are tilted, so that they do not overlap."""
    history = History(
        [
            {"event": "train", "step": step, "loss": 1.0, "stage": stage, "stage_name": f"block {stage}"}
            for stage, step in enumerate([1, 2, 3, 400])
        ]
    )
    assert {text.get_rotation() for text in history.plot().axes[0].texts} == {30.0}
    assert {text.get_rotation() for text in staged().plot().axes[0].texts} == {0.0}


def test_plot_histories(tmp_path: Path) -> None:
    """Several runs share a panel: one line for each, against steps or seconds."""
    runs = {"full": staged(), "staged": staged()}
    (axes,) = plot_histories(runs, "accuracy", tmp_path / "runs.svg", x="seconds").axes
    assert axes.get_legend_handles_labels()[1] == ["full", "staged"]
    assert axes.get_xlabel() == "seconds"
    assert np.asarray(axes.lines[0].get_xdata()).tolist() == [30.0, 60.0, 90.0, 120.0]
    assert "<svg" in (tmp_path / "runs.svg").read_text("utf-8")
    (by_step,) = plot_histories(runs, "eval_loss").axes
    assert by_step.get_ylabel() == "loss"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: History().append("test", step=1), "train, evaluate, stage, note, not 'test'"),
        (lambda: staged().filter("test"), "not 'test'"),
        (lambda: History().append("train", step=-1), "whole number.*not -1"),
        (lambda: History().append("train", step=1.5), "not 1.5"),  # type: ignore[arg-type]
        (lambda: History().append("note", step=1, x=object()), "x must be a JSON value.*not object"),
        (lambda: History().append("note", step=1, x=[torch.ones(2)]), r"x\[0\] must be.*not Tensor"),
        (lambda: History().append("note", step=1, x={1: 2}), "text keys.*not dict"),
        (lambda: History([{"event": "train"}]), r"record 0 has \['event'\]"),
        (lambda: History.from_json("{"), "not JSON"),
        (lambda: History.from_json('{"a": 1}'), "list of records"),
        (lambda: History.from_json("[1]"), r"not '\[1\]'"),
        (lambda: plot_histories({"a": staged()}, "pearson"), "'pearson' was not evaluated in a.*accuracy"),
        (lambda: plot_histories({"a": History()}), "hold no metric"),
        (lambda: plot_histories({}), "histories is empty"),
        (lambda: plot_histories({"a": staged()}, x="epoch"), "step, seconds, not 'epoch'"),  # type: ignore[arg-type]
    ],
)
def test_refusals(call: Callable[[], object], words: str) -> None:
    """What cannot be recorded, read or drawn is refused with the rule and what was received."""
    with pytest.raises(ConfigError, match=words):
        call()
