"""A module of lowft run in a fresh process, which knows nothing but the files that it is given."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import lowft

__all__ = ["ProcessError", "run_fresh"]

_PATIENCE = 600  # seconds


class ProcessError(Exception):
    """The process ended with an error; the message is the last line that it wrote."""


def run_fresh(module: str, *arguments: str | Path) -> None:
    """Run `python -m module arguments` with the lowft that is running here, and wait for its end.

    Raises:
        ProcessError: It ended with an error, or not within ten minutes.
    """
    paths = [str(Path(lowft.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    try:
        done = subprocess.run(  # noqa: S603 - Python itself, with files that lowft has just written
            [sys.executable, "-m", module, *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE,
        )
    except subprocess.TimeoutExpired as error:
        raise ProcessError(f"it did not end within {_PATIENCE} seconds") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"]
        raise ProcessError(lines[-1])
