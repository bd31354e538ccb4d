"""The most memory that a stretch of a run takes: of the process, or of the GPU that it computes on."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lowft.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["PEAK", "PeakMemory", "check_measurable", "settle_memory", "size_of"]

PEAK = "peak_memory_bytes"  # its name in the history

_STATUS = Path("/proc/self/status")
_FORGET = Path("/proc/self/clear_refs")


def _process_memory(field: str) -> int | None:
    """Return a field of the process's status in bytes: VmRSS is memory in use now, VmHWM the most there ever was.

    What `resource.getrusage` calls the most is no use: Linux starts it at the memory of the parent process.

    Returns:
        Bytes; None where the system does not tell (it is Linux that does).
    """
    if not _STATUS.is_file():
        return None
    for line in _STATUS.read_text("utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def check_measurable(owner: str, device: torch.device) -> None:
    """Refuse a limit on memory where nothing tells how much there is in use.

    Raises:
        ConfigError: Memory cannot be measured.
    """
    if PeakMemory(device).bytes is None:
        raise ConfigError(
            f"{owner}: max_memory needs a device whose memory can be measured: a CPU under Linux, or a CUDA GPU; the "
            f"run is on {str(device)!r}. Leave max_memory out; where memory runs out, batches are halved all the same"
        )


def settle_memory() -> None:
    """Give back to the system what is held for later use, so that a stretch is measured by what it needs itself."""
    gc.collect()
    _trim()
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def _trim() -> None:
    with contextlib.suppress(OSError, AttributeError):  # of glibc alone
        ctypes.CDLL(None).malloc_trim(0)


class PeakMemory:
    """The most memory since it was made or restarted.

    On a GPU that is what torch has allocated there (`torch.cuda.max_memory_allocated`). Elsewhere it is the resident
    memory of the whole process, as the system counts it and as limits on containers are set: Python, its libraries,
    the model, the rows and all else that the process holds (Linux's VmHWM). Where the system does not let a process
    forget an earlier peak, it is the most since the process began.

    Args:
        device: Where the run computes.

    >>> meter = PeakMemory(torch.device("cpu"))
    >>> meter.bytes is None or meter.bytes > 0
    True
    """

    def __init__(self, device: torch.device) -> None:
        """Begin to measure."""
        self._device = device
        self.restart()

    def restart(self) -> None:
        """Forget what was: what is in use now is the least that the next figure can be."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        _trim()
        with contextlib.suppress(OSError):
            _FORGET.write_text("5", "utf-8")

    @property
    def bytes(self) -> int | None:
        """The most memory; None where it cannot be known."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return _process_memory("VmHWM") if self._device.type == "cpu" else None

    @property
    def now(self) -> int | None:
        """The memory in use now; None where it cannot be known."""
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device)
        return _process_memory("VmRSS") if self._device.type == "cpu" else None


def size_of(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
