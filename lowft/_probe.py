"""How long a folder takes to load, and what memory it needs: measured by a process that does nothing else."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from lowft._peak import PeakMemory
from lowft._timing import exact_inputs, forward
from lowft.data.rows import Rows
from lowft.export.folder import load

__all__ = ["main"]


def main(question: str, answer: str) -> None:
    """Answer for a parent process: load a folder, predict one batch, and write seconds and bytes."""
    asked: dict[str, Any] = json.loads(Path(question).read_text("utf-8"))
    torch.set_num_threads(asked["threads"])
    # What every folder needs, whatever its format, is no difference between folders.
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer  # noqa: F401

    meter = PeakMemory(torch.device("cpu"))  # importing has had a peak of its own, which is forgotten
    before = meter.now
    began = time.perf_counter()
    predictor = load(asked["folder"], threads=asked["threads"])
    seconds = time.perf_counter() - began
    pairs = asked["pairs"]
    rows = Rows(tuple(asked["texts"]), None if pairs is None else tuple(pairs))
    forward(predictor, exact_inputs(predictor, rows, asked["batch_size"], asked["length"]))
    most = meter.bytes
    found = {"seconds": seconds, "bytes": None if most is None or before is None else max(0, most - before)}
    Path(answer).write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
