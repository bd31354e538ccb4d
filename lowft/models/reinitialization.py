"""Top blocks drawn anew, as their architecture draws them when a model is first made."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from lowft._randomness import seeded
from lowft._settings import check_whole
from lowft.compress.structure import structure_of
from lowft.errors import ConfigError, ModelError
from lowft.models.layers import find_layers, prefixes

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

__all__ = ["reinitialize_"]

_POOLER = "pooler"
_DRAWN = "_is_hf_initialized"  # transformers leaves tensors alone that are marked so


def reinitialize_(model: nn.Module, top: int = 1, *, seed: int | None = None) -> tuple[str, ...]:
    """Draw the top blocks of a model anew, and its pooler where it has one; all else stays as it is.

    The top blocks of a pre-trained encoder know most of what it was pre-trained for, and are a bad start for another
    task with few labels: drawn anew, they make fine-tuning more stable and often better (Zhang et al. 2021, *Revisiting
    Few-sample BERT Fine-tuning*, section 4, https://arxiv.org/abs/2006.05987). That was found with BERT, whose
    pre-training ends in predicting words. The top blocks of a sentence embedding model (MiniLM, MPNet) carry the
    embedding: leave them.

    Each module is drawn by the model's own initialiser (`_init_weights`, as transformers has it), or by
    `reset_parameters` where the model has none. What blocks share, such as T5's relative positions, stays. Of an
    encoder-decoder, the top blocks are the decoder's.

    Args:
        model: Any model whose layers `lowft.find_layers` can tell apart, changed in place.
        top: How many of the uppermost blocks.
        seed: Decides what is drawn; None draws from torch's random state.

    Returns:
        The names of the modules that were drawn anew.

    Raises:
        ConfigError: `top` is no number of blocks of this model.
        ModelError: The blocks share their weights (ALBERT), are quantized, or do not say how they are drawn.

    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> config = BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=3, intermediate_size=8)
    >>> reinitialize_(BertForSequenceClassification(config), top=1, seed=1)
    ('bert.encoder.layer.2', 'bert.pooler')
    """
    check_whole("reinitialize_: top", top, least=1)
    if seed is not None:
        check_whole("reinitialize_: seed", seed, least=0)
    if any(entry["kind"] == "quantized" for entry in structure_of(model)):
        raise ModelError(f"this {type(model).__name__} is quantized: draw the layers of the full-precision model anew")
    layers = find_layers(model)
    if layers.shared:
        raise ModelError(
            f"the blocks of this {type(model).__name__} share their weights: drawn anew for the top block, all of them "
            f"would be, and nothing of the pre-training would be left. Leave it out for this model"
        )
    if top > layers.num_blocks:
        raise ConfigError(
            f"reinitialize_: top must be a whole number from 1 to {layers.num_blocks}, the blocks of this "
            f"{type(model).__name__}; received {top}"
        )
    first = layers.num_blocks - top + 1
    depths = dict(enumerate(layers.blocks[first - 1 :], start=first))
    chosen = {name: depth for depth, name in depths.items()}
    chosen |= {name: layers.num_blocks + 1 for name, _ in model.named_modules() if name.split(".")[-1] == _POOLER}
    draws = {name: _initializer(model, name) for name in chosen}
    with contextlib.nullcontext() if seed is None else seeded(seed), torch.no_grad():
        for name, depth in chosen.items():
            module = model.get_submodule(name)
            own = {f"{name}.{inner}": parameter for inner, parameter in module.named_parameters()}
            # What lies in a block and serves others too.
            kept = [(value, value.clone()) for full, value in own.items() if layers.depths.get(full) != depth]
            marks = [(value, getattr(value, _DRAWN, False)) for value in own.values()]
            for value in own.values():
                setattr(value, _DRAWN, False)
            module.apply(draws[name])
            for value, before in kept:
                value.copy_(before)
            for value, mark in marks:
                setattr(value, _DRAWN, mark)
    return tuple(name for name in chosen if any(True for _ in model.get_submodule(name).parameters()))


def _initializer(model: nn.Module, name: str) -> Callable[[nn.Module], Any]:
    """Return what draws the parameters of a single module: that of the innermost model around it which has one.

    Raises:
        ModelError: There is none.
    """
    for outer in reversed(["", *prefixes(name)][:-1]):
        own = getattr(model.get_submodule(outer), "_init_weights", None)
        if own is not None:
            draw: Callable[[nn.Module], Any] = own
            return draw
    for inner, module in model.get_submodule(name).named_modules(prefix=name):
        if any(True for _ in module.parameters(recurse=False)) and _reset_of(module) is None:
            raise ModelError(
                f"{inner!r} does not say how it is drawn: give {type(model).__name__} a method _init_weights(module), "
                f"as transformers' models have, or {type(module).__name__} a method reset_parameters()"
            )
    return _reset_


def _reset_of(module: nn.Module) -> Callable[[], None] | None:
    """Return how torch draws a module; nn.MultiheadAttention has a name of its own for it."""
    found: Callable[[], None] | None = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
    return found


def _reset_(module: nn.Module) -> None:
    reset = _reset_of(module)
    if reset is not None:
        reset()
