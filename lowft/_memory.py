"""What to do when memory runs out: recognise it, and go on with fewer rows at a time."""

from __future__ import annotations

import torch

__all__ = ["is_out_of_memory", "release_memory"]


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


def release_memory() -> None:
    """Give back what the allocator of the device keeps for later."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)
