"""The feed-forward neurons of a model: where they are, what gates them, how they are cut out.

A neuron is one row of the layers that compute it and one column of the layer that reads it. They are found by shape
alone: in each block, the linear layer with most inputs reads them, and those with as many outputs compute them (twice
as many where a gate and a value are computed by one layer).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowft.errors import ModelError
from lowft.models.layers import find_layers

__all__ = [
    "FeedForward",
    "add_gates_",
    "column_sums",
    "cut_neurons_",
    "find_feed_forwards",
    "gate_of",
    "is_conv1d",
    "magnitudes",
    "out_first",
    "rebuild_widths_",
    "remove_gates_",
]

_GATE = "lowft_gate"  # a buffer, so that it is saved, restored and rolled back with the weights


@dataclass(frozen=True)
class FeedForward:
    """The feed-forward layers of one block.

    Attributes:
        block: The block's name.
        computes: Names of the linear layers that compute the neurons.
        reads: Name of the linear layer that reads them.
        width: How many there are.
    """

    block: str
    computes: tuple[str, ...]
    reads: str
    width: int


def find_feed_forwards(model: nn.Module) -> tuple[FeedForward, ...]:
    """Find the feed-forward layers of each block, bottom to top.

    Raises:
        ModelError: There are no blocks, or a block in which they cannot be told from the attention.
    """
    found = []
    for block in find_layers(model).blocks:
        linears = {
            f"{block}.{name}": _shape(module)
            for name, module in model.get_submodule(block).named_modules()
            if _is_linear(module)
        }
        width = max((inputs for inputs, _ in linears.values()), default=0)
        reads = [name for name, (inputs, _) in linears.items() if inputs == width]
        computes = tuple(name for name, (_, outputs) in linears.items() if outputs in (width, 2 * width))
        if len(reads) != 1 or not computes or linears[reads[0]][1] == width or reads[0] in computes:
            listed = ", ".join(f"{name} {inputs} → {outputs}" for name, (inputs, outputs) in linears.items())
            raise ModelError(
                f"the feed-forward neurons of {block!r} cannot be told by their shapes: one linear layer must have "
                f"more inputs than all others, and others as many outputs. It holds {listed or 'no linear layers'}"
            )
        found.append(FeedForward(block, computes, reads[0], width))
    return tuple(found)


def add_gates_(model: nn.Module, parts: tuple[FeedForward, ...]) -> None:
    """Multiply each neuron's output by a gate, 1 at first, that is saved with the weights."""
    for part in parts:
        reads = model.get_submodule(part.reads)
        device = next(reads.parameters()).device
        reads.register_buffer(_GATE, torch.ones(part.width, device=device))
        reads.register_forward_pre_hook(_apply_gate)


def gate_of(model: nn.Module, part: FeedForward) -> Tensor:
    """Return the gate of a block's neurons, `[width]`, to be read and written."""
    gate: Tensor = model.get_submodule(part.reads).get_buffer(_GATE)
    return gate


def remove_gates_(model: nn.Module, parts: tuple[FeedForward, ...]) -> None:
    """Take the gates away; neurons that they had shut are open again."""
    for part in parts:
        reads = model.get_submodule(part.reads)
        delattr(reads, _GATE)
        hooks = reads._forward_pre_hooks  # noqa: SLF001 - a copied model has no handle to remove its hooks by
        for number in [number for number, hook in hooks.items() if hook is _apply_gate]:
            del hooks[number]


def _apply_gate(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    gate: Tensor = module.get_buffer(_GATE)
    return (args[0] * gate.to(args[0].dtype), *args[1:])


@torch.no_grad()
def magnitudes(model: nn.Module, part: FeedForward) -> Tensor:
    """Return the L2 norm of all weights of each neuron, `[width]`, on the CPU."""
    squares = torch.zeros(part.width)
    for name in part.computes:
        rows = out_first(model.get_submodule(name)).float().square().sum(dim=1).cpu()
        squares += rows.view(-1, part.width).sum(dim=0)
    squares += out_first(model.get_submodule(part.reads)).float().square().sum(dim=0).cpu()
    return squares.sqrt()


@torch.no_grad()
def column_sums(model: nn.Module, part: FeedForward, gradient: Tensor) -> Tensor:
    """Return the derivative of the loss by each neuron's gate, `[width]`, on the CPU.

    Scaling a neuron is scaling the column that reads it, so its derivative is the sum over that column of weight times
    gradient.

    Args:
        model: The model.
        part: The neurons.
        gradient: That of the weight that reads them.
    """
    reads = model.get_submodule(part.reads)
    product = (reads.weight * gradient).float()  # type: ignore[operator]
    return product.sum(dim=1 if is_conv1d(reads) else 0).cpu()


@torch.no_grad()
def cut_neurons_(model: nn.Module, part: FeedForward, kept: Tensor) -> None:
    """Leave only the neurons with the numbers `kept`, `[neurons]`, in this order; frozen weights stay frozen."""
    for name in part.computes:
        module = model.get_submodule(name)
        halves = _shape(module)[1] // part.width
        rows = torch.cat([kept + half * part.width for half in range(halves)])
        _keep_(module, rows, outputs=True)
    _keep_(model.get_submodule(part.reads), kept, outputs=False)


def _keep_(module: nn.Module, kept: Tensor, *, outputs: bool) -> None:
    trains = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    if is_conv1d(module):
        # torch-pruning 1.6 does not know GPT-2's Conv1D, whose weight is [inputs, outputs].
        names = ("weight", "bias") if outputs else ("weight",)
        for name in names:
            old = module.get_parameter(name)
            index = kept.to(old.device)
            setattr(module, name, nn.Parameter(old.index_select(old.ndim - 1 if outputs else 0, index)))
        if outputs:
            module.nf = len(kept)  # type: ignore[assignment]
        else:
            module.nx = len(kept)  # type: ignore[assignment]
    else:
        import torch_pruning

        prune = torch_pruning.prune_linear_out_channels if outputs else torch_pruning.prune_linear_in_channels
        size = _shape(module)[1 if outputs else 0]
        prune(module, sorted(set(range(size)) - set(kept.tolist())))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(trains[name])


def rebuild_widths_(model: nn.Module, plan: Mapping[str, Any]) -> None:
    """Give the blocks of a model of the config the widths of a plan; which neurons are left does not matter."""
    parts = {part.block: part for part in find_feed_forwards(model)}
    for block, width in plan["widths"].items():
        if not 0 < width <= parts[block].width:
            raise ValueError(f"{block} has {parts[block].width} neurons, and cannot be cut to {width}")
        cut_neurons_(model, parts[block], torch.arange(width))


def is_conv1d(module: nn.Module) -> bool:
    """Say whether a layer is GPT-2's linear layer, or a subclass of it."""
    return any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_conv1d(module)


def _shape(module: nn.Module) -> tuple[int, int]:
    """Return a linear layer's inputs and outputs."""
    rows, columns = module.get_parameter("weight").shape
    return (rows, columns) if is_conv1d(module) else (columns, rows)


def out_first(module: nn.Module) -> Tensor:
    """Return a linear layer's weight, `[outputs, inputs]`."""
    weight = module.get_parameter("weight")
    return weight.T if is_conv1d(module) else weight
