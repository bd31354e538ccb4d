"""What to do when memory runs out: recognise it, and go on with fewer rows at a time."""

from __future__ import annotations

import torch

from lowft.errors import TrainingError

__all__ = ["is_out_of_memory", "release_memory", "too_long"]


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that a tensor found no room, on whatever device.

    >>> is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"))
    True
    >>> is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    False
    """
    from accelerate.utils.memory import should_reduce_batch_size

    # Accelerate knows the messages of each device, but not Python's own error.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or bool(should_reduce_batch_size(error))


def too_long(doing: str, tokens: int, error: BaseException) -> TrainingError:
    """Return the error of a row that finds no room alone, where there is nothing left to halve.

    >>> print(too_long("evaluating", 512, MemoryError("no room")))
    evaluating: out of memory with a single row of 512 tokens. Lower max_length, ... the device said: no room
    """
    return TrainingError(
        f"{doing}: out of memory with a single row of {tokens} tokens. Lower max_length, or set "
        f"precision='bfloat16'; the device said: {error}"
    )


def release_memory() -> None:
    """Give back what the allocator of the device keeps for later."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)
