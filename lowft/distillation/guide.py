"""What guides one student while it trains: the teacher, and hooks and projections in the student's own model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lowft._placement import device_of, process_share
from lowft.checkpoint import load_tensors_, model_tensors
from lowft.compress.quantized_layers import unrounded_copy
from lowft.distillation.cache import AnswerCache
from lowft.distillation.capture import Capture
from lowft.distillation.comparing import Compared, Projections, Side
from lowft.distillation.tokens import TokenTeacher, real_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from lowft.data.batching import Batch
    from lowft.distillation.teacher import Teacher

__all__ = ["GUIDE", "PROJECTIONS", "Guide"]

GUIDE = "lowft_guide"  # an attribute of the model while it trains; no module, so never saved nor trained
PROJECTIONS = "lowft_projections"  # a module of the model while it trains: its parameters are saved and trained

# Cache folders are shared by versions: what an entry holds must not change under one name.
_CACHE_FORMAT = "1"


@dataclass
class Guide:
    """A teacher and what of it is compared with the student.

    Attributes:
        teacher: Who answers; None until a copy of the student's own model is made.
        compared: The layers that are compared; None where only logits are.
        capture: What the student's next forward pass leaves.
        handles: Further hooks in the student.
        memory: The strategy's memory, as it was last seen.
    """

    teacher: Teacher | TokenTeacher | None = None
    compared: Compared | None = None
    capture: Capture | None = None
    handles: list[Any] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> Guide:
        """Return itself: a copy of the student needs no second teacher."""
        return self

    @property
    def teacher_side(self) -> Side:
        """What is captured of the teacher."""
        return Side() if self.compared is None else self.compared.teacher

    def attach(self, model: nn.Module, compared: Compared, *, hidden: bool) -> None:
        """Put hooks, and projections where hidden states are compared, into the student."""
        self.compared = compared
        self.capture = Capture(model, compared.student.states, compared.student.relations)
        if not hidden:
            return
        count = len(compared.student.states)
        projections = Projections(compared.student.widths[:count], compared.teacher.widths[:count])
        device = device_of(model)
        setattr(model, PROJECTIONS, projections.to(device))
        if process_share()[1] > 1:
            self.handles.append(projections.show_to(model))

    def read(self, batch: Batch, memory: dict[str, Any], most: int) -> tuple[Tensor, list[Tensor]]:
        """Return the teacher's logits, and what is captured of it."""
        self.memory = memory
        if isinstance(self.teacher, TokenTeacher):
            return self.teacher.read(batch, memory, most)
        assert self.teacher is not None  # noqa: S101 - the strategy asks once there is one
        return self.teacher.logits(batch.texts, memory, most=most), []

    def losses(self, model: nn.Module, batch: Batch, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the losses on hidden states and on relations, 0 where these are not compared."""
        assert self.compared is not None  # noqa: S101 - the strategy asks where they are
        assert self.capture is not None  # noqa: S101 - made with it
        mask, count = real_tokens(batch), len(self.compared.student.states)
        own = self.capture.take(*mask.shape)
        hidden = relations = torch.zeros((), device=mask.device)
        if count:
            projected = getattr(model, PROJECTIONS)(own[:count])
            hidden = self.compared.hidden_loss(projected, features[:count], mask)
        if self.compared.student.relations is not None:
            relations = self.compared.relation_loss(own[count:], features[count:], mask)
        return hidden, relations

    def copy_of(self, model: nn.Module) -> nn.Module:
        """Return a frozen copy of the student that is no part of the training."""
        if self.capture is not None:
            self.capture.close()
        try:
            copied = unrounded_copy(model)
        finally:
            if self.capture is not None:
                self.capture.open()
        for name in (GUIDE, PROJECTIONS):
            if hasattr(copied, name):
                delattr(copied, name)
        return copied.requires_grad_(False)

    def follow_copy(self, model: nn.Module, weights: Mapping[str, Tensor], cache: tuple[Path, int] | None) -> None:
        """Let a copy of the student with these weights be the teacher."""
        copied = self.copy_of(model)
        load_tensors_(copied, weights, "the copy that teaches")
        digest = hashlib.sha256()
        for name, tensor in sorted(model_tensors(copied).items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        identity = digest.hexdigest()
        self.teacher = TokenTeacher(copied, self.teacher_side, identity, cache=self.cache(identity, cache))

    def cache(self, identity: str, place: tuple[Path, int] | None) -> AnswerCache | None:
        """Return the answers on disk of this teacher, to what is asked of it."""
        if place is None:
            return None
        whole = hashlib.sha256(f"{_CACHE_FORMAT} {identity} {self.teacher_side}".encode()).hexdigest()
        return AnswerCache(place[0], whole, place[1])

    def flush(self) -> None:
        """Write to disk what is not there yet, and learn of what others have written."""
        if self.teacher is not None and self.teacher.cache is not None:
            self.teacher.cache.flush(self.memory)
            self.teacher.cache.refresh()

    def detach(self, model: nn.Module) -> None:
        """Leave no trace in the student."""
        self.flush()
        if self.capture is not None:
            self.capture.close()
        for handle in self.handles:
            handle.remove()
        if hasattr(model, PROJECTIONS):
            delattr(model, PROJECTIONS)
        delattr(model, GUIDE)
