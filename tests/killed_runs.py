"""Runs that are killed while they save, in a process of its own: `python -m tests.killed_runs FOLDER`.

Importing takes seconds and a run takes a fraction of one, so this process imports once and forks: each child trains
and dies by SIGKILL, another child resumes. The answer is one line of JSON on stdout.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

import lowft.checkpoint
from lowft.checkpoint import Checkpoints, verify_folder
from lowft.trainer import Trainer
from tests.strategy_cases import AllHooks
from tests.test_strategies_table import assert_same, contents, make_trainer

LAST_STEP = 4
RANDOM_RUNS = 3
KILLS = 5  # of each of the random runs


def trainer_in(folder: Path) -> Trainer:
    """Return a run that saves after each of its steps, draws at random and remembers tensors."""
    return make_trainer(folder, (AllHooks(),), max_steps=LAST_STEP, save_total_limit=2)


class KillPoint:
    """Kills this process at the n-th call, from `armed` on, that changes the disk; a file is left half-written."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.armed = False
        # Before an fsync the disk looks as after the call before it, so that need not be tried as well.
        for name in ("mkdir", "rename", "rmdir", "unlink"):
            setattr(os, name, self._before(getattr(os, name)))
        path: Any = Path
        path.write_text = self._halfway(Path.write_text, lambda self, *_: self)
        writer: Any = safetensors.torch
        writer.save_file = self._halfway(writer.save_file, lambda _, path, *__: path)

    def _before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self._is_due():
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapped

    def _halfway(self, function: Callable[..., Any], path_of: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            due = self._is_due()
            result = function(*args, **kwargs)
            if due:
                path = path_of(*args)
                os.truncate(path, path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    def _is_due(self) -> bool:
        self.left -= self.armed
        return self.armed and self.left == 0


def train_until_killed(folder: Path, number: int) -> None:
    """Train; the first save of step 2 is replaced by a second one, and step 3 deletes an older checkpoint."""
    point = KillPoint(number)
    trainer = trainer_in(folder)
    for result in trainer.steps():
        if result.step == 2:
            point.armed = True
            trainer.save_checkpoint()
        if result.step == 3:
            return


def resume_to_the_end(folder: Path) -> None:
    """Go on from whatever is there, which must be sound, to the end."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="skipping a damaged checkpoint")
        trainer_in(folder).fit(resume_from_checkpoint=bool(Checkpoints(folder).steps()))


def resume_and_compare(folder: Path, reference: Path) -> None:
    """Resume, and check that the end is that of the run that was never stopped, with nothing half-written left."""
    resume_to_the_end(folder)
    name = f"checkpoint-{LAST_STEP}"
    verify_folder(folder / name)
    assert_same(contents(reference / name), contents(folder / name))
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def child(act: Callable[..., None], *args: Any, kill_after: float | None = None) -> int:
    """Run a function in a forked process and return its exit status, negative for a signal."""
    number = os.fork()
    if number == 0:
        try:
            act(*args)
        except BaseException:  # noqa: BLE001 - the status tells the parent, the text tells the reader
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(number, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def at_points(root: Path, reference: Path, *, every: int = 1, stop_at_failure: bool = False) -> dict[str, Any]:
    """Kill runs at one point each, until a run is through; return how many were killed and which did not resume."""
    failures: list[int] = []
    number = killed = 0
    while not (failures and stop_at_failure):
        number += every
        folder = root / str(number)
        status = child(train_until_killed, folder, number)
        if status != -signal.SIGKILL:
            assert status == 0
            break
        killed += 1
        if child(resume_and_compare, folder, reference) != 0:
            failures.append(number)
        shutil.rmtree(folder)
    return {"killed": killed, "failures": failures}


def at_random(root: Path, reference: Path) -> dict[str, Any]:
    """Kill runs again and again at random moments; return how many kills hit and which runs did not end the same."""
    rng = random.Random()  # other moments in each run of the tests
    started = time.perf_counter()
    child(resume_to_the_end, root / "timed")
    seconds = time.perf_counter() - started
    killed, failures = 0, []
    for number in range(RANDOM_RUNS):
        folder = root / str(number)
        for _ in range(KILLS):
            status = child(resume_to_the_end, folder, kill_after=rng.uniform(0, seconds))
            killed += status == -signal.SIGKILL
            if status not in {0, -signal.SIGKILL}:
                failures.append(number)
        if child(resume_and_compare, folder, reference) != 0:
            failures.append(number)
    return {"killed": killed, "failures": failures}


def write_in_place(target: Path, write: Callable[[Path], None], **_: Any) -> None:
    """Save without a temporary folder: what `commit_folder` must not be like."""
    target.mkdir(parents=True, exist_ok=True)
    write(target)
    lowft.checkpoint._write_manifest(target, ())


def main(folder: str) -> None:
    """Kill runs in every way, and print what came of it."""
    torch.set_num_threads(1)
    root = Path(folder)
    reference = root / "reference"
    resume_to_the_end(reference)  # here and not in a child: what is imported on the way, the children then have
    answer = {"points": at_points(root / "points", reference), "random": at_random(root / "random", reference)}
    lowft.checkpoint.commit_folder = write_in_place
    answer["in place"] = at_points(root / "in place", reference, every=5, stop_at_failure=True)
    print(json.dumps(answer))  # noqa: T201 - the answer


if __name__ == "__main__":
    main(sys.argv[1])
