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
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from lowft._inference import autocast, evaluation_mode
from lowft._placement import Placement
from lowft._progress import progress_bar
from lowft.errors import ModelError
from lowft.models._prefix import Prefix, catch
from lowft.models._state_store import StateStore

if TYPE_CHECKING:
    import numpy.typing as npt

    from lowft.data.batching import TokenizedRows
    from lowft.models.layers import Layers

__all__ = ["ROWS_TOGETHER", "Filling", "PrefixCache", "cache_prefix", "frozen_below", "frozen_blocks", "prefix_digest"]

ROWS_TOGETHER = 64  # when a cache is filled
_ROWS_EXAMINED = 8


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
    """The hidden states that leave a model's frozen lowest layers, for every row that was put in; see `cache_prefix`.

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

    def put(self, batch: _Batch, states: Tensor) -> None:
        """Keep the states of a batch, `[batch, tokens, width]`."""
        if self._store is not None:
            for key, length, row in zip(batch.keys, batch.lengths, states.cpu(), strict=True):
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


@dataclass(frozen=True, kw_only=True)
class Filling:
    """How caches are filled.

    Attributes:
        precision: "float32" or "bfloat16": that of the training.
        memory_limit: Bytes that may be held in memory; a larger cache is a file, removed with the cache, and holds as
            many rows as half of the free space has room for.
        folder: Where such a file goes; the system's folder for temporary files if None.
        progress: Whether to show a progress bar; None decides by the terminal.
        narrow: Keep one token of a row where the head reads no more; not where something else looks at the states.
    """

    precision: str = "float32"
    memory_limit: int = 2 * 1024**3
    folder: Path | None = None
    progress: bool | None = None
    narrow: bool = True


@dataclass(frozen=True)
class _Batch:
    """Rows that are computed together when a cache is filled."""

    rows: TokenizedRows
    indices: list[int]
    keys: list[bytes]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [int(length) for length in self.rows.lengths[self.indices]]


def cache_prefix(
    model: nn.Module,
    layers: Layers,
    blocks: Sequence[int],
    rows: Sequence[TokenizedRows],
    settings: Filling | None = None,
    *,
    placement: Placement | None = None,
    base: PrefixCache | None = None,
) -> dict[int, PrefixCache]:
    """Compute what leaves the frozen lowest layers, for each distinct row once, in one pass for several depths.

    Args:
        model: The model; what is cached must be frozen, and stay so while the cache serves.
        layers: Its layers.
        blocks: How many of the lowest blocks to cache; 0 is the embeddings alone. The first may go to a file; further,
            smaller numbers, and the embeddings alone, are cached if there is memory left.
        rows: The rows.
        settings: How to fill it; the defaults if None.
        placement: The processes that share the computation; each then holds all rows.
        base: A whole cache of fewer blocks of the same model, to start from.

    Returns:
        The caches, by their number of blocks.

    Raises:
        ModelError: The states cannot be reused: the tokenizer pads on the left, the model takes no attention mask, or
            its blocks hand each other more than hidden states; or embeddings alone do not fit in memory.
        OSError: The disk has no room for the file.
    """
    for table in rows:
        if table.tokenizer.padding_side != "right":
            raise ModelError(
                "a prefix cache needs padding on the right: on the left, a row's positions depend on the rows beside "
                "it. Set tokenizer.padding_side = 'right'"
            )
    settings = settings or Filling()
    device = next(model.parameters()).device
    prefixes = [Prefix(model, layers, number) for number in blocks]
    with evaluation_mode(model), torch.no_grad():
        sample = _inputs(rows[0], _spread(rows[0].lengths), device)
        if "attention_mask" not in sample or "input_ids" not in sample:
            raise ModelError(
                f"a prefix cache needs an attention mask, which {type(model).__name__} does not take: what it gives "
                f"for a row depends on the padding"
            )
        for prefix in prefixes:
            prefix.examine(sample, narrow=settings.narrow)
        names = tuple(sorted(sample))
        batches = _distinct(rows, names)
        lengths = [length for batch in batches for length in batch.lengths]

        def compute(batch: _Batch) -> list[Tensor]:
            inputs = _inputs(batch.rows, batch.indices, device)
            served = contextlib.nullcontext() if base is None else base.serving(inputs)
            with autocast(settings.precision, device), served:
                return catch(prefixes, inputs)

        shares = placement or Placement(device)
        with autocast(settings.precision, device):
            like = catch(prefixes, sample)
        stores = _stores(prefixes, like, lengths, settings, shares)
        caches = [
            PrefixCache(prefix, names, prefix_digest(model, layers, len(prefix.blocks)), store, len(lengths))
            for prefix, store in zip(prefixes, stores, strict=False)
        ]
        prefixes = prefixes[: len(caches)]
        own = max(_fitting(batches, prefix, store.capacity) for prefix, store in zip(prefixes, stores, strict=True))
        fitting = max(shares.gather(own))
        done = _in_turn(batches[:fitting], compute, shares)
        shown = settings.progress if fitting > 1 and shares.is_main else False
        for batch, found in progress_bar(done, "caching frozen layers", shown=shown, leave=False, total=fitting):
            for cache, states in zip(caches, found, strict=True):
                cache.put(batch, states)
    return {cache.blocks: cache for cache in caches}


def _inputs(rows: TokenizedRows, indices: Sequence[int], device: torch.device) -> dict[str, Tensor]:
    return rows.collate(indices).to(device).inputs


def _spread(lengths: npt.NDArray[np.int64]) -> list[int]:
    """Return a few rows, from the shortest to the longest."""
    order = np.argsort(lengths, kind="stable")
    places = np.linspace(0, len(order) - 1, min(_ROWS_EXAMINED, len(order))).round().astype(int)
    return [int(index) for index in order[places]]


def _distinct(rows: Sequence[TokenizedRows], names: tuple[str, ...]) -> list[_Batch]:
    """Return the rows in batches, longest first, each content once."""
    batches = []
    seen: set[bytes] = set()
    for table in rows:
        order = np.argsort(-table.lengths, kind="stable").tolist()
        new: list[tuple[int, bytes]] = []
        for start in range(0, len(order), ROWS_TOGETHER):
            indices = order[start : start + ROWS_TOGETHER]
            for index, key in zip(indices, row_keys(table.collate(indices).inputs, names), strict=True):
                if key not in seen:
                    seen.add(key)
                    new.append((index, key))
        for start in range(0, len(new), ROWS_TOGETHER):
            part = new[start : start + ROWS_TOGETHER]
            batches.append(_Batch(table, [index for index, _ in part], [key for _, key in part]))
    return batches


def _stores(
    prefixes: Sequence[Prefix],
    like: Sequence[Tensor],
    lengths: Sequence[int],
    settings: Filling,
    placement: Placement,
) -> list[StateStore]:
    """Make room for the first prefix, and for those after it while there is memory; for embeddings only in memory."""
    stores: list[StateStore] = []
    failure = None
    for prefix, states in zip(prefixes, like, strict=True):
        tokens = sum(lengths) if prefix.reads == "all" else len(lengths)
        left = settings.memory_limit - sum(store.bytes for store in stores if store.in_memory)
        # To look embeddings up is a thousandth of a training step, and quicker than to read them from a disk.
        spare = bool(stores) or not prefix.blocks
        if spare and tokens * states.shape[-1] * states.element_size() > left:
            break
        try:
            stores.append(StateStore(tokens, states, memory_limit=left, folder=settings.folder))
        except OSError as error:
            failure = error
            break
    told = [other for other in placement.gather(None if failure is None else str(failure)) if other]
    if failure is not None:
        raise failure
    if told:
        raise OSError(told[0])
    if not stores:
        raise ModelError("the embeddings take more than prefix_cache_memory, and are looked up faster than read")
    return stores


def _fitting(batches: Sequence[_Batch], prefix: Prefix, capacity: int) -> int:
    """Return how many of the batches there is room for, the last one perhaps in part."""
    used = 0
    for number, batch in enumerate(batches):
        if used >= capacity:
            return number
        used += sum(batch.lengths) if prefix.reads == "all" else len(batch.lengths)
    return len(batches)


def _in_turn(
    batches: Sequence[_Batch], compute: Callable[[_Batch], list[Tensor]], placement: Placement
) -> Iterator[tuple[_Batch, list[Tensor]]]:
    """Yield what is computed for each batch; of several processes each computes its share and tells the others."""
    together = placement.processes
    for start in range(0, len(batches), together):
        group = batches[start : start + together]
        if len(group) < together or together == 1:
            yield from ((batch, compute(batch)) for batch in group)
            continue
        own = compute(group[placement.rank])
        for turn, batch in enumerate(group):
            shape = (len(batch.keys), max(batch.lengths))
            found = own if turn == placement.rank else [like.new_empty((*shape, like.shape[-1])) for like in own]
            for states in found:
                torch.distributed.broadcast(states, src=turn)
            yield batch, found


def row_keys(inputs: dict[str, Tensor], names: tuple[str, ...]) -> list[bytes]:
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
