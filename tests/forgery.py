"""What damages a folder, and what a forger would put into it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lowft.checkpoint import MANIFEST, _digest

__all__ = ["Planter", "flip", "sign", "truncate"]


def truncate(path: Path) -> None:
    """Cut a file to half its length."""
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path, position: int | None = None, bit: int = 0) -> None:
    """Change one bit of a file: by default one of its last value, and of a manifest its first key."""
    data = bytearray(path.read_bytes())
    if position is None:
        position = 3 if path.name == MANIFEST else -10
    data[position] ^= 1 << bit
    path.write_bytes(data)


def sign(folder: Path, **also: str) -> None:
    """Write a manifest that fits the files that are there, and may list others."""
    files = [path for path in folder.iterdir() if path.is_file() and path.name not in {MANIFEST, "README.md"}]
    digests = {path.name: _digest(path) for path in files}
    (folder / MANIFEST).write_text(json.dumps({"format": 1, "files": digests | also}))


class Planter:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))
