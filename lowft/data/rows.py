"""Rows in: any common form of data becomes validated texts and labels.

Everything later in lowft works on `Rows`, so whatever can be wrong with a table (a column that is
missing, a text that is None, a label that is NaN) is found here, before a model is touched.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from lowft.data._sources import Table, table_of
from lowft.data._values import count_of, near, plain_list, shown
from lowft.errors import ConfigError, DataError

__all__ = ["Rows", "read_rows"]

_TARGETS = ("text", "text_pair", "label")
_PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question", "sentence"),
    ("question1", "question2"),
)
# Numbers in a CSV file. With a leading zero it is a code, not a number: 007 stays a string.
_WHOLE = re.compile(r"[-+]?(0|[1-9]\d*)")
_NUMBER = re.compile(r"[-+]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
_FAULTS_SHOWN = 5


@dataclass(frozen=True, repr=False)
class Rows:
    """Validated texts and (perhaps) labels, in the caller's order. Made by `read_rows`.

    Attributes:
        texts: The texts.
        pairs: Each row's second text (a hypothesis, an answer), or None where rows have one text.
        labels: The labels as the caller gave them, in plain Python (lists where a row has several), not yet
            encoded; None where there are none.
        numbers: Each row's number in the caller's data, counted from 0; dropped rows leave gaps.
        dropped: The numbers of the rows that were left out on request.
        label_names: Names that the source itself keeps for integer labels (`datasets.ClassLabel`).

    Raises:
        DataError: The fields differ in length.

    >>> rows = Rows(("good", "bad", "fine"), labels=(1, 0, 1))
    >>> rows
    Rows(3 rows, with labels, first text 'good')
    >>> rows.select([2, 0]).numbers
    (2, 0)
    """

    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None = None
    labels: tuple[Any, ...] | None = None
    numbers: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()
    label_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Number the rows where the caller did not, and compare the lengths."""
        if not self.numbers:
            object.__setattr__(self, "numbers", tuple(range(len(self.texts))))
        for field in ("pairs", "labels", "numbers"):
            values = getattr(self, field)
            if values is not None and len(values) != len(self.texts):
                raise DataError(
                    f"Rows: {field} must have one entry for each text; got "
                    f"{count_of(len(self.texts), 'text')} and {len(values)} {field}."
                )

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.texts)

    def __repr__(self) -> str:
        """Return the size and the first text; all texts would flood a notebook."""
        parts = [count_of(len(self), "row")]
        parts += ["with pairs"] if self.pairs is not None else []
        parts += ["with labels"] if self.labels is not None else []
        parts += [f"{len(self.dropped)} dropped"] if self.dropped else []
        parts += [f"first text {shown(self.texts[0])}"] if self.texts else []
        return f"Rows({', '.join(parts)})"

    def select(self, indices: Iterable[int]) -> Rows:
        """Return the rows at these positions (not numbers), in this order.

        Args:
            indices: Positions from 0 to `len(self) - 1`.

        Raises:
            DataError: A position is out of range.
        """
        at = [int(index) for index in indices]
        outside = [index for index in at if not 0 <= index < len(self)]
        if outside:
            raise DataError(f"Rows.select: positions must be from 0 to {len(self) - 1}; got {shown(outside)}.")
        return Rows(
            texts=tuple(self.texts[i] for i in at),
            pairs=None if self.pairs is None else tuple(self.pairs[i] for i in at),
            labels=None if self.labels is None else tuple(self.labels[i] for i in at),
            numbers=tuple(self.numbers[i] for i in at),
            dropped=self.dropped,
            label_names=self.label_names,
        )

    def fingerprint(self) -> str:
        """Return the SHA-256 of texts, pairs, labels and label names, in order; computed once.

        Equal content has an equal fingerprint, whatever kind of data it was read from.

        >>> Rows(("a",)).fingerprint() == Rows(("a",), labels=(1,)).fingerprint()
        False
        """
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(json.dumps([self.label_names, self.pairs is None, self.labels is None]).encode())
        for i, text in enumerate(self.texts):
            pair = self.pairs and self.pairs[i]
            label = self.labels and self.labels[i]
            # JSON marks where each part ends; `repr` tells 1 from True and from "1".
            digest.update(json.dumps([text, pair, repr(label)]).encode())
        return digest.hexdigest()


def read_rows(
    data: Any,
    *,
    column_mapping: Mapping[str, str] | None = None,
    on_bad_row: Literal["error", "drop"] = "error",
    require_labels: bool | None = None,
    name: str = "data",
) -> Rows:
    """Read texts and labels from any common form of data, and check every row. `data` is never changed.

    `data` is one of:

    - a list of texts
    - `(texts, labels)`: a tuple of two sequences
    - a list of `(text, label)`. A two-part row is always a text and its label, even where both are
      strings; for pairs of texts use named columns
    - a list of dicts, a dict of columns, a pandas DataFrame, a `datasets.Dataset`, a `pyarrow.Table`
    - the path of a .csv, .tsv, .json, .jsonl or .parquet file (see `lowft.data.files`)
    - `Rows`, which are returned as they are

    Columns are found by name. Text: `text` (and `text_pair`); else one of the pairs premise/hypothesis,
    sentence1/sentence2, question/sentence, question1/question2; else `sentence`. Label: `label`, else
    `labels`.

    A row is bad where a text is missing (None, NaN, NA), blank, not a string, or not valid Unicode, or where
    its label is missing or blank while other rows have one. A label column without a single label
    counts as no labels.

    Args:
        data: The rows.
        column_mapping: Your column names, each with lowft's name for it ("text", "text_pair" or "label"):
            `{"review": "text", "stars": "label"}`. Not used for data that has no column names.
        on_bad_row: "error", or "drop" to leave bad rows out and keep their numbers in `Rows.dropped`.
        require_labels: True: labels must be there. False: only texts are read; labels are not looked at.
            None: labels are read where they are there.
        name: What messages call the data.

    Returns:
        The rows, in the order of the data.

    Raises:
        DataError: No rows, bad rows, columns that are missing or differ in length, or a kind of data that
            lowft does not read.
        ConfigError: `on_bad_row` or `column_mapping` is not as described.

    >>> rows = read_rows({"review": ["good", "", "bad"], "stars": [5, 4, 1]},
    ...                  column_mapping={"review": "text", "stars": "label"}, on_bad_row="drop")
    >>> rows.texts, rows.labels, rows.numbers, rows.dropped
    (('good', 'bad'), (5, 1), (0, 2), (1,))
    """
    if on_bad_row not in {"error", "drop"}:
        raise ConfigError(f'on_bad_row must be "error" or "drop"; got {on_bad_row!r}.')
    if column_mapping is not None and not isinstance(column_mapping, Mapping):
        raise ConfigError(
            f"column_mapping must be a dictionary from your column names to lowft's, such as {{'review': 'text'}}; "
            f"got {column_mapping!r}."
        )
    if isinstance(data, Rows):
        if require_labels and data.labels is None:
            raise DataError(f"{name} must have labels, and these Rows have none. Read them from data with labels.")
        return data
    table = table_of(data, name)
    columns = _find_columns(table, dict(column_mapping or {}), name, require_labels=require_labels)
    values = {target: plain_list(table.read(column)) for target, column in columns.items()}
    _check_lengths(values, columns, name)
    labels = values.pop("label", None)
    if labels is not None and all(map(_is_missing, labels)):
        if require_labels and labels:
            raise DataError(f"{name}: every label in {columns['label']!r} is missing, and labels are needed here.")
        labels = None
    if labels is not None and table.untyped:
        labels = _typed(labels)
    faults = _find_faults(values, labels)
    if faults and on_bad_row == "error":
        raise DataError(_fault_message(faults, len(values["text"]), name))
    kept = [number for number in range(len(values["text"])) if number not in faults]
    if not kept:
        raise DataError(f"{name} has no rows{_lost(faults)}. At least one row with a text is needed.")
    return Rows(
        texts=tuple(values["text"][i] for i in kept),
        pairs=tuple(values["text_pair"][i] for i in kept) if "text_pair" in values else None,
        labels=None if labels is None else tuple(labels[i] for i in kept),
        numbers=tuple(kept),
        dropped=tuple(faults),
        label_names=None if labels is None else table.class_names(columns["label"]),
    )


def _find_columns(table: Table, mapping: dict[str, str], name: str, *, require_labels: bool | None) -> dict[str, str]:
    """Return lowft's names, each with the column that holds it."""
    found = _mapped(table, mapping, name, require_labels=require_labels) if table.named else {}
    there = set(table.names) - set(found.values())
    if "text" not in found:
        found = _default_texts(table, there, name, no_pair="text_pair" in found) | found
    if "text_pair" in there:
        found.setdefault("text_pair", "text_pair")
    if require_labels is False:
        found.pop("label", None)
    elif "label" not in found:
        default = next((column for column in ("label", "labels") if column in there), None)
        if default:
            found["label"] = default
        elif require_labels:
            raise _missing_column(table, "label", name)
    return found


def _default_texts(table: Table, there: set[str], name: str, *, no_pair: bool) -> dict[str, str]:
    if not table.names:
        raise DataError(f"{name} has no rows and no columns. At least one row with a text is needed.")
    if "text" in there:
        return {"text": "text"}
    for first, second in () if no_pair else _PAIRS:
        if {first, second} <= there:
            return {"text": first, "text_pair": second}
    if "sentence" in there:
        return {"text": "sentence"}
    raise _missing_column(table, "text", name)


def _mapped(table: Table, mapping: Mapping[str, str], name: str, *, require_labels: bool | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for column, target in mapping.items():
        if target not in _TARGETS:
            turned = f" The other way round: {{{target!r}: {column!r}}}." if column in _TARGETS else ""
            raise ConfigError(
                f"column_mapping goes from your column names to lowft's, which are {list(_TARGETS)}; got "
                f"{{{column!r}: {target!r}}}.{turned}"
            )
        if column not in table.names:
            if target == "label" and require_labels is False:
                continue  # one mapping serves labelled and unlabelled data
            raise DataError(
                f"{name}: column_mapping names the column {column!r}, and the columns are "
                f"{list(table.names)}.{near(column, table.names)}"
            )
        if target in found:
            raise ConfigError(f"column_mapping: {found[target]!r} and {column!r} cannot both be {target!r}.")
        found[target] = column
    return found


def _missing_column(table: Table, target: str, name: str) -> DataError:
    if not table.named:
        if not len(table.read("text")):
            return DataError(f"{name} has no rows. At least one row with a text is needed.")
        return DataError(f"{name} must have labels, and it holds texts only. Pass (texts, labels).")
    example = next((column for column in table.names if column not in _TARGETS), "your column")
    return DataError(
        f"{name} has no {target} column that lowft recognises; the columns are {list(table.names)}. Say "
        f"which it is, for example column_mapping={{{example!r}: {target!r}}}."
    )


def _check_lengths(values: Mapping[str, list[Any]], columns: Mapping[str, str], name: str) -> None:
    if len({len(column) for column in values.values()}) > 1:
        lengths = ", ".join(f"{columns[target]!r} has {len(column):,}" for target, column in values.items())
        raise DataError(f"{name}: every column must have one entry for each row; {lengths}.")


def _typed(labels: list[Any]) -> list[Any]:
    """Return labels read as strings as the numbers they are, where all of them are numbers."""
    present = [label.strip() for label in labels if not _is_missing(label)]
    for pattern, kind in ((_WHOLE, int), (_NUMBER, float)):
        if all(pattern.fullmatch(label) for label in present):
            return [None if _is_missing(label) else kind(label) for label in labels]
    return labels


def _is_missing(label: Any) -> bool:
    return label is None or (isinstance(label, str) and not label.strip())


def _find_faults(texts: Mapping[str, Sequence[Any]], labels: Sequence[Any] | None) -> dict[int, str]:
    """Return the numbers of the bad rows, in order, each with what is wrong."""
    faults: dict[int, str] = {}
    for column, values in texts.items():
        for number, value in enumerate(values):
            fault = _text_fault(value)
            if fault:
                faults.setdefault(number, f"{column} {fault}")
    for number, label in enumerate(labels or ()):
        if _is_missing(label):
            faults.setdefault(number, f"label is missing ({label!r})")
    return dict(sorted(faults.items()))


def _text_fault(value: Any) -> str | None:
    if value is None:
        return "is missing (None or NaN)"
    if not isinstance(value, str):
        return f"is {shown(value)}, of type {type(value).__name__} and not a string"
    if not value.strip():
        return f"is blank ({shown(value)})"
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: no tokenizer takes it
        return f"is not valid Unicode ({shown(value)})"
    return None


def _fault_message(faults: Mapping[int, str], total: int, name: str) -> str:
    told = [f"row {number}: {fault}" for number, fault in list(faults.items())[:_FAULTS_SHOWN]]
    more = f"; and {len(faults) - len(told):,} more" if len(faults) > len(told) else ""
    return (
        f"{name}: {len(faults):,} of {count_of(total, 'row')} cannot be used (rows are counted from 0). "
        f'{"; ".join(told)}{more}. Correct them, or, where rows may be left out, pass on_bad_row="drop".'
    )


def _lost(faults: Mapping[int, str]) -> str:
    if not faults:
        return ""
    number, fault = next(iter(faults.items()))
    return f" left: all {len(faults):,} were bad and dropped (row {number}: {fault})"
