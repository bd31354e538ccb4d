"""What a model costs to run: floating-point operations counted from the shapes of a forward pass, and seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lowft._inference import evaluation_mode
from lowft._placement import device_of
from lowft._settings import check_whole
from lowft.compress.linear import out_first
from lowft.compress.parts import Part
from lowft.errors import ModelError
from lowft.models._trace import run_once

__all__ = ["Seconds", "count_flops", "unit_flops", "unit_parameters"]

_ROUNDS = 7  # timings of each model, of which the median counts


def count_flops(model: nn.Module, tokens: int = 128) -> int:
    """Return the floating-point operations of a forward pass over one text, two for each multiplication and addition.

    Matrix products count: those of linear layers and those of attention, whatever kernel computes them. Looking up
    embeddings, norms and activations cost next to nothing beside them and are left out. The model is run once on a
    made-up text, and stays as it is.

    Args:
        model: Any model that takes `input_ids`, or token numbers as its one argument.
        tokens: The text's length.

    Raises:
        ConfigError: `tokens` is not a whole number of at least 1.
        ModelError: The model cannot be run on a text of so many tokens.

    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> config = BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=2, intermediate_size=32)
    >>> model = BertForSequenceClassification(config)
    >>> count_flops(model, 10), count_flops(model, 20)
    (37280, 87200)
    """
    check_whole("count_flops: tokens", tokens, least=1)
    return int(sum(_flops(model, tokens)[""].values()))


def _flops(model: nn.Module, tokens: int) -> dict[str, dict[Any, int]]:
    """Return the operations within each module by its name, by their kind; of the whole model under the empty name."""
    from torch.utils.flop_counter import FlopCounterMode

    # What PyTorch's counter does not know: the fused attention of the CPU.
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001
    counter = FlopCounterMode(display=False, custom_mapping={fused: _attention_flops})
    try:
        with evaluation_mode(model), torch.no_grad(), counter:
            run_once(model, device_of(model), tokens=tokens)
    except Exception as error:  # a model may refuse made-up input in any way
        raise ModelError(
            f"the operations of this {type(model).__name__} cannot be counted: it cannot be run on a made-up text of "
            f"{tokens} tokens ({type(error).__name__}: {error})"
        ) from error
    root = type(model).__name__
    counts = counter.get_flop_counts()
    found = {name.removeprefix(root).removeprefix("."): dict(kinds) for name, kinds in counts.items()}
    found[""] = dict(counts["Global"])
    return found


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Return the operations of queries times keys and of weights times values; the arguments are shapes or tensors."""
    rows, heads, length, size = getattr(query, "shape", query)
    keys = getattr(key, "shape", key)[-2]
    return int(2 * rows * heads * length * keys * (size + getattr(value, "shape", value)[-1]))


def unit_flops(model: nn.Module, parts: Sequence[Part], tokens: int) -> tuple[float, list[float]]:
    """Return the operations of the whole model, and what one unit of each part has in them."""
    by_module = {name: sum(kinds.values()) for name, kinds in _flops(model, tokens).items()}
    units = []
    for part in parts:
        # All that an attention module computes, products included, goes by the number of its heads.
        held = {site.name if part.kind == "heads" else own for site in part.sites for own, _ in site.computes}
        held |= {site.reads for site in part.sites}
        outermost = {name for name in held if not any(name.startswith(f"{other}.") for other in held)}
        units.append(sum(by_module.get(name, 0) for name in outermost) / part.units)
    return by_module[""], units


def unit_parameters(model: nn.Module, parts: Sequence[Part]) -> tuple[float, list[float]]:
    """Return the parameters of the whole model, and what one unit of each part has of them."""
    units = []
    for part in parts:
        held = 0
        for site in part.sites:
            computes = [model.get_submodule(name) for name, _ in site.computes]
            held += sum(parameter.numel() for module in computes for parameter in module.parameters())
            held += out_first(model.get_submodule(site.reads)).numel()
        if part.table:
            held += model.get_submodule(part.table).get_parameter("weight").numel()
        units.append(held / part.units)
    return sum(parameter.numel() for parameter in model.parameters()), units


@dataclass(frozen=True)
class Seconds:
    """A clock for forward passes over a batch of `shape`, rows and tokens."""

    shape: tuple[int, int]

    @torch.no_grad()
    def of(self, model: nn.Module) -> float:
        """Return the seconds of one forward pass."""
        device = device_of(model)
        started = time.perf_counter()
        run_once(model, device, rows=self.shape[0], tokens=self.shape[1])
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    def ratio(self, small: nn.Module, whole: nn.Module) -> float:
        """Return the median time of one model over that of another, on this machine, timed in turn."""
        seconds: dict[bool, list[float]] = {True: [], False: []}
        with evaluation_mode(small), evaluation_mode(whole):
            for turn in range(_ROUNDS + 1):
                for is_small, model in ((False, whole), (True, small)):
                    took = self.of(model)
                    if turn:  # the first run warms caches up
                        seconds[is_small].append(took)
        return statistics.median(seconds[True]) / statistics.median(seconds[False])
