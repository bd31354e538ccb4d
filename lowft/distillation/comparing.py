"""Which layers of a student learn from which of a teacher, and what the distance between them costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lowft._inference import logits_of
from lowft.distillation.capture import encoder_blocks, match_layers, relation_widths
from lowft.distillation.states import hidden_state_loss, relation_loss
from lowft.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lowft.distillation.capture import LayerPairs

__all__ = ["Compared", "Projections", "Side", "compare_layers"]

_RELATIONS = 3  # queries, keys, values


@dataclass(frozen=True)
class Side:
    """What is captured of one model.

    Attributes:
        states: Blocks whose output is compared.
        relations: The block whose queries, keys and values are compared; None where they are not.
        widths: The widths of all that is captured, in order.
    """

    states: tuple[str, ...] = ()
    relations: str | None = None
    widths: tuple[int, ...] = ()


@dataclass(frozen=True)
class Compared:
    """What of a student is compared with what of a teacher.

    Attributes:
        student: The student's side.
        teacher: The teacher's side, of as many parts.
        heads: Into how many parts vectors are split for their relations.
    """

    student: Side
    teacher: Side
    heads: int = 1

    def hidden_loss(self, student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Return the mean over pairs of layers; the student's states are projected already."""
        pairs = zip(student, teacher, strict=True)
        return torch.stack([hidden_state_loss(one, other, mask) for one, other in pairs]).mean()

    def relation_loss(self, student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Return the sum over queries, keys and values."""
        pairs = list(zip(student, teacher, strict=True))[-_RELATIONS:]
        return torch.stack([relation_loss(one, other, mask, heads=self.heads) for one, other in pairs]).sum()


def compare_layers(
    student: nn.Module, teacher: nn.Module, *, hidden: bool, relations: bool, layers: LayerPairs, heads: int | None
) -> Compared:
    """Return what is to be compared of two models.

    Args:
        student: The student.
        teacher: The teacher.
        hidden: Whether hidden states are.
        relations: Whether relations of the highest pair of layers are.
        layers: "even", or pairs of layers.
        heads: Parts for relations; None takes the most that the teacher's attention heads and all widths allow.

    Raises:
        ConfigError: Layers that are not there, or heads that do not divide a width.
        ModelError: A model whose layers cannot be told apart, or have no queries, keys and values.
    """
    asked = "Distill(hidden=...)" if hidden else "Distill(relations=...)"
    ours, theirs = encoder_blocks(student, asked), encoder_blocks(teacher, asked)
    pairs = match_layers(layers, len(ours), len(theirs))
    sides = []
    for model, blocks, numbers in (
        (student, ours, [one for one, _ in pairs]),
        (teacher, theirs, [other for _, other in pairs]),
    ):
        states = tuple(blocks[number - 1] for number in numbers) if hidden else ()
        block = blocks[numbers[-1] - 1] if relations else None
        widths = (_hidden_width(model),) * len(states) if hidden else ()
        widths += relation_widths(model, block) if block is not None else ()
        sides.append(Side(states, block, widths))
    if not relations:
        return Compared(sides[0], sides[1])
    all_widths = [*sides[0].widths[-_RELATIONS:], *sides[1].widths[-_RELATIONS:]]
    if heads is None:
        heads = math.gcd(getattr(teacher.config, "num_attention_heads", 0), *all_widths)
    elif any(width % heads for width in all_widths):
        raise ConfigError(
            f"Distill.relation_heads must divide the widths of queries, keys and values on both sides, "
            f"{sorted(set(all_widths))}; received {heads}"
        )
    return Compared(sides[0], sides[1], heads)


def _hidden_width(model: nn.Module) -> int:
    width = getattr(getattr(model, "config", None), "hidden_size", None)
    if not isinstance(width, int):
        raise ModelError(
            f"Distill(hidden=...) needs a model of transformers, whose config.hidden_size tells the width of its "
            f"layers; {type(model).__name__} has none. Leave hidden out"
        )
    return width


class Projections(nn.Module):
    """Learned matrices that bring a student's hidden states to the teacher's width; they begin as identities.

    Args:
        student: Widths of the student's states.
        teacher: Widths of the teacher's.
    """

    def __init__(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(_start(one, other) for one, other in zip(student, teacher, strict=True))

    def forward(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Return the states, `[batch, tokens, width of the teacher]` each."""
        return [nn.functional.linear(state, weight) for state, weight in zip(states, self.weights, strict=True)]

    def show_to(self, model: nn.Module) -> Any:
        """Make them part of what a model's forward gives, by adding 0, and return the hook's handle.

        DistributedDataParallel exchanges the gradients of those parameters alone that it finds behind an output.
        """

        def add_nothing(_model: nn.Module, _arguments: Any, outputs: Any) -> Any:
            if not torch.is_grad_enabled():
                return outputs
            logits = logits_of(outputs) + 0.0 * torch.stack([weight.sum() for weight in self.weights]).sum()
            if isinstance(outputs, torch.Tensor):
                return logits
            outputs.logits = logits
            return outputs

        return model.register_forward_hook(add_nothing)


def _start(student: int, teacher: int) -> Tensor:
    """Return the identity where widths agree, else rows that keep the length of what they project."""
    return torch.eye(teacher) if student == teacher else torch.nn.init.orthogonal_(torch.empty(teacher, student))
