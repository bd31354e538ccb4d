"""What a model uses when: one tiny forward pass, watched parameter by parameter.

Hooks say which block is running; a dispatch mode sees every tensor operation, hence also a weight that is
used without a call of the module that owns it (DeBERTa's relative positions, an embedding reused as output).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.hooks import RemovableHandle

from lowft._placement import device_of

__all__ = ["Trace", "run_once", "used_by_others"]


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call] # its __init_subclass__ has no types
    """One tiny forward pass that records when each parameter is used, counted in blocks entered so far."""

    def __init__(self, model: nn.Module, blocks: Mapping[str, nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.blocks = blocks
        self.order: list[str] = []  # every block entered, in turn; empty if not all of them were
        self.inside: set[nn.Parameter] = set()  # parameters used within a block
        self.outside: dict[nn.Parameter, set[int]] = {}  # blocks entered before each use that is outside them
        self.plain: dict[str, int] = {}  # the same for modules without parameters: the first use
        self._open = 0
        self._run(model)
        if set(self.order) != set(blocks):  # the model stopped early: half a story would mislead
            for seen in (self.order, self.inside, self.outside, self.plain):
                seen.clear()

    def depth(self, entered: int) -> int:
        """Return the depth of what runs outside the blocks after `entered` of them."""
        if entered in (0, len(self.order)):
            return 0 if entered == 0 else len(self.blocks) + 1
        return list(dict.fromkeys(self.order)).index(self.order[entered - 1]) + 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for value in tree_iter((args, kwargs)):
            if isinstance(value, nn.Parameter):
                if self._open:
                    self.inside.add(value)
                else:
                    self.outside.setdefault(value, set()).add(len(self.order))
        return func(*args, **(kwargs or {}))

    def _run(self, model: nn.Module) -> None:
        handles = list(self._watch(model))
        try:
            _watched_run(model, self)  # whether enough was seen is checked afterwards
        finally:
            for handle in handles:
                handle.remove()

    def _watch(self, model: nn.Module) -> Iterator[RemovableHandle]:
        for name, block in self.blocks.items():
            yield from self._watch_block(name, block)
        held = {module for block in self.blocks.values() for module in block.modules()}
        for name, module in model.named_modules():
            if module not in held and not any(True for _ in (*module.children(), *module.parameters())):
                yield self._watch_plain(name, module)

    def _watch_block(self, name: str, block: nn.Module) -> Iterator[RemovableHandle]:
        def enter(*_: Any) -> None:
            self.order.append(name)
            self._open += 1

        def leave(*_: Any) -> None:
            self._open -= 1

        yield block.register_forward_pre_hook(enter)
        yield block.register_forward_hook(leave)

    def _watch_plain(self, name: str, module: nn.Module) -> RemovableHandle:
        def note(*_: Any) -> None:
            self.plain.setdefault(name, len(self.order))

        return module.register_forward_pre_hook(note)


class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call] # its __init_subclass__ has no types
    """One tiny forward pass that records which weights are used while the module that owns them does not run."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[str] = set()
        self._owners: dict[int, list[str]] = {}
        self._running: dict[int, int] = {}
        for name, module in modules.items():
            self._owners.setdefault(id(module.weight), []).append(name)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for value in tree_iter((args, kwargs)):
            if isinstance(value, nn.Parameter) and id(value) in self._owners and not self._running.get(id(value)):
                self.found.update(self._owners[id(value)])
        return func(*args, **(kwargs or {}))

    def enter(self, module: nn.Module, *_: Any) -> None:
        self._running[id(module.weight)] = self._running.get(id(module.weight), 0) + 1

    def leave(self, module: nn.Module, *_: Any) -> None:
        self._running[id(module.weight)] -= 1


def used_by_others(model: nn.Module, modules: Mapping[str, nn.Module]) -> set[str]:
    """Return the names of those modules whose weight the model reads without calling them.

    Such a module cannot be replaced: DeBERTa, for one, normalises the weight of its relative positions.

    Args:
        model: The model; one that cannot be run on a made-up text is taken to call all its modules.
        modules: Modules of it that have a `weight`.
    """
    uses = _Uses(modules)
    handles = [module.register_forward_pre_hook(uses.enter) for module in modules.values()]
    handles += [module.register_forward_hook(uses.leave) for module in modules.values()]
    try:
        _watched_run(model, uses)
    finally:
        for handle in handles:
            handle.remove()
    return uses.found


def _watched_run(model: nn.Module, watch: TorchDispatchMode) -> None:
    """Run a model once while each tensor operation is watched; its modes and the random state stay as they are."""
    modes = [(module, module.training) for module in model.modules()]
    device = device_of(model)
    forked = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    try:
        model.eval()
        with contextlib.suppress(Exception), forked, torch.no_grad(), watch:  # it may refuse made-up input in any way
            run_once(model, device)
    finally:
        for module, training in modes:
            module.training = training


def run_once(model: nn.Module, device: torch.device, *, rows: int = 1, tokens: int = 4) -> None:
    """Run `model` on made-up texts, `[rows, tokens]`; raises what the model raises on such."""
    while (inner := _wrapped(model)) is not None:  # a wrapper would compile, or talk to other processes
        model = inner
    config = getattr(model, "config", None)
    ids = torch.zeros(rows, tokens, dtype=torch.long, device=device)
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int) and end < getattr(config, "vocab_size", 0):
        ids[:, -1] = end  # T5's classifier reads the state at the end token
    known = inspect.signature(model.forward).parameters
    inputs = {"input_ids": ids, "decoder_input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "input_ids" in known:
        model(**{name: value for name, value in inputs.items() if name in known})
    else:
        model(ids)


def _wrapped(model: nn.Module) -> nn.Module | None:
    """Return what `DistributedDataParallel`, `DataParallel` or `torch.compile` wrapped, or None."""
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        inner: nn.Module = model.module
        return inner
    compiled = getattr(model, "_orig_mod", None)
    return compiled if isinstance(compiled, nn.Module) else None
