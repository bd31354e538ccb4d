"""A head on pooled token states in the place of the architecture's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, get_args

from lowft._settings import check_choice
from lowft.models.pooling import Pooling, pooled_head_
from lowft.strategy import Contract, Strategy

if TYPE_CHECKING:
    import torch

__all__ = ["PooledHead"]


@dataclass(frozen=True)
class PooledHead(Strategy):
    """Give the model one linear layer on its pooled token states before training, as `lowft.pooled_head_` does.

    With few labels this matters more than how the rest is trained: a sentence embedding model such as MiniLM carries a
    text's meaning in the mean over its tokens, and the head that its architecture brings does not read that.

    Args:
        pooling: "mean" over the tokens, "cls" the first one, "last" the last one (decoders), or "attention", a
            weighted mean whose weights are learnt.

    Raises:
        ConfigError: Another pooling.
        ModelError: When the Trainer is built, a model whose head cannot be replaced.

    >>> PooledHead("attention").pooling
    'attention'
    """

    # All but the body goes, and with it what others have added; of an encoder-decoder also blocks that were drawn anew.
    contract: ClassVar[Contract] = Contract(
        provides=frozenset({"pooled"}), invalidates=frozenset({"modules", "precision", "reinitialized"})
    )

    pooling: Pooling = "mean"

    def __post_init__(self) -> None:
        """Check the setting."""
        check_choice("PooledHead.pooling", self.pooling, get_args(Pooling))

    def prepare_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Replace the head."""
        pooled_head_(model, self.pooling)
        return model
