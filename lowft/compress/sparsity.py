"""Single weights set to zero: the smallest of the linear layers, kept at zero while others train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lowft.compress.linear import is_linear
from lowft.models.layers import find_layers, within

if TYPE_CHECKING:
    from lowft.compress.budgets import Scope

__all__ = ["add_masks_", "bake_masks_", "masked_layers", "set_masks_", "smallest", "zero_smallest_"]

_MASK = "lowft_mask"  # a buffer, so that it is saved, restored and rolled back with the weights


def masked_layers(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the linear layers of the blocks: embeddings and the head keep all their weights.

    Raises:
        ModelError: The model has no blocks.
    """
    blocks = find_layers(model).blocks
    return tuple(
        name
        for name, module in model.named_modules()
        if is_linear(module) and any(within(name, block) for block in blocks)
    )


@torch.no_grad()
def smallest(model: nn.Module, names: Sequence[str], share: float, scope: Scope) -> dict[str, Tensor]:
    """Return which weights of each layer stay: all but a share of them, the nearest to zero.

    Args:
        model: The model.
        names: Its linear layers.
        share: Share of the weights that go.
        scope: Whether weights compete within their layer, or with those of all.
    """
    sizes = {name: model.get_submodule(name).get_parameter("weight").abs() for name in names}
    groups = [[name] for name in names] if scope == "layer" else [list(names)]
    masks: dict[str, Tensor] = {}
    for group in groups:
        every = torch.cat([sizes[name].flatten() for name in group])
        gone = round(share * len(every))
        border = every.kthvalue(gone).values if gone else torch.tensor(-1.0)
        masks |= {name: sizes[name] > border.to(sizes[name].device) for name in group}
    return masks


@torch.no_grad()
def zero_smallest_(model: nn.Module, share: float, scope: Scope) -> int:
    """Set a share of the weights of the blocks' linear layers to zero, and return how many are zero."""
    masks = smallest(model, masked_layers(model), share, scope)
    for name, mask in masks.items():
        model.get_submodule(name).get_parameter("weight").mul_(mask)
    return _shut(masks)


def add_masks_(model: nn.Module, names: Sequence[str]) -> None:
    """Put a mask over the weight of each layer, all open at first, that is saved with the weights."""
    for name in names:
        module = model.get_submodule(name)
        module.register_buffer(_MASK, torch.ones_like(module.get_parameter("weight"), dtype=torch.bool))
        module.register_forward_pre_hook(_apply_mask)


def set_masks_(model: nn.Module, masks: Mapping[str, Tensor]) -> bool:
    """Shut what the masks shut, with its gradients, and return whether that is more than was shut before."""
    more = False
    for name, mask in masks.items():
        module = model.get_submodule(name)
        own, weight = module.get_buffer(_MASK), module.get_parameter("weight")
        now = own & mask.to(own.device)  # what is shut stays so
        more = more or bool((now != own).any())
        own.copy_(now)
        weight.data.mul_(own)
        if weight.grad is not None:
            weight.grad.mul_(own)
    return more


def bake_masks_(model: nn.Module, names: Sequence[str]) -> None:
    """Leave zeros where the masks shut weights, and take the masks away."""
    for name in names:
        module = model.get_submodule(name)
        _apply_mask(module, ())
        delattr(module, _MASK)
        hooks = module._forward_pre_hooks  # noqa: SLF001 - a copied model has no handle to remove its hooks by
        for number in [number for number, hook in hooks.items() if hook is _apply_mask]:
            del hooks[number]


def _apply_mask(module: nn.Module, _: tuple[Any, ...]) -> None:
    # The optimizer's momentum has moved weights off zero since the last pass. Written past autograd, which would take a
    # second pass of a shared layer, where nothing changes any more, for a change of what it has saved.
    module.get_parameter("weight").data.mul_(module.get_buffer(_MASK))


def _shut(masks: Mapping[str, Tensor]) -> int:
    return sum(int((~mask).sum()) for mask in masks.values())
