"""Let rows without labels have the labels that the model is sure of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from lowft._inference import compute_logits, logits_of
from lowft._placement import gather, process_share
from lowft._settings import check_real, check_whole
from lowft.consistency import confidence_of, first_of_row, task_of
from lowft.errors import ConfigError, TrainingError
from lowft.strategy import Contract, Strategy

if TYPE_CHECKING:
    from torch import Tensor

    from lowft._tasks import Task
    from lowft.data.batching import Batch
    from lowft.state import State

__all__ = ["SelfTraining"]


_TOGETHER = 64  # rows at once through the model


@dataclass(frozen=True)
class SelfTraining(Strategy):
    """Train on rows of `Trainer(unlabeled_dataset=...)` as if they had the labels that the model is sure of.

    A row's label is what the model said of it in the epoch before, if with at least `threshold`; so labels are made new
    in each epoch, at no cost, and there are none in the first. Where the model knows something before it is fine-tuned,
    because `Probe` has set its head, `start=0` has it read these rows once when a stage begins, and label them for the
    first epoch too. `weight` times the mean over rows without a label of their cross-entropy is added to the loss; rows
    that the model was not sure of cost nothing. The history says after each epoch how many labels there are. With
    `Augment` in the list, copies of a row are trained on its label as well.

    Sources: Yarowsky 1995 (*Unsupervised Word Sense Disambiguation Rivaling Supervised Methods*); Lee 2013
    (*Pseudo-Label*); threshold as in Sohn et al. 2020, FixMatch, https://arxiv.org/abs/2001.07685.

    Args:
        threshold: Probability from which on an answer becomes a label, 0 for every answer; with several labels, each
            class must be decided with at least this.
        weight: Weight beside the loss on labels.
        start: Epochs of each stage in which there are no such labels yet.

    Raises:
        ConfigError: A setting outside its range; when the Trainer is built, a regression, in which no answer is sure.

    >>> SelfTraining(0.95).weight
    1.0
    """

    contract: ClassVar[Contract] = Contract(provides=frozenset({"unlabeled"}))

    threshold: float = 0.9
    weight: float = 1.0
    start: int = 1

    def __post_init__(self) -> None:
        """Check every setting."""
        check_real("SelfTraining.threshold", self.threshold, least=0, below=1)
        check_real("SelfTraining.weight", self.weight, above=0)
        check_whole("SelfTraining.start", self.start, least=0)

    def prepare_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Refuse a task in which no answer is sure."""
        if getattr(getattr(model, "config", None), "problem_type", None) == "regression":
            raise ConfigError(
                "SelfTraining takes answers that a model is sure of, and a regression says nothing of how sure it is. "
                "Leave it out; Augment(consistency=1.0) learns from such rows without labels"
            )
        return model

    def on_stage_start(self, state: State) -> None:
        """Have all rows without a label read once, where labels are wanted from the first epoch on."""
        if self.start or state.stage.prepares:
            return
        rows = state.train_rows
        if rows is None:
            raise TrainingError(
                "SelfTraining(start=0) reads the training rows of the Trainer, which a loop of your own does not have: "
                "set start=1, and labels begin with the second epoch"
            )
        bare = np.setdiff1d(np.arange(len(rows)), rows.labelled)
        if len(bare) == 0:
            return
        logits = compute_logits(
            state.model,
            rows.select(bare.tolist()),
            batch_size=_TOGETHER,
            most_tokens=state.tokens_per_batch,
            precision=state.precision,
            share=process_share(),
            progress=state.progress,
            description="labelling",
        )
        assert rows.labels is not None  # noqa: S101 - others have labels
        answers = self._sure(torch.from_numpy(logits), task_of(torch.from_numpy(rows.labels)))
        given = {str(rows.rows.numbers[bare[place]]): answer for place, answer in answers.items()}
        state.memory_of(self.name)["given"] = given
        state.note(
            f"SelfTraining: the model labels rows before the first epoch, and is sure of {len(given):,} of "
            f"{len(bare):,} ({len(given) / len(bare):.1%})"
        )

    def on_loss(self, loss: Tensor, outputs: Any, batch: Batch, state: State) -> Tensor:
        """Return the loss with that on the labels which the model gave in the epoch before."""
        if batch.labels is None or len(batch.rows) != len(batch):
            raise TrainingError(
                f"SelfTraining knows rows by their numbers; received {len(batch.rows)} for {len(batch)} rows. In a "
                f"loop of your own, make batches with Batch(inputs, labels, rows=...)"
            )
        logits = logits_of(outputs).float()
        task = task_of(batch.labels)
        memory = self._memory(state)
        bare = [place for place, known in enumerate(batch.labelled.tolist()) if not known]
        places = [place for place in bare if str(batch.rows[place]) in memory["labels"]]
        if places:
            given = torch.tensor([memory["labels"][str(batch.rows[place])] for place in places], device=logits.device)
            if task == "single_label_classification":
                each = F.cross_entropy(logits[places], given, reduction="sum")
            else:
                each = F.binary_cross_entropy_with_logits(logits[places], given.float(), reduction="none").mean(1).sum()
            loss = loss + self.weight * batch.unlabelled_weight * each / len(bare)
        first = first_of_row(batch.rows)
        self._remember(logits.detach(), batch, [place for place in bare if first[place] == place], task, state)
        return loss

    def before_step(self, state: State) -> None:
        """Collect what the step's rows were taken for; say at the end of a stage how many labels there were."""
        memory = self._memory(state)
        said: dict[str, Any] = {}
        # Each process has read its own rows, and may come to any other.
        for own in reversed(gather(state.step_memory_of(self.name))):
            said |= own
        memory["next"] |= {row: answer for row, answer in said.items() if answer is not None}
        memory["seen"] += len(said)
        if state.stage_step + 1 == state.stage_steps:
            self._tell(state, memory)

    def _memory(self, state: State) -> dict[str, Any]:
        """Return labels in use and those collected for the next epoch; they change places when one begins."""
        memory = state.memory_of(self.name)
        now = [state.stage_index, state.epoch]
        if memory.get("epoch") != now:
            begun = "epoch" in memory and memory["epoch"][0] == state.stage_index
            if begun:
                self._tell(state, memory)
            said = memory["next"] if begun else memory.pop("given", {})
            memory["labels"] = said if state.epoch >= self.start else {}
            memory.update(next={}, seen=0, epoch=now)
        return memory

    def _remember(self, logits: Tensor, batch: Batch, places: list[int], task: Task, state: State) -> None:
        """Note what the model says of rows in this step, None where it is not sure."""
        if places:
            sure = self._sure(logits[places], task)
            noted = {str(batch.rows[row]): sure.get(place) for place, row in enumerate(places)}
            state.step_memory_of(self.name).update(noted)

    def _sure(self, logits: Tensor, task: Task) -> dict[int, Any]:
        """Return the answers that the model is sure of, by the place of their row."""
        answers = (logits > 0).int() if task == "multi_label_classification" else logits.argmax(dim=1)
        sure = confidence_of(logits, task) >= self.threshold
        return {place: answers[place].tolist() for place in sure.nonzero().flatten().tolist()}

    def _tell(self, state: State, memory: dict[str, Any]) -> None:
        sure, seen, used = len(memory["next"]), memory["seen"], len(memory["labels"])
        if seen:
            state.note(
                f"SelfTraining: {used:,} rows were trained on labels of the model's own; it is now sure of {sure:,} of "
                f"{seen:,} rows without a label ({sure / seen:.1%})"
            )
