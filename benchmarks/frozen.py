"""Training with frozen lower layers: lowft beside transformers' Trainer with the same layers frozen.

    python benchmarks/frozen.py [--rows 3500] [--test 1000] [--top 2] [--epochs 3] [--seeds 1] [--threads 2]

Both sides train MiniLM on the same Rotten Tomatoes rows with the same peak learning rate, schedule, batch size and
number of epochs, in turn, in this process. transformers' Trainer runs at its defaults (float32, dynamic padding) and
pays the frozen layers' forward pass in every epoch. lowft runs in float32 too, with its defaults: rows of like length
together, and the frozen layers' output computed once (`--no-cache` turns that off, to tell the two apart).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import numpy as np
import torch
from _common import LABELS, describe_machine, minilm, rotten_tomatoes
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments
from transformers.utils import logging

import lowft

RATE, BATCH, WARMUP = 3e-4, 16, 0.1


def by_transformers(sides: lowft.Splits, top: int, epochs: int, seed: int) -> tuple[float, float]:
    """Return the seconds of training and the test accuracy of transformers' Trainer."""
    labels = lowft.Labels.infer(sides.train.labels or (), names=LABELS)
    model = lowft.load_model(minilm(), labels=labels, seed=seed)
    tokenizer = lowft.load_tokenizer(minilm())
    lowft.freeze_(model, top=top)
    # Its Trainer has no warmup_ratio any more: a number below 1 is a share of the steps.
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=64,
        learning_rate=RATE,
        warmup_steps=WARMUP,
        weight_decay=0.01,
        seed=seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )

    def encoded(rows: lowft.Rows) -> list[dict[str, object]]:
        tokens = tokenizer(list(rows.texts), truncation=True)
        ids = labels.encode(rows.labels or ())
        return [
            {
                "input_ids": tokens["input_ids"][index],
                "attention_mask": tokens["attention_mask"][index],
                "labels": int(ids[index]),
            }
            for index in range(len(rows))
        ]

    train: Any = encoded(sides.train)  # a list serves its Trainer as a data set
    test: Any = encoded(sides.test or sides.train)
    trainer = Trainer(
        model, arguments, train_dataset=train, eval_dataset=test, data_collator=DataCollatorWithPadding(tokenizer)
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    answer: Any = trainer.predict(test)
    return seconds, float((answer.predictions.argmax(axis=1) == answer.label_ids).mean())


def by_lowft(sides: lowft.Splits, top: int, epochs: int, seed: int, *, cache: bool) -> tuple[float, float]:
    """Return the seconds of training and the test accuracy of lowft's Trainer."""
    config = lowft.TrainingConfig(
        epochs=epochs, batch_size=BATCH, learning_rate=RATE, warmup_ratio=WARMUP, seed=seed, prefix_cache=cache,
        device="cpu", progress=False,
    )  # fmt: skip
    trainer = lowft.Trainer(minilm(), sides.train, strategies=[lowft.PartialFreeze(top=top)], config=config)
    started = time.perf_counter()
    trainer.fit()
    seconds = time.perf_counter() - started
    for note in trainer.history.filter("note"):
        print(f"         {note['message']}")
    return seconds, trainer.evaluate(sides.test)["accuracy"]


def main() -> None:
    """Run both sides in turn for each seed, and print times, ratios and accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3500)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--top", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-cache", action="store_true")
    options = parser.parse_args()
    describe_machine(options.threads)
    quiet: Any = logging  # untyped in transformers
    quiet.set_verbosity_error()
    rows = rotten_tomatoes()
    ratios, accuracies = [], []
    for seed in range(options.seeds):
        chosen = rows.select(np.random.default_rng(seed).permutation(len(rows))[: options.rows + options.test].tolist())
        sides = lowft.split(chosen, validation=0, test=options.test, seed=seed, on_leakage="drop")
        theirs = by_transformers(sides, options.top, options.epochs, seed)
        ours = by_lowft(sides, options.top, options.epochs, seed, cache=not options.no_cache)
        for name, (seconds, accuracy) in (("transformers", theirs), ("lowft", ours)):
            rate = len(sides.train) * options.epochs / seconds
            print(f"seed {seed}: {name:13} {seconds:7.1f} s  {rate:7.0f} rows/s  accuracy {accuracy:.3f}", flush=True)
        ratios.append(theirs[0] / ours[0])
        accuracies.append(ours[1] - theirs[1])
    spread = f", {min(ratios):.2f} to {max(ratios):.2f}" if len(ratios) > 1 else ""
    print(f"transformers' time ÷ lowft's: {statistics.median(ratios):.2f}{spread}")
    print(f"accuracy, lowft minus transformers: {100 * statistics.mean(accuracies):+.1f} points")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
