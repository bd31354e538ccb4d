"""Comparisons with few labels: the same rows for every arm, pairing, and what the table says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowft.data.rows import Rows
from lowft.errors import ConfigError, DataError, LeakageError
from lowft.few_shot_comparison import FewShotComparison, FewShotRun, compare_few_shot

DATA = ([f"{word} {i}" for i in range(20) for word in ("good", "bad")], ["pos", "neg"] * 20)
TEST = ([f"a {word} film {i}" for i in range(5) for word in ("good", "bad")], ["pos", "neg"] * 5)


class Guess:
    """Answers by a word, but gets as many of the first rows wrong as it was told."""

    def __init__(self, wrong: int = 0) -> None:
        self.wrong = wrong

    def predict(self, texts: Any) -> list[str]:
        """Return one label a text."""
        right = ["pos" if "good" in text else "neg" for text in texts]
        return ["neg" if answer == "pos" else "pos" for answer in right[: self.wrong]] + right[self.wrong :]


def test_every_arm_trains_on_the_same_nested_rows() -> None:
    """Arms of one draw get the same rows and seed, larger draws hold smaller ones, and draws differ."""
    seen: dict[str, list[tuple[tuple[str, ...], int]]] = {"one": [], "other": []}

    def arm(name: str) -> Any:
        def train(rows: Rows, seed: int) -> Guess:
            seen[name].append((tuple(rows.texts), seed))
            return Guess()

        return train

    shown: list[FewShotRun] = []
    result = compare_few_shot(
        DATA, TEST, {"one": arm("one"), "other": arm("other")}, k=[4, 2], draws=2, seeds=2, first_draw=3,
        on_run=shown.append,
    )  # fmt: skip
    assert seen["one"] == seen["other"]
    assert [seed for _, seed in seen["one"]] == [6, 7, 6, 7, 8, 9, 8, 9]
    texts = [set(rows) for rows, _ in seen["one"]]
    assert [len(rows) for rows in texts] == [4, 4, 8, 8, 4, 4, 8, 8]
    assert texts[0] == texts[1] < texts[2]
    assert texts[2] != texts[6]
    assert tuple(shown) == result.runs
    assert {run.draw for run in result.runs} == {3, 4}


def test_the_table_tells_all_runs() -> None:
    """Mean, spread, worst run and paired difference are those that one computes by hand."""
    result = compare_few_shot(
        DATA,
        TEST,
        {"plain": lambda _, seed: Guess(seed % 3 + 2), "better": lambda _, seed: Guess(seed % 3)},
        k=[2],
        draws=6,
    )
    assert result.scores("plain", 2).ravel().tolist() == [0.8, 0.7, 0.6] * 2
    assert result.difference("better", 2) == pytest.approx((0.2, 0.2, 0.2))
    lines = str(result).splitlines()
    assert [line.split()[:6] for line in lines[2:]] == [
        ["2", "plain", "6", "0.7000", "0.0894", "0.6000"],
        ["2", "better", "6", "0.9000", "0.0894", "0.8000"],
    ]
    assert "+0.2000 [+0.2000, +0.2000]" in lines[3]
    told = json.loads(json.dumps(result.to_dict()))
    assert len(told["runs"]) == 12
    assert told["summary"][1]["interval"] == pytest.approx([0.2, 0.2])


@given(scores=st.lists(st.floats(0, 1), min_size=2, max_size=8), shift=st.floats(-0.5, 0.5))
@settings(max_examples=30, deadline=None)
def test_a_difference_that_all_draws_share_has_no_width(scores: list[float], shift: float) -> None:
    """However much draws differ among themselves, only the paired differences count; the interval holds their mean."""
    runs = [
        FewShotRun(arm, 4, draw, 0, score + extra, 1.0)
        for draw, score in enumerate(scores)
        for arm, extra in (("a", 0.0), ("b", shift), ("c", shift * (draw % 2)))
    ]
    result = FewShotComparison(tuple(runs), "accuracy", "a")
    assert result.difference("b", 4, resamples=50) == pytest.approx((shift, shift, shift))
    mean, low, high = result.difference("c", 4, resamples=500)
    assert min(0.0, shift) - 1e-9 <= low <= mean + 1e-9 <= high + 2e-9 <= max(0.0, shift) + 3e-9


def test_one_draw_has_no_interval(tmp_path: Path) -> None:
    """From a single draw nothing is known of others; the table leaves it out, and the plot is drawn all the same."""
    result = compare_few_shot(DATA, TEST, {"a": lambda *_: Guess(1), "b": lambda *_: Guess()}, k=[2, 4], draws=1)
    mean, low, high = result.difference("b", 2)
    assert mean == pytest.approx(0.1)
    assert np.isnan([low, high]).all()
    assert "[+" not in str(result)
    assert result.to_dict()["summary"][1]["interval"] is None
    result.plot(tmp_path / "runs.png")
    assert (tmp_path / "runs.png").stat().st_size > 1000
    with pytest.raises(ConfigError, match="there are the arms a, b and k of 2, 4"):
        result.scores("c", 2)


def test_what_makes_no_comparison_is_refused_before_training() -> None:
    """Settings, too few rows and test rows among the training rows are named, and no arm has run."""
    ran: list[int] = []

    def arm(_: Rows, seed: int) -> Guess:
        ran.append(seed)
        return Guess()

    arms = {"arm": arm}
    for wrong, match in (
        ({"k": []}, "k must be"),
        ({"k": [0]}, "k"),
        ({"draws": 0}, "draws"),
        ({"seeds": 0}, "seeds"),
        ({"first_draw": -1}, "first_draw"),
    ):
        with pytest.raises(ConfigError, match=match):
            compare_few_shot(DATA, TEST, arms, **wrong)
    with pytest.raises(ConfigError, match="arms must name"):
        compare_few_shot(DATA, TEST, {})
    with pytest.raises(DataError, match="k=32"):
        compare_few_shot(DATA, TEST, arms)
    with pytest.raises(LeakageError, match="2 rows of test"):
        compare_few_shot(DATA, (DATA[0][:2], DATA[1][:2]), arms, k=[2])
    assert ran == []


def test_a_metric_of_ones_own() -> None:
    """The score is what the caller's function makes of labels and predictions."""
    metric = ("share of pos", lambda _, predictions: predictions.count("pos") / len(predictions))
    result = compare_few_shot(DATA, TEST, {"a": lambda *_: Guess()}, k=[2], draws=2, metric=metric)
    assert (result.metric, result.scores("a", 2).tolist()) == ("share of pos", [[0.5], [0.5]])
