"""Single values: made plain Python, and shown in messages. Shared by the modules of `lowft.data`."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["count_of", "is_column", "near", "plain", "plain_list", "row_list", "shown"]

_ROWS_SHOWN = 5


def plain(value: Any) -> Any:
    """Return the plain Python value: no numpy, torch, pandas or pyarrow type; every sort of missing is None.

    Tuples, sets and arrays become lists (a set in sorted order).

    >>> import numpy as np
    >>> plain(np.int64(3)), plain(float("nan")), plain(np.array([1, 0])), plain({"b", "a"})
    (3, None, [1, 0], ['a', 'b'])
    """
    if type(value) in {str, int, bool}:
        return value
    if hasattr(value, "as_py"):  # a pyarrow scalar
        value = value.as_py()
    if hasattr(value, "tolist"):  # numpy scalars and arrays, torch tensors
        value = value.tolist()
    # pandas' own marks are told by name, without importing pandas.
    if type(value).__name__ in {"NAType", "NaTType"} or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, set | frozenset):
        return sorted((plain(part) for part in value), key=lambda part: (type(part).__name__, part))
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def plain_list(column: Any) -> list[Any]:
    """Return the plain values of a list, tuple, numpy array, tensor, pandas Series or `datasets` column."""
    values = column[:]  # a lazy `datasets` column reads all rows at once this way, not one by one
    if hasattr(values, "tolist"):
        values = values.tolist()
    return [plain(value) for value in values]


def is_column(value: Any) -> bool:
    """Tell whether `value` holds one entry for each row: sized, ordered, and neither text nor table.

    >>> is_column(["a", "b"]), is_column("ab"), is_column({"a", "b"})
    (True, False, False)
    """
    if isinstance(value, str | bytes | Mapping) or hasattr(value, "columns") or hasattr(value, "column_names"):
        return False
    return hasattr(value, "__len__") and hasattr(value, "__getitem__")


def shown(value: Any, width: int = 60) -> str:
    """Return `repr(value)`, cut to about `width` characters.

    >>> shown("a" * 100, width=10)
    "'aaaaaa..."
    """
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."


def count_of(number: int, noun: str) -> str:
    """Return the number and the noun, in the plural where the number asks for it.

    >>> count_of(1, "row"), count_of(8530, "row")
    ('1 row', '8,530 rows')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}{'es' if noun[-1] == 's' else 's'}"


def row_list(numbers: Sequence[int]) -> str:
    """Return up to five row numbers in words.

    >>> row_list([4]), row_list(range(8))
    ('row 4', 'rows 0, 1, 2, 3, 4 and 3 more')
    """
    text = ", ".join(str(number) for number in numbers[:_ROWS_SHOWN])
    more = len(numbers) - _ROWS_SHOWN
    return f"row{'s' if len(numbers) > 1 else ''} {text}" + (f" and {more:,} more" if more > 0 else "")


def near(word: Any, known: Iterable[Any]) -> str:
    """Return a question that names the known words most like `word`, or nothing where none is.

    >>> near("postive", ["negative", "positive"])
    " Did you mean 'positive'?"
    >>> near("stars", ["text"])
    ''
    """
    by_folded = {str(entry).casefold(): entry for entry in known}
    matches = difflib.get_close_matches(str(word).casefold(), by_folded, n=2)
    return f" Did you mean {' or '.join(repr(by_folded[match]) for match in matches)}?" if matches else ""
