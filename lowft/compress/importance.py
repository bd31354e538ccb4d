"""What the units of a model are worth: by their weights, by the loss, or by chance."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowft._inference import evaluation_mode
from lowft._placement import device_of
from lowft.compress.parts import Part, magnitudes
from lowft.errors import ConfigError, ModelError

__all__ = ["GRADIENTS", "Importance", "by_mean", "gate_gradients", "importance_of", "row_slopes"]

Importance = Literal["magnitude", "taylor", "fisher", "random"]
GRADIENTS = frozenset({"taylor", "fisher"})


def importance_of(
    model: nn.Module,
    parts: Sequence[Part],
    importance: Importance,
    batches: Iterable[Mapping[str, Any]] | None,
    seed: int,
) -> list[Tensor]:
    """Return what each unit of each part is worth, `[units]` each, on the CPU."""
    if importance == "magnitude":
        return by_mean([magnitudes(model, part) for part in parts])
    if importance == "random":
        generator = torch.Generator().manual_seed(seed)
        return [torch.rand(part.units, generator=generator) for part in parts]
    if importance == "fisher":
        return [slopes.square().sum(dim=0) for slopes in row_slopes(model, parts, batches or ())]
    scores = [torch.zeros(part.units) for part in parts]
    for slopes in gate_gradients(model, parts, batches or ()):
        for at, slope in enumerate(slopes):
            scores[at] += slope.mean(dim=0).abs()
    return scores


def row_slopes(model: nn.Module, parts: Sequence[Part], batches: Iterable[Mapping[str, Any]]) -> list[Tensor]:
    """Return what `gate_gradients` gives for all batches, `[rows, units]` a part."""
    found = list(gate_gradients(model, parts, batches))
    return [torch.cat(slopes) for slopes in zip(*found, strict=True)]


def by_mean(scores: Sequence[Tensor]) -> list[Tensor]:
    """Return each layer's scores divided by their mean: weights of one layer may be larger than all of another's."""
    return [values / values.mean().clamp_min(1e-30) for values in scores]


def gate_gradients(model: Any, parts: Sequence[Part], batches: Iterable[Mapping[str, Any]]) -> Iterator[list[Tensor]]:
    """Yield, for each batch, the derivative of each row's own loss by each unit's gate, `[rows, units]` a part.

    One backward pass gives them for all rows at once: every row has gates of its own, and the batch's loss is the mean
    of its rows'. The model's own gradients are not touched.

    Raises:
        ConfigError: There are no batches, or one has no labels.
        ModelError: The model does not keep the rows of a batch apart.
    """
    count = 0
    for batch in batches:
        count += 1
        rows = len(next(iter(batch.values())))
        device = device_of(model)
        gates = [torch.ones(rows, part.units, device=device, requires_grad=True) for part in parts]
        with contextlib.ExitStack() as stack, evaluation_mode(model), torch.enable_grad():
            for part, gate in zip(parts, gates, strict=True):
                for site in part.sites:
                    hook = _RowGate(gate, part.size, site.reads)
                    stack.callback(model.get_submodule(site.reads).register_forward_pre_hook(hook).remove)
            loss = getattr(model(**batch), "loss", None)
            if loss is None:
                raise ConfigError(
                    f"prune_: batches must hold labels, for which the model returns a loss; received {', '.join(batch)}"
                )
            found = torch.autograd.grad(loss * rows, gates, allow_unused=True, materialize_grads=True)
        yield [gradient.float().cpu() for gradient in found]
    if count == 0:
        raise ConfigError("prune_: batches holds no batch, so nothing could be measured")


class _RowGate:
    """A hook that multiplies what a layer reads by gates, `[rows, units]`."""

    def __init__(self, gate: Tensor, size: int, name: str) -> None:
        self.gate = gate
        self.size = size
        self.name = name

    def __call__(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        values: Tensor = args[0]
        if values.ndim < 2 or len(values) != len(self.gate):
            raise ModelError(
                f"{self.name} reads values of shape {list(values.shape)} for a batch of {len(self.gate)} rows: the "
                f"gradients of the rows cannot be told apart. Use importance='magnitude'"
            )
        columns = self.gate.repeat_interleave(self.size, dim=1).to(values.dtype)
        return (values * columns.view(len(values), *[1] * (values.ndim - 2), -1), *args[1:])
