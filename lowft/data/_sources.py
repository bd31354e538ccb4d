"""One view of every kind of data that lowft takes: named columns, each read only when it is needed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowft.data._values import is_column, shown
from lowft.data.files import read_file
from lowft.errors import DataError

__all__ = ["SPLIT_NAMES", "Table", "given_splits", "table_of"]

#: The names under which data that is already split may carry its sides, and the side each means.
SPLIT_NAMES: Mapping[str, str] = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}

_KINDS = (
    "a list of texts, (texts, labels), a list of (text, label), a list of dicts, a dict of columns, a pandas "
    "DataFrame, a datasets.Dataset, a pyarrow Table, or the path of a .csv, .tsv, .json, .jsonl or .parquet "
    "file"
)


@dataclass(frozen=True)
class Table:
    """Named columns.

    Attributes:
        names: The columns' names, in the data's order.
        read: Returns the column of a name.
        class_names: Returns the class names that the data itself keeps for a column of ids, or None.
        named: False where the names are lowft's, because the data has none.
        untyped: True where every cell is a string (CSV), so that numbers must still be recognised.
    """

    names: tuple[str, ...]
    read: Callable[[str], Any]
    class_names: Callable[[str], tuple[str, ...] | None] = lambda _name: None
    named: bool = True
    untyped: bool = False


def table_of(data: Any, name: str) -> Table:
    """Return the view of `data`; `name` stands for the data in messages."""
    if isinstance(data, str | os.PathLike):
        path = Path(data)
        return replace(table_of(read_file(path), name), untyped=path.suffix.lower() in {".csv", ".tsv"})
    splits = given_splits(data)
    if splits is not None:
        first = next(iter(splits), "train")
        raise DataError(
            f"{name} must be one table, and it holds the splits {list(splits)}. Pass one of them: {name}[{first!r}]."
        )
    table = _library_table(data, name)
    if table is None and isinstance(data, Mapping):
        table = _from_columns(data, name)
    if table is None and isinstance(data, tuple) and len(data) == 2 and all(map(is_column, data)):
        table = _unnamed(data[0], data[1])
    if table is None and is_column(data):
        table = _from_items(data, name)
    if table is None:
        raise DataError(f"{name} must be {_KINDS}; got {type(data).__name__} {shown(data)}.")
    return table


def given_splits(data: Any) -> Mapping[str, Any] | None:
    """Return `data` where it is a `datasets.DatasetDict` or a dict of named splits, else None."""
    if _is_a(data, "datasets", "DatasetDict") or _is_a(data, "datasets", "IterableDatasetDict"):
        return data  # type: ignore[no-any-return]
    named_so = isinstance(data, Mapping) and "train" in data and set(data) <= set(SPLIT_NAMES)
    return data if named_so else None


def _is_a(data: Any, module: str, name: str) -> bool:
    # An object of a library that was never imported cannot exist: no need to import it to ask.
    return isinstance(data, getattr(sys.modules.get(module), name, ()))


def _library_table(data: Any, name: str) -> Table | None:
    if _is_a(data, "datasets", "IterableDataset"):
        raise DataError(
            f"{name} is a streaming dataset, whose rows cannot be counted or shuffled. Take the rows you "
            "want: datasets.Dataset.from_list(list(data.take(1000)))."
        )
    if _is_a(data, "datasets", "Dataset"):
        rows = data.with_format(None)  # as plain Python, whatever format or transform is set
        return Table(
            tuple(data.column_names),
            lambda column: rows[column],
            lambda column: _names_of(data.features[column]),
        )
    if _is_a(data, "pyarrow", "Table"):
        features = _stored_features(data.schema)
        return Table(
            tuple(data.column_names),
            lambda column: data.column(column).to_pylist(),
            lambda column: _names_of(features.get(column)),
        )
    if _is_a(data, "pandas", "DataFrame"):
        if not data.columns.is_unique:
            raise DataError(f"{name}: the columns' names must differ; got {list(data.columns)}.")
        return Table(tuple(data.columns), lambda column: data[column])
    return None


def _names_of(feature: Any) -> tuple[str, ...] | None:
    """Return the names of a `datasets.ClassLabel`, or of a list of them (multi-label)."""
    names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
    return None if names is None else tuple(names)


def _stored_features(schema: Any) -> Mapping[str, Any]:
    """Return the features that `datasets` keeps in the files it writes."""
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    from datasets import Features

    features: Mapping[str, Any] = Features.from_arrow_schema(schema)
    return features


def _from_columns(data: Mapping[str, Any], name: str) -> Table:
    for column, values in data.items():
        if not is_column(values):
            raise DataError(
                f"{name}: a dict must hold one list for each column, and {column!r} is "
                f"{type(values).__name__} {shown(values)}. For one row, pass [{{...}}]."
            )
    return Table(tuple(data), lambda column: data[column])


def _from_items(data: Any, name: str) -> Table:
    items = data[:]
    if any(isinstance(item, Mapping) for item in items):
        _check_items(items, name, lambda item: isinstance(item, Mapping), "a dict, as others are")
        columns = tuple(dict.fromkeys(column for item in items for column in item))
        return Table(columns, lambda column: [item.get(column) for item in items])
    if any(isinstance(item, list | tuple) for item in items):
        _check_items(
            items,
            name,
            lambda item: isinstance(item, list | tuple) and len(item) == 2,
            "(text, label). For pairs of texts pass dicts with text, text_pair and label",
        )
        return _unnamed([item[0] for item in items], [item[1] for item in items])
    return _unnamed(items)


def _check_items(items: Any, name: str, is_good: Callable[[Any], bool], wanted: str) -> None:
    for number, item in enumerate(items):
        if not is_good(item):
            raise DataError(f"{name}: every row must be {wanted}; row {number} is {shown(item)}.")


def _unnamed(texts: Any, labels: Any = None) -> Table:
    columns = {"text": texts} if labels is None else {"text": texts, "label": labels}
    return Table(tuple(columns), columns.__getitem__, named=False)
