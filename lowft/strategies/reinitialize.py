"""The top blocks drawn anew before training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowft._settings import check_whole
from lowft.errors import StrategyConflictError
from lowft.models import find_layers
from lowft.models.layers import within
from lowft.models.reinitialization import reinitialize_
from lowft.strategy import Contract, Strategy

if TYPE_CHECKING:
    import torch

    from lowft.state import State

__all__ = ["Reinitialize"]


@dataclass(frozen=True)
class Reinitialize(Strategy):
    """Draw the top blocks and the pooler anew before training, as `lowft.reinitialize_` does.

    For BERT and its kin with few labels, where fine-tuning from the pre-trained top is unstable (Zhang et al. 2021,
    section 4, https://arxiv.org/abs/2006.05987). Not for sentence embedding models, whose embedding comes from these
    blocks. The seed of the run decides what is drawn.

    Args:
        top: How many of the uppermost blocks.

    Raises:
        ConfigError: `top` is no number of blocks; when the Trainer is built, more than the model has.
        ModelError: When the Trainer is built, blocks that share their weights (ALBERT), or that are quantized.
        StrategyConflictError: When the training begins, some of these blocks are frozen in every stage.

    >>> Reinitialize(top=2)
    Reinitialize(top=2)
    """

    # Neurons and heads were chosen by the weights that would go; a head that drops the decoder drops what was drawn.
    contract: ClassVar[Contract] = Contract(
        provides=frozenset({"reinitialized"}), invalidates=frozenset({"precision", "shapes"})
    )

    top: int = 1

    def __post_init__(self) -> None:
        """Check the setting."""
        check_whole("Reinitialize.top", self.top, least=1)

    def prepare_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Draw the blocks."""
        reinitialize_(model, self.top)
        return model

    def on_stage_start(self, state: State) -> None:
        """Refuse to leave blocks as they were drawn."""
        if state.stage_index > 0 or any(stage.trainable is None for stage in state.stages):
            return
        trained = frozenset().union(*(stage.trainable or () for stage in state.stages))
        for block in find_layers(state.model).blocks[-self.top :]:
            if not any(within(name, block) for name in trained):
                raise StrategyConflictError(
                    f"Reinitialize(top={self.top}) has drawn {block!r} anew, and no stage trains it: let PartialFreeze "
                    f"or LayerwiseUnfreeze train the top {self.top} at least, or leave Reinitialize out"
                )
