"""How long a folder takes to load, and what memory it needs: measured by a process that does nothing else."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from lowft._timing import exact_inputs, forward
from lowft.data.rows import Rows
from lowft.export.folder import load

__all__ = ["main"]

_STATUS = Path("/proc/self/status")


def _memory(field: str) -> int | None:
    """Return a field of the process's status in bytes: VmRSS is memory in use now, VmHWM the most there ever was.

    What `resource.getrusage` calls the most is no use: Linux starts it at the memory of the parent process.
    """
    if not _STATUS.is_file():
        return None
    lines = dict(line.split(":", 1) for line in _STATUS.read_text("utf-8").splitlines())
    return int(lines[field].split()[0]) * 1024


def main(question: str, answer: str) -> None:
    """Answer for a parent process: load a folder, predict one batch, and write seconds and bytes."""
    asked: dict[str, Any] = json.loads(Path(question).read_text("utf-8"))
    torch.set_num_threads(asked["threads"])
    # What every folder needs, whatever its format, is no difference between folders.
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer  # noqa: F401

    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "utf-8")  # importing has had a peak of its own: forget it
    before = _memory("VmRSS")
    began = time.perf_counter()
    predictor = load(asked["folder"], threads=asked["threads"])
    seconds = time.perf_counter() - began
    pairs = asked["pairs"]
    rows = Rows(tuple(asked["texts"]), None if pairs is None else tuple(pairs))
    forward(predictor, exact_inputs(predictor, rows, asked["batch_size"], asked["length"]))
    most = _memory("VmHWM")
    found = {"seconds": seconds, "bytes": None if most is None or before is None else max(0, most - before)}
    Path(answer).write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
