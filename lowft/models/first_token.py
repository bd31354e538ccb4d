"""The top block of an encoder whose head reads the first token alone: of the other tokens, what enters it will do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

if TYPE_CHECKING:
    from lowft.models.layers import Layers

__all__ = ["FirstToken"]

_ROUNDING = 1000  # times the spacing of floats: what two ways to the same outputs may differ by
# Of a block that is built otherwise, or where memory runs out, which a step knows how to mend.
_REFUSALS = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, MemoryError)
_Form = Callable[[Any, Tensor, Tensor | None, bool], Tensor]


class FirstToken:
    """A top block that can compute what leaves it for the first token alone; made by `find`.

    Every token is attended to, but no query, key or value of another one is needed, no output of the attention and no
    feed-forward layer, since nobody reads its state. In a model of six blocks that is a sixth of all operations; where
    the top two train, half of what a step computes. What is read stays the same, to rounding, and so does its gradient;
    for other tokens the block gives zeros.
    """

    def __init__(self, model: nn.Module, block: nn.Module, form: _Form, passed_over: tuple[nn.Module, ...]) -> None:
        """Take a block of this form, and the modules in it whose own forward does not run."""
        self._model = model
        self._block = block
        self._form = form
        self._passed_over = passed_over

    @classmethod
    def find(cls, model: nn.Module, layers: Layers | None, inputs: dict[str, Tensor]) -> FirstToken | None:
        """Return the top block of a model if nothing else of it is read; None if it is, or is built in another way.

        That is tried: all that the model returns must stay the same where other tokens have no states at all.

        Args:
            model: The model, in evaluation mode.
            layers: Its layers; None where they cannot be told apart.
            inputs: The model's inputs for a few rows, of different lengths where they can be, padded on the right.
        """
        if layers is None or layers.shared:
            return None
        found = cls._of(model, model.get_submodule(layers.blocks[-1]))
        if found is None or inputs["input_ids"].shape[1] < 2 or not found.gives_the_same(inputs):
            return None
        return found

    @classmethod
    def _of(cls, model: nn.Module, block: Any) -> FirstToken | None:
        attention: Any = getattr(block, "attention", None)
        found = None
        if hasattr(attention, "q_lin"):
            found = cls(model, block, _as_distilbert, (attention,))
        elif hasattr(getattr(attention, "self", None), "query"):
            found = cls(model, block, _as_bert, (attention, attention.self))
        # Of a decoder, the first token reads no other: there is nothing to be gained, and its mask may go unsaid.
        return None if found is None or getattr(found._passed_over[-1], "is_causal", False) else found

    @property
    def is_watched(self) -> bool:
        """Whether some hook looks at what modules of the model give, and might miss the other tokens."""
        return any(module._forward_hooks for module in self._model.modules() if module is not self._model)  # noqa: SLF001

    @contextlib.contextmanager
    def alone(self, *, trial: bool = False, folded: bool = True) -> Iterator[None]:
        """Let the block compute nothing else in the model's forward within this context, where that can be done.

        Args:
            trial: Whether it gives NaN for other tokens, which shows wherever it is read, and raises what it cannot do.
            folded: Whether to do without keys and values; False computes them, so that each weight has its product.

        Raises:
            ValueError: In a trial, something that only the block's own forward does.
        """
        if "forward" in vars(self._block) or any(map(_has_been_changed, self._passed_over)):
            if trial:
                raise ValueError("the block, or its attention, has a forward or a hook that must run")
            yield
            return

        def forward(hidden_states: Tensor, attention_mask: Tensor | None = None, *rest: Any, **settings: Any) -> Any:
            if attention_mask is not None and attention_mask.ndim != 4:
                if trial:
                    raise ValueError("the mask has a form of its own")
                return type(self._block).forward(self._block, hidden_states, attention_mask, *rest, **settings)
            mask = None if attention_mask is None else attention_mask[:, :, 0]
            first = self._form(self._block, hidden_states, mask, folded)
            return F.pad(first, (0, 0, 0, hidden_states.shape[1] - 1), value=float("nan") if trial else 0.0)

        vars(self._block)["forward"] = forward
        try:
            yield
        finally:
            vars(self._block).pop("forward", None)

    @torch.no_grad()
    def gives_the_same(self, inputs: dict[str, Tensor]) -> bool:
        """Tell whether all that the model returns is the same where other tokens have no states at all."""
        try:  # the forward alone, since hooks of the model itself wait for steps
            whole = _tensors(self._model.forward(**inputs))
            with self.alone(trial=True):
                first = _tensors(self._model.forward(**inputs))
        except _REFUSALS:
            return False
        if whole is None or first is None or [part.shape for part in whole] != [part.shape for part in first]:
            return False
        return all(_agree(one, other) for one, other in zip(whole, first, strict=True))


def _as_bert(block: Any, states: Tensor, mask: Tensor | None, folded: bool) -> Tensor:  # noqa: FBT001 - a form's
    """Return what BERT's block and those of its kin give for the first token, `[batch, 1, width]`."""
    own = block.attention.self
    read = _read_by_first(own, (own.query, own.key, own.value), states, mask, folded=folded)
    attended = block.attention.output(read, states[:, :1])
    given: Tensor = block.output(block.intermediate(attended), attended)
    return given


def _as_distilbert(block: Any, states: Tensor, mask: Tensor | None, folded: bool) -> Tensor:  # noqa: FBT001 - a form's
    """Return what DistilBERT's block gives for the first token, `[batch, 1, width]`."""
    own = block.attention
    read = _read_by_first(own, (own.q_lin, own.k_lin, own.v_lin), states, mask, folded=folded)
    attended = block.sa_layer_norm(own.out_lin(read) + states[:, :1])
    given: Tensor = block.output_layer_norm(block.ffn(attended) + attended)
    return given


def _read_by_first(
    attention: Any,
    layers: tuple[nn.Module, nn.Module, nn.Module],
    states: Tensor,
    mask: Tensor | None,
    *,
    folded: bool,
) -> Tensor:
    """Return what the first token reads from all, `[batch, 1, width]`; `layers` make queries, keys and values.

    One query needs no keys: q · (K x) is (Kᵀ q) · x, with one vector a head and row. Nor does it need values: the
    sum over tokens of a (V x) is V (the sum of a x). Multi-head latent attention saves memory so (DeepSeek-V2,
    https://arxiv.org/abs/2405.04434, section 2.1.2); here the largest products of the attention are saved.
    """
    size = attention.attention_head_size
    query, key, value = layers
    asks = query(states[:, :1])[:, 0].unflatten(-1, (-1, size)) * size**-0.5  # [batch, heads, size]
    if folded and _is_plain(key):
        scores = torch.einsum("bhs,hsw->bhw", asks, _by_head(key.weight, size)) @ states.mT
        scores = scores if key.bias is None else scores + (asks * _by_head(key.bias, size)).sum(-1, keepdim=True)
    else:
        keys = key(states).unflatten(-1, (-1, size))
        scores = torch.einsum("bhs,bths->bht", asks, keys)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
    weights = F.dropout(weights, attention.dropout.p, attention.training)
    if folded and _is_plain(value):
        read = torch.einsum("bhw,hsw->bhs", weights @ states, _by_head(value.weight, size))
        read = read if value.bias is None else read + weights.sum(-1, keepdim=True) * _by_head(value.bias, size)
    else:
        read = torch.einsum("bht,bths->bhs", weights, value(states).unflatten(-1, (-1, size)))
    return read.flatten(1).unsqueeze(1)


def _is_plain(module: Any) -> TypeGuard[nn.Linear]:
    """Tell whether a layer is its weight and bias, and no more: no adapter, no rounding, no mask."""
    return type(module) is nn.Linear and not _has_been_changed(module)


def _has_been_changed(module: nn.Module) -> bool:
    """Tell whether running a module is more than what its class does."""
    return bool(module._forward_pre_hooks or module._forward_hooks) or "forward" in vars(module)  # noqa: SLF001


def _by_head(parameter: Tensor, size: int) -> Tensor:
    return parameter.view(-1, size, *parameter.shape[1:])


def _tensors(outputs: Any) -> list[Tensor] | None:
    """Return all tensors in what a model gave; None where there is something else, of which nothing can be told."""
    leaves = [leaf for leaf in tree_iter(outputs) if leaf is not None]
    return leaves if leaves and all(isinstance(leaf, Tensor) for leaf in leaves) else None


def _agree(one: Tensor, other: Tensor) -> bool:
    if not one.is_floating_point():
        return torch.equal(one, other)
    allowed = min(0.1, _ROUNDING * torch.finfo(one.dtype).eps) * one.abs().max().item()
    return torch.allclose(one, other, rtol=0, atol=allowed)
