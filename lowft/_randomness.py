"""Random streams that are a function of the seed and the step, so that no stream has to be saved."""

from __future__ import annotations

import contextlib
import hashlib
import random
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["seeded"]


@contextlib.contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Run a block with Python's, NumPy's and torch's streams decided by `numbers`; then put the caller's back.

    What a run draws does not depend on what the caller draws between steps, nor on where it was resumed.
    """
    seed = int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "big") >> 1
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - strategies may use the global one
    # torch.manual_seed seeds all of them. A run on the CPU must not wake a GPU, which may be taken.
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if in_use else ()
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        # torch.manual_seed writes down the whole call stack for each kind of accelerator that is not there.
        seed_torch = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed
        seed_torch(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
