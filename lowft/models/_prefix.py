"""The lowest layers of a model: what leaves them is caught, and later handed over in their place.

The model's own forward still runs, so masks and positions are its own; only the blocks below the cut hand on what they
get, and those at the cut hand over what they gave before. An encoder with a decoder is cut in both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from lowft._inference import logits_of
from lowft.errors import ModelError

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from lowft.models.layers import Layers

__all__ = ["Prefix", "Reads", "catch"]

Reads = Literal["all", "first", "last"]
_ROUNDING = 1000  # times the spacing of floats: what two ways to the same logits may differ by
_REFUSALS = (RuntimeError, TypeError, ValueError, AttributeError, IndexError)  # of a model that is handed too little


@dataclass(frozen=True)
class _Cut:
    """Where one stack of blocks is cut: above a block, or below the first one."""

    block: str
    below: bool = False


class Prefix:
    """The lowest layers of a model, all of them frozen; `examine` it before use.

    Args:
        model: The model.
        layers: Its layers.
        blocks: How many of the lowest blocks; 0 is the embeddings alone.

    Attributes:
        reads: Which of a row's tokens what lies above the prefix reads.
    """

    def __init__(self, model: nn.Module, layers: Layers, blocks: int) -> None:
        self.model = model
        self.blocks = layers.blocks[:blocks]
        self.shared = layers.shared
        self.reads: Reads = "all"
        self._tops = blocks == layers.num_blocks
        self._embeddings = layers.embeddings
        self._unread: dict[str, int] = {}  # embedding modules that need not run, and the width of what they give
        self._others: dict[str, int | None] = {}  # how many values a block returns besides the states
        self._lowest: dict[str, str] = {}  # the lowest block of a stack whose blocks hand such values on
        self._widths: list[int] = []
        self._stacks: dict[str, list[str]] = {}
        for name in layers.blocks:
            self._stacks.setdefault(name.rpartition(".")[0], []).append(name)
        inside = [[name for name in names if name in self.blocks] for names in self._stacks.values()]
        cuts = [_Cut(names[-1]) for names in inside if names] or [_Cut(layers.blocks[0], below=True)]
        # What an encoder gives is read by the decoder's blocks, which do not run where all are in the prefix.
        self.cuts = tuple(cuts[-1:] if self._tops else cuts)

    @torch.no_grad()
    def examine(self, inputs: dict[str, Tensor], *, narrow: bool) -> None:
        """Try the prefix on a few rows: the logits must stay the same, and what is not read need not be there.

        Args:
            inputs: The model's inputs for rows of different lengths, padded on the right; the model is in evaluation
                mode.
            narrow: Whether to see if a single token of each row is read above the last block.

        Raises:
            ModelError: The logits would be others, since the blocks hand each other more than hidden states.
        """
        embedded: dict[str, int] = {}
        with self._watching(inputs["input_ids"], embedded):
            plain = logits_of(self.model(**inputs))
        (states,) = catch([self], inputs)
        if not self._gives(plain, inputs, states):
            raise ModelError(
                f"the blocks of {type(self.model).__name__} hand each other more than hidden states, which a prefix "
                f"cache does not hold"
            )
        self._unread = embedded
        # NaN shows in the logits wherever it is read.
        if not self._gives(plain, inputs, states, unread=float("nan")):
            self._unread = {}
        if not (narrow and self._tops):
            return
        lengths = inputs["attention_mask"].sum(dim=1)
        rows = torch.arange(len(lengths), device=lengths.device)
        places: dict[Reads, Tensor] = {"first": torch.zeros_like(lengths), "last": lengths - 1}
        for reads, place in places.items():
            bare = torch.full_like(states, float("nan"))
            bare[rows, place] = states[rows, place]
            if self._gives(plain, inputs, bare):
                self.reads = reads
                return

    def read(self, length: int) -> slice:
        """Return which of a row's tokens are read, of so many."""
        return {"all": slice(length), "first": slice(1), "last": slice(length - 1, length)}[self.reads]

    @contextlib.contextmanager
    def handing_over(self, states: Tensor, *, unread: float = 0.0) -> Iterator[None]:
        """Let the model's forward take these states instead of running what lies below the cut.

        Args:
            states: What `catch` gave for the rows of the batch, `[batch, tokens, width]`.
            unread: What stands for embeddings that need not be computed.
        """
        forwards: dict[str, Callable[..., Any]] = {
            name: _standing_for(states.new_full((1,), unread), width) for name, width in self._unread.items()
        }
        forwards |= {name: self._handing_on(name) for name in self.blocks}
        for cut, part in zip(self.cuts, torch.split(states, self._widths, dim=-1), strict=True):
            if cut.below:
                forwards[cut.block] = _fed(self.model.get_submodule(cut.block).forward, part)
            else:
                forwards[cut.block] = _giving(self._output(cut.block, part))
        modules = {name: self.model.get_submodule(name) for name in forwards}
        own = {name: vars(module).get("forward") for name, module in modules.items()}
        try:
            for name, module in modules.items():
                vars(module)["forward"] = forwards[name]
            yield
        finally:
            for name, module in modules.items():
                if own[name] is None:
                    vars(module).pop("forward", None)
                else:
                    vars(module)["forward"] = own[name]

    def _gives(self, plain: Tensor, inputs: dict[str, Tensor], states: Tensor, *, unread: float = 0.0) -> bool:
        """Tell whether the model gives the same logits when it is handed these states."""
        try:
            with self.handing_over(states, unread=unread):
                logits = logits_of(self.model(**inputs))
        except _REFUSALS:
            return False
        allowed = min(0.1, _ROUNDING * torch.finfo(plain.dtype).eps) * plain.abs().max().item()
        return torch.allclose(logits, plain, rtol=0, atol=allowed)

    def _handing_on(self, name: str) -> Callable[..., Any]:
        others = self._others[name]

        def forward(below: Tensor, *_arguments: Any, **_settings: Any) -> Any:
            return below if others is None else (below, *[None] * others)

        return forward

    def _output(self, name: str, states: Tensor) -> Any:
        """Return what a block would, with these states."""
        others = self._others[name]
        if others is None:
            return states
        stack = self._stacks[name.rpartition(".")[0]]
        if name not in self._lowest or name == stack[-1]:
            return (states, *[None] * others)
        # T5's position bias is made by the lowest block from nothing but the length: one row is enough to get it.
        with torch.no_grad():
            _, *values = self.model.get_submodule(self._lowest[name])(torch.zeros_like(states[:1]))
        return (states, *values)

    @contextlib.contextmanager
    def _watching(self, ids: Tensor, embedded: dict[str, int]) -> Iterator[None]:
        """Note in a forward pass what blocks return, and which modules only turn tokens into embeddings."""

        def blocks(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _arguments: Any, output: Any) -> None:
                self._others[name] = len(output) - 1 if isinstance(output, tuple) else None
                if isinstance(output, tuple) and any(other is not None for other in output[1:]):
                    self._lowest[name] = self._stacks[name.rpartition(".")[0]][0]

            return hook

        def embeddings(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, arguments: Any, settings: Mapping[str, Any], output: Any) -> None:
                tensors = [value for value in (*arguments, *settings.values()) if isinstance(value, Tensor)]
                if any(value.data_ptr() == ids.data_ptr() for value in tensors) and output.shape[:-1] == ids.shape:
                    embedded[name] = output.shape[-1]

            return hook

        modules = dict(self.model.named_modules())  # a parameter of its own may stand among the embeddings
        tables = [name for name in self._embeddings if name in modules]
        handles = [modules[name].register_forward_hook(blocks(name)) for name in self.blocks]
        handles += [modules[name].register_forward_hook(embeddings(name), with_kwargs=True) for name in tables]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def catch(prefixes: Sequence[Prefix], inputs: dict[str, Tensor]) -> list[Tensor]:
    """Return what leaves each prefix of one model, `[batch, tokens, width]`; layers above the deepest do not run.

    Raises:
        ModelError: A prefix gives no states for each token.
    """
    deepest = max(prefixes, key=lambda prefix: len(prefix.blocks))
    caught: dict[_Cut, Any] = {}
    handles = [_catching(deepest, cut, caught) for cut in {cut for prefix in prefixes for cut in prefix.cuts}]
    try:
        with torch.no_grad(), contextlib.suppress(_LeftPrefix):
            deepest.model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    tokens = inputs["input_ids"].shape
    for cut, states in caught.items():
        if not isinstance(states, Tensor) or states.shape[:-1] != tokens:
            raise ModelError(f"{cut.block} of {type(deepest.model).__name__} gives no hidden states for each token")
    for prefix in prefixes:
        prefix._widths = [caught[cut].shape[-1] for cut in prefix.cuts]  # noqa: SLF001 - its own module
    return [torch.cat([caught[cut] for cut in prefix.cuts], dim=-1) for prefix in prefixes]


def _catching(deepest: Prefix, cut: _Cut, caught: dict[_Cut, Any]) -> RemovableHandle:
    """Keep what passes at a cut; at the last one of the deepest prefix, leave the forward pass."""
    is_last = cut == deepest.cuts[-1]
    block = deepest.model.get_submodule(cut.block)

    def above(_block: nn.Module, _arguments: Any, output: Any) -> None:
        caught[cut] = output[0] if isinstance(output, tuple) else output
        if is_last and not deepest.shared:  # a shared block runs again, and the last of its runs counts
            raise _LeftPrefix

    def below(_block: nn.Module, arguments: tuple[Any, ...], settings: dict[str, Any]) -> None:
        caught.setdefault(cut, arguments[0] if arguments else settings.get("hidden_states"))
        if is_last:
            raise _LeftPrefix

    if cut.below:
        return block.register_forward_pre_hook(below, with_kwargs=True)
    return block.register_forward_hook(above)


def _fed(forward: Callable[..., Any], states: Tensor) -> Callable[..., Any]:
    """Return the forward of a block whose first run is on these states, whatever it is given."""
    waiting = [states]  # a block with shared weights runs again, on what it gave

    def fed(*arguments: Any, **settings: Any) -> Any:
        if not waiting:
            return forward(*arguments, **settings)
        states = waiting.pop()
        if arguments:
            return forward(states, *arguments[1:], **settings)
        return forward(**{**settings, "hidden_states": states})

    return fed


def _giving(output: Any) -> Callable[..., Any]:
    def forward(*_arguments: Any, **_settings: Any) -> Any:
        return output

    return forward


def _standing_for(value: Tensor, width: int) -> Callable[..., Any]:
    """Return the forward of embeddings that need not be computed."""

    def forward(*arguments: Any, **settings: Any) -> Tensor:
        tokens = next(value for value in (*arguments, *settings.values()) if isinstance(value, Tensor))
        return value.expand(*tokens.shape, width)

    return forward


class _LeftPrefix(Exception):  # noqa: N818 - not an error: the way out of a forward pass
    """The prefix has been computed."""
