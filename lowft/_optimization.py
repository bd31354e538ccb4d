"""The optimizer as a function of (stage, step): fixed groups, learning rates set before each step, state by name."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from lowft._adamw_8bit import BLOCK, AdamW8bit
from lowft.errors import CheckpointMismatchError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lowft.attach import Attached
    from lowft.config import TrainingConfig

__all__ = [
    "default_learning_rate",
    "load_optimizer_",
    "make_optimizer",
    "optimizer_tensors",
    "schedule",
    "set_learning_rates_",
]


_RATE, _WIDTH = 5e-5, 768  # the usual rate for models of BERT-base's width


def default_learning_rate(model: torch.nn.Module) -> float:
    """Return a peak learning rate that suits the model's width; see `TrainingConfig`."""
    width = getattr(getattr(model, "config", None), "hidden_size", None) or _WIDTH
    return _RATE * _WIDTH / width


def make_optimizer(attached: Attached, config: TrainingConfig) -> torch.optim.Optimizer:
    """Return AdamW over every parameter that any stage may train, with groups that never change."""
    known = attached.parameter_groups(weight_decay=config.weight_decay)
    device = known[0]["params"][0].device
    groups = [{key: group[key] for key in ("params", "depth", "weight_decay")} for group in known]
    rate = 0.0  # set before each step
    betas = (config.adam_beta1, config.adam_beta2)
    if config.optim == "adamw_8bit":
        return AdamW8bit(groups, rate, betas, config.adam_epsilon)
    fused = device.type in {"cpu", "cuda"}
    return torch.optim.AdamW(groups, rate, betas, config.adam_epsilon, fused=fused)


def schedule(step: int, steps: int, config: TrainingConfig) -> float:
    """Return the factor on the peak learning rate for one optimizer step.

    Args:
        step: The step within its stage, from 0.
        steps: The steps of the stage.
        config: Holds the kind of schedule and the share of warm-up.

    >>> from lowft.config import TrainingConfig
    >>> [round(schedule(step, 4, TrainingConfig(warmup_ratio=0.25)), 2) for step in range(4)]
    [0.5, 1.0, 0.67, 0.33]
    """
    warmup = math.ceil(config.warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)  # the first step is not wasted on a rate of zero
    done = (step - warmup) / max(1, steps - warmup)
    if config.lr_scheduler_type == "linear":
        return 1 - done
    if config.lr_scheduler_type == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return 1.0


def set_learning_rates_(optimizer: torch.optim.Optimizer, attached: Attached, config: TrainingConfig) -> float:
    """Set every group's learning rate for the coming step, and return that of the highest layers."""
    state = attached.state
    peak = state.stage.learning_rate or config.learning_rate or default_learning_rate(state.model)
    rate = peak * schedule(state.stage_step, state.stage_steps, config)
    top = max(group["depth"] for group in optimizer.param_groups)
    for group in optimizer.param_groups:
        group["lr"] = rate * state.stage.layer_decay ** (top - group["depth"])
    return rate


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> dict[str, Tensor]:
    """Return the optimizer's state by parameter name, `name/key`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": torch.as_tensor(value)
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }


def load_optimizer_(optimizer: torch.optim.Optimizer, model: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put state that `optimizer_tensors` returned into the optimizer.

    Raises:
        CheckpointMismatchError: A parameter is not in the model, or has another shape there.
    """
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for path, tensor in tensors.items():
        name, key = path.rsplit("/", 1)
        parameter = parameters.get(name)
        in_8_bits = isinstance(optimizer, AdamW8bit)
        if parameter is None or (tensor.ndim and tensor.shape != _shape(parameter, key, in_8_bits=in_8_bits)):
            raise CheckpointMismatchError(f"the saved optimizer state {path!r} does not fit a parameter of this model")
        device = torch.device("cpu") if in_8_bits and key == "step" else parameter.device
        optimizer.state[parameter][key] = tensor.to(device, copy=True)  # the optimizer writes into it


def _shape(parameter: Tensor, key: str, *, in_8_bits: bool) -> torch.Size:
    """Return the shape that a part of a parameter's state must have."""
    if in_8_bits and key.endswith("_scale"):
        return torch.Size((math.ceil(parameter.numel() / BLOCK),))
    return parameter.shape
