"""What labels look like: their kind, the task that suits it, and the order of their classes.

The rules behind `Labels.infer` and `Labels.encode`, as functions on plain values (see `plain_list`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lowft.data._values import count_of, near, row_list, shown
from lowft.errors import LabelError

__all__ = [
    "check_each",
    "check_tail",
    "checkpoint_names",
    "is_vector",
    "kind_of",
    "order_classes",
    "targets_of",
    "unknown_message",
    "vector_width",
    "whole",
]

# More integer classes than this are taken for amounts or row ids; classes with less than two rows each are
# taken for texts or ids, unless there are so few that it may just be a few-shot draw.
_MOST_INTEGER_CLASSES = 1000
_FEW_SHOT_CLASSES = 100

_SHOWN = 5
_WAY_OUT = "Rename the labels so that they agree, or start a new head (id2label=None)."
_KINDS = {bool: "booleans", float: "floats", int: "integers", list: "lists", str: "strings"}


def kind_of(values: Sequence[Any], name: str, numbers: Sequence[int] | None = None) -> str:
    """Return the one kind that all values have ("none" without any); integers among floats are floats.

    Args:
        values: Plain values.
        name: What messages call the labels.
        numbers: The number of each value's row, where a row holds several.

    Raises:
        LabelError: A value is missing, kinds are mixed, or a kind cannot be a label.
    """
    numbers = range(len(values)) if numbers is None else numbers
    first: dict[str, int] = {}
    for at, value in enumerate(values):
        kind = _KINDS.get(type(value))
        if kind is None:
            missing = [number for number, other in zip(numbers, values, strict=True) if other is None]
            told = f"labels are missing in {row_list(missing)}" if missing else f"{shown(value)} cannot be a label"
            raise LabelError(
                f"{name}: {told}. Labels must be strings, integers, booleans, floats, or lists of them; "
                "correct them or leave these rows out."
            )
        first.setdefault(kind, at)
    if set(first) == {"integers", "floats"}:
        return "floats"
    if len(first) > 1:
        examples = ", ".join(f"{kind} such as {shown(values[at])} (row {numbers[at]})" for kind, at in first.items())
        raise LabelError(f"{name}: all labels must be of one kind; there are {examples}. Write them all in one way.")
    return next(iter(first), "none")


def whole(values: Iterable[Any], kind: str, name: str) -> set[Any]:
    """Return the distinct labels, whole floats as integers.

    Raises:
        LabelError: A float is not whole, or a label is itself a list.
    """
    distinct = set(values) if kind != "lists" else None
    if distinct is None or (kind == "floats" and not all(float(value).is_integer() for value in distinct)):
        raise LabelError(
            f"{name}: classes must be strings, integers, booleans or whole floats; got {kind}: "
            f"{shown(sorted(values))}. For amounts, take the task regression."
        )
    return {int(value) for value in distinct} if kind == "floats" else distinct


def vector_width(rows: Sequence[Sequence[Any]], names: Sequence[str] | None) -> int:
    """Return the length of rows that are vectors of 0 and 1, or 0 where they are lists of labels."""
    width = len(rows[0]) if names is None else len(names)
    return width if width > 1 and all(len(row) == width and is_vector(row) for row in rows) else 0


def is_vector(row: Sequence[Any]) -> bool:
    """Tell whether a row holds nothing but 0 and 1."""
    return all(not isinstance(part, str | list) and part in (0, 1) for part in row)


def checkpoint_names(id2label: Mapping[int, str] | None) -> tuple[str, ...] | None:
    """Return a checkpoint's class names in id order; None where it has none or only "LABEL_0" and its like.

    Raises:
        LabelError: The ids are not 0, 1, 2 and so on, or two classes have one name.
    """
    if not id2label:
        return None
    by_id = {int(at): str(label) for at, label in id2label.items()}  # JSON turns ids into strings
    if all(label == f"LABEL_{at}" for at, label in by_id.items()):
        return None
    if sorted(by_id) != list(range(len(by_id))) or len(set(by_id.values())) != len(by_id):
        raise LabelError(
            f"id2label must give each id from 0 upwards a name of its own; got {shown(dict(id2label), 200)}. "
            "Correct the checkpoint's config, or pass id2label=None to start a new head."
        )
    return tuple(by_id[at] for at in range(len(by_id)))


def order_classes(
    seen: Collection[Any],
    kind: str,
    names: Sequence[str] | None,
    checkpoint: Sequence[str] | None,
    name: str,
) -> tuple[tuple[Any, ...], tuple[str, ...]]:
    """Return the caller's label values in the order of the model's ids, and their names.

    Args:
        seen: The distinct labels.
        kind: Their kind.
        names: All classes in order (strings), or the names of the integers 0, 1, 2 and so on.
        checkpoint: The class names of the checkpoint, whose order wins.
        name: What messages call the labels.

    Raises:
        LabelError: The labels, the names and the checkpoint are in conflict.
    """
    if names is None and checkpoint is None:
        ordered = tuple(sorted(seen))
        return ordered, tuple(str(value) for value in ordered)
    known = tuple(names if names is not None else checkpoint or ())
    source = "the names" if names is not None else "the checkpoint's id2label"
    if kind == "strings" and names is None:
        fold = _folding(seen, known)
        own = {fold(value): value for value in seen}
        values = tuple(own.get(fold(label), label) for label in known)
    elif kind == "strings":
        values = known
    else:
        values = (False, True) if kind == "booleans" and len(known) == 2 else tuple(range(len(known)))
    strange = sorted(set(seen) - set(values))
    if strange:
        told = "as strings" if kind == "strings" else f"and as {kind} they must be from 0 to {len(known) - 1}"
        hint = near(strange[0], values) if kind == "strings" else _hidden_hint(strange)
        raise LabelError(
            f"{name}: the labels {_listed(strange)} do not fit {source}: {_listed(known)} ({told}).{hint} "
            f"{_WAY_OUT if names is None else 'Correct the labels or the names.'}"
        )
    if names is None or checkpoint is None:
        return values, known
    fold = _folding(known, checkpoint)
    place = {fold(label): at for at, label in enumerate(known)}
    if set(place) != {fold(label) for label in checkpoint}:
        raise LabelError(
            f"{name}: the data's classes {_listed(known)} are not the checkpoint's {_listed(checkpoint)}. {_WAY_OUT}"
        )
    return tuple(values[place[fold(label)]] for label in checkpoint), tuple(checkpoint)


def _folding(first: Iterable[str], second: Iterable[str]) -> Callable[[str], str]:
    """Return `str.casefold` where no two names of a side become one by it, else the exact comparison."""
    for side in (list(first), list(second)):
        if len({label.casefold() for label in side}) < len(side):
            return str
    return str.casefold


def check_tail(classes: Collection[Any], kind: str, rows: int, name: str) -> None:
    """Refuse classes that look like amounts, row ids or texts.

    Raises:
        LabelError: There are too many classes for the rows, or more than 1,000 integers.
    """
    too_many = kind == "integers" and len(classes) > _MOST_INTEGER_CLASSES
    if too_many or (len(classes) >= _FEW_SHOT_CLASSES and 2 * len(classes) > rows):
        raise LabelError(
            f"{name}: {count_of(rows, 'row')} have {len(classes):,} different labels, such as "
            f"{_listed(sorted(classes)[:_SHOWN])}: these look like amounts, ids or texts rather than classes. "
            'For amounts pass task="regression"; or take another label column; or, if they are classes, pass '
            'task="single_label_classification".'
        )


def targets_of(values: Sequence[Any], numbers: Sequence[int], name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return regression targets: float32 `[rows]`.

    Raises:
        LabelError: A value is not a number, is missing, or is not finite in float32.
    """
    check_each(values, [isinstance(value, int | float) for value in values], "a number (regression)", numbers, name)
    with np.errstate(over="ignore"):
        targets = np.array(values, dtype=np.float64).astype(np.float32)
    check_each(values, np.isfinite(targets), "finite in float32", numbers, name)
    return targets


def check_each(values: Sequence[Any], good: Iterable[Any], wanted: str, numbers: Sequence[int], name: str) -> None:
    """Raise a LabelError that lists the rows whose value is not `good` (one flag for each value)."""
    bad = [at for at, flag in enumerate(good) if not flag]
    if bad:
        raise LabelError(
            f"{name}: every label must be {wanted}; {row_list([numbers[at] for at in bad])} "
            f"{'is' if len(bad) == 1 else 'are'} not, for example {shown(values[bad[0]])}. Correct these "
            "labels or leave the rows out."
        )


def unknown_message(unknown: Mapping[Any, Sequence[int]], classes: Sequence[Any], name: str) -> str:
    """Return the message for labels that are not among the classes: which, where, and what is known."""
    told = "; ".join(f"{shown(value)} in {row_list(rows)}" for value, rows in list(unknown.items())[:_SHOWN])
    more = f"; and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
    first = next(iter(unknown))
    hint = near(first, classes) if isinstance(first, str) else _hidden_hint(unknown)
    return (
        f"{name}: labels that are not among the classes: {told}{more}. The classes are "
        f"{_listed(classes)}.{hint} Correct the labels, or train on rows of every class."
    )


def _hidden_hint(labels: Iterable[Any]) -> str:
    return " -1 often marks the hidden labels of a public test set: take another split." if -1 in labels else ""


def _listed(values: Sequence[Any]) -> str:
    more = f" and {len(values) - 2 * _SHOWN:,} more" if len(values) > 2 * _SHOWN else ""
    return ", ".join(repr(value) for value in values[: 2 * _SHOWN]) + more
