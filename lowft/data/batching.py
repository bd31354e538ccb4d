"""From rows to batches: tokenise once, let strategies change rows, collate, pad."""

from __future__ import annotations

import inspect
import itertools
import random
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lowft._progress import progress_bar
from lowft.data.unlabeled import has_label, no_label
from lowft.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from lowft.data.rows import Rows

    _Tokens = Mapping[str, Sequence[int] | npt.NDArray[np.int32]]  # of one row, by name of input

__all__ = ["Batch", "BatchRandom", "Example", "TokenizedRows", "accepted_inputs"]

_TOKENIZED_TOGETHER = 1000
_SHOWN = 5


@dataclass(frozen=True)
class Example:
    """One raw row on its way into a batch; `dataclasses.replace` makes a changed copy.

    Attributes:
        row: The row's index among the training rows, kept by its augmented copies.
        text: The text.
        pair: The second text, or None.
        label: The encoded label: a class id, a multi-hot vector or a number; None where unlabelled.
    """

    row: int
    text: str
    pair: str | None = None
    label: Any = None


@dataclass(frozen=True)
class Batch:
    """A collated batch.

    Attributes:
        inputs: What the model's forward takes, such as `input_ids: [batch, tokens]`.
        labels: `[batch]` class ids or numbers, `[batch, classes]` multi-hot, or None; a row without a label among
            others has −100 for a class, NaN for numbers and multi-hot (`labelled` tells).
        rows: The numbers of the rows in the caller's data, for messages.
        texts: What was tokenised, as changed by strategies: the text and the second text, or None, of each row.
        unlabelled_weight: What a mean over the rows without a label is multiplied by, so that the micro-batches of a
            step add up to the mean over all such rows of the step; 1 in a loop of your own.
    """

    inputs: dict[str, Tensor]
    labels: Tensor | None = None
    rows: tuple[int, ...] = ()
    texts: tuple[tuple[str, str | None], ...] = ()
    unlabelled_weight: float = 1.0

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.inputs.values())))

    @property
    def labelled(self) -> Tensor:
        """Which rows have a label, `[batch]`."""
        if self.labels is None:
            return torch.zeros(len(self), dtype=torch.bool)
        return has_label(self.labels)

    @cached_property
    def places(self) -> list[list[int]]:
        """Where each row of the data stands in the batch, and after it the copies that strategies made of it."""
        if len(self.rows) != len(self):
            return [[place] for place in range(len(self))]
        found: dict[int, list[int]] = {}
        for place, row in enumerate(self.rows):
            found.setdefault(row, []).append(place)
        return list(found.values())

    def split(self, pieces: int) -> list[Batch]:
        """Return the batch in so many pieces of about as many rows, in order; in fewer where it has fewer rows.

        A row and its copies, which strategies compare, stay together. Each piece is padded on the right no more than
        its own rows need.
        """
        rows = len(self.places)
        pieces = min(pieces, rows)
        if pieces == 1:
            return [self]
        bounds = [-(-rows * piece // pieces) for piece in range(pieces + 1)]  # larger pieces first
        return [self._of(sorted(itertools.chain(*self.places[a:b]))) for a, b in itertools.pairwise(bounds)]

    def _of(self, places: list[int]) -> Batch:
        return Batch(
            _trimmed({name: tensor[places] for name, tensor in self.inputs.items()}),
            self.labels[places] if self.labels is not None else None,
            tuple(self.rows[place] for place in places) if self.rows else (),
            tuple(self.texts[place] for place in places) if self.texts else (),
        )

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device; from pinned memory, the copy goes on while the process does."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Return the batch in memory from which a GPU takes its copy while the process goes on."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        inputs = {name: change(tensor) for name, tensor in self.inputs.items()}
        return replace(self, inputs=inputs, labels=None if self.labels is None else change(self.labels))


def _trimmed(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return inputs without the columns on the right that are padding in every row."""
    mask = inputs.get("attention_mask")
    if mask is None or mask.ndim != 2:
        return inputs
    used = int(mask.any(dim=0).nonzero().max()) + 1
    return {name: tensor[:, :used] if tensor.shape == mask.shape else tensor for name, tensor in inputs.items()}


class BatchRandom(random.Random):
    """The random source of one batch; `for_row` gives each row one of its own.

    >>> one, other = (BatchRandom(7, 0, 0, position=(step, 0)) for step in (3, 9))
    >>> one.random() == other.random(), one.for_row(5).random() == other.for_row(5).random()
    (False, True)
    """

    def __init__(self, *epoch: int, position: tuple[int, ...]) -> None:
        """Seed from the numbers of the epoch (seed, stage, epoch) and the batch's position in it."""
        super().__init__(repr((epoch, position)))
        self._epoch = epoch

    def for_row(self, row: int) -> random.Random:
        """Return a source that depends on (seed, stage, epoch, row) only, whatever batch the row is in."""
        return random.Random(repr((self._epoch, row)))


@dataclass
class TokenizedRows:
    """Rows with their tokens, made once; collates batches and tokenises anew only what a strategy changed.

    Args:
        rows: The rows.
        tokenizer: The tokenizer; it must have a pad token.
        labels: Encoded labels, `[rows]` or `[rows, classes]`, as `encode_known` marks rows without one; or None.
        max_length: Tokens after which a text is cut.
        inputs: Names of the model's inputs to make; None makes all that the tokenizer does.
        progress: Whether to show a progress bar; None decides by the terminal.

    Raises:
        ConfigError: The tokenizer has no pad token, or `max_length` leaves no room for text.
        DataError: A text of which the tokenizer makes no token at all.
    """

    rows: Rows
    tokenizer: PreTrainedTokenizerBase
    labels: npt.NDArray[Any] | None
    max_length: int
    inputs: tuple[str, ...] | None = None
    progress: bool | None = None
    truncated: int = field(default=0, init=False)
    lengths: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        """Tokenise every row."""
        if self.tokenizer.pad_token_id is None:
            raise ConfigError(
                "the tokenizer has no pad token, so rows of different lengths cannot share a batch: set "
                "tokenizer.pad_token, for instance to tokenizer.eos_token, and model.config.pad_token_id with it"
            )
        special = self.tokenizer.num_special_tokens_to_add(pair=self.rows.pairs is not None)
        if self.max_length <= special:  # the tokenizer itself would then not cut at all
            raise ConfigError(
                f"max_length must be above {special}, the number of special tokens that the tokenizer adds to a row; "
                f"received {self.max_length}"
            )
        parts: dict[str, list[npt.NDArray[np.int32]]] = {}
        lengths: list[int] = []
        starts = range(0, len(self.rows), _TOKENIZED_TOGETHER)
        shown = self.progress if len(starts) > 1 else False
        for start in progress_bar(starts, "tokenizing", shown=shown, leave=False):
            part = slice(start, start + _TOKENIZED_TOGETHER)
            columns = self._tokenize(self.rows.texts[part], None if self.rows.pairs is None else self.rows.pairs[part])
            lengths += map(len, columns["input_ids"])
            for name, ids in columns.items():
                parts.setdefault(name, []).append(np.fromiter(itertools.chain.from_iterable(ids), np.int32))
        self.lengths = np.array(lengths, dtype=np.int64)
        self.truncated = int((self.lengths >= self.max_length).sum())
        empty = [self.rows.numbers[index] for index in np.flatnonzero(self.lengths == 0)]
        if empty:
            raise DataError(
                f"the tokenizer makes no token of {len(empty)} of the texts, so the model has nothing to read: rows "
                f"{empty[:_SHOWN]}{' and more' if len(empty) > _SHOWN else ''}. Correct these texts or leave them out"
            )
        # One array for all rows: small, and quick to hand to worker processes.
        self._tokens = {name: np.concatenate(arrays) for name, arrays in parts.items()}
        self._ends = np.cumsum(self.lengths)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    @cached_property
    def _known(self) -> npt.NDArray[np.bool_] | None:
        """Which rows have a label; None where none is expected to."""
        return None if self.labels is None else has_label(torch.from_numpy(self.labels)).numpy()

    @property
    def unlabelled(self) -> int:
        """How many rows have no label, where others do."""
        return len(self) - len(self.labelled)

    @cached_property
    def labelled(self) -> npt.NDArray[np.int64]:
        """Indices of the rows that have a label, `[labelled rows]`."""
        return np.arange(len(self)) if self._known is None else np.flatnonzero(self._known)

    def example(self, index: int) -> Example:
        """Return a row as strategies see it."""
        pair = self.rows.pairs[index] if self.rows.pairs is not None else None
        label = self.labels[index] if self.labels is not None and self._has_label(index) else None
        return Example(index, self.rows.texts[index], pair, label)

    def select(self, indices: Sequence[int], *, max_length: int | None = None) -> TokenizedRows:
        """Return these rows, perhaps cut earlier."""
        labels = None if self.labels is None else self.labels[list(indices)]
        length = self.max_length if max_length is None else min(self.max_length, max_length)
        return TokenizedRows(self.rows.select(indices), self.tokenizer, labels, length, self.inputs, progress=False)

    def collate(
        self,
        indices: Sequence[int],
        transform: Callable[[list[Example]], list[Example]] | None = None,
    ) -> Batch:
        """Return the batch of these rows, padded to the longest.

        Args:
            indices: Indices of rows.
            transform: Applied to the raw rows first; may change them and add copies.

        Raises:
            DataError: `transform` took a label away.
        """
        if transform is None:
            examples = [self.example(index) for index in indices]
            tokens = [self._stored(index) for index in indices]
        else:
            examples = transform([self.example(index) for index in indices])
            self._check_labels(examples)
            tokens = self._tokens_of(examples)
        labels = None
        if self.labels is not None:
            bare = no_label(self.labels)
            labels = torch.as_tensor(np.stack([bare if it.label is None else it.label for it in examples]))
        return Batch(
            self._pad(tokens),
            labels,
            tuple(self.rows.numbers[example.row] for example in examples),
            tuple((example.text, example.pair) for example in examples),
        )

    def _check_labels(self, examples: Sequence[Example]) -> None:
        bare = [example.row for example in examples if example.label is None and self._has_label(example.row)]
        if bare:
            raise DataError(
                f"a strategy's on_examples returned the rows {bare[:_SHOWN]} without a label: make changed copies with "
                f"dataclasses.replace(example, text=...), which keeps the rest"
            )

    def _has_label(self, index: int) -> bool:
        return self._known is not None and bool(self._known[index])

    def _stored(self, index: int) -> _Tokens:
        part = slice(self._ends[index] - self.lengths[index], self._ends[index])
        return {name: ids[part] for name, ids in self._tokens.items()}

    def _tokens_of(self, examples: Sequence[Example]) -> list[_Tokens]:
        """Return each example's tokens: those in store where its texts are the row's own."""
        known = [self._is_original(example) for example in examples]
        new = [example for example, original in zip(examples, known, strict=True) if not original]
        pairs = [example.pair or "" for example in new] if self.rows.pairs is not None else None
        columns = self._tokenize([example.text for example in new], pairs) if new else {}
        fresh = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        return [
            self._stored(example.row) if original else next(fresh)
            for example, original in zip(examples, known, strict=True)
        ]

    def _is_original(self, example: Example) -> bool:
        pair = self.rows.pairs[example.row] if self.rows.pairs is not None else None
        return example.text == self.rows.texts[example.row] and example.pair == pair

    def _tokenize(self, texts: Sequence[str], pairs: Sequence[str] | None) -> dict[str, list[list[int]]]:
        """Return, for each of the model's inputs, the tokens of each row."""
        encoded = self.tokenizer(
            list(texts),
            list(pairs) if pairs is not None else None,
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=False,
            return_overflowing_tokens=False,
        )
        return {name: encoded[name] for name in encoded if self.inputs is None or name in self.inputs}

    def _pad(self, tokens: Sequence[_Tokens]) -> dict[str, Tensor]:
        fill = {
            "input_ids": self.tokenizer.pad_token_id,
            "token_type_ids": getattr(self.tokenizer, "pad_token_type_id", 0),
        }
        lengths = np.array([len(row["input_ids"]) for row in tokens])
        places = np.arange(lengths.max())
        if self.tokenizer.padding_side == "left":
            places = places[::-1]
        mask = places < lengths[:, None]
        inputs = {}
        for name in tokens[0]:
            padded = np.full(mask.shape, fill.get(name, 0), np.int64)
            padded[mask] = np.concatenate([row[name] for row in tokens])
            inputs[name] = torch.from_numpy(padded)
        if self.inputs is None or "attention_mask" in self.inputs:
            inputs["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
        return inputs


def accepted_inputs(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return those of the tokenizer's outputs that the model's forward names.

    A BERT tokenizer makes `token_type_ids`, which a DistilBERT model does not take.
    """
    offered = tuple(dict.fromkeys(["input_ids", *tokenizer.model_input_names, "attention_mask"]))
    named = getattr(model, "input_names", None) or inspect.signature(model.forward).parameters
    accepted = tuple(name for name in offered if name in named)
    # A forward of (*args, **kwargs) alone is a wrapper that hands everything on.
    return accepted or tuple(tokenizer.model_input_names)
