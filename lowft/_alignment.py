"""Tensors at the addresses that torch's own allocator gives, so that equal values compute equal bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["align_", "aligned"]

_BYTES = 64  # what torch aligns its own CPU tensors to


def aligned(tensor: Tensor) -> Tensor:
    """Return the tensor, copied if it does not begin where torch would have put it.

    What safetensors reads lies in memory as it lies in the file: a bias of one element shifts all that follows. Matrix
    kernels then add in another order, and a reloaded model gives logits that differ in the last bit.

    >>> import torch
    >>> shifted = torch.arange(5.0)[1:]
    >>> aligned(shifted).data_ptr() % 64, bool((aligned(shifted) == shifted).all())
    (0, True)
    """
    return tensor.clone() if tensor.data_ptr() % _BYTES else tensor


def align_(model: torch.nn.Module) -> None:
    """Put every parameter and buffer of a model where torch's own allocator would."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = aligned(tensor.data)
