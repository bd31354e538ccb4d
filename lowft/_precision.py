"""In which precision a machine trains a model faster: measured, for having the instructions does not tell."""

from __future__ import annotations

import functools
import time
from typing import Any

import torch

__all__ = ["faster_precision"]

_ROWS = 512  # tokens of a batch, or so
_REPEATS = (3, 20)  # at least, and at most
_ENOUGH = 0.1  # seconds, after which the least number of repeats will do: without instructions, bfloat16 crawls
_WORTH = 1.2  # times as fast, from which shorter floats are worth their rounding


def faster_precision(model: torch.nn.Module, device: torch.device) -> tuple[str, str]:
    """Return "float32" or "bfloat16", and why, by a short measurement of the model's largest product.

    A process measures a shape once. Of two processors with the instructions for bfloat16, one trained MiniLM 1.6 times
    as fast in it, and the other multiplied matrices half as fast.

    Args:
        model: The model.
        device: Where it computes.

    >>> faster_precision(torch.nn.Linear(8, 8), torch.device("cpu"))[0] in {"float32", "bfloat16"}
    True
    """
    shapes = [module.weight.shape for module in model.modules() if isinstance(module, torch.nn.Linear)]
    shape = max(shapes, key=lambda found: found.numel(), default=torch.Size((1536, 384)))
    ratio = _ratio(shape, device, torch.get_num_threads(), torch.backends.cuda.matmul.fp32_precision)
    chosen = "bfloat16" if ratio > _WORTH else "float32"
    return chosen, f"precision: {chosen}; products of matrices are {ratio:.1f} times as fast here in bfloat16"


@functools.cache  # so that a machine with another load does not train the next of two equal runs otherwise
def _ratio(shape: torch.Size, device: torch.device, _threads: int, _in_float32: str) -> float:
    """Return how many times as fast a product is in bfloat16; another number of threads or TF32 is measured anew."""
    return _seconds(shape, torch.float32, device) / _seconds(shape, torch.bfloat16, device)


def _seconds(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> float:
    """Return the least of a few times that a product took."""
    settings: dict[str, Any] = {"dtype": dtype, "device": device}
    one, other = torch.ones(_ROWS, shape[1], **settings), torch.ones(shape[1], shape[0], **settings)
    least, most = _REPEATS
    times: list[float] = []
    while len(times) < least or (len(times) < most and sum(times) < _ENOUGH):
        started = time.perf_counter()
        torch.mm(one, other)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times)
