"""Labels: what task they make, in which order the classes stand, and how they become tensors and back.

The model knows ids from 0; the caller knows "neg" and "pos", or 0, 5 and 7. `Labels` is the one place that
translates, and it travels with the model, so that predictions come back in the caller's own values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lowft._tasks import TASKS, Task, check_task
from lowft.data._classes import (
    check_each,
    check_tail,
    checkpoint_names,
    is_vector,
    kind_of,
    order_classes,
    targets_of,
    unknown_message,
    vector_width,
    whole,
)
from lowft.data._values import count_of, plain_list, shown
from lowft.errors import LabelError

__all__ = ["Labels", "Task"]

_TASK_OF: Mapping[str, Task] = {
    "booleans": "single_label_classification",
    "floats": "regression",
    "integers": "single_label_classification",
    "lists": "multi_label_classification",
    "strings": "single_label_classification",
}
_CLASSES_SHOWN = 10


@dataclass(frozen=True)
class Labels:
    """The task, and the caller's label values in the order of the model's ids. Made by `Labels.infer`.

    Attributes:
        task: "single_label_classification", "multi_label_classification" or "regression".
        classes: The caller's own label values; the position is the id. Empty for regression.
        names: A name for each of the model's outputs, for `config.id2label`: the classes as strings where
            the data and the checkpoint have no names; "score" for regression.
        multi_hot: True where the caller gives several labels as a vector of 0 and 1.
        counts: How many of the rows seen by `infer` have each class; empty where unknown.
        how: Why this task was taken, in words; empty where unknown.

    Raises:
        ConfigError: The task is none of the three.
        LabelError: Classes or names occur twice, or are not equally many.

    >>> labels = Labels.infer([5, 0, 7, 5])
    >>> labels.classes, labels.encode([7, 0]).tolist(), labels.decode([2, 0])
    ((0, 5, 7), [2, 0], [7, 0])
    """

    task: Task
    classes: tuple[str | int, ...] = ()
    names: tuple[str, ...] = ()
    multi_hot: bool = False
    counts: tuple[int, ...] = field(default=(), compare=False)
    how: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        """Name the outputs where the caller did not, and check that everything fits."""
        check_task(self.task)
        if not self.names:
            names = ("score",) if self.task == "regression" else tuple(str(value) for value in self.classes)
            object.__setattr__(self, "names", names)
        outputs = 1 if self.task == "regression" else len(self.classes)
        if outputs == 0 or len(self.names) != outputs or (self.counts and len(self.counts) != len(self.classes)):
            raise LabelError(
                "Labels: each class needs one name (and one count), and regression one name and no classes; "
                f"got classes {shown(self.classes)}, names {shown(self.names)}, counts {shown(self.counts)}."
            )
        for kind, values in (("class", self.classes), ("name", self.names)):
            twice = [value for value, count in Counter(values).items() if count > 1]
            if twice:
                raise LabelError(f"Labels: every {kind} must stand there once; {twice} occur more often.")

    @classmethod
    def infer(
        cls,
        labels: Sequence[Any],
        *,
        task: Task | None = None,
        names: Sequence[str] | None = None,
        id2label: Mapping[int, str] | None = None,
        name: str = "train_dataset",
    ) -> Labels:
        """Find the task and the classes from the labels of the training rows.

        Strings, booleans and integers make a single-label task; lists, tuples, sets and 0/1 vectors a
        multi-label task; floats a regression. Without `names` or `id2label` the classes stand in sorted
        order.

        Args:
            labels: One label for each row; several labels of one row as a list of them or as a 0/1 vector.
                Rows are taken as vectors where all have the same length (that of `names` where there are any;
                at least 2) and hold only 0 and 1.
            task: The task, where it is not the one that the labels look like. Single-label takes whole
                floats; regression takes integers and booleans.
            names: The names of integer labels, from the data (`Rows.label_names`); or all string labels in
                the order you want. Not used for regression.
            id2label: The classes of a checkpoint whose head is kept. Its order wins, matched by name whatever
                the letter case; "LABEL_0" and its like say nothing and are ignored.
            name: What messages call the labels.

        Raises:
            LabelError: No labels, a missing one, mixed types, one class only, labels in conflict with `names`
                or `id2label`, or labels that look like amounts or texts rather than classes.
            ConfigError: `task` is none of the three.

        >>> Labels.infer(["pos", "neg", "pos"]).describe()
        'single-label classification (labels are strings): 2 classes: neg 1, pos 2'
        >>> Labels.infer([1, 0], names=["neg", "pos"], id2label={0: "POS", 1: "NEG"}).classes
        (1, 0)
        """
        if task is not None:
            check_task(task)
        values = plain_list(labels)
        if not values:
            raise LabelError(f"{name}: there are no labels to learn from. At least two rows are needed.")
        kind = kind_of(values, name)
        checkpoint = checkpoint_names(id2label)
        if (task or _TASK_OF.get(kind)) == "regression":
            return cls("regression", how=_regression(values, kind, checkpoint, name, chosen=task is not None))
        several = (task or _TASK_OF[kind]) == "multi_label_classification"
        if several != (kind == "lists"):
            wanted = "a list of labels ([] for none)" if several else "one label"
            raise LabelError(
                f"{name}: the task {task!r} needs {wanted} for each row; got {kind} such as "
                f"{shown(values[0])}. Write the labels so, or leave the task out."
            )
        width = vector_width(values, names) if several else 0
        if width:
            rows = [{at for at, bit in enumerate(row) if bit} for row in values]
            seen, kind_inside = set(range(width)), "integers"
        else:
            flat = [label for row in values for label in row] if several else values
            kind_inside = kind_of(flat, name, [at for at, row in enumerate(values) for _ in row] if several else None)
            seen = whole(flat, kind_inside, name)
            rows = [set(row) if several else {row} for row in values]
        if len({frozenset(row) for row in rows}) == 1:
            raise LabelError(
                f"{name}: {count_of(len(rows), 'row')} and one label, {shown(values[0])}: from one class "
                "nothing can be learned. Add rows of another class, or check that this is the label column."
            )
        if task is None and names is None and checkpoint is None and not several:
            check_tail(seen, kind, len(rows), name)
        classes, class_names = order_classes(seen, kind_inside, names, checkpoint, name)
        if width and len(classes) != width:
            raise LabelError(
                f"{name}: label vectors have {width} places, and the checkpoint has "
                f"{count_of(len(classes), 'class')}: {shown(class_names)}. Make them agree, or start a new "
                "head (id2label=None)."
            )
        counter = Counter(label for row in rows for label in row)
        how = f"labels are {'0/1 vectors' if width else kind}" if task is None else "the task you gave"
        counts = tuple(counter[value] for value in classes)
        return cls(task or _TASK_OF[kind], classes, class_names, bool(width), counts, how)

    @property
    def num_labels(self) -> int:
        """The number of the model's outputs: classes, or 1 for regression."""
        return len(self.names)

    @property
    def id2label(self) -> dict[int, str]:
        """The names by id, for a transformers config."""
        return dict(enumerate(self.names))

    @property
    def label2id(self) -> dict[str, int]:
        """The ids by name, for a transformers config."""
        return {name: at for at, name in enumerate(self.names)}

    def encode(
        self, labels: Sequence[Any], *, name: str = "eval_dataset", numbers: Sequence[int] | None = None
    ) -> np.ndarray[Any, np.dtype[Any]]:
        """Turn labels into what the loss needs.

        Args:
            labels: Labels of the kind that `infer` saw, one entry for each row.
            name: What messages call the labels.
            numbers: Each row's number in the caller's data, for messages (`Rows.numbers`).

        Returns:
            Single-label: int64 ids `[rows]`. Multi-label: float32 zeros and ones `[rows, classes]`.
            Regression: float32 targets `[rows]`.

        Raises:
            LabelError: A label that is missing, of another kind, or not among the classes; a target that is
                NaN, infinite or too large for float32.

        >>> Labels.infer([["red"], ["red", "blue"], []]).encode([["blue"], []]).tolist()
        [[1.0, 0.0], [0.0, 0.0]]
        """
        values = plain_list(labels)
        at = range(len(values)) if numbers is None else numbers
        if self.task == "regression":
            return targets_of(values, at, name)
        if self.task == "single_label_classification":
            return np.array(self._ids(values, at, name), dtype=np.int64)
        check_each(values, [isinstance(row, list) for row in values], "a list of labels", at, name)
        if self.multi_hot:
            wanted = f"a vector of {len(self.classes)} zeros and ones"
            fitting = [len(row) == len(self.classes) and is_vector(row) for row in values]
            check_each(values, fitting, wanted, at, name)
            vectors = np.array(values, dtype=np.float32).reshape(len(values), len(self.classes))
            # A vector's places are the data's own class numbers, perhaps not in the checkpoint's order.
            return vectors[:, np.array(self.classes, dtype=np.int64)]
        encoded = np.zeros((len(values), len(self.classes)), dtype=np.float32)
        rows = [row for row, parts in enumerate(values) for _ in parts]
        flat = [part for parts in values for part in parts]
        encoded[rows, self._ids(flat, [at[row] for row in rows], name)] = 1
        return encoded

    def decode(self, array: Any) -> list[Any]:
        """Turn predictions into the caller's own label values.

        Args:
            array: A numpy array, or what `numpy.asarray` takes. Single-label: ids `[rows]`. Multi-label:
                zeros and ones `[rows, classes]`. Regression: numbers `[rows]`.

        Returns:
            One entry for each row: a label, a list of labels (for 0/1 vectors: of their places), or a float.

        Raises:
            LabelError: The shape or a value does not fit.

        >>> Labels.infer(["neg", "pos"]).decode([1, 1, 0])
        ['pos', 'pos', 'neg']
        """
        values = np.asarray(array)
        several = self.task == "multi_label_classification"
        if values.ndim != (2 if several else 1) or (several and values.shape[1] != len(self.classes)):
            wanted = f"[rows, {len(self.classes)}]" if several else "[rows]"
            raise LabelError(f"decode: a {self.task} task needs the shape {wanted}; got {list(values.shape)}.")
        if self.task == "regression":
            return [float(value) for value in values]
        if several:
            if not np.isin(values, (0, 1)).all():
                raise LabelError(
                    "decode: needs zeros and ones; got other values. Compare probabilities with a threshold "
                    "first, for example probabilities > 0.5."
                )
            return [[self.classes[at] for at in np.flatnonzero(row)] for row in values]
        last = len(self.classes) - 1
        if values.size and (values.dtype.kind not in "iu" or values.min() < 0 or values.max() > last):
            raise LabelError(
                f"decode: needs ids, integers from 0 to {last}; got {shown(values.tolist())}. Take the "
                "argmax of the logits first."
            )
        return [self.classes[at] for at in values]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values, to be saved with the model."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Labels:
        """Return the `Labels` that `to_json` described.

        Raises:
            LabelError: A field is missing, unknown, or does not hold what it should.

        >>> labels = Labels.infer([True, False])
        >>> Labels.from_json(labels.to_json()) == labels
        True
        """
        wanted = {"task": str, "classes": list, "names": list, "multi_hot": bool, "counts": list, "how": str}
        if not isinstance(values, Mapping):
            raise LabelError(f"saved labels must be an object of {list(wanted)}; got {shown(values)}.")
        wrong = [key for key, kind in wanted.items() if not isinstance(values.get(key), kind)]
        wrong += sorted(set(values) - set(wanted))
        for key, kind in (("classes", str | int), ("names", str), ("counts", int)):
            if key not in wrong and not all(isinstance(value, kind) for value in values[key]):
                wrong.append(key)
        if "task" not in wrong and values["task"] not in TASKS:
            wrong.append("task")
        if wrong:
            raise LabelError(
                f"saved labels need {list(wanted)}, as to_json writes them, and {wrong} "
                f"do not fit: {shown(dict(values), 200)}. Save them again from the training run."
            )
        return cls(
            task=values["task"],
            classes=tuple(values["classes"]),
            names=tuple(values["names"]),
            multi_hot=values["multi_hot"],
            counts=tuple(values["counts"]),
            how=values["how"],
        )

    def describe(self) -> str:
        """Return one line for the user: the task, why it was taken, and the classes with their counts.

        >>> Labels.infer([1.0, 4.5, 3.0]).describe()
        'regression (labels are floats, from 1.0 to 4.5)'
        """
        kind = self.task.replace("_label_", "-label ")
        text = f"{kind} ({self.how})" if self.how else kind
        if self.task == "regression":
            return text
        counts = [f" {count:,}" for count in self.counts] or [""] * len(self.classes)
        told = [
            (label if label == str(value) else f"{label} ({value!r})") + count
            for label, value, count in zip(self.names, self.classes, counts, strict=True)
        ]
        more = f" and {len(told) - _CLASSES_SHOWN} more" if len(told) > _CLASSES_SHOWN else ""
        return f"{text}: {count_of(len(told), 'class')}: {', '.join(told[:_CLASSES_SHOWN])}{more}"

    def _ids(self, values: Sequence[Any], at: Sequence[int], name: str) -> list[int]:
        ids = {value: i for i, value in enumerate(self.classes)}
        unknown: dict[Any, list[int]] = {}
        for value, number in zip(values, at, strict=True):
            key = str(value) if isinstance(value, list | dict) else value
            if key not in ids:
                unknown.setdefault(key, []).append(number)
        if unknown:
            raise LabelError(unknown_message(unknown, self.classes, name))
        return [ids[value] for value in values]


def _regression(values: Sequence[Any], kind: str, checkpoint: Sequence[str] | None, name: str, *, chosen: bool) -> str:
    """Check the targets of a regression, and say why it is one."""
    if checkpoint and len(checkpoint) > 1 and not chosen:
        raise LabelError(
            f"{name}: the labels are floats such as {shown(values[0])}, which make a regression, and the "
            f"checkpoint has classes: {shown(list(checkpoint))}."
            f' Pass task="regression" for a new head, or integer labels.'
        )
    targets_of(values, range(len(values)), name)
    how = f"{'the task you gave' if chosen else f'labels are {kind}'}, from {min(values)} to {max(values)}"
    if chosen or not all(float(value).is_integer() for value in values):
        return how
    advice = 'if they are classes, pass task="single_label_classification"'
    return f"{how}, all whole, {len(set(values))} different: {advice}"
