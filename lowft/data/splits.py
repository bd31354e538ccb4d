"""Cut data into train, validation and test sides that share no text, and draw few-shot training sets.

A validation score steers every decision of a run, and the test score is reported: both mean something only
where no text of theirs was trained on. So leakage is an error unless the caller decides otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from lowft._tables import format_table
from lowft.data._leakage import find_leakage, settle_leakage
from lowft.data._sources import SPLIT_NAMES, given_splits
from lowft.data._values import count_of, plain, shown
from lowft.data.labels import Labels, Task
from lowft.data.rows import Rows, read_rows
from lowft.errors import ConfigError, DataError

__all__ = ["Splits", "few_shot", "find_leakage", "split"]

_SIZE = 0.1
_COLUMNS_SHOWN = 8
_QUANTILES = 10


@dataclass(frozen=True)
class Splits:
    """The sides of a split; printed as a small table. Made by `split`.

    Attributes:
        train: The rows to train on.
        validation: The rows whose score steers the run, or None.
        test: The rows for the last evaluation, or None.

    >>> print(split((list("abcdefgh"), [0, 1] * 4), validation=2, test=2))
    side        rows  0  1
    ----------  ----  -  -
    train          4  2  2
    validation     2  1  1
    test           2  1  1
    """

    train: Rows
    validation: Rows | None = None
    test: Rows | None = None

    def __str__(self) -> str:
        """Return the table: rows on each side and, where they fit on a line, of each class."""
        sides = self._sides()
        labels = [label for rows in sides.values() for label in rows.labels or ()]
        classes = sorted({label for label in labels if isinstance(label, str | int)}, key=_by_type)
        if len(classes) > _COLUMNS_SHOWN:
            classes = []
        names = self.train.label_names or ()
        any_dropped = any(rows.dropped for rows in sides.values())
        headers = ["side", "rows", *(_class_name(label, names) for label in classes)] + ["dropped"] * any_dropped
        return format_table(
            headers,
            [
                [side, str(len(rows)), *(str((rows.labels or ()).count(label)) for label in classes)]
                + [str(len(rows.dropped))] * any_dropped
                for side, rows in sides.items()
            ],
        )

    def _sides(self) -> dict[str, Rows]:
        """Return the sides that are there, the one that is trained on first."""
        sides = {"train": self.train, "validation": self.validation, "test": self.test}
        return {side: rows for side, rows in sides.items() if rows is not None}


def split(  # noqa: PLR0913
    data: Any,
    *,
    validation: float = _SIZE,
    test: float = _SIZE,
    seed: int = 0,
    stratify: bool = True,
    on_leakage: Literal["error", "drop", "allow"] = "error",
    column_mapping: Mapping[str, str] | None = None,
    on_bad_row: Literal["error", "drop"] = "error",
    task: Task | None = None,
) -> Splits:
    """Cut data into train, validation and test sides that share no text.

    The same data, sizes and seed always give the same sides; the rows of a side keep the data's order.

    With `stratify`, every side has each class in the proportion of the whole (to the row with one side beside
    train, to two rows with both); a regression is stratified over up to ten quantiles of its targets; rows
    with several labels each, or with none, are cut at random.

    Data that is split already (a `datasets.DatasetDict`, or a dict with "train", "validation", "valid", "val"
    or "dev", and "test") is taken as it is: its sides are read and checked, and nothing is moved between
    them.

    Two texts are the same if they differ only in case and white space; rows with two texts must share both.

    Args:
        data: What `read_rows` reads, or data that is split already.
        validation: The size of the validation side: a fraction (float below 1) or a number of rows (int); 0
            for no such side. Not to be given for data that is split already.
        test: The size of the test side, likewise.
        seed: Decides which rows go where.
        stratify: Whether classes are spread evenly.
        on_leakage: What happens where a text stands on two sides. "error": an error. "drop": it stays on the
            earlier side (train before validation before test) and leaves the later ones, whose `dropped`
            lists it. "allow": nothing. Where such rows have different labels, "drop" and "allow" warn.
        column_mapping: As in `read_rows`.
        on_bad_row: As in `read_rows`. Bad rows of a single table are listed in `train.dropped`, so that each
            row of the data is on one side or in one `dropped`.
        task: The task, where the labels look like another (see `Labels.infer`).

    Returns:
        The sides.

    Raises:
        ConfigError: A setting is out of its range.
        DataError: Bad rows, or too few rows, in all or of a class, for these sizes.
        LabelError: Labels from which no classes can be told (only with `stratify`).
        LeakageError: The same text on two sides.

    >>> sides = split(([f"text {i}" for i in range(100)], [0, 1] * 50), validation=0.2, test=10)
    >>> len(sides.train), len(sides.validation), len(sides.test)
    (70, 20, 10)
    """
    if on_leakage not in {"error", "drop", "allow"}:
        raise ConfigError(f'on_leakage must be "error", "drop" or "allow"; got {on_leakage!r}.')
    _check_seed(seed)
    given = given_splits(data)
    if given is None:
        rows = read_rows(data, column_mapping=column_mapping, on_bad_row=on_bad_row)
        sizes = {
            "test": _size(test, len(rows), "test"),
            "validation": _size(validation, len(rows), "validation"),
        }
        splits = _cut(rows, sizes, seed, task, stratify=stratify)
    else:
        if (validation, test) != (_SIZE, _SIZE):
            raise ConfigError(
                f"data is split already, into {list(given)}, and the sizes validation={validation} and "
                f'test={test} would not be used. Leave them out, or cut one side: split(data["train"], ...).'
            )
        splits = _given(given, column_mapping, on_bad_row)
    return Splits(**settle_leakage(splits._sides(), on_leakage))  # noqa: SLF001


def few_shot(
    data: Any,
    k: int,
    *,
    seed: int = 0,
    column_mapping: Mapping[str, str] | None = None,
    on_bad_row: Literal["error", "drop"] = "error",
    task: Task | None = None,
) -> Rows:
    """Draw k rows of each class, as if labels were scarce.

    Draws of one seed are nested: its 8-shot rows include its 4-shot rows, so that a learning curve differs in
    size alone. The rows keep the data's order. Where rows have several labels each, every class has at least
    k rows. For a regression, k rows are drawn in all, uniformly.

    Args:
        data: What `read_rows` reads, with labels.
        k: Rows for each class, from 1.
        seed: Decides which rows are drawn.
        column_mapping: As in `read_rows`.
        on_bad_row: As in `read_rows`.
        task: The task, where the labels look like another (see `Labels.infer`).

    Returns:
        The rows drawn; `numbers` says where in the data they stand.

    Raises:
        ConfigError: `k` or `seed` is out of its range.
        DataError: Bad rows, no labels, or a class with less than k rows.
        LabelError: Labels from which no classes can be told.

    >>> few_shot((list("abcdef"), ["x", "x", "x", "y", "y", "y"]), 2).labels
    ('x', 'x', 'y', 'y')
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ConfigError(f"k, the rows for each class, must be an integer from 1; got {k!r}.")
    _check_seed(seed)
    rows = read_rows(data, column_mapping=column_mapping, on_bad_row=on_bad_row, require_labels=True)
    labels, encoded = _encoded(rows, task)
    if labels.task == "regression":
        members = {"regression": np.arange(len(rows))}
    elif labels.task == "multi_label_classification":
        members = {name: np.flatnonzero(encoded[:, at]) for at, name in enumerate(labels.names)}
    else:
        members = {name: np.flatnonzero(encoded == at) for at, name in enumerate(labels.names)}
    short = {name: len(at) for name, at in members.items() if len(at) < k}
    if short:
        raise DataError(
            f"few_shot: k={k} needs {count_of(k, 'row')} of each class; there are fewer of {shown(short)}. "
            "Take a smaller k, or add rows."
        )
    # A generator for each class: a larger k goes on in the same order, whatever the other classes hold.
    drawn = [np.random.default_rng([seed, i]).permutation(at)[:k] for i, at in enumerate(members.values())]
    return rows.select(np.unique(np.concatenate(drawn)))


def _by_type(label: Any) -> tuple[str, Any]:
    return type(label).__name__, label


def _class_name(label: Any, names: Sequence[str]) -> str:
    return names[label] if isinstance(label, int) and 0 <= label < len(names) else str(label)


def _check_seed(seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ConfigError(f"seed must be an integer from 0 to {2**32 - 1}; got {seed!r}.")


def _size(size: float, total: int, side: str) -> int:
    """Return the number of rows of a side."""
    value = plain(size)
    if type(value) is int and value >= 0:
        return value
    if isinstance(value, float) and 0 <= value < 1:
        return max(1, round(value * total)) if value else 0
    raise ConfigError(
        f"{side} must be a fraction (a float from 0 to below 1) or a number of rows (an integer from 0); got {size!r}."
    )


def _cut(rows: Rows, sizes: Mapping[str, int], seed: int, task: Task | None, *, stratify: bool) -> Splits:
    from sklearn.model_selection import train_test_split

    train = len(rows) - sum(sizes.values())
    if train < 1:
        raise DataError(
            f"data has {count_of(len(rows), 'row')}, and validation={sizes['validation']} and "
            f"test={sizes['test']} rows leave none to train on. Take smaller sides, or add rows."
        )
    strata = None
    if stratify and rows.labels is not None and any(sizes.values()):
        strata = _strata(rows, task, smallest=min(train, *filter(None, sizes.values())))
    rest = np.arange(len(rows))
    cut = {}
    wanted = [side for side, size in sizes.items() if size]
    for done, side in enumerate(wanted):
        groups = None if strata is None else strata[rest]
        if groups is not None:
            labels = rows.select(rest).labels or ()
            _check_groups(groups, labels, side, sizes[side], sides=len(wanted) - done + 1)
        rest, taken = train_test_split(rest, test_size=sizes[side], random_state=seed, stratify=groups)
        cut[side] = replace(rows.select(np.sort(taken)), dropped=())
    return Splits(rows.select(np.sort(rest)), cut.get("validation"), cut.get("test"))


def _encoded(rows: Rows, task: Task | None) -> tuple[Labels, np.ndarray[Any, np.dtype[Any]]]:
    values = rows.labels or ()
    labels = Labels.infer(values, task=task, names=rows.label_names, name="data")
    return labels, labels.encode(values, name="data", numbers=rows.numbers)


def _strata(rows: Rows, task: Task | None, smallest: int) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    """Return each row's group `[rows]`, of which every side gets its share; None for no groups."""
    labels, encoded = _encoded(rows, task)
    if labels.task == "multi_label_classification":
        return None
    if labels.task == "regression":
        ranks = np.argsort(np.argsort(encoded, kind="stable"))
        return ranks * min(_QUANTILES, smallest) // len(rows)
    return encoded


def _check_groups(groups: np.ndarray[Any, Any], labels: Sequence[Any], side: str, size: int, sides: int) -> None:
    """Refuse to cut a side of this size from these rows, where `sides` are still to be made of them."""
    present, first, counts = np.unique(groups, return_index=True, return_counts=True)
    advice = "Add rows, or pass stratify=False to cut at random."
    if counts.min() < sides:
        raise DataError(
            f"data: the class {labels[first[counts.argmin()]]!r} has {count_of(int(counts.min()), 'row')} "
            f"left for {sides} sides, and needs one for each. {advice}"
        )
    if min(size, len(groups) - size) < len(present):
        raise DataError(
            f"data: {side} would get {count_of(size, 'row')} of {len(groups):,}, and neither part may have "
            f"less than one for each of the {len(present)} classes. {advice}"
        )


def _given(given: Mapping[str, Any], column_mapping: Mapping[str, str] | None, on_bad_row: Any) -> Splits:
    sides: dict[str, Rows] = {}
    for key, data in given.items():
        side = SPLIT_NAMES.get(key)
        if side is None or side in sides:
            raise DataError(
                f"data holds the splits {list(given)}, and must hold train and at most one validation and one "
                'test side. Pick them: {"train": data["train"], "validation": ..., "test": ...}.'
            )
        sides[side] = read_rows(data, column_mapping=column_mapping, on_bad_row=on_bad_row, name=f"data[{key!r}]")
    if "train" not in sides:
        raise DataError(f"data holds the splits {list(given)}, and one of them must be called train.")
    return Splits(**sides)
