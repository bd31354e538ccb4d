"""What a model with a pooled head returns; apart, since it takes transformers to say so."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput

__all__ = ["PooledOutput"]


@dataclass
class PooledOutput(SequenceClassifierOutput):
    """Logits, `[batch, outputs]`, and the pooled states that they are made of, `[batch, width]`."""

    pooled: Tensor | None = None
