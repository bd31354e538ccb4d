"""A frozen prefix is computed once for each row, and its output reused in every later epoch and evaluation.

Nothing above the prefix can tell: the model's own forward still builds masks and positions, only its lowest
blocks hand over what they gave before. The values are a function of (rows, frozen weights) alone, because all rows
are computed at once, in a fixed order, before the first of them is used; so a resumed run sees the same bits.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lowft._inference import autocast, evaluation_mode
from lowft._progress import progress_bar
from lowft.data.batching import TokenizedRows
from lowft.errors import ModelError
from lowft.models.layers import Layers

__all__ = ["PrefixCache", "frozen_blocks"]

_ROWS_TOGETHER = 64


def frozen_blocks(model: nn.Module, layers: Layers) -> int:
    """Return how many of the lowest blocks are frozen with everything below them.

    A block that shares its weights with others runs several times, so it counts only where all of them are frozen.

    >>> from lowft.models import find_layers, freeze_
    >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    >>> _ = freeze_(model, top=1)
    >>> frozen_blocks(model, find_layers(model))
    1
    """
    trained = [layers.depths[name] for name, parameter in model.named_parameters() if parameter.requires_grad]
    lowest = min(trained, default=layers.num_blocks + 1)
    return min(max(0, lowest - 1), layers.num_blocks)


class PrefixCache:
    """The hidden states that leave a model's frozen lowest blocks, for every row.

    Args:
        model: The model; the blocks that are cached must be frozen, and stay so.
        layers: Its layers.
        blocks: How many of the lowest blocks to cache, at least 1.
        rows: The rows.
        precision: "float32" or "bfloat16": that of the training.
        memory_limit: Bytes that may be held in memory; a larger cache is a file, removed with the cache.
        folder: Where such a file goes; the system's folder for temporary files if None.
        progress: Whether to show a progress bar; None decides by the terminal.

    Attributes:
        in_memory: Whether the states are in memory and not in a file.

    Raises:
        ModelError: The blocks hand each other more than hidden states (T5's position bias), or the tokenizer pads on
            the left, where a row's positions depend on the rows beside it.
        OSError: The disk has no room for the file.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        blocks: int,
        rows: TokenizedRows,
        *,
        precision: str = "float32",
        memory_limit: int = 2 * 1024**3,
        folder: Path | None = None,
        progress: bool | None = None,
    ) -> None:
        if rows.tokenizer.padding_side != "right":
            raise ModelError(
                "a prefix cache needs padding on the right: on the left, a row's positions depend on the rows beside "
                "it. Set tokenizer.padding_side = 'right'"
            )
        self._blocks = [model.get_submodule(name) for name in layers.blocks[:blocks]]
        self._device = next(model.parameters()).device
        self._starts = np.concatenate([[0], np.cumsum(rows.lengths)]).tolist()
        self._nones: int | None = None  # how many a block returns besides the states; None for a bare tensor
        self.in_memory = True
        self._states: Tensor | None = None
        order = np.argsort(-rows.lengths, kind="stable")
        batches = [order[start : start + _ROWS_TOGETHER].tolist() for start in range(0, len(order), _ROWS_TOGETHER)]
        shown = progress if len(batches) > 1 else False
        with evaluation_mode(model), torch.no_grad():
            for indices in progress_bar(batches, "caching frozen layers", shown=shown, leave=False):
                batch = rows.collate(indices).to(self._device)
                with autocast(precision, self._device):
                    states = self._leave_prefix(model, batch.inputs, shared=layers.shared)
                if self._states is None:
                    self._states = self._room(states, memory_limit, folder)
                for index, row in zip(indices, states.to(self._states.device), strict=True):
                    start, end = self._starts[index], self._starts[index + 1]
                    self._states[start:end] = row[: end - start]

    @property
    def bytes(self) -> int:
        """The size of the cached states."""
        return 0 if self._states is None else self._states.numel() * self._states.element_size()

    @contextlib.contextmanager
    def serving(self, indices: Sequence[int]) -> Iterator[None]:
        """Let the model's forward take what the prefix gives for these rows from the cache.

        Args:
            indices: Indices of the rows that form the batch, in its order.

        Raises:
            RuntimeError: The cache is closed.
        """
        if self._states is None:
            raise RuntimeError("this PrefixCache is closed: its states are gone")
        rows = [self._states[self._starts[index] : self._starts[index + 1]] for index in indices]
        states = pad_sequence(rows, batch_first=True).to(self._device)

        def hand_on(below: Tensor, *_arguments: Any, **_settings: Any) -> Any:
            return self._shaped(below)

        def hand_over(_below: Tensor, *_arguments: Any, **_settings: Any) -> Any:
            return self._shaped(states)

        own = [vars(block).get("forward") for block in self._blocks]
        try:
            for block in self._blocks:
                vars(block)["forward"] = hand_on
            vars(self._blocks[-1])["forward"] = hand_over
            yield
        finally:
            for block, forward in zip(self._blocks, own, strict=True):
                if forward is None:
                    vars(block).pop("forward", None)
                else:
                    vars(block)["forward"] = forward

    def close(self) -> None:
        """Give back the memory, or the space on the disk."""
        self._states = None

    def _leave_prefix(self, model: nn.Module, inputs: dict[str, Tensor], *, shared: bool) -> Tensor:
        """Return what the last cached block gives; blocks above it do not run."""
        outputs: list[Any] = []

        def catch(_block: nn.Module, _arguments: Any, output: Any) -> None:
            outputs.append(output)
            if not shared:  # a shared block runs again, and the last of its runs counts
                raise _LeftPrefix

        handle = self._blocks[-1].register_forward_hook(catch)
        try:
            with contextlib.suppress(_LeftPrefix):
                model(**inputs)
        finally:
            handle.remove()
        states, *others = outputs[-1] if isinstance(outputs[-1], tuple) else (outputs[-1],)
        if any(other is not None for other in others):
            raise ModelError(
                f"the blocks of {type(model).__name__} hand each other more than hidden states, which a prefix cache "
                f"does not hold"
            )
        self._nones = len(others) if isinstance(outputs[-1], tuple) else None
        return states  # type: ignore[no-any-return] # of a block: a tensor

    def _shaped(self, states: Tensor) -> Any:
        return states if self._nones is None else (states, *[None] * self._nones)

    def _room(self, states: Tensor, memory_limit: int, folder: Path | None) -> Tensor:
        """Return room for all rows, in memory or in a file whose space is already taken."""
        shape = (self._starts[-1], states.shape[-1])
        size = shape[0] * shape[1] * states.element_size()
        if size <= memory_limit:
            return torch.empty(shape, dtype=states.dtype)
        self.in_memory = False
        descriptor, name = tempfile.mkstemp(prefix="lowft-prefix-", dir=folder)
        try:
            # Writing to a mapped file on a full disk kills the process: take the space first.
            os.posix_fallocate(descriptor, 0, size)
            return torch.from_file(name, shared=True, size=shape[0] * shape[1], dtype=states.dtype).view(shape)
        finally:
            os.close(descriptor)
            Path(name).unlink()  # the mapping keeps the space until it is dropped, however the process ends


class _LeftPrefix(Exception):  # noqa: N818 - not an error: the way out of a forward pass
    """The prefix has been computed."""
