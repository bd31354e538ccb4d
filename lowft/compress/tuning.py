"""Mask tuning: what is kept makes up for what is cut, by factors that least squares gives."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowft._inference import evaluation_mode
from lowft.compress.linear import out_first
from lowft.compress.parts import Part, Site, add_gates_, gate_of, remove_gates_, scale_columns_, set_gate_
from lowft.models.layers import find_layers

__all__ = ["tune_"]

_MOST = 10.0  # Kwon et al.: a factor beyond it, on either side of 0, shows that there was too little to go by
_DAMPING = 1e-2  # of the mean square of a unit's output


@torch.no_grad()
def tune_(
    model: nn.Module, parts: Sequence[Part], kept: Sequence[Tensor], batches: Sequence[Mapping[str, Any]]
) -> None:
    """Scale the units that are to be kept, so that each layer gives what it gave with all of them.

    From the bottom up, each layer's factors are those with the least squared difference between what the layer gives
    in the whole model and in the pruned one, where the layers below are pruned and scaled already: a linear problem,
    damped towards 1. Where a factor lies outside −10 to 10 the layer is left alone. The factors go into the weights
    that read the units, so nothing is left to be computed with them.

    Kwon et al. 2022, https://arxiv.org/abs/2204.09656, section 4.3.

    Args:
        model: The model, from which nothing is cut yet.
        parts: Its units.
        kept: The numbers of those that will be kept, for each part.
        batches: Inputs of the model.
    """
    add_gates_(model, parts)
    masks = []
    for part, numbers in zip(parts, kept, strict=True):
        masks.append(torch.zeros(part.units))
        masks[-1][numbers] = 1
        set_gate_(model, part, masks[-1])
    shared = find_layers(model).shared
    order = {name: number for number, (name, _) in enumerate(model.named_modules())}
    sites = [
        (part, mask, site, at) for part, mask in zip(parts, masks, strict=True) for at, site in enumerate(part.sites)
    ]
    try:
        with evaluation_mode(model):
            for part, mask, site, _ in sorted(sites, key=lambda found: order[found[2].reads]):
                if 0 < int(mask.sum()) < part.units:
                    set_gate_(model, part, _factors(model, parts, part, site, mask, batches, shared=shared), [site])
        for part, _, site, at in sites:
            gate = gate_of(model, part, at)
            scale_columns_(model, part, site, gate.where(gate != 0, 1.0))
    finally:
        remove_gates_(model, parts)


def _factors(
    model: nn.Module,
    parts: Sequence[Part],
    part: Part,
    site: Site,
    mask: Tensor,
    batches: Sequence[Mapping[str, Any]],
    *,
    shared: bool,
) -> Tensor:
    """Return the gates of one site's units, 0 for those that go; `shared` says that layers run more than once."""
    reads = model.get_submodule(site.reads)
    weight = out_first(reads).double()
    inner = torch.zeros(weight.shape[1], weight.shape[1], dtype=torch.double, device=weight.device)
    outer = torch.zeros_like(weight)
    for batch in batches:
        gates = [gate_of(model, one, at) for one in parts for at in range(len(one.sites))]
        _set_all(model, parts, [torch.ones_like(gate) for gate in gates])
        _, wanted = _seen(model, reads, batch, shared=shared)
        _set_all(model, parts, gates)
        values, given = _seen(model, reads, batch, shared=shared)
        inner += values.T @ values
        outer += (wanted - given).T @ values
    # A unit's output is its columns of the weight times their values: products of outputs need no outputs.
    products = (inner * (weight.T @ weight)).view(part.units, part.size, part.units, part.size).sum(dim=(1, 3))
    missing = (outer * weight).sum(dim=0).view(part.units, part.size).sum(dim=1)
    open_units = mask.nonzero()[:, 0].to(weight.device)
    products = products[open_units][:, open_units]
    products.diagonal().add_(_DAMPING * products.diagonal().mean().clamp_min(1e-30))
    found = 1 + torch.linalg.solve(products, missing[open_units])
    if not bool((found.abs() <= _MOST).all()):
        return mask
    factors = mask.clone()
    factors[open_units.cpu()] = found.float().cpu()
    return factors


def _set_all(model: nn.Module, parts: Sequence[Part], gates: Sequence[Tensor]) -> None:
    places = [(part, site) for part in parts for site in part.sites]
    for (part, site), gate in zip(places, gates, strict=True):
        set_gate_(model, part, gate, [site])


def _seen(model: nn.Module, reads: nn.Module, batch: Mapping[str, Any], *, shared: bool) -> tuple[Tensor, Tensor]:
    """Return what a layer reads and gives in a forward pass, `[tokens, inputs]` and `[tokens, outputs]`, less pads."""
    found: list[tuple[Tensor, Tensor]] = []
    mask = batch.get("attention_mask")

    def watch(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        values = args[0]
        chosen = slice(None)
        if mask is not None and mask.shape == values.shape[:-1]:
            chosen = mask.bool()
        found.append((values[chosen].reshape(-1, values.shape[-1]), output[chosen].reshape(-1, output.shape[-1])))
        if not shared:  # one that is shared by several layers runs again
            raise _Seen

    handle = reads.register_forward_hook(watch)
    try:
        with contextlib.suppress(_Seen):
            model(**batch)
    finally:
        handle.remove()
    values, outputs = zip(*found, strict=True)
    return torch.cat(values).double(), torch.cat(outputs).double()


class _Seen(Exception):  # noqa: N818 - not an error: the way out of a forward pass
    """What was looked for has been computed."""
