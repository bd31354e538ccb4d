"""What the classes are called, as rows to learn from: where labels are few, a name says much."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from lowft._settings import check_whole
from lowft.data._values import near, shown
from lowft.data.labels import Labels
from lowft.data.rows import Rows, read_rows
from lowft.errors import ConfigError, DataError

__all__ = ["add_templated_rows", "check_templates", "templated"]

_PLACE = "{}"
_NO_WORD = re.compile(r"LABEL[ _]\d+|[\W\d_]*[A-Za-z]?[\W\d_]*|True|False")  # LABEL_0, 3, A2


def add_templated_rows(
    data: Any,
    *,
    templates: Sequence[str] = ("This sentence is {}",),
    copies: int = 8,
    names: Mapping[Any, str] | None = None,
    column_mapping: Mapping[str, str] | None = None,
    on_bad_row: Literal["error", "drop"] = "error",
) -> Rows:
    """Add rows that say what each class is called: "This sentence is positive", with the label "positive".

    A sentence encoder knows what the words mean before it has seen a row. So such rows tell it along which direction
    the classes lie, and the drawn rows, which differ in much else, need not. What they bring before `Contrastive` is
    measured in docs/few-labels.md. In a Trainer, `ClassNames` adds them. They are for training rows only: validation
    and test rows stay what they are.

    SetFit's library makes such rows too (`setfit.get_templated_dataset`); its template is the default here.

    Args:
        data: What `read_rows` reads: single texts, each with one class.
        templates: What to say of a class; `{}` stands for its name.
        copies: How many rows each template makes for each class; more of them weigh more beside the rows of the data.
        names: What classes are called, by label, where the label or the data does not say it or says it badly: `{0:
            "negative", 1: "positive"}`. Else a label that is a word, or the name that `datasets.ClassLabel` has for it,
            is taken, with spaces for underscores.
        column_mapping: As in `read_rows`.
        on_bad_row: As in `read_rows`.

    Returns:
        The rows of the data, and after them the new ones, numbered on.

    Raises:
        ConfigError: A template without one `{}`, `copies` below 1, names of unknown classes, or a class that nothing
            says the name of.
        DataError: Bad rows, no labels, pairs of texts, or labels that are not one class a row.
        LabelError: Labels from which no classes can be told.

    >>> add_templated_rows((["so dull", "what a joy"], ["bad", "good"]), copies=1).texts
    ('so dull', 'what a joy', 'This sentence is bad', 'This sentence is good')
    """
    check_whole("copies", copies, least=1)
    check_templates("templates", templates)
    rows = read_rows(data, column_mapping=column_mapping, on_bad_row=on_bad_row, require_labels=True)
    return templated(rows, templates, copies, {} if names is None else names, name="add_templated_rows")


def templated(rows: Rows, templates: Sequence[str], copies: int, names: Any, *, name: str) -> Rows:
    """Return rows with those of the templates after them; rows without a label (None) may be among them.

    Args:
        rows: Rows, some of them with labels.
        templates: As for `add_templated_rows`, and so are the others.
        copies: How many rows of each.
        names: Of classes.
        name: What messages call the caller.

    Raises:
        ConfigError: As for `add_templated_rows`, and so are the others.
        DataError: Pairs, or labels that are not one class a row.
        LabelError: No classes.
    """
    if rows.pairs is not None:
        raise DataError(
            f"{name}: these rows are pairs of texts, and a sentence with the name of a class has no second text. "
            f"Train on the rows as they are."
        )
    known = [label for label in rows.labels or () if label is not None]
    labels = Labels.infer(known, names=rows.label_names, name="data")
    if labels.task != "single_label_classification":
        raise DataError(
            f"{name}: each row must have one class, by whose name a sentence can be made; these are labels for "
            f"{labels.task}. Train on the rows as they are."
        )
    told = _names_of(labels, names, name=name)
    new = [(template.replace(_PLACE, told[value]), value) for template in templates for value in labels.classes]
    new *= copies
    first = max(rows.numbers + rows.dropped) + 1
    return replace(
        rows,
        texts=rows.texts + tuple(text for text, _ in new),
        labels=(rows.labels or ()) + tuple(value for _, value in new),
        numbers=rows.numbers + tuple(range(first, first + len(new))),
    )


def check_templates(name: str, templates: Any) -> None:
    """Refuse what makes no sentence of a class's name.

    Args:
        name: What messages call the setting.
        templates: Its value.

    Raises:
        ConfigError: No list of texts with one `{}` each.
    """
    if isinstance(templates, str) or not isinstance(templates, Sequence) or not templates:
        raise ConfigError(f"{name} must be a list of texts such as ['This sentence is {{}}']; got {templates!r}.")
    for template in templates:
        if not isinstance(template, str) or template.count(_PLACE) != 1:
            raise ConfigError(
                f"each of {name} must be a text with one {_PLACE}, where the name of a class goes; got {template!r}."
            )


def _names_of(labels: Labels, names: Any, *, name: str) -> dict[Any, str]:
    """Return what each class is called, in words."""
    if not isinstance(names, Mapping):
        raise ConfigError(f"names must say by label what a class is called, as {{0: 'bad', 1: 'good'}}; got {names!r}.")
    for value, said in names.items():
        if value not in labels.classes:
            raise ConfigError(
                f"names: {value!r} is no class of the data. The classes are {shown(list(labels.classes))}."
                f"{near(value, labels.classes)}"
            )
        if not isinstance(said, str) or not said.strip():
            raise ConfigError(f"names: a class is called by a text that is not empty; got {said!r} for {value!r}.")
    told = {
        value: names.get(value, said.replace("_", " "))
        for value, said in zip(labels.classes, labels.names, strict=True)
    }
    silent = [value for value in labels.classes if value not in names and _NO_WORD.fullmatch(told[value])]
    if silent:
        example = ", ".join(f"{value!r}: '...'" for value in silent[:2])
        raise ConfigError(
            f"{name}: nothing says in words what these classes are: {shown(silent)}. "
            f"Pass names={{{example}}}, or train on the rows as they are."
        )
    return told
