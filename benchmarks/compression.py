"""What pruning and distillation bring and cost: accuracy and time to answer, against the model they start from.

MiniLM is fine-tuned on Rotten Tomatoes. From that model come: a student of its layers 0, 2 and 5 trained on the labels
alone and another trained with its answers as well, and models that lose a share of their feed-forward neurons while
they train on. All are tested on the same rows, which none has seen, and answer the same batch in turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median, stdev

import torch
from _common import describe_machine, minilm, rotten_tomatoes
from accuracy import draw

import lowft

_CONFIG = lowft.TrainingConfig(epochs=2, learning_rate=1e-4, load_best_model_at_end=False, progress=False)


@dataclass
class Side:
    """What was seen of one choice over all seeds: shares of test rows that are right, and times against the whole."""

    parameters: int = 0
    accuracies: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    training: list[float] = field(default_factory=list)


def train(
    model: torch.nn.Module | Path,
    sides: lowft.Splits,
    config: lowft.TrainingConfig,
    tokenizer: object,
    *strategies: lowft.Strategy,
) -> tuple[lowft.Trainer, float]:
    """Return a finished run, and its seconds."""
    trainer = lowft.Trainer(
        model, sides.train, sides.validation, strategies=strategies, config=config, tokenizer=tokenizer
    )
    started = time.perf_counter()
    trainer.fit()
    return trainer, time.perf_counter() - started


def seconds_in_turn(models: dict[str, torch.nn.Module], batch: dict[str, torch.Tensor], turns: int) -> dict[str, float]:
    """Return the median seconds in which each model answers the batch; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for turn in range(turns + 2):
            for name, model in models.items():
                started = time.perf_counter()
                model(**batch)
                if turn >= 2:  # the first ones warm up
                    times[name].append(time.perf_counter() - started)
    return {name: median(values) for name, values in times.items()}


def main() -> None:
    """Train every choice for each seed, test it, time it, and print every figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=7000, help="training rows (default: %(default)s)")
    parser.add_argument("--test", type=int, default=1000, help="test rows (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each choice (default: %(default)s)")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.25, 0.5, 0.75], help="shares of neurons to cut")
    parser.add_argument("--turns", type=int, default=30, help="timings of each model (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: what torch chooses)")
    options = parser.parse_args()
    describe_machine(options.threads)

    data, found = rotten_tomatoes(), dict[str, Side]()
    for seed in range(options.seeds):
        splits = draw(data, options.rows, options.test, seed)
        config = dataclasses.replace(_CONFIG, seed=seed)
        runs: dict[str, tuple[lowft.Trainer, float]] = {"whole": train(minilm(), splits, config, None)}
        tokenizer = runs["whole"][0].tokenizer
        with tempfile.TemporaryDirectory() as folder:
            whole = runs["whole"][0].export(Path(folder, "whole"))
            distill = lowft.Distill(whole, alpha=0.7)
            for name, strategies in {"3 layers, labels": (), "3 layers, distilled": (distill,)}.items():
                student = lowft.make_student(lowft.load_model(whole), 3)
                runs[name] = train(student, splits, config, tokenizer, *strategies)
            asked = runs["3 layers, distilled"][0]._loop.attached.state.memory["Distill"]["asked"]  # noqa: SLF001
            print(f"seed {seed}  the teacher read {asked:,} texts in {_CONFIG.epochs} epochs of {len(splits.train):,}")
            recovery = dataclasses.replace(config, max_steps=1, learning_rate=1e-5)  # the pruning stage does the work
            for share in options.shares:
                prune = lowft.Prune(share, epochs=1, learning_rate=1e-4)
                model = lowft.load_model(whole)
                runs[f"{share:.0%} neurons cut"] = train(model, splits, recovery, tokenizer, prune)
        texts = random.Random(seed).sample(list(splits.test.texts if splits.test else ()), 32)
        batch = dict(tokenizer(texts, padding="max_length", max_length=64, truncation=True, return_tensors="pt"))
        models = {name: run.model.train(False) for name, (run, _) in runs.items()}
        times = seconds_in_turn(models, batch, options.turns)
        for name, (run, seconds) in runs.items():
            side = found.setdefault(name, Side())
            side.parameters = sum(parameter.numel() for parameter in run.model.parameters())
            side.accuracies.append(100 * run.evaluate(splits.test).metrics["accuracy"])
            side.ratios.append(times["whole"] / times[name])
            side.training.append(seconds)
            print(
                f"seed {seed}  {name:20}  accuracy {side.accuracies[-1]:.1f} %  {1000 * times[name]:6.1f} ms  "
                f"{side.ratios[-1]:.2f}x  trained in {seconds:.0f} s",
                flush=True,
            )
    print()
    for name, side in found.items():
        spread = f"sd {stdev(side.accuracies):.2f}" if options.seeds > 1 else "one run"
        print(
            f"{name:20}  {side.parameters:>12,} parameters  accuracy {mean(side.accuracies):.2f} % ({spread})  "
            f"batch of 32 × 64 tokens {mean(side.ratios):.2f}x as fast ({min(side.ratios):.2f} to "
            f"{max(side.ratios):.2f})"
        )
    top, alone, taught = (mean(found[name].accuracies) for name in ("whole", "3 layers, labels", "3 layers, distilled"))
    gap = top - alone
    closed = f"{(taught - alone) / gap:.0%}" if gap > 0 else "no gap to close"
    print(f"gap between 3 layers on labels and the whole: {gap:.2f} points; distillation closes {closed}")


if __name__ == "__main__":
    main()
