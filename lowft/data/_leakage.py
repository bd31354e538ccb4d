"""Texts that stand on two sides of a split: found, told with their rows, or taken out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lowft.data._values import count_of, row_list, shown
from lowft.data.rows import Rows, read_rows
from lowft.errors import LeakageError

__all__ = ["find_leakage", "settle_leakage"]


def find_leakage(
    first: Any, second: Any, *, column_mapping: Mapping[str, str] | None = None
) -> tuple[tuple[int, int], ...]:
    """Find the rows of `second` whose text stands in `first` too, but for case and white space.

    Rows with two texts must share both. Labels are not looked at.

    Args:
        first: What `read_rows` reads.
        second: Likewise.
        column_mapping: As in `read_rows`, for both.

    Returns:
        For each such row of `second`, in order: the number of the first row in `first` with this text, and
        its own.

    Raises:
        DataError: Rows that cannot be read.

    >>> find_leakage(["A good film.", "Dull."], ["Too long.", "a good  film."])
    ((0, 1),)
    """
    one, two = (
        read_rows(data, column_mapping=column_mapping, require_labels=False, name=name)
        for data, name in ((first, "first"), (second, "second"))
    )
    numbers: dict[tuple[str, ...], int] = {}
    for key, number in zip(_keys(one), one.numbers, strict=True):
        numbers.setdefault(key, number)
    return tuple((numbers[key], number) for key, number in zip(_keys(two), two.numbers, strict=True) if key in numbers)


def settle_leakage(sides: Mapping[str, Rows], on_leakage: str) -> dict[str, Rows]:
    """Return the sides as `split` promises them; an earlier side keeps what a later one shares with it.

    Raises:
        LeakageError: Sides share texts and `on_leakage` is "error", or dropping would leave a side empty.
    """
    owners: dict[tuple[str, ...], tuple[str, int]] = {}  # each text's first side, and its position there
    settled = {}
    told = []
    conflicts = 0
    for side, rows in sides.items():
        keys = _keys(rows)
        leaked = [at for at, key in enumerate(keys) if key in owners]
        if leaked:
            other, place = owners[keys[leaked[0]]]
            told.append(
                f"{side} has {count_of(len(leaked), 'text')} of an earlier side "
                f"({row_list([rows.numbers[at] for at in leaked])}), such as {shown(rows.texts[leaked[0]])}, "
                f"row {sides[other].numbers[place]} of {other}"
            )
        for at in leaked:
            other, place = owners[keys[at]]
            conflicts += _differ(rows.labels, at, sides[other].labels, place)
        settled[side] = _without(rows, leaked, side) if on_leakage == "drop" else rows
        for at, key in enumerate(keys):
            owners.setdefault(key, (side, at))
    labelled = f" Labelled differently there: {count_of(conflicts, 'text')}." if conflicts else ""
    if told and on_leakage == "error":
        raise LeakageError(
            f"data: the same text stands on two sides. {'; '.join(told)}.{labelled} Remove the copies, or "
            'take them out of the later side with on_leakage="drop", or keep them with "allow".'
        )
    if conflicts:
        warnings.warn(f"data: {'; '.join(told)}.{labelled} Check the labels.", UserWarning, stacklevel=3)
    return settled


def _keys(rows: Rows) -> list[tuple[str, ...]]:
    """Return what two rows have in common when their texts count as the same."""
    columns = [rows.texts] if rows.pairs is None else [rows.texts, rows.pairs]
    return list(zip(*([" ".join(text.casefold().split()) for text in column] for column in columns), strict=True))


def _differ(first: Sequence[Any] | None, at: int, second: Sequence[Any] | None, place: int) -> bool:
    """Tell whether two rows contradict each other; a row without a label contradicts none."""
    return first is not None and second is not None and first[at] != second[place]


def _without(rows: Rows, leaked: Sequence[int], side: str) -> Rows:
    """Return the rows but for those at the positions `leaked`, which are listed as dropped."""
    gone = set(leaked)
    if len(gone) == len(rows):
        raise LeakageError(
            f"data: every text of {side} stands on an earlier side too; none would be left. Take other rows."
        )
    kept = rows.select(at for at in range(len(rows)) if at not in gone)
    return replace(kept, dropped=tuple(sorted({*rows.dropped, *(rows.numbers[at] for at in leaked)})))
