"""Comparing models before deployment: what is measured, what is said of it, and what is refused."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lowft
from lowft import deployment
from lowft._answers import Answers, compare_answers
from lowft._timing import Load
from lowft.data.labels import Labels
from lowft.deployment import DeploymentReport, Timing, deployment_report
from lowft.errors import CheckpointError, ConfigError, DataError, LabelError
from lowft.metrics import calibration_error, wilson_interval
from lowft.predictor import Predictor
from tests.runs import tiny_trainer
from tests.strategy_cases import tiny_rows
from tests.tiny import WORDS, tiny_model, tiny_tokenizer

QUICK: dict[str, Any] = {
    "batch_sizes": [2], "lengths": [12], "repeats": 5, "seconds": 0.01, "fresh_processes": False, "resamples": 200,
}  # fmt: skip
TWO = Labels.infer(["bad", "good"])
HOW: dict[str, Any] = {"confidence": 0.95, "resamples": 400, "seed": 0}


def predictor(seed: int = 8, labels: Labels = TWO, **settings: Any) -> Predictor:
    """Return a predictor over a tiny model."""
    return Predictor(tiny_model("bert", labels.num_labels, seed=seed), tiny_tokenizer(), labels, 32, **settings)


def short_trainer() -> lowft.Trainer:
    """Return a Trainer of two steps over one block: an export takes as long as it has blocks."""
    return tiny_trainer(model=tiny_model("bert", num_layers=1), max_steps=2)


def rows(number: int = 40, values: tuple[Any, ...] = ("bad", "good")) -> dict[str, list[Any]]:
    """Return so many texts with labels."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=3 + row % 9)) for row in range(number)]
    return {"text": texts, "label": [values[row % len(values)] for row in range(number)]}


@pytest.fixture(scope="module")
def report() -> DeploymentReport:
    """Return a report of two different models in memory; the second is the reference."""
    return deployment_report({"one": predictor(8), "other": predictor(3)}, rows(), reference="other", **QUICK)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return one trained model, exported to each format."""
    trainer = short_trainer()
    trainer.fit()
    place = tmp_path_factory.mktemp("deployed")
    how: dict[str, Any] = {"verify": "here", "max_drop": None}
    return {
        "float": trainer.export(place / "float", **how),
        "int8": trainer.export(place / "int8", format="onnx", precision="int8", **how),
        "openvino": trainer.export(place / "openvino", format="openvino", **how),
    }


def test_every_candidate_is_measured_as_by_itself(report: DeploymentReport) -> None:
    """Accuracy, interval and calibration are those that the public functions give for the candidate alone."""
    encoded = TWO.encode(rows()["label"])
    for name, seed in (("one", 8), ("other", 3)):
        alone, found = predictor(seed), report[name]
        right = int((alone.predict_logits(rows()["text"]).argmax(axis=1) == encoded).sum())
        assert found.value == right / 40
        assert found.interval == pytest.approx(wilson_interval(right, 40))
        assert found.calibration_error == pytest.approx(calibration_error(encoded, alone.predict_proba(rows()["text"])))
        assert found.parameters == sum(parameter.numel() for parameter in alone.model.parameters())
        assert (found.format, found.size_bytes, found.load_seconds) == ("in memory", None, None)
    assert report["one"].difference == pytest.approx(report["one"].value - report["other"].value)
    same = [
        a == b for a, b in zip(predictor(8).predict(rows()["text"]), predictor(3).predict(rows()["text"]), strict=True)
    ]
    assert 0 < sum(same) < 40
    assert report["one"].agreement == pytest.approx(sum(same) / 40)
    assert report["other"].difference is None
    assert report["other"].timings[0].verdict == "reference"


def test_timings_hold_every_turn(report: DeploymentReport) -> None:
    """Each candidate has as many passes of each shape, and the figures are made of them."""
    for found in report.candidates.values():
        (timing,) = found.timings
        assert (timing.batch_size, timing.length, timing.threads) == (2, 12, torch.get_num_threads())
        assert len(timing.seconds) == 5
        assert timing.median_seconds == sorted(timing.seconds)[2]
        assert timing.median_interval[0] <= timing.median_seconds <= timing.median_interval[1]
        assert timing.median_seconds <= timing.p95_seconds <= max(timing.seconds)
        assert timing.rows_per_second == pytest.approx(2 / timing.median_seconds)


def test_exported_folders_of_every_format_are_compared(exported: dict[str, Path]) -> None:
    """Folders show their format, parameters and files with bytes; the words say what share of the size is left."""
    found = deployment_report(exported, tiny_rows(20, seed=5), **QUICK)
    assert [each.format for each in found.candidates.values()] == ["safetensors", "onnx", "openvino"]
    assert [each.precision for each in found.candidates.values()] == ["float32", "int8", "float32"]
    assert len({each.parameters for each in found.candidates.values()}) == 1
    for name, each in found.candidates.items():
        assert each.files
        assert dict(each.files) == {file: (exported[name] / file).stat().st_size for file in each.files}
    assert set(found["openvino"].files or ()) == {"model.xml", "model.bin"}
    assert found["openvino"].agreement == 1
    text = str(found)
    assert "model.onnx" in text
    assert "of its size on disk" in text
    figure = found.plot()
    assert [panel.get_xlabel() for panel in figure.axes] == ["milliseconds for 2 x 12, 1 thread", "MB on disk"]


def test_a_fresh_process_measures_loading_and_memory(exported: dict[str, Path]) -> None:
    """Seconds and bytes of a folder come from a process of its own; graphs are loaded for each number of threads."""
    found = deployment_report(
        {"int8": exported["int8"], "now": predictor(labels=lowft.load(exported["int8"]).labels)},
        tiny_rows(20, seed=5),
        **QUICK | {"fresh_processes": True, "threads": [1, 2]},
    )["int8"]
    assert found.load_seconds is not None
    assert found.load_seconds > 0
    assert sys.platform != "linux" or (found.memory_bytes or 0) > 0
    assert [timing.threads for timing in found.timings] == [1, 2]


def test_a_trainer_is_compared_with_what_it_exported(exported: dict[str, Path]) -> None:
    """A Trainer's model goes as it is, and answers as its exported folder does."""
    trainer = short_trainer()
    trainer.fit()
    found = deployment_report({"now": trainer, "folder": exported["float"]}, tiny_rows(20, seed=5), **QUICK)
    assert found["folder"].agreement == 1
    assert found["folder"].difference_interval == (0, 0)
    assert "no difference in accuracy seen" in found.verdicts()[0]
    assert found["now"].parameters == found["folder"].parameters


def test_classes_may_stand_in_another_order() -> None:
    """Answers are compared by the classes' names, not by their numbers."""
    first = predictor()
    swapped = tiny_model("bert", seed=8)
    with torch.no_grad():
        for parameter in swapped.classifier.parameters():  # type: ignore[union-attr]
            parameter.copy_(parameter.flip(0))
    second = Predictor(swapped, tiny_tokenizer(), Labels("single_label_classification", ("good", "bad")), 32)
    found = deployment_report({"first": first, "second": second}, rows(), **QUICK)
    assert found["second"].agreement == 1
    assert found["second"].value == found["first"].value


def test_pairs_regression_and_several_classes() -> None:
    """Every task has its own metric, and pairs of texts are read as pairs."""
    pairs = rows() | {"text_pair": rows()["text"][::-1]}
    found = deployment_report({"a": predictor(takes_pairs=True), "b": predictor(3, takes_pairs=True)}, pairs, **QUICK)
    assert found.metric == "accuracy"

    number = Labels.infer([0.5, 1.25])
    found = deployment_report(
        {"a": predictor(1, number), "b": predictor(2, number), "same": predictor(1, number)},
        rows(values=(0.5, 0.0, 0.25)), **QUICK,
    )  # fmt: skip
    assert (found.metric, found.greater_is_better) == ("mse", False)
    assert found["b"].calibration_error is None
    assert found["same"].agreement == pytest.approx(1)
    assert found["same"].value == pytest.approx(found["a"].value)
    assert "mse" in str(found)

    topics = Labels.infer([["war"], ["love", "war"], ["family"]])
    found = deployment_report(
        {"a": predictor(1, topics), "b": predictor(2, topics)}, rows(values=(["war"], ["love"], [])), **QUICK
    )
    assert found.metric == "micro_f1"
    assert found["b"].interval[0] <= found["b"].value <= found["b"].interval[1]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"candidates": {}}, ConfigError, "at least one name"),
        ({"candidates": {"": predictor()}}, ConfigError, "needs a name"),
        ({"candidates": {"a": 3}}, ConfigError, "candidate 'a' must be an exported folder, a Predictor or a Trainer"),
        ({"candidates": {"a": "nowhere"}}, CheckpointError, "candidate 'a': 'nowhere' is not a folder"),
        ({"reference": "flaot"}, ConfigError, "Did you mean 'float'"),
        ({"batch_sizes": []}, ConfigError, "batch_sizes must be whole numbers"),
        ({"lengths": [8, 8]}, ConfigError, "each once"),
        ({"threads": [0]}, ConfigError, "threads must be a whole number of at least 1"),
        ({"lengths": [2]}, ConfigError, "candidate 'float': lengths must be from 3 to 32"),
        ({"lengths": [33]}, ConfigError, "lengths must be from 3 to 32 tokens"),
        ({"repeats": 4}, ConfigError, "repeats must be a whole number of at least 5"),
        ({"seconds": 0}, ConfigError, "seconds"),
        ({"confidence": 1}, ConfigError, "confidence"),
        ({"resamples": 10}, ConfigError, "resamples"),
        ({"seed": -1}, ConfigError, "seed"),
        ({"fresh_processes": 1}, ConfigError, "fresh_processes"),
        ({"rows": ["a film"]}, DataError, "must have labels"),
        ({"rows": rows(values=("bad", "fine"))}, LabelError, "fine"),
        ({"rows": rows() | {"text_pair": rows()["text"]}}, DataError, "rows holds pairs of texts"),
        ({"candidates": {"a": predictor(), "b": predictor(takes_pairs=True)}}, ConfigError, "the same inputs"),
        ({"candidates": {"a": predictor(), "b": predictor(labels=Labels.infer([1.5, 2]))}}, ConfigError, "same tasks"),
        (
            {"candidates": {"a": predictor(), "b": predictor(labels=Labels.infer(["bad", "fine"]))}},
            ConfigError,
            "the same classes: 'a' has 2 \\('bad', 'good'\\), and 'b' 2 \\('bad', 'fine'\\)",
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_is_timed(
    change: dict[str, Any], error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each mistake has an error that names it, and no pass is timed for it."""
    monkeypatch.setattr(deployment, "time_in_turns", lambda *_, **__: pytest.fail("something was timed"))
    arguments: dict[str, Any] = {"candidates": {"float": predictor()}, "rows": rows()} | QUICK | change
    with pytest.raises(error, match=message):
        deployment_report(arguments.pop("candidates"), arguments.pop("rows"), **arguments)


def test_a_loaded_graph_keeps_its_threads(exported: dict[str, Path]) -> None:
    """A graph that is in memory already cannot be timed with other threads: its folder can."""
    loaded = lowft.load(exported["int8"], threads=1)
    assert deployment_report({"a": loaded}, tiny_rows(8), **QUICK | {"threads": [1]})["a"].timings
    with pytest.raises(ConfigError, match="candidate 'a' is a graph that was loaded for 1 threads"):
        deployment_report({"a": loaded}, tiny_rows(8), **QUICK | {"threads": [1, 2]})


def test_models_and_threads_are_left_as_they_were() -> None:
    """Training mode and the number of threads are those of before."""
    candidate, before = predictor(), torch.get_num_threads()
    candidate.model.train()
    deployment_report({"a": candidate}, rows(8), **QUICK | {"threads": [2]})
    assert candidate.model.training
    assert torch.get_num_threads() == before


def timed(interval: tuple[float, float] | None) -> Timing:
    """Return a timing with this interval of the speed."""
    speed = None if interval is None else sum(interval) / 2
    return Timing(1, 8, 1, (1.0,), 1.0, (1.0, 1.0), 1.0, 1.0, speed, interval)


@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_no_word_for_speed_where_the_interval_holds_one(one: float, other: float) -> None:
    """A verdict is "faster" or "slower" if and only if the interval excludes no difference."""
    low, high = sorted((one, other))
    expected = "faster" if low > 1 else "slower" if high < 1 else "no difference seen"
    assert timed((low, high)).verdict == expected
    assert timed(None).verdict == "reference"


def answered(wrong: int, repaired: int, number: int = 200) -> Answers:
    """Return the answers of a model against one that is right but for the last 40 rows; so many of each changed."""
    labels = np.zeros(number, dtype=np.int64)
    right = np.arange(number) < number - 40
    changed = right.copy()
    changed[:wrong] = False
    changed[number - 40 : number - 40 + repaired] = True
    logits = {name: np.stack([2.0 * ok - 1, np.zeros(number)], axis=1) for name, ok in (("a", right), ("b", changed))}
    return compare_answers("single_label_classification", logits, labels, "a", **HOW)["b"]


@pytest.mark.parametrize(
    ("wrong", "repaired", "differs"), [(0, 0, False), (5, 5, False), (4, 0, False), (12, 0, True), (0, 12, True)]
)
def test_a_difference_in_answers_counts_only_beyond_chance(wrong: int, repaired: int, differs: bool) -> None:
    """Equal shares, and a handful of changed answers, are no difference; many that go one way are one."""
    found = answered(wrong, repaired)
    assert found.differs is differs
    assert found.difference == pytest.approx((repaired - wrong) / 200)
    assert found.difference is not None
    assert found.difference_interval is not None
    low, high = found.difference_interval
    assert low <= found.difference <= high
    assert found.agreement == pytest.approx(1 - (wrong + repaired) / 200)


def test_the_bootstrap_of_each_metric_agrees_with_drawing_rows_by_hand() -> None:
    """Intervals of F1 and of squared errors are those of the metric itself over drawn rows."""
    rng = np.random.default_rng(3)
    several = (rng.random((60, 3)) < 0.4).astype(np.int64)
    cases: list[tuple[Any, Any, Any]] = [
        ("multi_label_classification", several, rng.normal(size=(60, 3)) + several),
        ("regression", rng.normal(size=60), rng.normal(size=(60, 1))),
    ]
    for task, labels, logits in cases:
        found = compare_answers(task, {"a": logits}, labels, "a", confidence=0.9, resamples=1500, seed=1)["a"]
        metric = {"regression": "mse"}.get(task, "micro_f1")
        draws = [rng.integers(60, size=60) for _ in range(400)]
        values = [lowft.compute_metrics(task, logits[at], labels[at], names=[metric])[metric] for at in draws]
        assert found.interval == pytest.approx(np.quantile(values, [0.05, 0.95]), rel=0.12)


def test_words_follow_from_the_figures(report: DeploymentReport) -> None:
    """Every "faster", "slower", "better" or "worse" in the report stands for an interval that excludes none."""
    for line, each in zip(report.verdicts(), [report["one"]], strict=True):
        assert line.startswith("one against other: ")
        assert ("better" in line or "worse" in line) is each.differs
        for word in ("faster", "slower"):
            assert (word in line) is any(timing.verdict == word for timing in each.timings)
        assert line in str(report)
        assert line in report._repr_html_()


def test_a_warning_stands_in_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is told where the figures are read, and in the file."""
    monkeypatch.setattr(Load, "warning", lambda _: "The machine was busy.")
    found = deployment_report({"a": predictor()}, rows(8), **QUICK)
    assert "WARNING: The machine was busy." in str(found)
    assert found.to_dict()["warning"] == "The machine was busy."


def test_figures_leave_as_json_and_as_a_frame(report: DeploymentReport, tmp_path: Path) -> None:
    """JSON holds every figure and every timed pass; a frame has a row for each candidate and shape."""
    target = report.save(tmp_path / "report.json")
    values = json.loads(target.read_text("utf-8"))
    assert values == report.to_dict() == json.loads(report.to_json())
    assert values["candidates"]["one"]["timings"][0]["seconds"] == list(report["one"].timings[0].seconds)
    assert values["candidates"]["one"]["timings"][0]["verdict"] == report["one"].timings[0].verdict
    frame = report.to_frame()
    assert list(frame["name"]) == ["one", "other"]
    assert frame["interval_low"].tolist() == [each.interval[0] for each in report.candidates.values()]


def test_a_report_that_cannot_be_written_leaves_the_old_one(
    report: DeploymentReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is there as a whole or as it was before; nothing else is left behind."""
    target = report.save(tmp_path / "report.json")
    before = target.read_bytes()

    def full(path: Path, value: Any) -> None:
        path.write_text("{", "utf-8")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lowft._deployment_report.write_json", full)
    with pytest.raises(CheckpointError, match=r"cannot be written to .*report\.json.*No space left"):
        report.save(target)
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


def test_an_unknown_name_or_shape_is_told_what_there_is(report: DeploymentReport) -> None:
    """A candidate or a shape that was not compared is an error that lists those that were."""
    with pytest.raises(ConfigError, match=r"'onw' was not compared.*Did you mean 'one'"):
        report["onw"]
    with pytest.raises(ConfigError, match=r"batch_size=7 was not timed; there is 2 x 12"):
        report.plot(batch_size=7)


def test_the_plot_names_every_point(report: DeploymentReport, tmp_path: Path) -> None:
    """Each candidate's name is written in the panel; models in memory have no panel of sizes."""
    figure = report.plot(tmp_path / "plot.png", batch_size=2)
    (panel,) = figure.axes
    assert sorted(text.get_text() for text in panel.texts) == ["one", "other"]
    assert (tmp_path / "plot.png").stat().st_size > 0


@pytest.mark.parametrize("damage", [lambda folder: (folder / "model.safetensors").write_bytes(b"x")])
def test_a_damaged_folder_is_named(damage: Callable[[Path], Any], exported: dict[str, Path], tmp_path: Path) -> None:
    """The candidate whose folder is damaged stands in the message."""
    import shutil

    folder = Path(shutil.copytree(exported["float"], tmp_path / "copy"))
    damage(folder)
    with pytest.raises(CheckpointError, match=r"candidate 'broken': .*model\.safetensors"):
        deployment_report({"whole": exported["float"], "broken": folder}, tiny_rows(8), **QUICK)
