"""How long training takes, how well it goes and how much memory it needs: lowft beside what people use.

    python benchmarks/speed.py [--tasks full top2 head staged] [--rows 7000] [--test 1000] [--seeds 3] [--threads 2]
                               [--data rotten_tomatoes] [--tokens 256] [--float32]

MiniLM on Rotten Tomatoes, or on the reviews of IMDB, cut after --tokens. For each seed all sides of a task train on the
same rows, in turn, each in a process of its own, and are tested once on rows that none has seen. The tasks:

- full:   everything trains; transformers' Trainer at its defaults and tuned (bfloat16, batches grouped by length)
- top2:   the two highest of six blocks and the head, 3 and 10 epochs; the same Trainer with the same layers frozen,
          and what a count of operations says that the frozen layers should save
- head:   the head alone, 10 epochs
- staged: the default stages of LayerwiseUnfreeze; Lightning with finetuning-scheduler with the same stages, where they
          are installed

For a short run: --rows 300 --test 100 --seeds 1 --epochs 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from statistics import mean
from typing import Any

import numpy as np
import torch
from _common import describe_machine, draw, minilm, reviews, spread
from _sides import BATCH, Work, run_side

import lowft
from lowft.compress import count_flops
from lowft.data.epochs import plan_epoch

_RATES = {"full": 1e-4, "top2": 3e-4, "head": 1e-3, "staged": 1e-4}
_PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
_PARSER.add_argument("--tasks", nargs="+", choices=tuple(_RATES), default=tuple(_RATES))
_PARSER.add_argument("--data", choices=("rotten_tomatoes", "imdb"), default="rotten_tomatoes")
_PARSER.add_argument("--tokens", type=int, default=256, help="after which texts are cut (default: %(default)s)")
_PARSER.add_argument("--rows", type=int, default=7000, help="training rows (default: %(default)s)")
_PARSER.add_argument("--test", type=int, default=1000, help="test rows (default: %(default)s)")
_PARSER.add_argument("--seeds", type=int, default=3, help="draws of rows (default: %(default)s)")
_PARSER.add_argument(
    "--epochs", type=int, nargs="+", help="instead of 2 (full), 3 and 10 (top2), 10 (head), 1 (staged)"
)
_PARSER.add_argument("--threads", type=int, default=2, help="threads to compute with (default: %(default)s)")
_PARSER.add_argument("--without", nargs="+", default=[], help="sides to leave out, such as lightning")
_PARSER.add_argument(
    "--float32", action="store_true", help="no side in bfloat16, where a machine is slow in it: tuned is grouped alone"
)
_PARSER.add_argument("--side", help=argparse.SUPPRESS)
_PARSER.add_argument("--work", type=json.loads, help=argparse.SUPPRESS)


@dataclass(frozen=True)
class Side:
    """One column of a comparison: who trains, and how."""

    library: str
    title: str
    bfloat16: bool = False
    grouped: bool = True


PLAIN = Side("transformers", "transformers", grouped=False)
TUNED = Side("transformers", "transformers, tuned", bfloat16=True)
OURS = Side("lowft", "lowft")
OURS_BF16 = Side("lowft", "lowft, bfloat16", bfloat16=True)
STAGED = Side("lowft-staged", "lowft, staged")
LIGHTNING = Side("lightning", "lightning, staged", grouped=False)
TASKS: dict[str, tuple[int | None, tuple[int, ...], tuple[Side, ...]]] = {
    "full": (None, (2,), (PLAIN, TUNED, OURS, OURS_BF16)),
    "top2": (2, (3, 10), (PLAIN, TUNED, OURS, OURS_BF16)),
    "head": (0, (10,), (PLAIN, TUNED, OURS, OURS_BF16)),
    "staged": (None, (1,), (LIGHTNING, STAGED)),
}


def in_own_process(side: Side, work: Work, options: argparse.Namespace) -> dict[str, Any]:
    """Return the outcome of a side, which trains in a fresh process."""
    command = [
        sys.executable, __file__, "--side", side.library, "--work", json.dumps(asdict(work)),
        "--rows", str(options.rows), "--test", str(options.test), "--threads", str(options.threads),
        "--data", options.data, "--tokens", str(options.tokens),
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603 - this file
    if done.returncode:
        sys.exit(f"{side.title} failed with status {done.returncode}: {' '.join(command)}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def rows_of(seed: int, options: argparse.Namespace) -> lowft.Splits:
    """Return the rows that all sides of a seed train on and are tested on."""
    return draw(reviews(options.data), options.rows, options.test, seed)


def expected_gain(sides: lowft.Splits, top: int, epochs: int, most_tokens: int) -> tuple[float, float]:
    """Return how many times fewer operations lowft should need: by all it does, and by the cache alone.

    A block costs its operations once forward and twice more backward where it trains; lowft's top block those of the
    first token alone. Tokens are those of the padded batches that each side makes; head and optimizer cost next to
    nothing beside them.
    """
    model = lowft.load_model(minilm())
    blocks = lowft.find_layers(model).num_blocks
    width, heads = model.config.hidden_size, model.config.num_attention_heads
    one_token = 2 * (4 * width**2 + 2 * width * model.config.intermediate_size)
    known = {tokens: count_flops(model, tokens) for tokens in range(16, most_tokens + 1, 16)}
    curve = np.polynomial.Polynomial.fit(list(known), list(known.values()), 2)
    ids = lowft.load_tokenizer(minilm())(list(sides.train.texts), truncation=True, max_length=most_tokens)["input_ids"]
    lengths = np.array([len(row) for row in ids])

    def operations(*, grouped: bool) -> tuple[float, float]:
        """Return those of all rows through a block, and through one of which the first token alone is read."""
        plan = plan_epoch(lengths, batch_size=BATCH, group_by_length=grouped)
        sizes = [(len(part.indices), int(lengths[list(part.indices)].max())) for step in plan for part in step]
        whole = sum(rows * curve(tokens) / blocks for rows, tokens in sizes)
        return float(whole), sum(rows * (one_token + 4 * tokens * heads * width) for rows, tokens in sizes)

    passes = epochs * (blocks + 2 * top)
    cached = blocks - top + epochs * 3 * top
    through_last = epochs * 3 if top else 1
    whole, first = operations(grouped=True)
    ours = (cached - through_last) * whole + through_last * first
    return passes * operations(grouped=False)[0] / ours, passes / cached


def compare(task: str, epochs: int, options: argparse.Namespace) -> None:
    """Run all sides of a task for each seed, and print every figure and the ratios."""
    top, _, listed = TASKS[task]
    sides = [side for side in listed if side.library not in options.without]
    if options.float32:
        sides = [replace(side, bfloat16=False) for side in sides if side is not OURS_BF16]
    print(
        f"== {task}: {epochs} epochs of {options.rows:,} rows of {options.data}, peak rate {_RATES[task]:g}", flush=True
    )
    outcomes: dict[Side, list[dict[str, Any]]] = {side: [] for side in sides}
    for seed in range(options.seeds):
        for side in sides if seed % 2 == 0 else reversed(sides):
            work = Work(top, epochs, _RATES[task], seed, options.tokens, bfloat16=side.bfloat16, grouped=side.grouped)
            found = in_own_process(side, work, options)
            outcomes[side].append(found)
            rate = options.rows * epochs / found["seconds"]
            print(
                f"seed {seed}  {side.title:20} {found['seconds']:8.1f} s  {rate:7.0f} rows/s  "
                f"accuracy {found['accuracy']:.2%}  peak {found['peak_bytes'] / 2**20:6.0f} MiB",
                flush=True,
            )
            for note in found["notes"]:
                print(f"        {note}")
    print()
    for side, runs in outcomes.items():
        seconds, accuracies = ([run[key] for run in runs] for key in ("seconds", "accuracy"))
        print(f"{side.title:20} {spread(seconds)} s, accuracy {spread([100 * one for one in accuracies])} %")
    first = sides[0]
    for side in sides[1:]:
        ratios = [one["seconds"] / two["seconds"] for one, two in zip(outcomes[first], outcomes[side], strict=True)]
        points = 100 * (mean(o["accuracy"] for o in outcomes[side]) - mean(o["accuracy"] for o in outcomes[first]))
        memory = mean(o["peak_bytes"] for o in outcomes[side]) / mean(o["peak_bytes"] for o in outcomes[first])
        print(
            f"{first.title} / {side.title}: time {spread(ratios)}; accuracy {points:+.2f} points; "
            f"memory of {side.title} / {first.title} {memory:.2f}"
        )
    if top is not None:
        everything, cache = expected_gain(rows_of(0, options), top, epochs, options.tokens)
        print(f"operations, {PLAIN.title} / lowft: {everything:.2f}; by the cache alone {cache:.2f}")
    print(flush=True)


def main() -> None:
    """Compare, or be one side."""
    options = _PARSER.parse_args()
    if options.side:
        torch.set_num_threads(options.threads)
        work = Work(**options.work)
        print(json.dumps(run_side(options.side, work, rows_of(work.seed, options))))
        return
    describe_machine(options.threads)
    for task in options.tasks:
        for epochs in options.epochs or TASKS[task][1]:
            compare(task, epochs, options)


if __name__ == "__main__":
    main()
