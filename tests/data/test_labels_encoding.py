"""Labels as numbers and back: encoded, decoded, saved."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lowft.data.labels import Labels
from lowft.errors import LabelError

words = st.text(min_size=1, max_size=3)

few_words = st.sampled_from(["red", "green", "blue"])


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
