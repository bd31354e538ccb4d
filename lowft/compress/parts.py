"""What can be cut out of a model: its units, neurons and attention heads, each gated, measured and cut alike.

A unit is a few rows of the layers that compute it and a few columns of the layer that reads it. The units of a part are
alike in cost; a part has several sites where one cut must serve them all, as where layers share a table with one column
for each head.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowft._placement import device_of
from lowft.compress.linear import in_and_out, keep_inputs_, keep_outputs_, out_first

__all__ = [
    "Counter",
    "Kind",
    "Part",
    "Site",
    "add_gates_",
    "column_sums",
    "cut_part_",
    "gate_of",
    "magnitudes",
    "remove_gates_",
    "scale_columns_",
    "set_gate_",
]

Kind = Literal["neurons", "heads"]

GATE = "lowft_gate"  # a buffer, so that it is saved, restored and rolled back with the weights


@dataclass(frozen=True)
class Counter:
    """An attribute of a module that says how many units there are.

    Attributes:
        module: The module's name.
        attribute: The attribute's.
        each: What one unit adds to it.
    """

    module: str
    attribute: str
    each: int


@dataclass(frozen=True)
class Site:
    """One place where units are computed and read.

    Attributes:
        name: What plans call it: the block for neurons, the attention module for heads.
        block: The block it lies in.
        computes: Names of the linear layers that compute the units, and how many of them one layer stacks: 3 where
            queries, keys and values come from one.
        reads: Name of the linear layer that reads them.
        counters: Where the model says how many there are.
    """

    name: str
    block: str
    computes: tuple[tuple[str, int], ...]
    reads: str
    counters: tuple[Counter, ...] = ()


@dataclass(frozen=True)
class Part:
    """Units that compete with each other.

    Attributes:
        kind: What they are.
        sites: Where they are.
        units: How many there are.
        size: Columns of the reading layer for each of them.
        table: Name of an embedding with one column for each of them, or empty.
    """

    kind: Kind
    sites: tuple[Site, ...]
    units: int
    size: int = 1
    table: str = ""


def add_gates_(model: nn.Module, parts: Iterable[Part]) -> None:
    """Multiply each unit's output by a gate, 1 at first, that is saved with the weights."""
    for part in parts:
        for site in part.sites:
            reads = model.get_submodule(site.reads)
            device = device_of(reads)
            reads.register_buffer(GATE, torch.ones(part.units * part.size, device=device))
            reads.register_forward_pre_hook(_apply_gate)


def gate_of(model: nn.Module, part: Part, site: int = 0) -> Tensor:
    """Return a copy of the gate of each unit, `[units]`."""
    gate: Tensor = model.get_submodule(part.sites[site].reads).get_buffer(GATE)
    return gate.view(part.units, part.size)[:, 0].clone()


@torch.no_grad()
def set_gate_(model: nn.Module, part: Part, values: Tensor, sites: Sequence[Site] | None = None) -> None:
    """Set the gate of each unit to `values`, `[units]`, at every site or those given."""
    for site in part.sites if sites is None else sites:
        gate: Tensor = model.get_submodule(site.reads).get_buffer(GATE)
        gate.copy_(values.to(gate).repeat_interleave(part.size))


def remove_gates_(model: nn.Module, parts: Iterable[Part]) -> None:
    """Take the gates away; units that they had shut are open again."""
    for site in (site for part in parts for site in part.sites):
        reads = model.get_submodule(site.reads)
        delattr(reads, GATE)
        hooks = reads._forward_pre_hooks  # noqa: SLF001 - a copied model has no handle to remove its hooks by
        for number in [number for number, hook in hooks.items() if hook is _apply_gate]:
            del hooks[number]


def _apply_gate(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    gate: Tensor = module.get_buffer(GATE)
    return (args[0] * gate.to(args[0].dtype), *args[1:])


@torch.no_grad()
def magnitudes(model: nn.Module, part: Part) -> Tensor:
    """Return the L2 norm of all weights of each unit, `[units]`, on the CPU."""
    squares = torch.zeros(part.units)
    for site in part.sites:
        for name, stacked in site.computes:
            rows = out_first(model.get_submodule(name)).float().square().sum(dim=1).cpu()
            squares += rows.view(stacked, part.units, -1).sum(dim=(0, 2))
        columns = out_first(model.get_submodule(site.reads)).float().square().sum(dim=0).cpu()
        squares += columns.view(part.units, part.size).sum(dim=1)
    return squares.sqrt()


@torch.no_grad()
def column_sums(model: nn.Module, part: Part) -> Tensor | None:
    """Return the derivative of the loss by each unit's gate, `[units]`, on the CPU, from the gradients of the weights.

    Scaling a unit is scaling the columns that read it, so its derivative is the sum over them of weight times gradient.
    None where a layer that reads them has no gradient.
    """
    slopes = torch.zeros(part.units)
    for site in part.sites:
        reads = model.get_submodule(site.reads)
        weight = reads.get_parameter("weight")
        if weight.grad is None:
            return None
        gradient = weight.grad.T if out_first(reads) is not weight else weight.grad
        product = (out_first(reads) * gradient).float().sum(dim=0).cpu()
        slopes += product.view(part.units, part.size).sum(dim=1)
    return slopes


@torch.no_grad()
def scale_columns_(model: nn.Module, part: Part, site: Site, factors: Tensor) -> None:
    """Multiply the weights that read each unit by its factor, `[units]`."""
    weight = out_first(model.get_submodule(site.reads))
    weight.mul_(factors.to(weight).repeat_interleave(part.size))


@torch.no_grad()
def cut_part_(model: nn.Module, part: Part, kept: Tensor) -> None:
    """Leave only the units with the numbers `kept`, rising; frozen weights stay frozen."""
    for site in part.sites:
        for name, stacked in site.computes:
            module = model.get_submodule(name)
            rows = torch.arange(in_and_out(module)[1]).view(stacked, part.units, -1)
            keep_outputs_(module, rows[:, kept].flatten())
        columns = torch.arange(part.units * part.size).view(part.units, part.size)
        keep_inputs_(model.get_submodule(site.reads), columns[kept].flatten())
        for counter in site.counters:
            setattr(model.get_submodule(counter.module), counter.attribute, len(kept) * counter.each)
    if part.table:
        table = model.get_submodule(part.table)
        old = table.get_parameter("weight")
        columns_left = old.index_select(1, kept.to(old.device))
        table.weight = nn.Parameter(columns_left, requires_grad=old.requires_grad)
        table.embedding_dim = len(kept)  # type: ignore[assignment]
