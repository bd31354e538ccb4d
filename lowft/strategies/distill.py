"""Let a trained teacher guide the student, beside the labels."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from lowft._inference import logits_of
from lowft._placement import device_of
from lowft._settings import check_real, check_whole
from lowft.checkpoint import model_tensors
from lowft.distillation.capture import check_layers
from lowft.distillation.comparing import compare_layers
from lowft.distillation.guide import GUIDE, PROJECTIONS, Guide
from lowft.distillation.loss import distillation_loss
from lowft.distillation.readers import is_source, name_folder, teachers_of
from lowft.distillation.teacher import CACHE_BYTES, Teacher, open_all
from lowft.distillation.tokens import TokenTeacher
from lowft.errors import ConfigError, TrainingError
from lowft.strategy import Contract, Strategy

if TYPE_CHECKING:
    from torch import Tensor

    from lowft.data.batching import Batch
    from lowft.stages import Stage
    from lowft.state import State

__all__ = ["Distill"]

_SELF = ("self",)


@dataclass(frozen=True)
class Distill(Strategy):
    """Train on a teacher's answers beside the labels, so that a small model comes close to a large one.

    The loss becomes `(1 − alpha) · loss + alpha · distillation`, the latter as `lowft.distillation_loss` has it (Hinton
    et al. 2015, https://arxiv.org/abs/1503.02531), plus `hidden` times the distance of hidden states and `relations`
    times that of relations between tokens (`lowft.hidden_state_loss`, `lowft.relation_loss`). The teacher's answers
    cover all rows, those of `Trainer(unlabeled_dataset=...)` too. It reads each distinct text once, however many epochs
    follow; its logits are saved with the checkpoints. It may be of any size, architecture and vocabulary, but must tell
    apart the same classes. Augmented copies are texts of their own, which it answers as well.

    Hidden states and relations compare token by token: both sides must read the same tokens. They are too large for
    checkpoints, so that the teacher reads in every epoch unless there is a `cache_dir`.

    A resumed run on one CPU process ends bit-identical as long as `cache_dir` keeps what the run wrote. Of several
    processes, the answers of the main one are saved: a resumed run may differ in the last bits.

    Args:
        teacher: A folder that lowft exported, a folder or hub id of a classifier of transformers, or several of them;
            a classifier that you hold, (model, tokenizer), a `Predictor` or a `Trainer` that has finished, to be given
            again on resume; or "self": the model as it is where the stage begins that prunes or quantizes it, and no
            distillation before.
        alpha: Share of the distillation in the loss, from 0 to 1; (first, last) goes from one to the other in the
            course of each stage.
        temperature: Softens both sides' probabilities, above 0; (first, last) as for `alpha`.
        teacher_weights: How much each of several teachers counts in the mean of their logits; all alike if None.
        max_answers: Answers kept in memory and checkpoints; texts beyond are read each time that they come.
        hidden: Weight of the distance of hidden states; learned matrices, gone in the end, bring the student's to the
            teacher's width (Romero et al. 2015, https://arxiv.org/abs/1412.6550; Jiao et al. 2020,
            https://arxiv.org/abs/1909.10351).
        relations: Weight of the distance of relations between queries, keys and values of the highest pair of layers
            (Wang et al. 2021, MiniLMv2, https://arxiv.org/abs/2012.15828).
        layers: Which layers are compared: "even", or pairs (student's, teacher's) of numbers from 1 at the bottom.
        relation_heads: Parts into which the vectors are split for their relations; None takes the most that fit the
            teacher's attention heads and both sides' widths.
        cache_dir: A folder for the teacher's answers, shared between runs; None for none.
        max_cache_bytes: What it may grow to, in bytes; what was used longest ago goes first.

    Raises:
        ConfigError: A setting outside its range; when the Trainer is built, also a teacher of other classes.
        ModelError: When the Trainer is built, a teacher that cannot be loaded or has no trained head, or layers that
            cannot be compared; in the first step, a teacher that reads other tokens than the student.

    >>> Distill("exports/large", alpha=(0.9, 0.5), hidden=1.0).temperature
    2.0
    """

    contract: ClassVar[Contract] = Contract(provides=frozenset({"unlabeled"}))

    teacher: Any
    alpha: float | tuple[float, float] = 0.5
    temperature: float | tuple[float, float] = 2.0
    teacher_weights: Sequence[float] | None = None
    max_answers: int = 1_000_000
    hidden: float = 0.0
    relations: float = 0.0
    layers: Literal["even"] | Sequence[tuple[int, int]] = "even"
    relation_heads: int | None = None
    cache_dir: str | os.PathLike[str] | None = None
    max_cache_bytes: int = CACHE_BYTES

    def __post_init__(self) -> None:
        """Check every setting."""
        object.__setattr__(self, "teacher", teachers_of(self.teacher))
        self._check_loss()
        check_whole("Distill.max_answers", self.max_answers, least=0)
        self._check_comparison()
        if self.cache_dir is not None:
            if not is_source(self.cache_dir):
                raise ConfigError(f"Distill.cache_dir must be a folder or None; received {self.cache_dir!r}")
            object.__setattr__(self, "cache_dir", os.fspath(self.cache_dir))
        check_whole("Distill.max_cache_bytes", self.max_cache_bytes, least=1)

    def _check_loss(self) -> None:
        """Check what mixes the teacher's answers into the loss."""
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
            if not isinstance(weights, list | tuple) or len(weights) != len(self.teacher):
                raise ConfigError(
                    f"Distill.teacher_weights must be one number for each of the {len(self.teacher)} teachers; "
                    f"received {weights!r}"
                )
            for weight in weights:
                check_real("Distill.teacher_weights", weight, above=0)
            object.__setattr__(self, "teacher_weights", tuple(weights))

    def _check_comparison(self) -> None:
        """Check what is compared besides answers."""
        for name in ("hidden", "relations"):
            check_real(f"Distill.{name}", getattr(self, name), least=0)
        object.__setattr__(self, "layers", check_layers(self.layers))
        if self.relation_heads is not None:
            check_whole("Distill.relation_heads", self.relation_heads, least=1)
        if not self._compares:
            return
        if len(self.teacher) > 1:
            raise ConfigError(
                f"Distill compares hidden states and relations with those of one teacher; received "
                f"{len(self.teacher)} teachers. Give one, or leave hidden and relations out"
            )
        # What a frozen prefix computes is compared too, and so must be computed.
        contract = Contract(provides=frozenset({"unlabeled", "modules"}), invalidates=frozenset({"prefix"}))
        object.__setattr__(self, "contract", contract)

    def recorded(self) -> Distill:
        """Return the strategy without what only this machine knows: folders by name and digest, and no cache."""
        teachers = tuple(name_folder(source) for source in self.teacher)
        return dataclasses.replace(self, teacher=teachers, cache_dir=None, max_cache_bytes=CACHE_BYTES)

    def prepare_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Load the teacher, and see that it fits."""
        names = getattr(getattr(model, "config", None), "id2label", None)
        if not names:
            raise ConfigError(
                "Distill compares the teacher's classes with the student's by name, and this model has no "
                "config.id2label that would tell them: use a transformers model with a classification head"
            )
        device = device_of(model)
        classes = [names[output] for output in sorted(names)]
        guide = Guide()
        if self.teacher == _SELF:
            self._compare(guide, model, model)
        elif self._compares:
            (reader,), (order,) = open_all(self.teacher, classes, device)
            _check_apart(model, reader.model)
            self._compare(guide, model, reader.model)
            identity = hashlib.sha256(f"{reader.digest()} {order}".encode()).hexdigest()
            cache = guide.cache(identity, self._cache)
            guide.teacher = TokenTeacher(
                reader.model, guide.teacher_side, identity, reader=reader, order=order, cache=cache
            )
        else:
            guide.teacher = Teacher(
                self.teacher, classes, weights=self.teacher_weights, device=device, cache_dir=self.cache_dir,
                max_cache_bytes=self.max_cache_bytes,
            )  # fmt: skip
            for taught in guide.teacher.models:
                _check_apart(model, taught)
        setattr(model, GUIDE, guide)
        return model

    def stages(self, stages: tuple[Stage, ...], model: torch.nn.Module) -> tuple[Stage, ...]:
        """Let the projections train wherever something does."""
        own = {name for name, _ in model.named_parameters() if name.startswith(f"{PROJECTIONS}.")}
        return tuple(
            stage if stage.trainable is None or not own else dataclasses.replace(stage, trainable=stage.trainable | own)
            for stage in stages
        )

    def on_stage_start(self, state: State) -> None:
        """Make the copy that teaches from here on, before anything is taken from the model."""
        guide: Guide = getattr(state.model, GUIDE)
        guide.flush()
        if self.teacher != _SELF:
            return
        if state.stages and not any(stage.always for stage in state.stages):
            raise ConfigError(
                "Distill(teacher='self') learns from the model as it was before the stage that prunes or quantizes it, "
                "and there is none: add Prune(...) or Quantize(..., when='stage'), or give another teacher"
            )
        memory = state.memory_of(self.name)
        if state.stage.always and "self" not in memory:
            tensors = model_tensors(guide.copy_of(state.model))
            memory["self"] = {name: tensor.cpu().clone() for name, tensor in tensors.items()}

    def on_loss(self, loss: Tensor, outputs: Any, batch: Batch, state: State) -> Tensor:
        """Return the loss with the distance from the teacher's answers."""
        guide: Guide = getattr(state.model, GUIDE)
        memory = state.memory_of(self.name)
        if guide.teacher is None:
            if "self" not in memory:
                return loss  # its own copy is not made yet
            guide.follow_copy(state.model, memory["self"], self._cache)
        if batch.labels is None or len(batch.texts) != len(batch):
            raise TrainingError(
                f"Distill needs the labels and texts of every row of a batch; received {len(batch.texts)} texts for "
                f"{len(batch)} rows. In a loop of your own, make batches with Batch(inputs, labels, texts=...)"
            )
        logits = logits_of(outputs).float()
        answers, features = guide.read(batch, memory, self.max_answers)
        if batch.labels.ndim == 2:
            task = "multi_label_classification"
        else:
            task = "regression" if batch.labels.is_floating_point() else "single_label_classification"
        alpha, temperature = (_now(value, state) for value in (self.alpha, self.temperature))
        distance = distillation_loss(logits, answers.to(logits.device), task=task, temperature=temperature)
        loss = (1 - alpha) * loss + alpha * distance
        if self._compares:
            hidden, relations = guide.losses(state.model, batch, features)
            loss = loss + self.hidden * hidden + self.relations * relations
        return loss

    def finish_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Let go of the teacher, and of all that was compared."""
        getattr(model, GUIDE).detach(model)
        return model

    @property
    def _compares(self) -> bool:
        return self.hidden > 0 or self.relations > 0

    @property
    def _cache(self) -> tuple[Path, int] | None:
        return None if self.cache_dir is None else (Path(self.cache_dir), self.max_cache_bytes)

    def _compare(self, guide: Guide, student: torch.nn.Module, teacher: torch.nn.Module) -> None:
        if self._compares:
            compared = compare_layers(
                student, teacher, hidden=self.hidden > 0, relations=self.relations > 0, layers=self.layers,
                heads=self.relation_heads,
            )  # fmt: skip
            guide.attach(student, compared, hidden=self.hidden > 0)


def _check_apart(student: torch.nn.Module, teacher: torch.nn.Module) -> None:
    """Make sure that training the student does not change the teacher."""
    own = {id(parameter) for parameter in student.parameters()}
    if any(id(parameter) in own for parameter in teacher.parameters()):
        raise ConfigError(
            "Distill.teacher is the model in training, whose answers would change with it: give a copy, "
            "copy.deepcopy(model), or teacher='self' to learn from it as it was before it is pruned or quantized"
        )


def _now(value: float | tuple[float, float], state: State) -> float:
    """Return a setting's value in this step: itself, or the point on the way from its first to its last value."""
    if not isinstance(value, tuple):
        return value
    done = state.stage_step / max(1, state.stage_steps - 1) if state.stage_steps else 0.0
    return value[0] + (value[1] - value[0]) * min(1.0, done)
