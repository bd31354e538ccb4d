"""A frozen prefix is computed once for each distinct row, and its output reused in later epochs and evaluations.

Nothing above the prefix can tell: the model's own forward still builds masks and positions, only its lowest layers
hand over what they gave before. What is served is found by its content: the tokens of a row as the model gets them,
under weights of which a digest is kept. So a row that a strategy changed is never mistaken for the one it was, and
weights that have moved make a cache of no use rather than wrong. All rows are computed in a fixed order before the
first of them is used, so a resumed run sees the same bits.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from lowft.models._prefix import Prefix, catch
from lowft.models._state_store import StateStore

if TYPE_CHECKING:
    from lowft.models.layers import Layers

__all__ = ["Key", "PrefixCache", "frozen_below", "frozen_blocks", "prefix_digest", "row_keys"]

Key = bytes  # the content of a row, by which its states are found


def frozen_blocks(model: nn.Module, layers: Layers) -> int:
    """Return how many of the lowest blocks are frozen with everything below them.

    A block that shares its weights with others runs several times, so it counts only where all of them are frozen.

    >>> from lowft.models import find_layers, freeze_
    >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    >>> _ = freeze_(model, top=1)
    >>> frozen_blocks(model, find_layers(model))
    1
    """
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return max(0, frozen_below(layers, trained))


def frozen_below(layers: Layers, trained: Collection[str]) -> int:
    """Return how many of the lowest blocks are frozen where these parameters train; −1 if embeddings train too."""
    lowest = min((layers.depths[name] for name in trained), default=layers.num_blocks + 1)
    return min(lowest - 1, layers.num_blocks)


def prefix_digest(model: nn.Module, layers: Layers, blocks: int) -> str:
    """Return a digest of all that decides what leaves the lowest blocks: weights, buffers, kinds of modules.

    >>> from lowft.models import find_layers
    >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    >>> layers = find_layers(model)
    >>> before = prefix_digest(model, layers, 1)
    >>> _ = nn.init.ones_(model[2].weight)
    >>> prefix_digest(model, layers, 1) == before, prefix_digest(model, layers, 2) == before
    (True, False)
    """
    above = {f"{name}." for name in layers.blocks[blocks:]}
    found = hashlib.sha256()
    for name, module in model.named_modules():
        if not any(f"{name}.".startswith(block) for block in above):
            found.update(f"{name}:{type(module).__qualname__};".encode())
    parameters = [(name, value) for name, value in model.named_parameters() if layers.depths.get(name, 0) <= blocks]
    # Of a module that learns above the prefix, as a head does, buffers are no more part of it than weights.
    higher = {name.rpartition(".")[0] for name, depth in layers.depths.items() if depth > blocks}
    buffers = [
        (name, value)
        for name, value in model.named_buffers()
        if name.rpartition(".")[0] not in higher and not any(map(name.startswith, above))
    ]
    for name, value in (*parameters, *buffers):
        found.update(f"{name}:{tuple(value.shape)}:{value.dtype};".encode())
        flat = value.detach().contiguous().cpu().reshape(-1)
        found.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return found.hexdigest()


class PrefixCache:
    """The hidden states that leave a model's frozen lowest layers, for every row that was put in.

    `lowft.models.prefix_filling.cache_prefix` makes them.

    Attributes:
        blocks: How many of the lowest blocks the states have passed through.
        digest: Of the weights that they were computed with, as `prefix_digest` gives it.
        expected: Distinct rows that were to be put in.
    """

    def __init__(self, prefix: Prefix, names: tuple[str, ...], digest: str, store: StateStore, expected: int) -> None:
        self.blocks = len(prefix.blocks)
        self.digest = digest
        self.expected = expected
        self._prefix = prefix
        self._names = names
        self._store: StateStore | None = store

    def __len__(self) -> int:
        """Return how many distinct rows are in store."""
        return 0 if self._store is None else len(self._store)

    @property
    def bytes(self) -> int:
        """The space that the states take."""
        return 0 if self._store is None else self._store.bytes

    @property
    def in_memory(self) -> bool:
        """Whether the states are in memory and not in a file."""
        return self._store is not None and self._store.in_memory

    @property
    def is_whole(self) -> bool:
        """Whether all rows are in store that were to be."""
        return len(self) == self.expected

    @contextlib.contextmanager
    def serving(self, inputs: dict[str, Tensor], on_cpu: dict[str, Tensor] | None = None) -> Iterator[int]:
        """Let the model's forward take what the prefix gives for these rows from the cache.

        Rows that are not in store are run up to the end of the prefix, without gradients.

        Args:
            inputs: The model's inputs, padded on the right. The frozen modules are in evaluation mode.
            on_cpu: The same inputs on the CPU, so that a GPU need not be waited for to read them; None reads `inputs`.

        Yields:
            How many of the rows are in store.

        Raises:
            RuntimeError: The cache is closed.
        """
        if self._store is None:
            raise RuntimeError("this PrefixCache is closed: its states are gone")
        read = inputs if on_cpu is None else on_cpu
        found = [self._store.get(key) for key in row_keys(read, self._names)]
        known = [(index, states) for index, states in enumerate(found) if states is not None]
        if not known:
            yield 0
            return
        missing = [index for index, states in enumerate(found) if states is None]
        lengths = read["attention_mask"].sum(dim=1).tolist()
        with self._prefix.handing_over(self._gathered(inputs, lengths, known, missing)):
            yield len(known)

    def close(self) -> None:
        """Give back the memory, or the space on the disk."""
        self._store = None

    def put(self, keys: Sequence[Key], lengths: Sequence[int], states: Tensor) -> None:
        """Keep the states of a batch, `[batch, tokens, width]`, by the rows' keys and lengths."""
        if self._store is not None:
            for key, length, row in zip(keys, lengths, states.cpu(), strict=True):
                self._store.put(key, row[self._prefix.read(length)])

    def _gathered(
        self, inputs: dict[str, Tensor], lengths: list[int], known: list[tuple[int, Tensor]], missing: list[int]
    ) -> Tensor:
        """Return the states of a batch, `[batch, tokens, width]`, of rows in store and of those computed now."""
        mask = inputs["attention_mask"]
        like = known[0][1]
        # Of pinned memory a GPU takes its copy while the process goes on.
        states = torch.zeros((*mask.shape, like.shape[-1]), dtype=like.dtype, pin_memory=mask.is_cuda)
        for index, row in known:
            states[index, self._prefix.read(lengths[index])] = row
        states = states.to(mask.device, non_blocking=mask.is_cuda)
        if missing:
            longest = max(lengths[index] for index in missing)
            (computed,) = catch([self._prefix], {name: value[missing, :longest] for name, value in inputs.items()})
            states[missing, :longest] = computed.to(states.dtype)
        return states


def row_keys(inputs: dict[str, Tensor], names: tuple[str, ...]) -> list[Key]:
    """Return the content of each row as the model gets it, without padding on the right.

    Args:
        inputs: The model's inputs, each `[batch, tokens]`.
        names: Those that decide what the prefix gives; other inputs make every row unknown.
    """
    shapes = {value.shape for value in inputs.values()}
    if tuple(sorted(inputs)) != names or len(shapes) > 1 or any(map(torch.is_floating_point, inputs.values())):
        return [b""] * len(next(iter(inputs.values())))
    table = torch.stack([inputs[name] for name in names], dim=-1).to("cpu", torch.int32).numpy()
    masks = table[:, :, names.index("attention_mask")] != 0
    ends = masks.shape[1] - np.argmax(masks[:, ::-1], axis=1)
    return [row[:end].tobytes() for row, end in zip(table, ends.tolist(), strict=True)]
