"""Activations that are computed again in the backward pass, so that they need not be kept until then."""

from __future__ import annotations

from typing import Any

from lowft.errors import ConfigError

__all__ = ["keep_activations_", "recompute_activations_"]


def recompute_activations_(model: Any) -> None:
    """Have each block of a model keep its input alone while it trains, and compute the rest again for its gradients.

    Args:
        model: A transformers model.

    Raises:
        ConfigError: The model cannot.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ConfigError(
            f"TrainingConfig.gradient_checkpointing=True needs a transformers model that supports it, and "
            f"{type(model).__name__} does not: leave it out, or lower batch_size and raise gradient_accumulation_steps"
        )
    # Reentrant checkpoints would have no gradient where the embeddings are frozen.
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})


def keep_activations_(model: Any) -> None:
    """Undo `recompute_activations_`."""
    model.activation_checkpointing_disable()
