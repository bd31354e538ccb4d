"""AdamW with moments of 8 bits: a quarter of the memory that AdamW's state takes."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

__all__ = ["BLOCK", "AdamW8bit"]

BLOCK = 256  # values that share a scale
_LEAST_VALUES = 4096  # of a parameter whose moments are stored in 8 bits: smaller ones take no memory to speak of
_TOGETHER = 2**18  # values that are float32 at the same time; whole blocks
_HALVES = 2**16  # numbers that float16 can express


class AdamW8bit(torch.optim.Optimizer):
    """AdamW whose moments are stored as codes of 8 bits, in blocks with a scale of their own.

    The blocks and codes are those of Dettmers et al. 2022 (8-bit Optimizers via Block-wise Quantization,
    https://arxiv.org/abs/2110.02861, sections 2.1 and 2.2): of each code, a part says the power of ten and the rest
    divides it evenly, so that small values next to large ones keep their size. Here the second moment is stored as its
    square root, and never as zero unless it is zero: then it has the range of the first moment, and no step is taken
    that divides by what rounding has lost. Moments are rounded after the step that they enter, which is itself made in
    float32. Vectors and other small parameters keep moments of 32 bits, and are then stepped as AdamW does.

    Args:
        groups: Groups of parameters, as for `torch.optim.AdamW`.
        lr: The learning rate.
        betas: Decay rates of the moments.
        eps: Added to the denominator.
        weight_decay: Decoupled weight decay.

    >>> weight = torch.nn.Parameter(torch.ones(64, 64))
    >>> optimizer = AdamW8bit([weight], lr=0.1)
    >>> weight.sum().backward()
    >>> optimizer.step()
    >>> optimizer.state[weight]["exp_avg"].dtype, round(weight[0, 0].item(), 3)
    (torch.uint8, 0.899)
    """

    def __init__(
        self,
        groups: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        """Take the parameters; nothing is stored of one before it has a gradient."""
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override] # without a closure: nothing computes a loss twice here
        """Make a step with the gradients that are there."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, group)

    def _step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(_zeros(parameter))
        state["step"] += 1
        count = state["step"].item()
        if "exp_avg_scale" not in state:
            _advance(parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"], count, group)
            return
        flat, gradient = parameter.view(-1), parameter.grad.contiguous().view(-1)  # type: ignore[union-attr]
        for start in range(0, len(flat), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            blocks = slice(start // BLOCK, (start + _TOGETHER) // BLOCK)
            stored = [
                (state[name].view(-1)[part], state[f"{name}_scale"][blocks], name == "exp_avg")
                for name in ("exp_avg", "exp_avg_sq")
            ]
            mean, root = (_decoded(*moment) for moment in stored)
            square = root.square_()
            _advance(flat[part], gradient[part], mean, square, count, group)
            for moment, values in zip(stored, (mean, square.sqrt_()), strict=True):
                _encode_(*moment, values)


def _zeros(parameter: Tensor) -> dict[str, Tensor]:
    """Return the state of a parameter that was never stepped."""
    state = {"step": torch.zeros(())}
    for name in ("exp_avg", "exp_avg_sq"):
        if parameter.numel() < _LEAST_VALUES or not parameter.is_contiguous():
            state[name] = torch.zeros_like(parameter, dtype=torch.float32)
            continue
        zero = int((_codebook(parameter.device, signed=name == "exp_avg") == 0).nonzero())
        state[name] = torch.full_like(parameter, zero, dtype=torch.uint8)
        state[f"{name}_scale"] = parameter.new_zeros(math.ceil(parameter.numel() / BLOCK), dtype=torch.float32)
    return state


def _advance(
    values: Tensor, gradient: Tensor | None, mean: Tensor, square: Tensor, count: float, group: dict[str, Any]
) -> None:
    """Make AdamW's step number `count` (Loshchilov & Hutter 2019, algorithm 2) with moments in float32, in place."""
    assert gradient is not None  # noqa: S101 - asked before
    first, second = group["betas"]
    gradient = gradient.float()
    mean.lerp_(gradient, 1 - first)
    square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
    denominator = (square / (1 - second**count)).sqrt_().add_(group["eps"])
    values.mul_(1 - group["lr"] * group["weight_decay"])
    values.addcdiv_(mean.to(values.dtype), denominator.to(values.dtype), value=-group["lr"] / (1 - first**count))


def _decoded(codes: Tensor, scales: Tensor, signed: bool) -> Tensor:  # noqa: FBT001 - as stored
    """Return what codes stand for, `[values]` in float32."""
    values = _codebook(codes.device, signed=signed).index_select(0, codes.int())
    return _by_blocks(values).mul_(scales[:, None]).view(-1)[: len(codes)]


def _encode_(codes: Tensor, scales: Tensor, signed: bool, values: Tensor) -> None:  # noqa: FBT001 - as stored
    """Write the codes nearest to values, `[values]`, and the scale of each block, its largest value."""
    blocks = _by_blocks(values)
    scales.copy_(blocks.abs().amax(dim=1))
    shares = (blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).view(-1)[: len(codes)]
    # float16 has few enough numbers to know the nearest code of each, and 4 times the digits of a code.
    bits = shares.half().view(torch.int16).int()
    found = _nearest(codes.device, signed=signed).index_select(0, bits + _HALVES // 2)
    if not signed:
        found = torch.where((found == 0) & (values > 0), 1, found)
    codes.copy_(found)


def _by_blocks(values: Tensor) -> Tensor:
    """Return values in blocks, `[blocks, values]`, the last one filled up with zeros."""
    missing = -len(values) % BLOCK
    return (torch.nn.functional.pad(values, (0, missing)) if missing else values).view(-1, BLOCK)


@cache
def _codebook(device: torch.device, *, signed: bool) -> Tensor:
    """Return what each code of 8 bits stands for, in order, `[256]`: shares of a block's largest value.

    A code tells the power of ten, 0 to −6, by the place of its first bit that is set; the bits after that one say which
    of the equal parts of [0.1, 1] it is, whose middle it stands for. A sign takes one bit. 0 and 1 are there besides.
    """
    values = [0.0, 1.0]
    for power in range(7):
        parts = 2 ** (6 - power + (not signed))
        middles = [(0.1 + 0.9 * (part + 0.5) / parts) / 10**power for part in range(parts)]
        values += middles + [-value for value in middles if signed]
    return torch.tensor(sorted(values), device=device)


@cache
def _nearest(device: torch.device, *, signed: bool) -> Tensor:
    """Return the code nearest to each number of float16, `[65536]`, in the order of its bits as an integer."""
    book = _codebook(torch.device("cpu"), signed=signed)
    halves = torch.arange(-_HALVES // 2, _HALVES // 2).to(torch.int16).view(torch.half).float()
    codes = torch.bucketize(halves, (book[1:] + book[:-1]) / 2)
    return codes.to(torch.uint8).to(device)
