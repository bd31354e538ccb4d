"""Matrix products of float32 on a GPU in TensorFloat-32, for a block alone."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["products_in_tf32"]


@contextlib.contextmanager
def products_in_tf32(wanted: bool | None) -> Iterator[None]:  # noqa: FBT001 - None leaves it
    """Have CUDA multiply float32 matrices in TF32 within a block, or not; then all is as it was.

    TF32 rounds what is multiplied to 10 bits of mantissa, as float16 has, and sums in float32.

    Args:
        wanted: Whether to; None leaves what the caller has set.

    >>> before = torch.backends.cuda.matmul.fp32_precision
    >>> with products_in_tf32(True):
    ...     inside = torch.backends.cuda.matmul.fp32_precision
    >>> inside, torch.backends.cuda.matmul.fp32_precision == before
    ('tf32', True)
    """
    if wanted is None:
        yield
        return
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    products.fp32_precision = "tf32" if wanted else "ieee"
    try:
        yield
    finally:
        products.fp32_precision = before
