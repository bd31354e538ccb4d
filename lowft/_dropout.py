"""Dropout on a CPU at a fraction of torch's cost: fewer random bits for a value, and less memory moved for each."""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

__all__ = ["fast_dropout"]

_TOGETHER = 2**19  # attention weights at once, which fit into the cache of a core

_torch_dropout: Callable[..., Tensor] = functional.dropout
_torch_attention: Callable[..., Tensor] = functional.scaled_dot_product_attention
_TORCHS = {"dropout": _torch_dropout, "scaled_dot_product_attention": _torch_attention}
_lock = threading.Lock()
_entered = 0  # how many blocks are open, in all threads


@contextlib.contextmanager
def fast_dropout() -> Iterator[None]:
    """Have `torch.nn.functional` drop values, and attend with dropout, in lowft's own way on a CPU within a block.

    The method is the same (Srivastava et al. 2014): each value is dropped with probability `p`, to the nearest 1 in
    65,536, and what stays is scaled up by just that. Random numbers come from torch's default generator, but they are
    others than torch would draw. torch spends 64 random bits on a value unless the CPU is Intel's (where it has MKL's
    generator), keeps masks in the precision of the values, and computes attention with dropout in float32 whatever it
    is given, with three copies of all weights.

    Left to torch is what is not on a CPU, drops nothing, has more heads for queries than for keys, or attends to
    nothing at all.

    >>> with fast_dropout():
    ...     kept = torch.nn.functional.dropout(torch.ones(10_000), 0.25)
    >>> round(kept.max().item(), 3), 0.73 < kept.count_nonzero().item() / 10_000 < 0.77
    (1.333, True)
    """
    global _entered  # noqa: PLW0603 - torch's functions are global too
    with _lock:
        _entered += 1
        _put_in_place(_OWN, of=_TORCHS)
    try:
        yield
    finally:
        with _lock:
            _entered -= 1
            if not _entered:
                _put_in_place(_TORCHS, of=_OWN)


def _put_in_place(functions: dict[str, Callable[..., Tensor]], *, of: dict[str, Callable[..., Tensor]]) -> None:
    """Set functions of `torch.nn.functional`, but for those where another library has put its own."""
    for name, function in functions.items():
        if getattr(functional, name) is of[name]:
            setattr(functional, name, function)


@functools.wraps(_torch_dropout)
def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:  # noqa: A002, FBT001, FBT002 - torch's
    if not training or inplace or not _is_rate(p) or not _alike(input):
        return _torch_dropout(input, p, training, inplace)
    dropped: Tensor = _Dropout.apply(input, p)  # type: ignore[no-untyped-call]
    return dropped


@functools.wraps(_torch_attention)
def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002 - torch's
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: FBT001, FBT002 - torch's
) -> Tensor:
    as_torch = functools.partial(
        _torch_attention, query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    if enable_gqa or not _is_rate(dropout_p) or (is_causal and attn_mask is not None):  # torch refuses the last
        return as_torch()
    states: list[Tensor] = [query, key, value]
    mask = attn_mask
    if torch.is_autocast_enabled("cpu"):
        states = [each.to(torch.get_autocast_dtype("cpu")) for each in states]
    if is_causal:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=states[0].dtype).masked_fill_(~mask, -math.inf)
    if not _alike(*states) or not _can_attend(states, mask):
        return as_torch()
    given, computed = states[0].dtype, _computed_in(states[0].dtype)
    if mask is not None:
        mask = mask.to(computed).expand(*query.shape[:-1], key.shape[-2])
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    output: Tensor = _Attention.apply(*(each.to(computed) for each in states), mask, dropout_p, scale)  # type: ignore[no-untyped-call]
    return output.to(given)


_OWN: dict[str, Callable[..., Tensor]] = {"dropout": _dropout, "scaled_dot_product_attention": _attention}


def _computed_in(dtype: torch.dtype) -> torch.dtype:
    """Return the precision for products of states: half of float32's bits only where a CPU is fast with them."""
    fast = dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001 - no public name
    return dtype if fast or dtype in {torch.float32, torch.float64} else torch.float32


def _is_rate(p: float) -> bool:
    """Tell whether some values are to be dropped, and not all."""
    return 0 < p < 1 and 0 < _threshold(p) < 2**16


def _alike(*tensors: Tensor) -> bool:
    """Tell whether tensors are floats of one precision on a CPU."""
    first = tensors[0].dtype
    return first.is_floating_point and all(each.device.type == "cpu" and each.dtype == first for each in tensors)


def _can_attend(states: Sequence[Tensor], mask: Tensor | None) -> bool:
    """Tell whether states, `[batch, heads, tokens, width]`, have as many of each, and each query a key to attend to."""
    query, key, value = states
    return (
        query.ndim == key.ndim == value.ndim == 4
        and query.shape[:2] == key.shape[:2] == value.shape[:2]
        and (mask is None or not mask.to(query.dtype).isneginf().all(-1).any())
    )


def _threshold(p: float) -> int:
    """Return how many of 65,536 values are dropped."""
    return round(p * 2**16)


def _kept(shape: Sequence[int], p: float) -> tuple[Tensor, float]:
    """Draw which values stay, as ones and zeros of a shape, and return what these are to be multiplied with."""
    count = math.prod(shape)
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = words.view(torch.int16)[:count].view(tuple(shape)) >= _threshold(p) - 2**15
    return kept.view(torch.uint8), 1 / (1 - _threshold(p) / 2**16)


class _Dropout(torch.autograd.Function):
    """Values dropped, with a mask of one byte a value for the way back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, p: float) -> Tensor:
        kept, ctx.scale = _kept(values.shape, p)
        ctx.save_for_backward(kept)
        return (values * kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (gradient * kept).mul_(ctx.scale), None


class _Attention(torch.autograd.Function):
    """Attention with dropout on its weights, a few rows at a time, in the precision of the states."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, p: float, scale: float
    ) -> Tensor:
        weights = query.new_empty(*query.shape[:-1], key.shape[-2])
        kept, ctx.raised = _kept(weights.shape, p)
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        with torch.autocast("cpu", enabled=False):
            for rows in _pieces(weights):
                scores = (query[rows] @ key[rows].transpose(-1, -2)).mul_(scale)
                if mask is not None:
                    scores += mask[rows]
                torch.softmax(scores, -1, out=weights[rows])
                output[rows] = torch.mul(weights[rows], kept[rows], out=scores) @ value[rows]
        ctx.scale = scale
        ctx.save_for_backward(query, key, value, weights, kept)
        return output.mul_(ctx.raised)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights, kept = ctx.saved_tensors
        of_query, of_key, of_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        of_mask = torch.empty_like(weights) if ctx.needs_input_grad[3] else None
        with torch.autocast("cpu", enabled=False):
            gradient = gradient * ctx.raised
            for rows in _pieces(weights):
                of_value[rows] = (weights[rows] * kept[rows]).transpose(-1, -2) @ gradient[rows]
                of_weights = (gradient[rows] @ value[rows].transpose(-1, -2)).mul_(kept[rows])
                of_scores = torch._softmax_backward_data(of_weights, weights[rows], -1, weights.dtype)  # noqa: SLF001 - autograd's own
                if of_mask is not None:
                    of_mask[rows] = of_scores
                of_query[rows] = of_scores @ key[rows]
                of_key[rows] = of_scores.transpose(-1, -2) @ query[rows]
        return of_query.mul_(ctx.scale), of_key.mul_(ctx.scale), of_value, of_mask, None, None


def _pieces(weights: Tensor) -> Iterator[slice]:
    """Share out a batch so that the weights of a piece are few."""
    together = max(1, _TOGETHER // max(1, weights[0].numel())) if len(weights) else 1
    for start in range(0, len(weights), together):
        yield slice(start, start + together)
