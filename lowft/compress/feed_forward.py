"""The feed-forward neurons of a model: where they are.

They are found by shape alone, so on any architecture: what is left of a block without its attention is layers that
compute neurons (twice as many where a gate and a value are computed by one layer) and the one that reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lowft.compress.attention import find_heads
from lowft.compress.linear import in_and_out, is_linear, out_first
from lowft.compress.parts import Part, Site, cut_part_
from lowft.errors import ModelError
from lowft.models.layers import find_layers

__all__ = ["find_neurons", "out_first", "rebuild_widths_"]


def find_neurons(model: nn.Module) -> tuple[Part, ...]:
    """Find the feed-forward neurons of each block, bottom to top.

    Raises:
        ModelError: There are no blocks, or a block in which they cannot be told by the shapes of its layers.
    """
    attention = _attention(model)
    return tuple(_neurons_of(model, block, attention) for block in find_layers(model).blocks)


def _attention(model: nn.Module) -> set[str]:
    """Return the names of the linear layers of the attention, where it is of a known family."""
    try:
        sites = [site for part in find_heads(model) for site in part.sites]
    except ModelError:
        return set()
    return {name for site in sites for name in (site.reads, *(own for own, _ in site.computes))}


def _neurons_of(model: nn.Module, block: str, attention: set[str]) -> Part:
    held = {
        f"{block}.{name}": in_and_out(module)
        for name, module in model.get_submodule(block).named_modules()
        if is_linear(module)
    }
    linears = {name: shape for name, shape in held.items() if name not in attention}
    # Of an attention that is not known, the layers have as many inputs as the model is wide: fewer than neurons.
    width = max((inputs for inputs, _ in linears.values()), default=0) if len(linears) == len(held) else None
    for reads, (inputs, outputs) in reversed(linears.items()):  # what is read is registered before what reads it
        others = {name: shape for name, shape in linears.items() if name != reads}
        computes = {name: shape[1] // inputs for name, shape in others.items() if shape[1] in (inputs, 2 * inputs)}
        if width is None:
            fits = len(computes) == len(others) and all(shape[0] == outputs for shape in others.values())
        else:
            most = [name for name, shape in linears.items() if shape[0] == width]
            fits = most == [reads] and outputs != width
        if fits and computes:
            return Part("neurons", (Site(block, block, tuple(computes.items()), reads),), inputs)
    listed = ", ".join(f"{name} {inputs} → {outputs}" for name, (inputs, outputs) in held.items())
    raise ModelError(
        f"the feed-forward neurons of {block!r} cannot be told by their shapes: beside its attention, one linear layer "
        f"must read what the others compute, and have more inputs than all others where lowft does not know the "
        f"attention. It holds {listed or 'no linear layers'}"
    )


def rebuild_widths_(model: nn.Module, plan: Mapping[str, Any]) -> None:
    """Give the blocks of a model of the config the widths of a plan; which neurons are left does not matter."""
    parts = {part.sites[0].block: part for part in find_neurons(model)}
    for block, width in plan["widths"].items():
        if not 0 < width <= parts[block].units:
            raise ValueError(f"{block} has {parts[block].units} neurons, and cannot be cut to {width}")
        cut_part_(model, parts[block], torch.arange(width))
