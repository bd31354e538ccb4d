"""Send each row through the model twice, and let the two answers agree although each pass drops other units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from lowft._inference import logits_of
from lowft._settings import check_real
from lowft.consistency import first_of_row, r_drop_loss, task_of
from lowft.errors import ConfigError, TrainingError
from lowft.strategy import Contract, Strategy

if TYPE_CHECKING:
    from torch import Tensor

    from lowft.data.batching import Batch, BatchRandom, Example
    from lowft.data.rows import Rows
    from lowft.state import State

__all__ = ["RDrop"]


@dataclass(frozen=True)
class RDrop(Strategy):
    """Send each row through the model twice in a batch, and add how much the two answers differ to the loss.

    Dropout drops other units for each of the two, so the model is taught to answer alike whichever are there. It needs
    no augmenter, and no labels: rows of `Trainer(unlabeled_dataset=...)` count too. A step takes about twice as long.

    Source: Liang et al. 2021, *R-Drop: Regularized Dropout for Neural Networks*, https://arxiv.org/abs/2106.14448. As
    in the authors' code, the loss on labels is the mean over both passes.

    Args:
        weight: Weight of the distance (`lowft.r_drop_loss`), the paper's α: it takes 0.1 to 1 for classifying texts,
            up to 5 elsewhere.

    Raises:
        ConfigError: The weight is not above 0; when the Trainer is built, a model without dropout, whose two passes
            would not differ.

    >>> from lowft.data.batching import BatchRandom, Example
    >>> [example.text for example in RDrop().on_examples([Example(0, "dull")], BatchRandom(1, position=(0, 0)))]
    ['dull', 'dull']
    """

    contract: ClassVar[Contract] = Contract(provides=frozenset({"unlabeled"}))

    weight: float = 1.0

    def __post_init__(self) -> None:
        """Check the setting."""
        check_real("RDrop.weight", self.weight, above=0)

    def prepare_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Make sure that there is dropout."""
        drops = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
        if not any(module.p > 0 for module in drops):
            raise ConfigError(
                f"RDrop compares two passes of which each drops other units, and none of the {len(drops)} dropout "
                f"layers of this {type(model).__name__} drops any: load the model with hidden_dropout_prob=0.1 (or "
                f"what its architecture calls it), or leave RDrop out"
            )
        return model

    def recurring(self, dataset: Rows) -> Rows:
        """Return the rows: both passes begin with what frozen layers give, which drop nothing."""
        return dataset

    def on_examples(self, examples: list[Example], rng: BatchRandom) -> list[Example]:  # noqa: ARG002
        """Return every row twice."""
        return [*examples, *examples]

    def on_loss(self, loss: Tensor, outputs: Any, batch: Batch, state: State) -> Tensor:  # noqa: ARG002
        """Return the loss with the distance between the two answers to each row."""
        if batch.labels is None or len(batch.rows) != len(batch) or len(batch.texts) != len(batch):
            raise TrainingError(
                f"RDrop finds the two places of a row by its number and texts; received {len(batch.rows)} numbers and "
                f"{len(batch.texts)} texts for {len(batch)} rows. In a loop of your own, make batches with "
                f"Batch(inputs, labels, rows=..., texts=...)"
            )
        first = first_of_row(zip(batch.rows, batch.texts, strict=True))
        seconds = [place for place, row in enumerate(first) if place != row]
        if not seconds:
            return loss  # memory ran out, and a row's two places are in two pieces
        logits = logits_of(outputs).float()
        others = logits[[first[place] for place in seconds]]
        distance = r_drop_loss(logits[seconds], others, task=task_of(batch.labels), reduction="sum")
        return loss + self.weight * distance / len(set(first))
