"""The head that says which token stood where a mask stands: the checkpoint's own, or a new one on its embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from lowft.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MaskedHead", "check_reads_both_ways", "make_masked_head"]

# dense, norm and the bias of the output, as transformers names them in BERT, RoBERTa and DistilBERT checkpoints.
_NAMES = (
    ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"),
    ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
    ("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
)


class MaskedHead(nn.Module):
    """Scores every token of the vocabulary by its input embedding, so that it has hardly a weight of its own.

    Args:
        transform: Applied to hidden states first, `[..., hidden]` to `[..., embedding]`.
        bias: Of each token, `[tokens]`.
        own: Whether the checkpoint had trained it.
    """

    def __init__(self, transform: nn.Module, bias: Tensor, *, own: bool) -> None:
        """Hold the parts."""
        super().__init__()
        self.transform = transform
        self.bias = nn.Parameter(bias)
        self.own = own

    def forward(self, hidden: Tensor, embeddings: Tensor) -> Tensor:
        """Return logits, `[..., tokens]`.

        Args:
            hidden: `[..., hidden]`.
            embeddings: The model's input embeddings, `[tokens, embedding]`.
        """
        return F.linear(self.transform(hidden), embeddings, self.bias)


def check_reads_both_ways(model: nn.Module, *, purpose: str) -> None:
    """Make sure that a model can be asked what stands behind a mask.

    Raises:
        ModelError: It reads from left to right, has a decoder, or is no model of transformers.
    """
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    config: Any = getattr(model, "config", None)
    reads = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    if not reads or getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False):
        raise ModelError(
            f"{purpose} asks a model what stands behind a mask, from what stands on both sides of it. This "
            f"{type(model).__name__} is no encoder of transformers that was made for that: use one such as BERT, "
            f"RoBERTa, DistilBERT or MiniLM, or leave {purpose} out"
        )


def make_masked_head(model: Any) -> MaskedHead:
    """Return the head of the checkpoint that a model was loaded from, or a new one where it has none that fits.

    Args:
        model: An encoder of transformers with any head.
    """
    embeddings = model.get_input_embeddings().weight
    tokens, width = embeddings.shape
    hidden = model.config.hidden_size
    tensors = _saved_head(getattr(model.config, "name_or_path", ""))
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if shapes == [(width, hidden), (width,), (width,), (width,), (tokens,)]:
        dense, norm = nn.Linear(hidden, width), nn.LayerNorm(width, eps=getattr(model.config, "layer_norm_eps", 1e-12))
        for parameter, tensor in zip((dense.weight, dense.bias, norm.weight, norm.bias), tensors[:4], strict=True):
            parameter.data.copy_(tensor)
        head = MaskedHead(nn.Sequential(dense, nn.GELU(), norm), tensors[4].float(), own=True)
    else:
        # From the start, a hidden state scores those tokens high whose embeddings it resembles.
        transform = nn.Linear(hidden, width)
        nn.init.eye_(transform.weight)
        nn.init.zeros_(transform.bias)
        head = MaskedHead(transform, torch.zeros(tokens), own=False)
    return head.to(embeddings.device)


def _saved_head(source: str) -> list[Tensor]:
    """Return weight and bias of dense and norm, and the output's bias, of a checkpoint; nothing where it has none."""
    from safetensors import safe_open

    file = _weights_of(source)
    if file is None:
        return []
    with safe_open(file, framework="pt") as stored:
        keys = set(stored.keys())
        for dense, norm, bias in _NAMES:
            wanted = [f"{dense}.weight", f"{dense}.bias", f"{norm}.weight", f"{norm}.bias", bias]
            if keys.issuperset(wanted):
                return [stored.get_tensor(name) for name in wanted]
    return []


def _weights_of(source: str) -> str | None:
    """Return the safetensors file of a folder, or of a hub id that was downloaded; None where there is none."""
    if not source:
        return None
    local = Path(source) / "model.safetensors"
    if local.is_file():
        return str(local)
    if Path(source).exists():
        return None
    from transformers.utils.hub import cached_file

    try:
        found: str | None = cached_file(source, "model.safetensors", local_files_only=True)
    except OSError:
        return None
    return found
