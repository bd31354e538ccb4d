"""Filling the caches of frozen layers: each distinct row once, for several depths in one pass, shared by processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowft._inference import autocast, evaluation_mode, tokens_at_once
from lowft._memory import is_out_of_memory, release_memory, too_long
from lowft._placement import Placement, device_of
from lowft._progress import progress_bar
from lowft.data.epochs import longest_first
from lowft.errors import ModelError
from lowft.models._prefix import Prefix, catch
from lowft.models._state_store import StateStore
from lowft.models.first_token import FirstToken
from lowft.models.prefix_cache import Key, PrefixCache, prefix_digest, row_keys

if TYPE_CHECKING:
    import numpy.typing as npt

    from lowft.data.batching import TokenizedRows
    from lowft.models.layers import Layers

__all__ = ["ROWS_TOGETHER", "Filling", "cache_prefix", "filling_batches", "sample_inputs"]

ROWS_TOGETHER = 64  # at most, when a cache is filled
_ROWS_EXAMINED = 4


@dataclass(frozen=True, kw_only=True)
class Filling:
    """How caches are filled.

    Attributes:
        precision: "float32" or "bfloat16": that of the training.
        memory_limit: Bytes that may be held in memory; a larger cache is a file, removed with the cache, and holds as
            many rows as half of the free space has room for.
        folder: Where such a file goes; the system's folder for temporary files if None.
        tokens_per_batch: Tokens that go through the model at once at most, but in the trial of a few rows before; None
            leaves it to lowft.
        progress: Whether to show a progress bar; None decides by the terminal.
        narrow: Keep one token of a row where the head reads no more; not where something else looks at the states.
        skip_unread: Nor compute another one, where that can be.
    """

    precision: str = "float32"
    memory_limit: int = 2 * 1024**3
    folder: Path | None = None
    tokens_per_batch: int | None = None
    progress: bool | None = None
    narrow: bool = True
    skip_unread: bool = True


@dataclass(frozen=True)
class _Batch:
    """Rows that are computed together when a cache is filled."""

    rows: TokenizedRows
    indices: list[int]
    keys: list[Key]

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
        TrainingError: There is no memory for a row alone; a batch that finds none is computed in halves.
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
    device = device_of(model)
    prefixes = [Prefix(model, layers, number) for number in blocks]
    with evaluation_mode(model), torch.no_grad():
        sample = sample_inputs(rows[0], device)
        if "attention_mask" not in sample or "input_ids" not in sample:
            raise ModelError(
                f"a prefix cache needs an attention mask, which {type(model).__name__} does not take: what it gives "
                f"for a row depends on the padding"
            )
        for prefix in prefixes:
            prefix.examine(sample, narrow=settings.narrow)
        names = tuple(sorted(sample))
        skips = settings.skip_unread and prefixes[0].reads == "first"
        top = FirstToken.find(model, layers, sample) if skips else None
        batches = _distinct(rows, names, device, settings.tokens_per_batch)
        lengths = [length for batch in batches for length in batch.lengths]

        def compute(batch: _Batch) -> list[Tensor]:
            inputs = _inputs(batch.rows, batch.indices, device)
            served = contextlib.nullcontext() if base is None else base.serving(inputs)
            first = contextlib.nullcontext() if top is None else top.alone()
            with autocast(settings.precision, device), first, served:
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
        done = _in_turn(batches[:fitting], partial(_in_halves, compute), shares)
        shown = settings.progress if fitting > 1 and shares.is_main else False
        for batch, found in progress_bar(done, "caching frozen layers", shown=shown, leave=False, total=fitting):
            for cache, states in zip(caches, found, strict=True):
                cache.put(batch.keys, batch.lengths, states)
    return {cache.blocks: cache for cache in caches}


def filling_batches(
    lengths: npt.NDArray[np.int64], device: torch.device, tokens_per_batch: int | None
) -> list[npt.NDArray[np.int64]]:
    """Return the indices of rows of these lengths in the batches in which a cache is filled, the longest first."""
    return longest_first(lengths, ROWS_TOGETHER, tokens_at_once(device, tokens_per_batch))


def sample_inputs(rows: TokenizedRows, device: torch.device) -> dict[str, Tensor]:
    """Return a model's inputs for a few rows, from the shortest to the longest."""
    order = np.argsort(rows.lengths, kind="stable")
    places = np.linspace(0, len(order) - 1, min(_ROWS_EXAMINED, len(order))).round().astype(int)
    return _inputs(rows, order[places].tolist(), device)


def _inputs(rows: TokenizedRows, indices: Sequence[int], device: torch.device) -> dict[str, Tensor]:
    return rows.collate(indices).to(device).inputs


def _distinct(
    rows: Sequence[TokenizedRows], names: tuple[str, ...], device: torch.device, tokens_per_batch: int | None
) -> list[_Batch]:
    """Return the rows in batches, longest first, each content once."""
    batches = []
    seen: set[Key] = set()
    for table in rows:
        order = np.argsort(-table.lengths, kind="stable").tolist()
        new: list[tuple[int, Key]] = []
        for start in range(0, len(order), ROWS_TOGETHER):
            indices = order[start : start + ROWS_TOGETHER]
            for index, key in zip(indices, row_keys(table.collate(indices).inputs, names), strict=True):
                if key not in seen:
                    seen.add(key)
                    new.append((index, key))
        for places in filling_batches(table.lengths[[index for index, _ in new]], device, tokens_per_batch):
            part = [new[place] for place in places]
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


def _in_halves(compute: Callable[[_Batch], list[Tensor]], batch: _Batch) -> list[Tensor]:
    """Return what is computed for a batch, for each half of it alone where memory runs out."""
    rows = len(batch.keys)
    try:
        return compute(batch)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if rows == 1:
            raise too_long("caching frozen layers", batch.lengths[0], error) from error
    release_memory()
    halves = [
        _in_halves(compute, _Batch(batch.rows, batch.indices[part], batch.keys[part]))
        for part in (slice(rows // 2), slice(rows // 2, rows))
    ]
    longest = max(batch.lengths)
    return [
        torch.cat([F.pad(states, (0, 0, 0, longest - states.shape[1])) for states in both])
        for both in zip(*halves, strict=True)
    ]


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
