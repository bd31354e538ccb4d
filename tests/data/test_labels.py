"""Tests of labels: the task, the order of classes, and the way to tensors and back."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from lowft.data.labels import Labels, Task
from lowft.errors import ConfigError, LabelError

SINGLE: Task = "single_label_classification"
MULTI: Task = "multi_label_classification"

words = st.text(min_size=1, max_size=3)
few_words = st.sampled_from(["red", "green", "blue"])


@pytest.mark.parametrize(
    ("labels", "task", "classes"),
    [
        (["b", "a", "b"], SINGLE, ("a", "b")),
        ([True, False], SINGLE, (False, True)),
        ([7, 0, 5], SINGLE, (0, 5, 7)),
        (np.array([2, 1]), SINGLE, (1, 2)),
        (torch.tensor([2, 1]), SINGLE, (1, 2)),
        (pd.Series(["x", "y"], dtype="category"), SINGLE, ("x", "y")),
        ([["b"], ["a", "b"], []], MULTI, ("a", "b")),
        pytest.param([("b",), {"a", "b"}], MULTI, ("a", "b"), id="tuples and sets"),
        ([[3], [1, 3]], MULTI, (1, 3)),
        ([[0], [1]], MULTI, (0, 1)),
        ([[0, 1, 0], [1, 1, 0]], MULTI, (0, 1, 2)),
        (np.array([[0.0, 1.0], [0.0, 0.0]]), MULTI, (0, 1)),
        ([0.5, 1.5], "regression", ()),
        ([1, 2.5], "regression", ()),
        ([1.0, 2.0], "regression", ()),
    ],
    ids=repr,
)
def test_the_task_follows_from_the_labels(labels: Any, task: str, classes: tuple[object, ...]) -> None:
    """Strings, booleans and integers are classes, lists are several labels, floats are targets."""
    found = Labels.infer(labels)
    assert (found.task, repr(found.classes)) == (task, repr(classes))
    assert found.num_labels == max(1, len(classes))


def test_what_a_transformers_config_needs() -> None:
    """Names are strings by id and back; a regression has one output."""
    labels = Labels.infer([5, 0, 7])
    assert labels.id2label == {0: "0", 1: "5", 2: "7"}
    assert labels.label2id == {"0": 0, "5": 1, "7": 2}
    target = Labels.infer([0.5, 1.0])
    assert (target.names, target.num_labels, target.id2label) == (("score",), 1, {0: "score"})


@pytest.mark.parametrize(
    ("labels", "task", "classes"),
    [
        ([1.0, 0.0, 2.0], SINGLE, (0, 1, 2)),
        ([1, 2, 3], "regression", ()),
        ([True, False], "regression", ()),
        ([[1.0, 0.0], [0.0, 0.0]], MULTI, (0, 1)),
    ],
)
def test_the_task_may_be_given(labels: Any, task: Any, classes: tuple[object, ...]) -> None:
    """Whole floats may be ids, and integers may be targets, where the caller says so."""
    found = Labels.infer(labels, task=task)
    assert (found.task, repr(found.classes)) == (task, repr(classes))


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([], {}, r"train_dataset: there are no labels"),
        (["a", "a"], {}, r"2 rows and one label, 'a': from one class nothing can be learned"),
        ([["a"], ["a"]], {}, r"2 rows and one label, \['a'\]"),
        ([[], []], {}, r"2 rows and one label, \[\]"),
        ([3], {}, r"1 row and one label, 3"),
        (["a", None], {}, r"labels are missing in row 1"),
        (["a", float("nan")], {}, r"labels are missing in row 1"),
        ([["a"], ["b", None]], {}, r"labels are missing in row 1\."),
        (["a", 1], {}, r"of one kind; there are strings such as 'a' \(row 0\), integers such as 1 \(row 1\)"),
        ([True, 0], {}, r"booleans such as True \(row 0\), integers such as 0"),
        ([["a"], "b"], {}, r"lists such as \['a'\] \(row 0\), strings such as 'b'"),
        ([["a"], ["b", 2]], {}, r"strings such as 'a' \(row 0\), integers such as 2 \(row 1\)"),
        ([[["a"]], [["b"]]], {}, r"classes must be strings.*got lists"),
        ([{"a": 1}, {"a": 2}], {}, r"\{'a': 1\} cannot be a label"),
        (
            [0.5, 1.0],
            {"task": SINGLE},
            r"or whole floats; got floats: \[0.5, 1.0\]. For amounts, take the task reg",
        ),
        ([["a"], ["b"]], {"task": SINGLE}, r"needs one label for each row; got lists such as \['a'\]"),
        (["a", "b"], {"task": MULTI}, r"needs a list of labels \(\[\] for none\).*got strings such as 'a'"),
        (["a", "b"], {"task": "regression"}, r"must be a number.*rows 0, 1 are not, for example 'a'"),
        ([1.0, float("inf")], {}, r"must be finite in float32; row 1 is not, for example inf"),
        ([1.0, 1e300], {}, r"must be finite in float32; row 1 is not"),
        (list(range(1001)) * 3, {}, r"3,003 rows have 1,001 different labels.*pass task=\"regression\""),
        (
            [f"text {i}" for i in range(100)],
            {},
            r"100 rows have 100 different labels, .*take another label column",
        ),
        (["x", "y"], {"names": ["a", "b"]}, r"labels 'x', 'y' do not fit the names: 'a', 'b'"),
        ([0, 2], {"names": ["a", "b"]}, r"labels 2 do not fit the names.*from 0 to 1"),
        ([0, -1], {"names": ["a", "b"]}, r"-1 often marks the hidden labels"),
        (["a", "b"], {"names": ["a", "b", "a"]}, r"every (name|class) must stand there once; \['a'\]"),
    ],
)
def test_labels_that_make_no_task(labels: Any, options: dict[str, Any], message: str) -> None:
    """Labels that no model can learn are an error with the labels in question and what to do."""
    with pytest.raises(LabelError, match=message):
        Labels.infer(labels, **options)


def test_an_unknown_task() -> None:
    """A misspelt task is an error."""
    with pytest.raises(ConfigError, match="task must be one of"):
        Labels.infer([0, 1], task="regresion")  # type: ignore[arg-type]


def test_many_classes_are_taken_when_the_task_is_given() -> None:
    """The check for amounts and texts gives way to the caller's word, and to a few-shot draw."""
    assert Labels.infer(range(1500), task=SINGLE).num_labels == 1500
    assert Labels.infer([f"intent {i}" for i in range(77)]).num_labels == 77


def test_names_of_the_data_are_used_by_id() -> None:
    """Integers with names keep being the caller's values, and a class without rows stays a class."""
    labels = Labels.infer([2, 0, 2], names=["neg", "neutral", "pos"])
    assert (labels.classes, labels.names) == ((0, 1, 2), ("neg", "neutral", "pos"))
    assert labels.counts == (1, 0, 2)
    assert labels.decode([1, 2]) == [1, 2]


def test_names_order_string_labels() -> None:
    """String labels take the order in which the caller names them."""
    labels = Labels.infer(["high", "low"], names=["low", "mid", "high"])
    assert labels.encode(["low", "mid", "high"]).tolist() == [0, 1, 2]


def test_names_of_several_labels() -> None:
    """Lists of ids with names are no vectors, even where all are two zeros and ones long."""
    labels = Labels.infer([[0, 1], [1, 0], [0]], names=["a", "b", "c"])
    assert not labels.multi_hot
    assert labels.encode([[0, 2], []]).tolist() == [[1, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("id2label", [None, {}, {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}])
def test_a_checkpoint_without_names_says_nothing(id2label: dict[int, str] | None) -> None:
    """Generic names of a checkpoint, and their number, are ignored."""
    assert Labels.infer(["b", "a"], id2label=id2label).names == ("a", "b")


@pytest.mark.parametrize(
    ("labels", "names", "classes"),
    [
        (["negative", "positive"], None, ("positive", "negative")),
        (["POSITIVE", "NEGATIVE"], None, ("POSITIVE", "NEGATIVE")),
        ([1, 0], None, (0, 1)),
        ([True, False], None, (False, True)),
        ([1, 0], ["negative", "positive"], (1, 0)),
        (["negative", "positive"], ["negative", "positive"], ("positive", "negative")),
        ([[0, 1], [1, 1]], ["negative", "positive"], (1, 0)),
    ],
)
def test_the_order_of_a_checkpoint_wins(labels: Any, names: Any, classes: tuple[object, ...]) -> None:
    """A head that is kept keeps its ids: labels are matched to it by name, else taken as its ids."""
    found = Labels.infer(labels, names=names, id2label={1: "NEGATIVE", 0: "POSITIVE"})
    assert repr(found.classes) == repr(classes)
    assert found.names == ("POSITIVE", "NEGATIVE")


def test_vectors_are_put_into_the_order_of_a_checkpoint() -> None:
    """The places of 0/1 vectors follow the checkpoint's classes, and decode gives the caller's places."""
    id2label = json.loads('{"0": "C", "1": "A", "2": "B"}')  # as a config.json has it: ids are strings
    labels = Labels.infer([[0, 1, 1], [1, 0, 0]], names=["a", "b", "c"], id2label=id2label)
    encoded = labels.encode([[0, 1, 1], [1, 0, 0]])
    assert encoded.tolist() == [[1, 0, 1], [0, 1, 0]]
    assert [sorted(row) for row in labels.decode(encoded)] == [[1, 2], [0]]


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (
            ["good", "bad"],
            {"id2label": {0: "BAD", 1: "FINE"}},
            r"'good' do not fit the checkpoint's id2label: .*FINE",
        ),
        (
            [0, 2],
            {"id2label": {0: "x", 1: "y"}},
            r"labels 2 do not fit .*from 0 to 1.*new head \(id2label=None\)",
        ),
        ([True, False], {"id2label": {0: "x"}}, r"do not fit the checkpoint's id2label"),
        (
            [0, 1],
            {"names": ["a", "b"], "id2label": {0: "x", 1: "y"}},
            r"'a', 'b' are not the checkpoint's 'x', 'y'",
        ),
        ([[0, 1], [1, 1]], {"id2label": {0: "x", 1: "y", 2: "z"}}, r"vectors have 2 places.*has 3 classes"),
        (
            [0.5, 1.0],
            {"id2label": {0: "x", 1: "y"}},
            r"make a regression, and the checkpoint has classes: \['x', 'y'\]",
        ),
        ([0, 1], {"id2label": {0: "x", 2: "y"}}, r"id2label must give each id from 0 upwards a name"),
        ([0, 1], {"id2label": {0: "x", 1: "x"}}, r"id2label must give each id from 0 upwards a name"),
    ],
)
def test_conflicts_with_a_checkpoint_show_both_sides(labels: Any, options: dict[str, Any], message: str) -> None:
    """Labels that a checkpoint's head does not know are an error before training."""
    with pytest.raises(LabelError, match=message):
        Labels.infer(labels, **options)


def test_names_that_differ_in_case_alone_are_two_classes() -> None:
    """Where letter case tells classes apart it is not ignored."""
    labels = Labels.infer(["us", "US"], id2label={0: "us", 1: "US"})
    assert labels.encode(["US", "us"]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [
        ([3, 1], np.int64),
        ([["a"], ["b"]], np.float32),
        ([[0, 1], [1, 1]], np.float32),
        ([0.5, 1.5], np.float32),
    ],
)
def test_encoded_types(labels: Any, dtype: type) -> None:
    """Ids are int64, several labels and targets float32; no rows give an empty array of the same rank."""
    found = Labels.infer(labels)
    assert found.encode(labels).dtype == dtype
    assert found.encode([]).shape == (0, *found.encode(labels).shape[1:])


@pytest.mark.parametrize(
    ("trained", "labels", "message"),
    [
        (
            ["negative", "positive"],
            ["postive", "positive"],
            r"'postive' in row 0.*'negative', 'positive'.*mean 'pos",
        ),
        ([0, 1], [0, -1, -1], r"-1 in rows 1, 2\..*hidden labels"),
        ([0, 1], ["0", "1"], r"'0' in row 0; '1' in row 1. The classes are 0, 1"),
        (["a", "b"], [None, "a"], r"None in row 0"),
        (["a", "b"], [["a"]], r"\['a'\].* in row 0"),
        ([["a"], ["b"]], ["a"], r"eval_dataset: every label must be a list of labels; row 0 is not"),
        ([["a"], ["b"]], [["a"], ["a", "c"]], r"'c' in row 1"),
        ([[0, 1], [1, 1]], [[0, 1, 1]], r"must be a vector of 2 zeros and ones; row 0 is not"),
        ([[0, 1], [1, 1]], [[0, 2]], r"must be a vector of 2 zeros and ones"),
        ([0.5, 1.0], ["a"], r"must be a number \(regression\); row 0 is not"),
        ([0.5, 1.0], [0.5, None], r"must be a number \(regression\); row 1 is not, for example None"),
        ([0.5, 1.0], [float("inf")], r"must be finite"),
    ],
)
def test_labels_that_training_did_not_see(trained: Any, labels: Any, message: str) -> None:
    """A label of the evaluation set that the model cannot know is an error with its rows and the classes."""
    with pytest.raises(LabelError, match=message):
        Labels.infer(trained).encode(labels)


def test_row_numbers_of_the_caller_are_shown() -> None:
    """Where rows were dropped or selected, messages give the numbers in the caller's data."""
    with pytest.raises(LabelError, match=r"test: .*'c' in rows 17, 40"):
        Labels.infer(["a", "b"]).encode(["a", "c", "c"], name="test", numbers=(3, 17, 40))
    with pytest.raises(LabelError, match=r"row 40 is not"):
        Labels.infer([0.5, 1.0]).encode([1.0, None], numbers=(3, 40))
    with pytest.raises(LabelError, match=r"'c' in row 40"):
        Labels.infer([["a"], ["b"]]).encode([["a", "b"], ["c"]], numbers=(3, 40))


def test_whole_floats_stand_for_integer_classes() -> None:
    """Integers that pandas turned into floats are encoded all the same."""
    assert Labels.infer([0, 5]).encode([5.0, 0.0]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("trained", "array", "message"),
    [
        (["a", "b"], [[0, 1]], r"needs the shape \[rows\]; got \[1, 2\]"),
        (["a", "b"], [2], r"integers from 0 to 1; got \[2\]"),
        (["a", "b"], [-1], r"integers from 0 to 1; got \[-1\]"),
        (["a", "b"], [0.7], r"got \[0.7\]. Take the argmax"),
        ([["a"], ["b"]], [0, 1], r"needs the shape \[rows, 2\]; got \[2\]"),
        ([["a"], ["b"]], [[0.2, 0.9]], r"needs zeros and ones.*probabilities > 0.5"),
        ([0.5, 1.0], [[0.5]], r"needs the shape \[rows\]"),
    ],
)
def test_arrays_that_are_no_predictions(trained: Any, array: Any, message: str) -> None:
    """Logits, probabilities and ids out of range are refused by decode."""
    with pytest.raises(LabelError, match=message):
        Labels.infer(trained).decode(array)


@given(st.lists(words, min_size=2) | st.lists(st.integers(), min_size=2) | st.lists(st.booleans(), min_size=2))
def test_single_labels_come_back(values: list[Any]) -> None:
    """Encoding and decoding gives the caller's values, of their own type, and changes nothing."""
    assume(len(set(values)) > 1)
    before = copy.deepcopy(values)
    labels = Labels.infer(values)
    ids = labels.encode(values)
    assert repr(labels.decode(ids)) == repr(values) == repr(before)
    assert sorted(set(ids.tolist())) == list(range(len(labels.classes)))
    assert list(labels.classes) == sorted(set(values))
    assert labels.counts == tuple(np.bincount(ids))


@given(st.lists(st.sets(few_words), min_size=2))
def test_several_labels_come_back(values: list[set[str]]) -> None:
    """Label sets survive encoding and decoding."""
    assume(len({frozenset(row) for row in values}) > 1)
    labels = Labels.infer(values)
    encoded = labels.encode(values)
    assert [set(row) for row in labels.decode(encoded)] == values
    assert labels.counts == tuple(encoded.sum(axis=0))


@given(st.lists(st.lists(st.integers(0, 1), min_size=3, max_size=3), min_size=2))
def test_vectors_are_encoded_as_they_are(values: list[list[int]]) -> None:
    """A 0/1 vector is its own encoding and decodes to its places."""
    assume(len(set(map(tuple, values))) > 1)
    labels = Labels.infer(values)
    assert labels.encode(values).tolist() == values
    assert labels.decode(values) == [[at for at, bit in enumerate(row) if bit] for row in values]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_targets_come_back(values: list[float]) -> None:
    """Targets that float32 holds survive unchanged."""
    labels = Labels.infer(values)
    assert labels.decode(labels.encode(values)) == values


@pytest.mark.parametrize(
    "values", [["b", "a"], [5, 7], [True, False], [["a"], []], [[0, 1], [1, 1]], [0.5, 2.0]], ids=repr
)
def test_saved_labels_are_the_same(values: Any) -> None:
    """Labels survive JSON with everything they know."""
    labels = Labels.infer(values)
    loaded = Labels.from_json(json.loads(json.dumps(labels.to_json())))
    assert (loaded, loaded.counts, loaded.describe()) == (labels, labels.counts, labels.describe())
    assert repr(loaded.decode(labels.encode(values))) == repr(labels.decode(labels.encode(values)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "guess"}, r"\['task'\] do not fit"),
        ({"task": 3}, r"\['task'\] do not fit"),
        ({"classes": "ab"}, r"\['classes'\] do not fit"),
        ({"classes": ["a", None]}, r"\['classes'\] do not fit"),
        ({"names": [1, 2]}, r"\['names'\] do not fit"),
        ({"extra": 1}, r"\['extra'\] do not fit"),
        ({"names": ["a"]}, r"each class needs one name"),
        ({"names": ["a", "a"]}, r"every name must stand there once; \['a'\]"),
    ],
)
def test_damaged_saved_labels_are_refused(changes: dict[str, Any], message: str) -> None:
    """A saved description that was tampered with is an error."""
    saved = Labels.infer(["a", "b"]).to_json()
    with pytest.raises(LabelError, match=message):
        Labels.from_json(saved | changes)


def test_saved_labels_need_every_field() -> None:
    """A description that is no object, or without its task, is an error."""
    saved = Labels.infer(["a", "b"]).to_json()
    with pytest.raises(LabelError, match=r"must be an object of \['task', .*; got \[3\]"):
        Labels.from_json([3])  # type: ignore[arg-type]
    del saved["task"]
    with pytest.raises(LabelError, match=r"\['task'\] do not fit"):
        Labels.from_json(saved)


@pytest.mark.parametrize(
    ("labels", "options", "text"),
    [
        ([5, 0, 5], {}, "single-label classification (labels are integers): 2 classes: 0 1, 5 2"),
        (
            [1, 0],
            {"names": ["n", "p"]},
            "single-label classification (labels are integers): 2 classes: n (0) 1, p (1) 1",
        ),
        ([["a"], []], {}, "multi-label classification (labels are lists): 1 class: a 1"),
        ([[0, 1], [1, 1]], {}, "multi-label classification (labels are 0/1 vectors): 2 classes: 0 1, 1 2"),
        ([1, 3], {"task": "regression"}, "regression (the task you gave, from 1 to 3)"),
        (
            [1.0, 3.0],
            {},
            (
                "regression (labels are floats, from 1.0 to 3.0, all whole, 2 different: "
                'if they are classes, pass task="single_label_classification")'
            ),
        ),
    ],
)
def test_describe(labels: Any, options: dict[str, Any], text: str) -> None:
    """The user reads the task, why it was taken, and the classes with their counts."""
    assert Labels.infer(labels, **options).describe() == text


def test_describe_shortens_a_long_list_of_classes() -> None:
    """Ten classes are listed and the others counted."""
    assert (
        Labels.infer(list(range(30)))
        .describe()
        .endswith("30 classes: 0 1, 1 1, 2 1, 3 1, 4 1, 5 1, 6 1, 7 1, 8 1, 9 1 and 20 more")
    )
