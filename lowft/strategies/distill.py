"""Let a trained teacher guide the student, beside the labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lowft._inference import logits_of
from lowft._settings import check_real, check_whole
from lowft.distillation import Teacher, distillation_loss
from lowft.errors import ConfigError, TrainingError
from lowft.strategy import Contract, Strategy

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lowft.data.batching import Batch
    from lowft.state import State

__all__ = ["Distill"]

_TEACHER = "lowft_teacher"  # an attribute of the model while it trains; no module, so never saved nor trained


@dataclass(frozen=True)
class Distill(Strategy):
    """Train on a teacher's answers beside the labels, so that a small model comes close to a large one.

    The loss becomes `(1 − alpha) · loss + alpha · distillation`, the latter as `lowft.distillation_loss` has it (Hinton
    et al. 2015, https://arxiv.org/abs/1503.02531). The teacher reads each distinct text once, however many epochs
    follow; its answers are saved with the checkpoints. It may be of any size, architecture and vocabulary, but must
    tell apart the same classes. Augmented copies are texts of their own, which it answers as well.

    Args:
        teacher: A folder that lowft exported, a folder or hub id of a classifier of transformers, or several of them.
        alpha: Share of the distillation in the loss, from 0 to 1; (first, last) goes from one to the other in the
            course of each stage.
        temperature: Softens both sides' probabilities, above 0; (first, last) as for `alpha`.
        teacher_weights: How much each of several teachers counts in the mean of their logits; all alike if None.
        max_answers: Answers kept in memory and checkpoints; texts beyond are read each time that they come.

    Raises:
        ConfigError: A setting outside its range; when the Trainer is built, also a teacher of other classes.
        ModelError: When the Trainer is built, a teacher that cannot be loaded or has no trained head.

    >>> Distill("exports/large", alpha=(0.9, 0.5)).temperature
    2.0
    """

    contract: ClassVar[Contract] = Contract(provides=frozenset({"unlabeled"}))

    teacher: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
    alpha: float | tuple[float, float] = 0.5
    temperature: float | tuple[float, float] = 2.0
    teacher_weights: Sequence[float] | None = None
    max_answers: int = 1_000_000

    def __post_init__(self) -> None:
        """Check every setting."""
        given: Any = [self.teacher] if _is_source(self.teacher) else self.teacher
        if not isinstance(given, list | tuple) or not given or not all(_is_source(source) for source in given):
            raise ConfigError(
                f"Distill.teacher must be a folder, a hub id, or a list of them; received {self.teacher!r}. Write a "
                f"model that you hold to a folder first, with trainer.export or save_pretrained"
            )
        object.__setattr__(self, "teacher", tuple(os.fspath(source) for source in given))
        for name, bounds in (("alpha", {"least": 0, "most": 1}), ("temperature", {"above": 0})):
            value = getattr(self, name)
            if isinstance(value, list | tuple):
                if len(value) != 2:
                    raise ConfigError(f"Distill.{name} must be a number, or (first, last); received {value!r}")
                object.__setattr__(self, name, tuple(value))
            for number in value if isinstance(value, list | tuple) else [value]:
                check_real(f"Distill.{name}", number, **bounds)
        if self.teacher_weights is not None:
            weights = self.teacher_weights
            if not isinstance(weights, list | tuple) or len(weights) != len(given):
                raise ConfigError(
                    f"Distill.teacher_weights must be one number for each of the {len(given)} teachers; "
                    f"received {weights!r}"
                )
            for weight in weights:
                check_real("Distill.teacher_weights", weight, above=0)
            object.__setattr__(self, "teacher_weights", tuple(weights))
        check_whole("Distill.max_answers", self.max_answers, least=0)

    def prepare_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Load the teacher, and see that it fits."""
        names = getattr(getattr(model, "config", None), "id2label", None)
        if not names:
            raise ConfigError(
                "Distill compares the teacher's classes with the student's by name, and this model has no "
                "config.id2label that would tell them: use a transformers model with a classification head"
            )
        device = next(model.parameters()).device
        classes = [names[output] for output in sorted(names)]
        sources: Any = self.teacher  # a tuple by now
        setattr(model, _TEACHER, Teacher(sources, classes, weights=self.teacher_weights, device=device))
        return model

    def on_loss(self, loss: Tensor, outputs: Any, batch: Batch, state: State) -> Tensor:
        """Return the loss with the distance from the teacher's answers."""
        if batch.labels is None or len(batch.texts) != len(batch):
            raise TrainingError(
                f"Distill needs the labels and texts of every row of a batch; received {len(batch.texts)} texts for "
                f"{len(batch)} rows. In a loop of your own, make batches with Batch(inputs, labels, texts=...)"
            )
        teacher: Teacher = getattr(state.model, _TEACHER)
        logits = logits_of(outputs).float()
        answers = teacher.logits(batch.texts, state.memory_of(self.name), most=self.max_answers).to(logits.device)
        if batch.labels.ndim == 2:
            task = "multi_label_classification"
        else:
            task = "regression" if batch.labels.is_floating_point() else "single_label_classification"
        alpha, temperature = (_now(value, state) for value in (self.alpha, self.temperature))
        return (1 - alpha) * loss + alpha * distillation_loss(logits, answers, task=task, temperature=temperature)

    def finish_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Let go of the teacher."""
        delattr(model, _TEACHER)
        return model


def _is_source(value: Any) -> bool:
    return (isinstance(value, str) and bool(value.strip())) or hasattr(value, "__fspath__")


def _now(value: float | tuple[float, float], state: State) -> float:
    """Return a setting's value in this step: itself, or the point on the way from its first to its last value."""
    if not isinstance(value, tuple):
        return value
    done = state.stage_step / max(1, state.stage_steps - 1) if state.stage_steps else 0.0
    return value[0] + (value[1] - value[0]) * min(1.0, done)
