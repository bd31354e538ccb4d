"""Where hidden states lie: one row after the other, in memory, or in a file without a name on the disk."""

from __future__ import annotations

import errno
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["StateStore"]

Key: TypeAlias = bytes  # what a row is known by
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CHUNK = 2**20
_SHARE_OF_DISK = 0.5  # of what is free: checkpoints are written beside it


class StateStore:
    """Rows of hidden states, each under its key; what was put in comes out bit by bit.

    States are kept in the precision they came in. In float16, MiniLM's move a trained head's logits by 7e-4 and its
    loss by 1.3e-5, more than the 1e-5 that a cache may cost; and what is computed would depend on where there is room.

    Args:
        tokens: Places for tokens that all rows together take.
        like: States, `[..., width]`, as those that will come.
        memory_limit: Bytes that may be held in memory; more goes to a file.
        folder: Where such a file goes; the system's folder for temporary files if None.

    Attributes:
        in_memory: Whether the states are in memory and not in a file.
        capacity: Places there are: fewer than asked for where the disk has no room for more.

    Raises:
        OSError: The disk has no room at all.
    """

    def __init__(self, tokens: int, like: Tensor, *, memory_limit: int, folder: Path | None) -> None:
        width = like.shape[-1]
        each = width * like.element_size()
        self.in_memory = tokens * each <= memory_limit
        self.capacity = tokens
        self._places: dict[Key, tuple[int, int]] = {}
        self._used = 0
        if self.in_memory:
            self._states = torch.empty((tokens, width), dtype=like.dtype)
            return
        descriptor, name = tempfile.mkstemp(prefix="lowft-prefix-", dir=folder)
        try:
            free = shutil.disk_usage(name).free
            self.capacity = _take_space(descriptor, min(tokens, math.floor(free * _SHARE_OF_DISK) // each), each)
            flat = torch.from_file(name, shared=True, size=self.capacity * width, dtype=like.dtype)
            self._states = flat.view(self.capacity, width)
        finally:
            os.close(descriptor)
            Path(name).unlink()  # the mapping keeps the space until it is dropped, however the process ends

    @property
    def bytes(self) -> int:
        """The space that is taken."""
        return self._states.numel() * self._states.element_size()

    def __len__(self) -> int:
        """Return the number of rows in store."""
        return len(self._places)

    def get(self, key: Key) -> Tensor | None:
        """Return the states of a row, `[tokens, width]`; None where it is not in store."""
        place = self._places.get(key)
        return None if place is None else self._states[place[0] : place[1]]

    def put(self, key: Key, states: Tensor) -> None:
        """Keep the states of a row, `[tokens, width]`, while there is room."""
        end = self._used + len(states)
        if end <= self.capacity and key not in self._places:
            self._states[self._used : end] = states
            self._places[key] = (self._used, end)
            self._used = end


def _take_space(descriptor: int, tokens: int, each: int) -> int:
    """Take the space for so many tokens, or for as many as there is room for, and return their number."""
    # Writing to a mapped file on a full disk kills the process: the space must be there first.
    while True:
        try:
            _allocate(descriptor, max(1, tokens) * each)
        except OSError as error:
            if error.errno not in _FULL or tokens <= 1:
                raise
            tokens //= 2
        else:
            return max(1, tokens)


def _allocate(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    os.ftruncate(descriptor, 0)  # macOS: written once, the space is there
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.seek(0)
        for start in range(0, size, _CHUNK):
            file.write(bytes(min(_CHUNK, size - start)))
