"""Whole layers left out of a model, in place: which can be spared, and what has to know that they are gone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowft._inference import evaluation_mode
from lowft._settings import check_whole
from lowft.compress.structure import rename_
from lowft.compress.student import choose_layers, say_layers_
from lowft.errors import ConfigError, ModelError
from lowft.models.layers import find_layers

__all__ = ["drop_layers_", "layers_to_drop"]


def layers_to_drop(
    owner: str, model: nn.Module, layers: int | Sequence[int], batches: Iterable[Mapping[str, Any]] | None = None
) -> list[int]:
    """Return the numbers of the layers to leave out, rising, from 0 at the bottom.

    Args:
        owner: Who asks, for messages.
        model: The model.
        layers: How many, or which.
        batches: Inputs by which to tell which layers change what they are given least; None spreads the layers that are
            kept evenly.

    Raises:
        ConfigError: There are no such layers, or none would be left.
        ModelError: The layers cannot be left out.
    """
    stacks = _stacks(model)
    total = len(next(iter(stacks.values())))
    if isinstance(layers, Sequence) and not isinstance(layers, str):
        dropped = list(layers)
        whole = all(isinstance(number, int) and not isinstance(number, bool) for number in dropped)
        if not dropped or not whole or sorted(set(dropped)) != dropped or dropped[0] < 0 or dropped[-1] >= total:
            raise ConfigError(
                f"{owner}: layers must be rising numbers from 0 to {total - 1}, each once; received {layers!r}"
            )
    else:
        check_whole(f"{owner}: layers", layers, least=1)
        dropped = [] if layers < total else list(range(total))
    if len(dropped) == total:
        raise ConfigError(f"{owner}: layers={layers!r} would leave none of {total}: one has to stay")
    if not dropped and batches is None:
        kept = choose_layers(total - int(layers), "even", total)  # type: ignore[arg-type] # a number by now
        dropped = [number for number in range(total) if number not in kept]
    elif not dropped:
        influence = _influence(model, stacks, batches or ())
        spared = [number for number in range(total) if number or _alike(model, stacks, 0, 1)]
        if len(spared) < int(layers):  # type: ignore[arg-type]
            raise ConfigError(f"{owner}: layers={layers!r} would leave out layer 0, which the others depend on")
        dropped = sorted(sorted(spared, key=lambda number: influence[number])[: int(layers)])  # type: ignore[arg-type]
    kept = [number for number in range(total) if number not in dropped]
    for place, number in enumerate(kept):
        if not _alike(model, stacks, place, number):
            raise ModelError(
                f"layer {number} of {type(model).__name__} cannot become number {place}, which holds something that "
                f"it has not, or has nothing that it has: keep layer {place}"
            )
    return dropped


def drop_layers_(model: nn.Module, numbers: Sequence[int]) -> tuple[str, ...]:
    """Leave layers out of every stack of a model, and return what they were called."""
    stacks = _stacks(model)
    kept = [number for number in range(len(next(iter(stacks.values())))) if number not in numbers]
    gone: list[str] = []
    names: dict[str, str] = {}
    configs = {id(model.config): model.config}  # an encoder and a decoder may have copies of their own
    for stack, blocks in stacks.items():
        container: Any = model.get_submodule(stack)
        holder: Any = model.get_submodule(stack.rpartition(".")[0])
        configs |= {id(holder.config): holder.config} if hasattr(holder, "config") else {}
        left = [container[number] for number in kept]
        for place, (number, block) in enumerate(zip(kept, left, strict=True)):
            _renumber_(block, number, place)
            names[blocks[number]] = f"{stack}.{place}"
        model.set_submodule(stack, nn.ModuleList(left))
        gone += [blocks[number] for number in numbers]
    for config in configs.values():
        say_layers_(config, kept)
    rename_(model, names, gone)
    return tuple(gone)


def _renumber_(block: nn.Module, number: int, place: int) -> None:
    """Tell the modules of a block that they are the block number `place` now: caches of keys and values count them."""
    for module in block.modules():
        if getattr(module, "layer_idx", None) == number:
            module.layer_idx = place  # type: ignore[assignment]
            if getattr(getattr(module, "config", None), "scale_attn_by_inverse_layer_idx", False):
                attention: Any = module
                attention.scaling *= (number + 1) / (place + 1)  # as a model of the new config has


def _stacks(model: nn.Module) -> dict[str, list[str]]:
    """Return the names of the blocks of each stack, bottom to top."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"layers can be left out of a model of transformers, whose config says how many there are; received "
            f"{type(model).__name__}"
        )
    layers = find_layers(model)
    if layers.shared:
        raise ModelError(
            f"the layers of {type(model).__name__} share their weights: leaving some out makes the model faster but "
            f"no smaller, and is a matter of config.num_hidden_layers alone"
        )
    stacks: dict[str, list[str]] = {}
    for block in sorted(layers.blocks, key=lambda name: int(name.rpartition(".")[2])):
        stacks.setdefault(block.rpartition(".")[0], []).append(block)
    if len({len(blocks) for blocks in stacks.values()}) > 1:
        raise ModelError(
            f"{type(model).__name__} has stacks of {' and '.join(str(len(blocks)) for blocks in stacks.values())} "
            f"layers, of which the same ones cannot be left out"
        )
    return stacks


def _alike(model: nn.Module, stacks: Mapping[str, Sequence[str]], place: int, number: int) -> bool:
    """Say whether a block can take another one's place: T5's lowest has the relative positions for all."""
    for blocks in stacks.values():
        held = [{name for name, _ in model.get_submodule(blocks[at]).named_parameters()} for at in (place, number)]
        if held[0] != held[1]:
            return False
    return True


@torch.no_grad()
def _influence(
    model: nn.Module, stacks: Mapping[str, Sequence[str]], batches: Iterable[Mapping[str, Any]]
) -> list[float]:
    """Return by how much each layer turns the hidden states: 1 − the mean cosine of what goes in and what comes out.

    Men et al. 2024, *ShortGPT*, section 3.1, https://arxiv.org/abs/2403.03853. The layers with one number in several
    stacks count together.
    """
    changes = [0.0] * len(next(iter(stacks.values())))
    count = 0
    for batch in batches:
        count += 1
        with contextlib.ExitStack() as stack, evaluation_mode(model):
            for blocks in stacks.values():
                for number, name in enumerate(blocks):
                    watch = _Turn(batch.get("attention_mask"), changes, number)
                    handle = model.get_submodule(name).register_forward_hook(watch, with_kwargs=True)
                    stack.callback(handle.remove)
            model(**batch)
    if count == 0:
        raise ConfigError("prune_: batches holds no batch, so nothing could be measured")
    return changes


class _Turn:
    """A hook that adds up how far a block turns what it is given."""

    def __init__(self, mask: Tensor | None, changes: list[float], number: int) -> None:
        self.mask = mask
        self.changes = changes
        self.number = number

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        turned = 1 - torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
        if self.mask is not None and self.mask.shape == turned.shape:
            turned = turned[self.mask.bool()]
        self.changes[self.number] += float(turned.mean())
