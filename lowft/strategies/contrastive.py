"""A stage in front that moves rows of a class together, before anything is asked of a head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import mean
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from lowft._placement import gather
from lowft._settings import check_real
from lowft.errors import ConfigError, DataError, ModelError
from lowft.losses import supervised_contrastive
from lowft.models.probing import find_output_layer
from lowft.stages import check_pace
from lowft.strategy import Contract, Strategy

if TYPE_CHECKING:
    from torch import Tensor

    from lowft.data.batching import Batch
    from lowft.stages import Stage
    from lowft.state import State

__all__ = ["Contrastive"]

_STAGE = "contrastive"


@dataclass(frozen=True)
class Contrastive(Strategy):
    """Begin with a stage in which rows of one class are pulled together and apart from the others.

    SetFit's idea (Tunstall et al. 2022, https://arxiv.org/abs/2209.11055): from few labels, a sentence encoder learns
    more by comparing rows with each other than by predicting a class. SetFit goes through pairs, whose number grows
    with the square of the rows; here each batch compares all its rows at once, with the supervised contrastive loss
    (`lowft.supervised_contrastive`), and a few steps are enough. More of them overfit: on 64 reviews the accuracy rose
    for 12 to 18 steps and then fell, while the loss went on towards its least value. The stage ends when the loss
    is that near.

    Put `PooledHead()` before it, and `Probe()` after it, which sets the head on what the stage has made. The head does
    not train in the stage, and rows without a label are left out of it.

    Args:
        max_steps: Optimizer steps at most.
        learning_rate: Peak learning rate of the stage.
        batch_size: Rows compared with each other; more classes want more, so that each has several rows in a batch.
        temperature: τ of the loss.
        stop_below: The stage ends when the loss of a step is so little (in nats) above the least that its batch allows,
            which is the mean over rows of the logarithm of how many others have their class; 0 never stops it.
        layer_decay: Factor on the learning rate for each depth below the highest.

    Raises:
        ConfigError: A setting outside its range; when the Trainer is built, labels that are not one class a row.
        StrategyConflictError: Nothing before it provides a pooled head.
        DataError: When the stage begins, no two labelled rows share a class.

    >>> Contrastive(max_steps=20).learning_rate
    0.0001
    """

    contract: ClassVar[Contract] = Contract(
        needs=frozenset({"pooled"}), provides=frozenset({"stages"}), invalidates=frozenset({"prefix"})
    )

    max_steps: int = 24
    learning_rate: float = 1e-4
    batch_size: int = 32
    temperature: float = 0.1
    stop_below: float = 0.25
    layer_decay: float = 1.0
    epochs: ClassVar[None] = None

    def __post_init__(self) -> None:
        """Check every setting."""
        check_pace(self)
        check_real("Contrastive.temperature", self.temperature, above=0)
        check_real("Contrastive.stop_below", self.stop_below, least=0)

    def stages(self, stages: tuple[Stage, ...], model: torch.nn.Module) -> tuple[Stage, ...]:
        """Put the stage in front."""
        task = getattr(getattr(model, "config", None), "problem_type", None)
        if task not in {None, "single_label_classification"}:
            raise ConfigError(
                f"Contrastive compares rows by their one class; these labels are for {task}: leave it out"
            )
        head = find_output_layer(model)
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        own = replace(
            stages[0],
            name=_STAGE,
            prepares=True,
            labeled_only=True,
            trainable=frozenset(name for name in names if name.rpartition(".")[0] != head),
            learning_rate=self.learning_rate,
            layer_decay=self.layer_decay,
            batch_size=self.batch_size,
            epochs=None,
            max_steps=self.max_steps,
            gates=(),
            always=False,
        )
        return (own, *stages)

    def on_stage_start(self, state: State) -> None:
        """Look for rows to compare; and once the stage is over, let what it made be where others begin."""
        if state.stage.name != _STAGE:
            return
        rows = state.train_rows
        if rows is not None and rows.labels is not None:
            labels = rows.labels[rows.labels >= 0]
            if len(labels) == 0 or torch.from_numpy(labels).bincount().max() < 2:
                raise DataError(
                    f"Contrastive needs two labelled rows of a class to compare; of {len(labels):,} labelled rows no "
                    f"two share one. Leave it out, and use lowft.Probe() alone"
                )

    def on_loss(self, loss: Tensor, outputs: Any, batch: Batch, state: State) -> Tensor:
        """Return the contrastive loss of the batch, in the stage that is for it."""
        if state.stage.name != _STAGE:
            return loss
        pooled = getattr(outputs, "pooled", None)
        if pooled is None or batch.labels is None:
            raise ModelError(
                f"Contrastive needs labels and pooled states of lowft.PooledHead; {type(outputs).__name__} has none"
            )
        known = batch.labelled
        labels = batch.labels[known]
        partners = (labels[:, None] == labels).sum(1) - 1
        own = supervised_contrastive(pooled.float()[known], labels, temperature=self.temperature)
        if bool((partners > 0).any()):
            least = partners[partners > 0].float().log().mean()
            state.step_memory_of(self.name).setdefault("excess", []).append(float(own.detach() - least))
        return own

    def before_step(self, state: State) -> None:
        """End the stage when the rows are as near to each other as is good."""
        if state.stage.name != _STAGE:
            return
        # No head has been asked yet: the last weights of the stage count, not those a random head liked best.
        state.forget_best()
        # Of all processes, so that all of them end in the same step.
        found = [excess for own in gather(state.step_memory_of(self.name).get("excess", [])) for excess in own]
        if found and mean(found) < self.stop_below:
            state.end_stage()
            state.note(
                f"the contrastive stage ends after {state.stage_step + 1} of {self.max_steps} steps: its loss is "
                f"{mean(found):.2f} above the least that is possible, less than stop_below={self.stop_below:g}"
            )
