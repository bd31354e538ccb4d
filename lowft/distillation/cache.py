"""A teacher's answers on disk, shared between runs: found by content, bounded in size, and never trusted blindly.

An entry is known by what was read (the text, or its tokens) and lies in the folder of the teacher that answered, so a
changed text or another teacher can never bring up an old answer. Entries are written many together, as one safetensors
file under a temporary name that is then renamed; each has its own checksum. What cannot be read is as if it were not
there, and what cannot be written is left out with a warning.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

__all__ = ["KEY_BYTES", "AnswerCache", "Entry", "key_of"]

KEY_BYTES = 16
_TEXTS_IN_PART = 512
_BYTES_IN_PART = 16 * 1024**2
_OPEN_FILES = 16
_STALE_SECONDS = 3600
_PENDING = "pending"  # in the strategy's memory: what is not on disk yet, so that a resumed run still has it


def key_of(*content: str) -> bytes:
    """Return the key of what was read.

    >>> len(key_of("a film", "12 7 9"))
    16
    """
    digest = blake2b(digest_size=KEY_BYTES)
    for part in content:
        digest.update(f"{len(part)} {part}".encode())
    return digest.digest()


@dataclass(frozen=True)
class Entry:
    """What a teacher said of one text.

    Attributes:
        logits: `[outputs]`.
        states: `[tokens, width]`: of each token, all that was asked for side by side; no tokens where nothing was.
    """

    logits: Tensor
    states: Tensor

    def checksum(self, key: bytes) -> int:
        """Return what tells an entry that is whole from one that is not."""
        found = zlib.crc32(key)
        for tensor in (self.logits, self.states):
            found = zlib.crc32(tensor.contiguous().numpy().tobytes(), found)
        return found


@dataclass(frozen=True)
class _Place:
    path: Path
    row: int
    start: int
    end: int
    checksum: int


class AnswerCache:
    """The answers of one teacher in a folder that other teachers and runs share.

    Args:
        folder: The folder of all teachers.
        identity: What tells this teacher, and what was asked of it, from others.
        max_bytes: What all files in the folder may take together; those used longest ago go first.
    """

    def __init__(self, folder: Path, identity: str, max_bytes: int) -> None:
        self._root = folder
        self._folder = folder / identity[:32]
        self._max_bytes = max_bytes
        self._writes = True
        self._known: dict[bytes, _Place] = {}
        self._waiting: dict[bytes, tuple[int, int]] = {}
        self._open: OrderedDict[Path, Any] = OrderedDict()
        self._used: set[Path] = set()
        self._listed: set[Path] = set()
        self.refresh()

    def refresh(self) -> None:
        """Learn of what other runs have written by now."""
        with contextlib.suppress(OSError):
            for path in sorted(set(self._folder.glob("part-*.safetensors")) - self._listed):
                self._index(path)

    def find(self, memory: Mapping[str, Any], keys: Sequence[bytes]) -> dict[bytes, Entry]:
        """Return the entries that are there.

        Args:
            memory: The strategy's memory, which holds what is not on disk yet.
            keys: The keys.
        """
        pending = memory.get(_PENDING, [])
        if len(self._waiting) != sum(len(chunk["keys"]) for chunk in pending):
            self._waiting = {
                row.tobytes(): (number, place)
                for number, chunk in enumerate(pending)
                for place, row in enumerate(chunk["keys"].numpy())
            }
        found = {}
        for key in dict.fromkeys(keys):
            if key in self._waiting:
                number, place = self._waiting[key]
                found[key] = _entries(pending[number])[place]
            elif key in self._known and (entry := self._read(key)) is not None:
                found[key] = entry
        return found

    def add(self, memory: dict[str, Any], entries: Mapping[bytes, Entry]) -> None:
        """Take in new entries; once there are enough, write them.

        Args:
            memory: The strategy's memory.
            entries: Entries by key.
        """
        if not self._writes or not entries:
            return
        pending = memory.setdefault(_PENDING, [])
        pending.append(_chunk(entries))
        self._waiting |= {key: (len(pending) - 1, place) for place, key in enumerate(entries)}
        size = sum(tensor.nbytes for chunk in pending for tensor in chunk.values())
        if len(self._waiting) >= _TEXTS_IN_PART or size >= _BYTES_IN_PART:
            self.flush(memory)

    def flush(self, memory: dict[str, Any]) -> None:
        """Write what is not on disk yet; what cannot be written is forgotten, with a warning."""
        pending = memory.pop(_PENDING, [])
        self._waiting = {}
        if not pending or not self._writes:
            return
        whole = {name: torch.cat([chunk[name] for chunk in pending]) for name in pending[0]}
        name = blake2b(whole["keys"].numpy().tobytes(), digest_size=12).hexdigest()
        path = self._folder / f"part-{name}.safetensors"
        partial = self._folder / f".{path.name}.partial-{os.getpid()}"
        try:
            from safetensors.torch import save

            content = save(whole)
            self._folder.mkdir(parents=True, exist_ok=True)
            self._make_room(len(content))
            partial.write_bytes(content)
            partial.replace(path)
        except OSError as error:
            self._writes = False
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            warnings.warn(
                f"the teacher's answers could not be written to {self._root} ({error}): training goes on, and they are "
                f"computed anew where they are needed again",
                stacklevel=2,
            )
        else:
            self._open.pop(path, None)
            self._index(path)

    def _index(self, path: Path) -> None:
        """Learn which entries a file has; of one that cannot be read, none."""
        self._listed.add(path)
        file = self._file(path)
        if file is None:
            return
        try:
            keys, lengths, sums = (file.get_tensor(name) for name in ("keys", "lengths", "checksums"))
            shapes = [file.get_slice(name).get_shape()[0] for name in ("logits", "states")]
            ends = [0, *lengths.cumsum(0).tolist()]
            if (
                keys.shape != (len(lengths), KEY_BYTES)
                or shapes != [len(lengths), ends[-1]]
                or keys.dtype.itemsize != 1
            ):
                return
            places = zip(keys.numpy(), pairwise(ends), sums.tolist(), strict=True)
            self._known |= {
                key.tobytes(): _Place(path, row, start, end, checksum)
                for row, (key, (start, end), checksum) in enumerate(places)
            }
        except _unreadable():
            return

    def _read(self, key: bytes) -> Entry | None:
        place = self._known[key]
        file = self._file(place.path)
        with contextlib.suppress(*_unreadable()):
            if file is not None:
                logits = file.get_slice("logits")[place.row : place.row + 1][0]
                entry = Entry(logits.clone(), file.get_slice("states")[place.start : place.end].clone())
                if entry.checksum(key) == place.checksum:
                    if place.path not in self._used:
                        self._used.add(place.path)
                        os.utime(place.path)  # used now: others go first
                    return entry
        self._known.pop(key)
        return None

    def _file(self, path: Path) -> Any:
        from safetensors import safe_open

        if path not in self._open:
            try:
                self._open[path] = safe_open(path, "pt").__enter__()  # type: ignore[no-untyped-call]
            except _unreadable():
                return None
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)
        self._open.move_to_end(path)
        return self._open[path]

    def _make_room(self, size: int) -> None:
        """Delete what was used longest ago, of whatever teacher, until so many bytes more are allowed."""
        if size > self._max_bytes:
            raise OSError(f"{size:,} bytes at once are more than max_cache_bytes={self._max_bytes:,}")
        files = []
        for path in self._root.glob("*/part-*.safetensors"):
            with contextlib.suppress(FileNotFoundError):  # another run made room too
                status = path.stat()
                files.append((status.st_mtime_ns, path, status.st_size))
        left = sum(length for _, _, length in files) + size - self._max_bytes
        for _, path, length in sorted(files):
            if left <= 0:
                break
            path.unlink(missing_ok=True)
            left -= length
            self._open.pop(path, None)
            self._known = {key: place for key, place in self._known.items() if place.path != path}
        for path in self._root.glob("*/.part-*.partial-*"):  # of runs that were killed
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()


def _unreadable() -> tuple[type[Exception], ...]:
    from safetensors import SafetensorError

    return (SafetensorError, OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError)


def _chunk(entries: Mapping[bytes, Entry]) -> dict[str, Tensor]:
    """Return entries as tensors."""
    return {
        "keys": torch.frombuffer(bytearray(b"".join(entries)), dtype=torch.uint8).view(-1, KEY_BYTES),
        "lengths": torch.tensor([len(entry.states) for entry in entries.values()]),
        "checksums": torch.tensor([entry.checksum(key) for key, entry in entries.items()]),
        "logits": torch.stack([entry.logits for entry in entries.values()]),
        "states": torch.cat([entry.states for entry in entries.values()]),
    }


def _entries(chunk: Mapping[str, Tensor]) -> list[Entry]:
    """Return tensors as the entries that they were."""
    states = torch.split(chunk["states"], chunk["lengths"].tolist())
    return [Entry(logits, rows) for logits, rows in zip(chunk["logits"], states, strict=True)]
