"""Knowledge distillation: what a teacher's answers cost a student, and a teacher that answers each text once."""

from __future__ import annotations

from lowft.distillation.loss import distillation_loss
from lowft.distillation.states import hidden_state_loss, relation_loss
from lowft.distillation.teacher import Teacher

__all__ = ["Teacher", "distillation_loss", "hidden_state_loss", "relation_loss"]
