"""Plans beside the runs that they foretell: seconds and peak memory over depths, batch sizes and lengths.

    python benchmarks/planning.py [--rows 600] [--epochs 2] [--tops all 2 0] [--batches 8 16 32] [--lengths 32 128]
                                  [--source rotten_tomatoes] [--threads 2]

Each case runs in a process of its own, so that no case finds memory that another left. In it, `trainer.plan()` comes
first and `trainer.fit()` after it. Time is that of the whole `fit`, by the wall clock; memory is the process's at its
peak. An error is (foretold - actual) / actual.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from statistics import median

import torch
from _common import describe_machine, draw, minilm, reviews

import lowft


def run_case(options: argparse.Namespace) -> dict[str, float]:
    """Plan one run, make it, and return what was foretold and what it took."""
    torch.set_num_threads(options.threads)
    sides = draw(reviews(options.source), options.rows, 100, seed=0)
    assert sides.validation is not None
    held_out = sides.validation.select(range(min(options.validation, len(sides.validation))))
    config = lowft.TrainingConfig(
        epochs=options.epochs, batch_size=options.batches[0], max_length=options.lengths[0], progress=False
    )
    top = options.tops[0]
    strategies = [] if top == "all" else [lowft.PartialFreeze(top=int(top))]
    trainer = lowft.Trainer(minilm(), sides.train, held_out, strategies=strategies, config=config)
    began = time.perf_counter()
    plan = trainer.plan()
    planning = time.perf_counter() - began
    began = time.perf_counter()
    history = trainer.fit()
    seconds = time.perf_counter() - began
    return {
        "planning": planning,
        "foretold_seconds": plan.seconds,
        "seconds": seconds,
        "foretold_bytes": plan.peak_memory_bytes or 0,
        "bytes": history.peak_memory_bytes or 1,
    }


def main() -> None:
    """Run the grid, or with --case one case of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=600, help="training rows (default: %(default)s)")
    parser.add_argument("--validation", type=int, default=200, help="validation rows (default: %(default)s)")
    parser.add_argument("--epochs", type=float, default=2, help="passes over them (default: %(default)s)")
    parser.add_argument("--tops", nargs="+", default=["all", "2", "0"], help="blocks that train, or all")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32], help="rows in a batch")
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 128], help="tokens at which texts are cut")
    parser.add_argument("--source", choices=("rotten_tomatoes", "imdb"), default="rotten_tomatoes")
    parser.add_argument("--threads", type=int, default=2, help="threads to compute with (default: %(default)s)")
    parser.add_argument("--case", action="store_true", help="run the first case alone, and print it as JSON")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(run_case(options)))
        return
    describe_machine(options.threads)
    print("trains  batch  length  planning  foretold  actual   error   foretold  actual   error")
    print("                              s         s       s       %         MB      MB       %", flush=True)
    errors: dict[str, list[float]] = {"seconds": [], "bytes": []}
    shared = ["--rows", options.rows, "--validation", options.validation, "--epochs", options.epochs]
    shared += ["--source", options.source, "--threads", options.threads, "--case"]
    for top, batch, length in itertools.product(options.tops, options.batches, options.lengths):
        command = [sys.executable, __file__, *shared, "--tops", top, "--batches", batch, "--lengths", length]
        answer = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)  # noqa: S603
        found = json.loads(answer.stdout.splitlines()[-1])
        off = {name: 100 * (found[f"foretold_{name}"] / found[name] - 1) for name in errors}
        for name, values in errors.items():
            values.append(off[name])
        print(
            f"{top:>6} {batch:6} {length:7} {found['planning']:9.1f} {found['foretold_seconds']:9.1f}"
            f" {found['seconds']:7.1f} {off['seconds']:+7.1f} {found['foretold_bytes'] / 1e6:10.0f}"
            f" {found['bytes'] / 1e6:7.0f} {off['bytes']:+7.1f}",
            flush=True,
        )
    for name, values in errors.items():
        sizes = [abs(value) for value in values]
        print(f"\nerror of {name}: median {median(sizes):.1f} %, greatest {max(sizes):.1f} % of {len(sizes)} runs")


if __name__ == "__main__":
    main()
