"""The rows that a model has for its tokens: which there are, and the same model with some of them."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lowft.compress.quantization import scheme_of
from lowft.errors import ModelError
from lowft.models._quiet import quiet

__all__ = ["count_rows", "named_rows", "with_rows"]

_Model = TypeVar("_Model", bound=nn.Module)

_TOKEN_ID = re.compile(r"_token_(id|index)$")  # how configurations name their special tokens


def count_rows(model: Any) -> int:
    """Return the size of the vocabulary that a model's config gives, once the model is one that can be cut."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"prune_vocabulary needs a transformers model, whose config says the size of the vocabulary; received "
            f"{type(model).__name__}"
        )
    if scheme := scheme_of(model):
        raise ModelError(f"this model is quantized ({scheme}): prune the vocabulary first, and quantize the result")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ModelError("this model is on the meta device and has no values: load the weights first")
    count = getattr(model.config.get_text_config(), "vocab_size", None)
    if not isinstance(count, int):
        raise ModelError(f"the config of this {type(model).__name__} says no vocab_size, so nothing can be cut by it")
    return count


def named_rows(model: nn.Module, count: int) -> frozenset[int]:
    """Return the numbers of rows that a model itself speaks of."""
    found = {
        number
        for config in _configs(model)
        for name, value in vars(config).items()
        if _TOKEN_ID.search(name)
        for number in (value if isinstance(value, list | tuple) else [value])
    }
    found |= {module.padding_idx for module in model.modules() if isinstance(module, nn.Embedding)}
    return frozenset(number for number in found if isinstance(number, int) and 0 <= number < count)


def with_rows(model: _Model, count: int, new: Mapping[int, int]) -> _Model:
    """Return a copy of a model with some of its rows in a new order; other weights are copied as they are.

    Args:
        model: The model.
        count: Rows that it has.
        new: The new number of each row that stays, by its old one.

    Raises:
        ModelError: Its rows cannot be told, or a pad token that positions are counted from would move.
    """
    dimensions = _vocabulary_dimensions(model, count)
    _check_positions(model, dimensions, new)
    rows = torch.tensor(sorted(new, key=lambda number: new[number]))
    named = dict(_named_tensors(model))
    memo: dict[int, Any] = {}  # what the copy takes in the place of a tensor, wherever it stands: tied ones stay tied
    for name, places in dimensions.items():
        tensor = named[name]
        if any(tensor.shape[place] != count for place in places):
            raise ModelError(f"{name} has the shape {list(tensor.shape)}, and the config says vocab_size {count}")
        if id(tensor) not in memo:
            memo[id(tensor)] = _cut(tensor, places, rows)
    smaller = copy.deepcopy(model, memo)
    for name, module in smaller.named_modules():
        _tell_module_(module, count, new, is_cut=f"{name}.weight" in dimensions)
    for config in _configs(smaller):
        _tell_config_(config, count, new)
    return smaller


def _cut(tensor: Tensor, places: list[int], rows: Tensor) -> Tensor:
    fewer = tensor.detach()
    for place in places:
        fewer = fewer.index_select(place, rows.to(tensor.device))
    return nn.Parameter(fewer, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fewer


def _tell_module_(module: Any, count: int, new: Mapping[int, int], *, is_cut: bool) -> None:
    """Write the new numbers where a module keeps them."""
    if is_cut and isinstance(module, nn.Embedding):
        module.num_embeddings = len(new)
    if is_cut and isinstance(module, nn.Linear):
        module.out_features = len(new)
    if getattr(module, "vocab_size", None) == count:
        module.vocab_size = len(new)
    padding = getattr(module, "padding_idx", None)
    if isinstance(padding, int):
        module.padding_idx = new.get(padding, padding)


def _tell_config_(config: Any, count: int, new: Mapping[int, int]) -> None:
    """Write the new numbers into a configuration."""
    for name, value in list(vars(config).items()):
        if name == "vocab_size" and value == count:
            config.vocab_size = len(new)
        elif _TOKEN_ID.search(name):
            several = isinstance(value, list | tuple)
            setattr(config, name, [new.get(n, n) for n in value] if several else new.get(value, value))


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer under each of its names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _vocabulary_dimensions(model: Any, count: int) -> dict[str, list[int]]:
    """Return the dimensions of each tensor that grow with the vocabulary, found by making the model one word larger."""
    shapes = []
    for size in (count, count + 1):
        config = copy.deepcopy(model.config)
        config.get_text_config().vocab_size = size
        try:
            with torch.device("meta"), quiet():
                made = type(model)(config)
        except Exception as error:  # each class fails in its own way
            raise ModelError(
                f"{type(model).__name__} cannot be made from its config alone, so lowft cannot tell what a smaller "
                f"vocabulary changes: {type(error).__name__}: {error}"
            ) from error
        shapes.append({name: tuple(tensor.shape) for name, tensor in _named_tensors(made)})
    found = {
        name: [place for place, (one, other) in enumerate(zip(shape, shapes[1][name], strict=True)) if one != other]
        for name, shape in shapes[0].items()
    }
    found = {name: places for name, places in found.items() if places}
    if not found:
        raise ModelError(f"no weight of this {type(model).__name__} has a row for each token: there is nothing to cut")
    return found


def _check_positions(model: nn.Module, cut: Mapping[str, list[int]], new: Mapping[int, int]) -> None:
    """Refuse to move a pad token that positions are counted from, as RoBERTa does."""
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if not isinstance(module, nn.Embedding) or f"{name}.weight" in cut or padding is None:
            continue
        if new.get(padding) != padding:
            raise ModelError(
                f"{name} counts positions from the pad token's number {padding}, which the {len(new)} tokens "
                f"that would be left do not reach: keep more tokens"
            )


def _configs(model: nn.Module) -> list[Any]:
    """Return every configuration that a model or a part of it holds, each once."""
    found: dict[int, Any] = {}
    for module in model.modules():
        for held in (getattr(module, "config", None), getattr(module, "generation_config", None)):
            if held is not None and not isinstance(held, dict | nn.Module):
                found[id(held)] = held
                if hasattr(held, "get_text_config"):
                    inner = held.get_text_config()
                    found[id(inner)] = inner
    return list(found.values())
