"""Matrix products of float32 on a GPU in TensorFloat-32, for a block alone."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["products_in_tf32"]


@contextlib.contextmanager
def products_in_tf32(wanted: bool | None, device: torch.device) -> Iterator[None]:  # noqa: FBT001 - None leaves it
    """Have CUDA multiply float32 matrices in TF32 within a block, or not; then torch is set as it was.

    TF32 rounds what is multiplied to 10 bits of mantissa, as float16 has, and sums in float32.

    Args:
        wanted: Whether to; None leaves what the caller has set.
        device: Where the block computes; all but CUDA is left alone.

    >>> before = torch.get_float32_matmul_precision()
    >>> with products_in_tf32(True, torch.device("cuda")):
    ...     inside = torch.backends.cuda.matmul.fp32_precision
    >>> inside, torch.get_float32_matmul_precision() == before
    ('tf32', True)
    """
    if wanted is None or device.type != "cuda":
        yield
        return
    backends: Any = torch.backends  # whose modules are made at run time
    products = [backends.cuda.matmul, backends.mkldnn.matmul]
    before = [each.fp32_precision for each in products]
    # torch has an older setting for the same, which its compiler reads, and an error where the two say otherwise.
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:
        older = None
    try:
        if older is not None:
            torch.set_float32_matmul_precision("high" if wanted else "highest")
        products[0].fp32_precision = "tf32" if wanted else "ieee"
        yield
    finally:
        if older is not None:
            torch.set_float32_matmul_precision(older)
        for each, precision in zip(products, before, strict=True):
            each.fp32_precision = precision
