"""Linear layers of both kinds, PyTorch's and GPT-2's, seen and sliced alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["in_and_out", "is_conv1d", "is_linear", "keep_inputs_", "keep_outputs_", "out_first"]


def is_conv1d(module: nn.Module) -> bool:
    """Say whether a layer is GPT-2's linear layer, or a subclass of it."""
    return any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)


def is_linear(module: nn.Module) -> bool:
    """Say whether a layer multiplies by a weight, and is one of the two kinds."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def in_and_out(module: nn.Module) -> tuple[int, int]:
    """Return a linear layer's inputs and outputs."""
    rows, columns = module.get_parameter("weight").shape
    return (rows, columns) if is_conv1d(module) else (columns, rows)


def out_first(module: nn.Module) -> Tensor:
    """Return a linear layer's weight, `[outputs, inputs]`."""
    weight = module.get_parameter("weight")
    return weight.T if is_conv1d(module) else weight


def keep_outputs_(module: nn.Module, kept: Tensor) -> None:
    """Leave a linear layer only the outputs with the numbers `kept`, rising; what was frozen stays frozen."""
    _keep_(module, kept, outputs=True)


def keep_inputs_(module: nn.Module, kept: Tensor) -> None:
    """Leave a linear layer only the inputs with the numbers `kept`, rising; what was frozen stays frozen."""
    _keep_(module, kept, outputs=False)


@torch.no_grad()
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
        size = in_and_out(module)[1 if outputs else 0]
        prune(module, sorted(set(range(size)) - set(kept.tolist())))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(trains[name])
