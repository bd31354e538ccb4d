"""Integers for floats: how weights and activations are rounded, and how two small integers share a byte.

Everything is symmetric: an integer times its scale is the value, and zero stays zero. A scale belongs to one output
channel of a matrix, one row of an embedding, one token of an activation, or, for four bits, to a group of inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["pack", "round_rows", "round_tokens", "straight_through", "to_floats", "to_integers", "unpack"]

_GROUP = 32  # inputs that share a scale, where integers have four bits
_SMALLEST = 1e-12  # for channels of zeros


def to_integers(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Round a matrix to integers.

    Args:
        weight: `[rows, columns]`; each row has scales of its own.
        bits: 8, with one scale a row, or 4, with one for each 32 columns where these divide the row.

    Returns:
        The integers, int8 `[rows, columns]`, and the scales, float32 `[rows, groups]`.

    >>> to_integers(torch.tensor([[1.27, -0.5]]), 8)
    (tensor([[127, -50]], dtype=torch.int8), tensor([[0.0100]]))
    """
    rows, columns = weight.shape
    groups = columns // _GROUP if bits == 4 and columns % _GROUP == 0 else 1
    grouped = weight.float().view(rows, groups, columns // groups)
    most = 2 ** (bits - 1) - 1
    scale = grouped.abs().amax(dim=2).clamp_min(_SMALLEST) / most
    integers = (grouped / scale[..., None]).round().clamp(-most, most)
    return integers.view(rows, columns).to(torch.int8), scale


def to_floats(integers: Tensor, scale: Tensor) -> Tensor:
    """Return the matrix, float32 `[rows, columns]`, that integers and scales stand for."""
    rows, groups = scale.shape
    return (integers.float().view(rows, groups, -1) * scale[..., None]).view(rows, -1)


def round_rows(weight: Tensor, bits: int) -> Tensor:
    """Return the values that a matrix has after it was rounded to integers."""
    return to_floats(*to_integers(weight, bits))


def round_tokens(values: Tensor) -> Tensor:
    """Return activations, `[..., features]`, rounded to eight bits with one scale for each token."""
    rows = values.float()
    scale = rows.abs().amax(dim=-1, keepdim=True).clamp_min(_SMALLEST) / 127
    return ((rows / scale).round() * scale).to(values.dtype)


def pack(integers: Tensor) -> Tensor:
    """Put two four-bit integers into each byte: int8 `[rows, columns]` to int8 `[rows, (columns + 1) // 2]`.

    >>> unpack(pack(torch.tensor([[-7, 3, 5]], dtype=torch.int8)), 3).tolist()
    [[-7, 3, 5]]
    """
    if integers.shape[1] % 2:
        integers = torch.nn.functional.pad(integers, (0, 1))
    low, high = integers[:, 0::2], integers[:, 1::2]
    return (low & 15) | (high << 4)


def unpack(packed: Tensor, columns: int) -> Tensor:
    """Return what `pack` was given."""
    low = (packed << 4) >> 4  # shifting right keeps the sign
    high = packed >> 4
    return torch.stack((low, high), dim=2).view(len(packed), -1)[:, :columns]


def straight_through(value: Tensor, rounded: Tensor) -> Tensor:
    """Return the rounded values, whose gradient goes to those before the rounding (Bengio et al. 2013)."""
    result: Tensor = _StraightThrough.apply(value, rounded)  # type: ignore[no-untyped-call] # of torch
    return result


class _StraightThrough(torch.autograd.Function):
    """Rounding has no slope of its own."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, rounded: Tensor) -> Tensor:  # noqa: ARG004 - as torch calls it
        """Return the rounded values."""
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        """Hand the gradient on as it is."""
        return gradient, None
