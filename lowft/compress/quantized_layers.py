"""Layers whose weights are integers, and layers that compute as if they were while they train.

Both compute the same: a trained layer's values lie on the grid of the integers that it is converted to, so that the
converted model answers as the trained one did. PyTorch multiplies floats in both; runtimes that multiply integers take
the same ones.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lowft.compress.feed_forward import out_first
from lowft.compress.integers import (
    pack,
    round_rows,
    round_tokens,
    straight_through,
    to_floats,
    to_integers,
    unpack,
)

__all__ = [
    "FakeQuantization",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "Scheme",
    "can_be_quantized",
    "count_weights",
    "fake_quantize_",
    "quantized_layer",
    "undo_fake_quantization_",
    "unrounded_copy",
]

Scheme = Literal["int8", "int8_weight_only", "int4_weight_only", "bfloat16"]

_FAKE = "lowft_quantization"  # an attribute of each layer while it trains


class QuantizedLinear(nn.Module):
    """A linear layer whose weights are integers.

    Attributes:
        weight: int8: `[outputs, inputs]`, or two to the byte.
        scale: float32 `[outputs, groups]`.
        bias: float32 `[outputs]`, or None.
        in_features: Inputs.
        out_features: Outputs.
        bits: 8 or 4.
        dynamic: Whether activations are rounded to eight bits as well, each token by its own largest value.
    """

    weight: Tensor
    scale: Tensor
    bias: nn.Parameter | None

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, *, bits: int, dynamic: bool) -> None:
        """Round a weight, `[outputs, inputs]`."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bits = bits
        self.dynamic = dynamic
        integers, scale = to_integers(weight.detach(), bits)
        self.register_buffer("weight", pack(integers) if bits == 4 else integers)
        self.register_buffer("scale", scale)
        self.register_parameter("bias", bias)

    def float_weight(self) -> Tensor:
        """Return the weight that the integers stand for, float32 `[outputs, inputs]`."""
        integers = unpack(self.weight, self.in_features) if self.bits == 4 else self.weight
        return to_floats(integers, self.scale)

    def forward(self, values: Tensor) -> Tensor:
        """Return `values`, `[..., inputs]`, times the weight, plus the bias."""
        return F.linear(round_tokens(values) if self.dynamic else values, self.float_weight(), self.bias)

    def extra_repr(self) -> str:
        """Say what the layer is, where a model is printed."""
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, dynamic={self.dynamic}"


class QuantizedEmbedding(nn.Module):
    """An embedding whose rows are integers.

    Attributes:
        weight: int8: `[rows, dimensions]`, or two to the byte.
        scale: float32 `[rows, groups]`.
        num_embeddings: Rows.
        embedding_dim: Dimensions.
        bits: 8 or 4.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, *, bits: int) -> None:
        """Round a table, `[rows, dimensions]`."""
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.shape
        self.bits = bits
        integers, scale = to_integers(weight.detach(), bits)
        self.register_buffer("weight", pack(integers) if bits == 4 else integers)
        self.register_buffer("scale", scale)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows with the numbers `ids`: float32, `[..., dimensions]`."""
        rows, scale = self.weight[ids.flatten()], self.scale[ids.flatten()]
        if self.bits == 4:
            rows = unpack(rows, self.embedding_dim)
        return to_floats(rows, scale).view(*ids.shape, self.embedding_dim)

    def extra_repr(self) -> str:
        """Say what the layer is, where a model is printed."""
        return f"{self.num_embeddings}, {self.embedding_dim}, bits={self.bits}"


def count_weights(model: nn.Module) -> int:
    """Return how many numbers a model has learned, whatever they are stored as; tied ones count once.

    >>> layer = nn.Linear(3, 2)
    >>> count_weights(layer), count_weights(QuantizedLinear(layer.weight, None, bits=4, dynamic=False))
    (8, 6)
    """
    count = sum(parameter.numel() for parameter in model.parameters())
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            count += module.out_features * module.in_features
        elif isinstance(module, QuantizedEmbedding):
            count += module.num_embeddings * module.embedding_dim
    return count


@dataclass(eq=False)
class FakeQuantization:
    """What the layers of one model share while they train: how to round, and whether to.

    Attributes:
        scheme: How they are to be quantized.
        on: Whether they round now.
    """

    scheme: Scheme
    on: bool = True

    @property
    def bits(self) -> int:
        """Bits of a weight."""
        return 4 if self.scheme == "int4_weight_only" else 8

    @property
    def dynamic(self) -> bool:
        """Whether activations are rounded too."""
        return self.scheme == "int8"


def can_be_quantized(module: nn.Module) -> bool:
    """Say whether a module is a plain linear layer or embedding; what a subclass of them does is its own affair."""
    if type(module) is nn.Embedding:
        return module.max_norm is None
    return type(module) is nn.Linear or type(module).__name__ == "Conv1D"


def quantized_layer(module: Any, scheme: Scheme) -> nn.Module:
    """Return the layer with integers that takes the place of a linear layer or an embedding."""
    how = FakeQuantization(scheme)
    if isinstance(module, nn.Embedding):
        return QuantizedEmbedding(module.weight, bits=how.bits)
    return QuantizedLinear(out_first(module), module.bias, bits=how.bits, dynamic=how.dynamic)


def fake_quantize_(module: nn.Module, how: FakeQuantization) -> None:
    """Let a layer round its weight and inputs from now on, with the same parameters, buffers and hooks."""
    setattr(module, _FAKE, how)
    module.__class__ = _fake_class(type(module))  # type: ignore[arg-type] # classes are hashable


def undo_fake_quantization_(module: nn.Module) -> None:
    """Make a layer what it was before `fake_quantize_`."""
    delattr(module, _FAKE)
    module.__class__ = type(module).__mro__[2]


class _FakeLinear:
    """Goes before a class of linear layers."""

    def forward(self: Any, values: Tensor) -> Tensor:
        how = getattr(self, _FAKE)
        if not how.on:
            result: Tensor = super().forward(values)  # type: ignore[misc]
            return result
        weight = out_first(self)
        gate = self._buffers.get("lowft_gate")
        if gate is not None:  # neurons that are shut will not be there to set the scale
            weight = weight * gate
        weight = straight_through(weight, round_rows(weight.detach(), how.bits))
        if how.dynamic:
            values = straight_through(values, round_tokens(values.detach()))
        return F.linear(values, weight, self.bias)


class _FakeEmbedding:
    """Goes before a class of embeddings."""

    def forward(self: Any, ids: Tensor) -> Tensor:
        how = getattr(self, _FAKE)
        rows: Tensor = super().forward(ids)  # type: ignore[misc]
        if not how.on:
            return rows
        rounded = round_rows(rows.detach().view(-1, rows.shape[-1]), how.bits)
        return straight_through(rows, rounded.view_as(rows))


@functools.cache
def _fake_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass that rounds; its third ancestor, after itself and the mixin, is the class itself."""
    mixin = _FakeEmbedding if issubclass(kind, nn.Embedding) else _FakeLinear
    return type(f"FakeQuantized{kind.__name__}", (mixin, kind), {})


def unrounded_copy(model: nn.Module) -> nn.Module:
    """Return a copy, in evaluation mode, none of whose layers rounds."""
    copied = copy.deepcopy(model).eval()
    for module in copied.modules():
        if type(module).__name__.startswith("FakeQuantized"):
            undo_fake_quantization_(module)
    return copied
