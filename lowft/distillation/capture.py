"""What a model computes inside a forward pass: hidden states of its layers; queries, keys and values of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from lowft.errors import ConfigError, ModelError
from lowft.models.layers import find_layers

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

__all__ = ["Capture", "LayerPairs", "check_layers", "encoder_blocks", "match_layers", "relation_widths"]

LayerPairs = Literal["even"] | Sequence[tuple[int, int]]

# What the projections of self-attention are called: three modules, or one whose output holds all three.
_SEPARATE = (
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("q_proj", "k_proj", "v_proj"),
    ("query_proj", "key_proj", "value_proj"),
    ("q", "k", "v"),
)
_JOINT = ("Wqkv", "c_attn")
_PARTS = 3


def encoder_blocks(model: nn.Module, asked: str) -> tuple[str, ...]:
    """Return the names of the blocks that read the text, bottom to top: of an encoder and decoder, the encoder's.

    Args:
        model: The model.
        asked: The setting that needs them, for messages.

    Raises:
        ModelError: There are no blocks, or they share their weights.
    """
    found = find_layers(model)
    if found.shared:
        raise ModelError(
            f"{asked} compares layers, and those of {type(model).__name__} share their weights: one module is all of "
            f"them. Leave it out, which distills the logits alone"
        )
    stack = found.blocks[0].rpartition(".")[0]
    return tuple(name for name in found.blocks if name.rpartition(".")[0] == stack)


def check_layers(layers: Any) -> LayerPairs:
    """Return "even", or pairs of layers as tuples.

    Raises:
        ConfigError: It is neither.

    >>> check_layers([[1, 2], [3, 6]])
    ((1, 2), (3, 6))
    """
    if isinstance(layers, str) and layers == "even":
        return "even"
    if not isinstance(layers, list | tuple) or not layers or not all(_is_pair(pair) for pair in layers):
        raise ConfigError(
            f"Distill.layers must be 'even', or a list of pairs (student's layer, teacher's layer) with numbers from "
            f"1; received {layers!r}"
        )
    return tuple((one, other) for one, other in layers)


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list | tuple) and len(pair) == 2 and all(type(one) is int and one >= 1 for one in pair)


def match_layers(layers: LayerPairs, student: int, teacher: int) -> tuple[tuple[int, int], ...]:
    """Return which layer of the student learns from which of the teacher, numbered from 1 at the bottom.

    Args:
        layers: "even", or the pairs.
        student: Layers of the student.
        teacher: Layers of the teacher.

    Raises:
        ConfigError: A pair names a layer that is not there.

    >>> match_layers("even", 3, 12)
    ((1, 4), (2, 8), (3, 12))
    """
    if isinstance(layers, str):
        return tuple((number, max(1, round(number * teacher / student))) for number in range(1, student + 1))
    for one, other in layers:
        if not 1 <= one <= student or not 1 <= other <= teacher:
            raise ConfigError(
                f"Distill.layers must pair layers of the student, from 1 to {student}, with layers of the teacher, "
                f"from 1 to {teacher}; received {(one, other)}"
            )
    return tuple((one, other) for one, other in layers)


@dataclass(frozen=True)
class _Source:
    """A module of which a forward pass gives one of the queries, keys and values, or all of them."""

    module: nn.Module
    joint: bool

    @property
    def width(self) -> int:
        """The width of what it gives."""
        width: int = getattr(self.module, "out_features", None) or self.module.nf  # type: ignore[assignment]
        return width // _PARTS if self.joint else width


def _relation_sources(model: nn.Module, block: str) -> tuple[_Source, ...]:
    """Return the modules that give queries, keys and values in a block's self-attention."""
    for module in model.get_submodule(block).modules():
        children = dict(module.named_children())
        for names in _SEPARATE:
            if all(name in children and _is_linear(children[name]) for name in names):
                return tuple(_Source(children[name], joint=False) for name in names)
        for name in _JOINT:
            if name in children and _is_linear(children[name]):
                return (_Source(children[name], joint=True),)
    known = "; ".join(", ".join(names) for names in (*_SEPARATE, *((name,) for name in _JOINT)))
    raise ModelError(
        f"Distill(relations=...) needs the queries, keys and values of {type(model).__name__}, and {block} has no "
        f"projections of these names: {known}. Leave relations out; hidden=... works with any layers"
    )


def _is_linear(module: nn.Module) -> bool:
    return hasattr(module, "out_features") or hasattr(module, "nf")


def relation_widths(model: nn.Module, block: str) -> tuple[int, ...]:
    """Return the widths of the queries, keys and values of a block.

    Raises:
        ModelError: They cannot be found.
    """
    sources = _relation_sources(model, block)
    return tuple(source.width for source in sources) * (_PARTS if sources[0].joint else 1)


class Capture:
    """Keeps what a model computes in its next forward pass.

    Args:
        model: The model.
        states: The blocks whose output is kept.
        relations: The block whose queries, keys and values are kept; none if None.
        training: Keep only passes that may be followed by a backward pass, so that an evaluation holds no memory.
    """

    def __init__(
        self, model: nn.Module, states: Sequence[str], relations: str | None = None, *, training: bool = True
    ) -> None:
        self._model = model
        self._states = tuple(dict.fromkeys(states))
        self._order = tuple(states)
        self._relations = () if relations is None else _relation_sources(model, relations)
        self._training = training
        self._handles: list[RemovableHandle] = []
        self._found: dict[str, Any] = {}
        self.open()

    def open(self) -> None:
        """Begin to keep."""

        def keep(key: str) -> Any:
            def hook(_module: nn.Module, _arguments: Any, output: Any) -> None:
                if torch.is_grad_enabled() or not self._training:
                    # The first run counts: DeBERTa passes relative positions through the same projections.
                    self._found.setdefault(key, output[0] if isinstance(output, tuple) else output)

            return hook

        self._handles.append(self._model.register_forward_pre_hook(lambda *_: self._found.clear()))
        for name in self._states:
            self._handles.append(self._model.get_submodule(name).register_forward_hook(keep(name)))
        for number, source in enumerate(self._relations):
            self._handles.append(source.module.register_forward_hook(keep(f"relation {number}")))

    def close(self) -> None:
        """Keep nothing any more, and leave no trace in the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def take(self, batch: int, tokens: int) -> list[Tensor]:
        """Return what the last pass gave, `[batch, tokens, width]` each in float32, and forget it.

        First the states in the order asked for, then queries, keys and values.

        Raises:
            ModelError: There was no pass, or the layers hand on tensors of another form.
        """
        found, self._found = self._found, {}
        wanted = [*self._order, *(f"relation {number}" for number in range(len(self._relations)))]
        for key in wanted:
            value = found.get(key)
            if not isinstance(value, torch.Tensor) or value.shape[:2] != (batch, tokens) or value.ndim != 3:
                got = f"a tensor {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
                raise ModelError(
                    f"Distill needs [{batch}, {tokens}, width] of {key} of {type(self._model).__name__}; its last "
                    f"forward pass gave {got}. In a loop of your own, call the model on the batch before on_loss"
                )
        states = [found[name].float() for name in self._order]
        relations = [found[key].float() for key in wanted[len(self._order) :]]
        if self._relations and self._relations[0].joint:
            relations = list(relations[0].chunk(_PARTS, dim=2))
        return states + relations
