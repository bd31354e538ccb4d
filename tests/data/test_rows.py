"""Tests of reading rows from any common form of data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowft.data.rows import Rows, read_rows
from lowft.errors import ConfigError, DataError

TEXTS = ["good", "bad", "fine"]
LABELS = [1, 0, 1]
COLUMNS = {"text": TEXTS, "label": LABELS}

FORMS: dict[str, Callable[[], Any]] = {
    "two lists": lambda: (TEXTS, LABELS),
    "two arrays": lambda: (np.array(TEXTS), np.array(LABELS)),
    "two series": lambda: (pd.Series(TEXTS, index=[7, 8, 9]), pd.Series(LABELS, index=[7, 8, 9])),
    "list and tensor": lambda: (TEXTS, torch.tensor(LABELS)),
    "two lazy columns": lambda: (datasets.Dataset.from_dict(COLUMNS)["text"], LABELS),
    "list of pairs": lambda: list(zip(TEXTS, LABELS, strict=True)),
    "tuple of pairs": lambda: tuple(zip(TEXTS, LABELS, strict=True)),
    "list of dicts": lambda: [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)],
    "dict of columns": lambda: dict(COLUMNS),
    "pandas": lambda: pd.DataFrame(COLUMNS, index=[3, 1, 2]),
    "pandas with its own integers": lambda: pd.DataFrame({"text": TEXTS, "label": pd.array(LABELS, "Int64")}),
    "datasets": lambda: datasets.Dataset.from_dict(COLUMNS),
    "datasets in the format of torch": lambda: datasets.Dataset.from_dict(COLUMNS).with_format("torch"),
    "pyarrow": lambda: pa.table(COLUMNS),
    "pyarrow scalars": lambda: list(zip(map(pa.scalar, TEXTS), map(pa.scalar, LABELS), strict=True)),
    "numpy scalars": lambda: list(zip(map(np.str_, TEXTS), map(np.int64, LABELS), strict=True)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(form: str) -> None:
    """Whatever form the data has, the rows are equal, and made of plain Python values."""
    rows = read_rows(FORMS[form]())
    assert rows == Rows(("good", "bad", "fine"), labels=(1, 0, 1))
    assert {type(value) for value in (*rows.texts, *(rows.labels or ()))} == {str, int}
    assert rows.numbers == (0, 1, 2)
    assert rows.fingerprint() == read_rows((TEXTS, LABELS)).fingerprint()


@pytest.mark.parametrize("form", ["two lists", "list of dicts", "dict of columns", "list of pairs"])
def test_data_is_never_changed(form: str) -> None:
    """Reading, dropping and selecting leave the caller's data as they were."""
    data = FORMS[form]()
    before = copy.deepcopy(data)
    read_rows(data, on_bad_row="drop").select([1])
    assert data == before


def test_several_labels_are_copied() -> None:
    """The rows do not share the caller's lists of labels."""
    labels = [["a"], ["b"]]
    rows = read_rows((["x", "y"], labels))
    labels[0].append("c")
    assert rows.labels == (["a"], ["b"])


def test_rows_are_returned_as_they_are() -> None:
    """Rows that were read once are not read again; that labels are needed is still checked."""
    rows = read_rows(TEXTS)
    assert read_rows(rows) is rows
    with pytest.raises(DataError, match=r"eval_dataset must have labels, and these Rows have none"):
        read_rows(rows, require_labels=True, name="eval_dataset")


def test_texts_alone() -> None:
    """A list of texts has no labels; where they are needed the message shows the form."""
    assert read_rows(TEXTS) == Rows(("good", "bad", "fine"))
    with pytest.raises(DataError, match=r"holds texts only. Pass \(texts, labels\)"):
        read_rows(TEXTS, require_labels=True)


def test_two_texts_in_a_tuple_are_two_texts() -> None:
    """A tuple of two strings is a sequence of two texts, since a string is no column."""
    assert read_rows(("good", "bad")).texts == ("good", "bad")


def test_a_list_of_two_strings_each_is_text_and_label() -> None:
    """Two-part rows are a text and its label, even where both are strings."""
    rows = read_rows([("good", "pos"), ("bad", "neg")])
    assert (rows.texts, rows.labels, rows.pairs) == (("good", "bad"), ("pos", "neg"), None)


@pytest.mark.parametrize(
    ("columns", "text", "pair"),
    [
        (["text"], "text", None),
        (["text", "text_pair"], "text", "text_pair"),
        (["sentence"], "sentence", None),
        (["text", "sentence"], "text", None),
        (["text", "premise", "hypothesis"], "text", None),
        (["premise", "hypothesis"], "premise", "hypothesis"),
        (["sentence1", "sentence2"], "sentence1", "sentence2"),
        (["question", "sentence"], "question", "sentence"),
        (["question1", "question2"], "question1", "question2"),
    ],
)
@pytest.mark.parametrize("label", ["label", "labels"])
def test_common_column_names_are_found(columns: list[str], text: str, pair: str | None, label: str) -> None:
    """The usual names of text, second text and label need no mapping."""
    rows = read_rows([{column: f"in {column}" for column in columns} | {label: 3}])
    assert rows.texts == (f"in {text}",)
    assert rows.pairs == (None if pair is None else (f"in {pair}",))
    assert rows.labels == (3,)


def test_column_mapping_names_the_columns() -> None:
    """Mapped columns are used, and defaults fill in the others."""
    data = {"review": ["a"], "reply": ["b"], "text": ["c"], "stars": [4], "label": [9]}
    rows = read_rows(data, column_mapping={"review": "text", "reply": "text_pair", "stars": "label"})
    assert (rows.texts, rows.pairs, rows.labels) == (("a",), ("b",), (4,))
    rows = read_rows(data, column_mapping={"reply": "text_pair"})
    assert (rows.texts, rows.pairs, rows.labels) == (("c",), ("b",), (9,))


def test_column_mapping_is_not_used_without_column_names() -> None:
    """Lists of texts have no columns to map, so one mapping may be passed for everything."""
    assert read_rows(["a"], column_mapping={"review": "text"}).texts == ("a",)


@pytest.mark.parametrize(
    ("mapping", "error", "message"),
    [
        ({"reviw": "text"}, DataError, r"names the column 'reviw'.*\['review', 'stars'\].*mean 'review'"),
        ({"text": "review"}, ConfigError, r"other way round: \{'review': 'text'\}"),
        (
            {"review": "content"},
            ConfigError,
            r"\['text', 'text_pair', 'label'\]; got \{'review': 'content'\}",
        ),
        ({"review": "text", "stars": "text"}, ConfigError, r"'review' and 'stars' cannot both be 'text'"),
        ({}, DataError, r"no text column .*\['review', 'stars'\].*column_mapping=\{'review': 'text'\}"),
    ],
)
def test_wrong_mappings_are_explained(mapping: dict[str, str], error: type[Exception], message: str) -> None:
    """A mapping that does not fit is an error with the columns and the mapping to write."""
    with pytest.raises(error, match=message):
        read_rows({"review": ["a"], "stars": [1]}, column_mapping=mapping)


def test_labels_that_are_needed_and_missing() -> None:
    """Without a label column the message names the columns and shows the mapping."""
    data = {"text": ["a"], "stars": [1]}
    with pytest.raises(DataError, match=r"no label column .*column_mapping=\{'stars': 'label'\}"):
        read_rows(data, require_labels=True)
    assert read_rows(data).labels is None


def test_labels_that_are_not_wanted_are_not_looked_at() -> None:
    """With require_labels=False bad labels, and a mapping for labels that are not there, do no harm."""
    mapping = {"review": "text", "stars": "label"}
    data = {"review": ["a", "b"], "stars": [None, 1]}
    assert read_rows(data, column_mapping=mapping, require_labels=False).labels is None
    assert read_rows({"review": ["a"]}, column_mapping=mapping, require_labels=False).texts == ("a",)
    with pytest.raises(DataError, match="names the column 'stars'"):
        read_rows({"review": ["a"]}, column_mapping=mapping)


BAD_TEXTS = [
    (None, "missing"),
    (float("nan"), "missing"),
    (pd.NA, "missing"),
    (pd.NaT, "missing"),
    ("", "blank"),
    (" \n\t", "blank"),
    (5, "type int and not a string"),
    (b"bytes", "type bytes and not a string"),
    ("\ud800", "not valid Unicode"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD_TEXTS, ids=repr)
@pytest.mark.parametrize("column", ["text", "text_pair"])
def test_bad_texts_are_found_and_dropped_on_request(bad: object, reason: str, column: str) -> None:
    """A text that no model can use is an error with its row, or dropped with its number kept."""
    data: dict[str, list[object]] = {
        "text": ["a", "b", "c"],
        "text_pair": ["x", "y", "z"],
        "label": [1, 2, 3],
    }
    data[column][1] = bad
    with pytest.raises(DataError, match=rf'(?s)1 of 3 rows .*row 1: {column} is.*{reason}.*on_bad_row="drop"'):
        read_rows(data)
    rows = read_rows(data, on_bad_row="drop")
    assert (rows.texts, rows.pairs, rows.labels) == (("a", "c"), ("x", "z"), (1, 3))
    assert (rows.numbers, rows.dropped) == ((0, 2), (1,))


def test_up_to_five_bad_rows_are_listed() -> None:
    """Of many bad rows five are shown and the others counted."""
    with pytest.raises(DataError, match=r"8 of 9 rows .*row 5: text is blank \(''\); and 3 more"):
        read_rows(["a", *[""] * 8])


@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan"), pd.NA, "", " "], ids=repr)
def test_missing_labels_are_bad_rows(missing: object) -> None:
    """A label that is missing while others are there is an error, or its row is dropped."""
    data = (["a", "b"], ["pos", missing])
    with pytest.raises(DataError, match=r"1 of 2 rows .*row 1: label is missing"):
        read_rows(data)
    assert read_rows(data, on_bad_row="drop").dropped == (1,)


def test_a_column_of_missing_labels_is_no_label_column() -> None:
    """Where every label is missing there are none; an error only where they are needed."""
    data = {"text": ["a", "b"], "label": [None, float("nan")]}
    assert read_rows(data).labels is None
    with pytest.raises(DataError, match=r"every label in 'label' is missing"):
        read_rows(data, require_labels=True)


@pytest.mark.parametrize("data", [[], {}, {"text": []}, ([], []), pd.DataFrame({"text": []})], ids=repr)
def test_no_rows(data: Any) -> None:
    """Data without a row is an error."""
    with pytest.raises(DataError, match="train_dataset has no rows"):
        read_rows(data, name="train_dataset")


def test_no_rows_left() -> None:
    """Dropping every row is an error that shows one of them."""
    with pytest.raises(DataError, match=r"no rows left: all 2 were bad and dropped \(row 0: text is blank"):
        read_rows(["", None], on_bad_row="drop")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((["a", "b", "c"], [1, 2]), r"'text' has 3, 'label' has 2"),
        ({"text": ["a"], "label": [1, 2]}, r"'text' has 1, 'label' has 2"),
        ({"text": "a"}, r"'text' is str 'a'. For one row, pass \[\{\.\.\.\}\]"),
        ([("a", 1), ("b", 2, 3)], r"every row must be \(text, label\).*row 1 is \('b', 2, 3\)"),
        ([("a", 1), "b"], r"row 1 is 'b'"),
        ([{"text": "a"}, None], r"every row must be a dict, as others are; row 1 is None"),
        ({"a", "b"}, r"data must be a list of texts.*got set"),
        (None, r"data must be a list of texts.*got NoneType None"),
        ((pd.DataFrame({"text": ["a"]}), [1]), r"every row must be \(text, label\)"),
        (pd.DataFrame([["a", "b"]], columns=["text", "text"]), r"columns' names must differ"),
        (
            datasets.DatasetDict({"train": datasets.Dataset.from_dict(COLUMNS)}),
            r"\['train'\].*data\['train'\]",
        ),
        (
            {"train": COLUMNS, "test": COLUMNS},
            r"the splits \['train', 'test'\]. Pass one of them: data\['train'\]",
        ),
        (datasets.Dataset.from_dict(COLUMNS).to_iterable_dataset(), r"streaming.*from_list\(list\(data.take"),
    ],
)
def test_data_that_cannot_be_read(data: Any, message: str) -> None:
    """Data of the wrong shape is an error that says what is wrong and what to pass."""
    with pytest.raises(DataError, match=message):
        read_rows(data)


def test_on_bad_row_is_checked() -> None:
    """Another word for on_bad_row is an error with both that are known."""
    with pytest.raises(ConfigError, match=r'"error" or "drop"; got \'skip\''):
        read_rows(TEXTS, on_bad_row="skip")  # type: ignore[arg-type]


@pytest.mark.parametrize("several", [False, True])
def test_class_names_of_datasets_are_kept(several: bool) -> None:
    """The names of a ClassLabel, or of a list of them, travel with the rows."""
    kind = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features({"text": datasets.Value("string"), "label": [kind] if several else kind})
    labels = [[1], [0, 1]] if several else [1, 0]
    rows = read_rows(datasets.Dataset.from_dict({"text": ["a", "b"], "label": labels}, features=features))
    assert rows.labels == tuple(labels)
    assert rows.label_names == ("neg", "pos")
    assert rows.select([1]).label_names == ("neg", "pos")


def test_select_takes_positions_in_any_order() -> None:
    """Selected rows keep their numbers and what was dropped; a wrong position is an error."""
    rows = read_rows({"text": ["a", "", "b", "c"], "text_pair": ["x"] * 4}, on_bad_row="drop")
    chosen = rows.select(np.array([2, 0]))
    assert (chosen.texts, chosen.pairs, chosen.numbers, chosen.dropped) == (
        ("c", "a"),
        ("x", "x"),
        (3, 0),
        (1,),
    )
    with pytest.raises(DataError, match=r"positions must be from 0 to 2; got \[3, -1\]"):
        rows.select([0, 3, -1])


def test_fields_of_different_length_are_refused() -> None:
    """Rows that are made by hand must fit together."""
    with pytest.raises(DataError, match=r"labels must have one entry for each text; got 2 texts and 1 labels"):
        Rows(("a", "b"), labels=(1,))


def test_repr_is_short() -> None:
    """Rows are shown by their size, not by all their texts."""
    rows = read_rows({"text": ["word " * 50, ""] * 500, "label": [1] * 1000}, on_bad_row="drop")
    assert repr(rows).startswith("Rows(500 rows, with labels, 500 dropped, first text 'word word")
    assert len(repr(rows)) < 150


rows_strategy = st.lists(st.tuples(st.text(min_size=1), st.integers(0, 3) | st.booleans()), min_size=1, max_size=5)


@given(rows_strategy, rows_strategy)
def test_fingerprint_tells_content_apart(first: list[tuple[str, int]], second: list[tuple[str, int]]) -> None:
    """Fingerprints are equal exactly where texts, labels and the labels' types are."""
    one, two = (Rows(*zip(*data, strict=True)) for data in ([(t, t) for t, _ in first], [(t, t) for t, _ in second]))
    assert (one.fingerprint() == two.fingerprint()) == (one.texts == two.texts)
    one, two = (Rows(tuple(t for t, _ in data), labels=tuple(label for _, label in data)) for data in (first, second))
    assert (one.fingerprint() == two.fingerprint()) == (repr(first) == repr(second))


@given(st.lists(st.none() | st.text() | st.integers(), min_size=1))
def test_every_row_is_kept_or_dropped(texts: list[Any]) -> None:
    """Kept and dropped numbers together are all rows, and each kept number leads to its text."""
    try:
        rows = read_rows(texts, on_bad_row="drop")
    except DataError as error:
        assert "no rows left" in str(error)  # noqa: PT017
        return
    assert sorted(rows.numbers + rows.dropped) == list(range(len(texts)))
    assert [texts[number] for number in rows.numbers] == list(rows.texts)
