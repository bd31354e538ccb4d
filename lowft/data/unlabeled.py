"""Rows without labels among rows with them: read, joined, encoded, and told apart again in a batch.

A row without a label is marked where its label would stand: −100 for a class, which PyTorch's own losses leave out,
NaN for a number and for every place of a multi-label vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lowft.data.rows import Rows, read_rows

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from lowft.data.labels import Labels

__all__ = ["encode_known", "has_label", "join", "no_label", "read_unlabeled", "two_columns"]

_NO_CLASS = -100


def read_unlabeled(
    data: Any,
    *,
    takes_pairs: bool,
    column_mapping: Mapping[str, str] | None = None,
    on_bad_row: Literal["error", "drop"] = "error",
    name: str = "unlabeled_dataset",
) -> Rows:
    """Read texts as `read_rows` does; labels that are there are not looked at.

    Args:
        data: The rows; a list of (text, second text) too where rows are pairs.
        takes_pairs: Whether rows are pairs.
        column_mapping: As for `read_rows`.
        on_bad_row: As for `read_rows`.
        name: What messages call the data.

    Raises:
        DataError: As for `read_rows`.

    >>> read_unlabeled([("a film", "good"), ("a plot", "bad")], takes_pairs=False).labels is None
    True
    """
    table = two_columns(data) if takes_pairs else None
    rows = read_rows(
        data if table is None else table,
        column_mapping=column_mapping if table is None else None,
        on_bad_row=on_bad_row,
        require_labels=False,
        name=name,
    )
    return replace(rows, labels=None, label_names=None)


def two_columns(data: Any) -> dict[str, list[Any]] | None:
    """Return a list of rows with two parts as a table of pairs; None for anything else.

    >>> two_columns([("a premise", "a hypothesis")])
    {'text': ['a premise'], 'text_pair': ['a hypothesis']}
    """
    if not isinstance(data, list) or not all(isinstance(row, tuple | list) and len(row) == 2 for row in data):
        return None
    return {"text": [row[0] for row in data], "text_pair": [row[1] for row in data]}


def join(labelled: Rows, unlabelled: Rows) -> Rows:
    """Return both as one; the numbers of rows without a label (None) go on after the last of those with one.

    >>> join(Rows(("good", "bad"), labels=(1, 0)), Rows(("what",)))
    Rows(3 rows, with labels, first text 'good')
    """
    assert labelled.labels is not None  # noqa: S101 - rows to train on
    first = 1 + max((*labelled.numbers, *labelled.dropped))
    return Rows(
        texts=labelled.texts + unlabelled.texts,
        pairs=None if labelled.pairs is None else labelled.pairs + (unlabelled.pairs or ()),
        labels=labelled.labels + (None,) * len(unlabelled),
        numbers=labelled.numbers + tuple(first + number for number in unlabelled.numbers),
        dropped=labelled.dropped + tuple(first + number for number in unlabelled.dropped),
        label_names=labelled.label_names,
    )


def encode_known(labels: Labels, rows: Rows, *, name: str) -> npt.NDArray[Any]:
    """Return encoded labels as `Labels.encode` does, and the mark of `no_label` where a row has none.

    >>> from lowft.data.labels import Labels
    >>> encode_known(Labels.infer(["bad", "good"]), Rows(("a", "b"), labels=("good", None)), name="rows")
    array([   1, -100])
    """
    values = rows.labels or ()
    known = [index for index, value in enumerate(values) if value is not None]
    encoded = labels.encode(
        [values[index] for index in known], name=name, numbers=[rows.numbers[index] for index in known]
    )
    if len(known) == len(values):
        return encoded
    found = np.stack([no_label(encoded)] * len(values))
    found[known] = encoded
    return found


def no_label(labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the label of a row that has none, for labels of this kind.

    >>> no_label(np.zeros((5, 2), np.float32))
    array([nan, nan], dtype=float32)
    """
    return np.full(labels.shape[1:], np.nan if labels.dtype.kind == "f" else _NO_CLASS, labels.dtype)


def has_label(labels: Tensor) -> Tensor:
    """Return which rows have a label, `[rows]`.

    Args:
        labels: Encoded, `[rows]` or `[rows, classes]`.

    >>> import torch
    >>> has_label(torch.tensor([1, -100])), has_label(torch.tensor([[0.0, 1.0], [torch.nan, torch.nan]]))
    (tensor([ True, False]), tensor([ True, False]))
    """
    known = ~labels.isnan() if labels.is_floating_point() else labels != _NO_CLASS
    return known if known.ndim == 1 else known.all(dim=1)
