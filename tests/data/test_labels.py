"""Tests of labels: the task, the order of classes, and the way to tensors and back."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lowft.data.labels import Labels, Task
from lowft.errors import ConfigError, LabelError

SINGLE: Task = "single_label_classification"
MULTI: Task = "multi_label_classification"


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
