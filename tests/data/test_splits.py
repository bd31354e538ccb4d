"""Tests of splits, leakage and few-shot draws."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowft.data.rows import Rows, read_rows
from lowft.data.splits import Splits, few_shot, find_leakage, split
from lowft.errors import ConfigError, DataError, LabelError, LeakageError


def _data(count: int, classes: int = 2) -> tuple[list[str], list[int]]:
    return [f"text {i}" for i in range(count)], [i % classes for i in range(count)]


def _sides(splits: Splits) -> list[Rows]:
    return [rows for rows in (splits.train, splits.validation, splits.test) if rows is not None]


sizes = st.floats(0.1, 0.3)
class_counts = st.lists(st.integers(12, 60), min_size=2, max_size=4)


@given(class_counts, sizes, sizes, st.integers(0, 2**32 - 1))
def test_sides_are_a_stratified_partition(counts: list[int], validation: float, test: float, seed: int) -> None:
    """Each row is on exactly one side, and each side has every class in proportion.

    The test side is exact to within one row. The second cut is made in what the first left over, and adds a
    rounding of its own.
    """
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    splits = split(([str(i) for i in range(len(labels))], labels), validation=validation, test=test, seed=seed)
    sides = _sides(splits)
    assert sorted(number for rows in sides for number in rows.numbers) == list(range(len(labels)))
    for rows in sides:
        found = Counter(rows.labels)
        for label, count in enumerate(counts):
            assert abs(found[label] - count * len(rows) / len(labels)) < 2
    in_test = Counter(sides[-1].labels)
    assert all(abs(in_test[c] - n * len(sides[-1]) / len(labels)) < 1 for c, n in enumerate(counts))


@given(class_counts, st.integers(5, 10))
def test_one_side_beside_train_is_exact(counts: list[int], size: int) -> None:
    """With one cut, both sides have each class in proportion to within one row."""
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    splits = split(([str(i) for i in range(len(labels))], labels), validation=size, test=0)
    for rows in _sides(splits):
        for label, count in enumerate(counts):
            assert abs(Counter(rows.labels)[label] - count * len(rows) / len(labels)) < 1


@given(st.integers(4, 60), st.integers(1, 20), st.integers(1, 20), st.integers(0, 99))
def test_regression_is_cut_by_quantiles(count: int, validation: int, test: int, seed: int) -> None:
    """Any sizes that fit can be cut, and no side holds small or large targets alone."""
    if validation + test >= count:
        return
    targets = [float(i) + 0.5 for i in range(count)]
    splits = split(([str(i) for i in range(count)], targets), validation=validation, test=test, seed=seed)
    assert [len(rows) for rows in _sides(splits)] == [count - validation - test, validation, test]
    assert sorted(number for rows in _sides(splits) for number in rows.numbers) == list(range(count))
    if min(validation, test, count - validation - test) > 1:
        middle = sorted(targets)[count // 2]
        assert all(min(rows.labels or ()) <= middle <= max(rows.labels or ()) for rows in _sides(splits))


def test_the_seed_decides() -> None:
    """The same seed gives the same sides, another seed gives others."""
    assert split(_data(40), seed=3) == split(_data(40), seed=3)
    assert split(_data(40), seed=3) != split(_data(40), seed=4)


@pytest.mark.parametrize("stratify", [True, False])
def test_sides_keep_the_order_and_the_data_unchanged(stratify: bool) -> None:
    """Rows stay in the data's order on each side, and the data is not edited."""
    data = _data(40)
    before = copy.deepcopy(data)
    splits = split(data, stratify=stratify)
    assert data == before
    assert all(list(rows.numbers) == sorted(rows.numbers) for rows in _sides(splits))


def test_sizes_are_fractions_or_counts() -> None:
    """Floats are fractions of all rows, integers are rows, and zero means no such side."""
    splits = split(_data(50), validation=0.2, test=7)
    assert [len(rows) for rows in _sides(splits)] == [33, 10, 7]
    splits = split(_data(50), validation=np.int64(5), test=0)  # type: ignore[arg-type]
    assert splits.test is None
    assert len(splits.train) == 45
    assert split(_data(50), validation=0, test=0.0) == Splits(read_rows(_data(50)))


@pytest.mark.parametrize(
    "data", [["a", "b", "c", "d"], (["a", "b", "c", "d"], [["x"], ["y"], [], ["x", "y"]])], ids=repr
)
def test_rows_without_single_labels_are_cut_at_random(data: Any) -> None:
    """Data without labels, or with several labels a row, can be cut too."""
    assert [len(rows) for rows in _sides(split(data, validation=1, test=1))] == [2, 1, 1]


def test_the_task_can_be_given() -> None:
    """Many different integers are targets, if the caller says so."""
    data = ([str(i) for i in range(200)], list(range(200)))
    with pytest.raises(LabelError, match="200 different labels"):
        split(data)
    assert len(split(data, task="regression").train) == 160


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"validation": 1.0}, ConfigError, r"validation must be a fraction .* or a number of rows .*got 1.0"),
        ({"test": -1}, ConfigError, r"test must be .*got -1"),
        ({"test": -0.5}, ConfigError, r"test must be .*got -0.5"),
        ({"test": float("nan")}, ConfigError, r"test must be .*got nan"),
        ({"test": True}, ConfigError, r"test must be .*got True"),
        ({"seed": -1}, ConfigError, r"seed must be an integer from 0 to 4294967295; got -1"),
        ({"seed": 1.5}, ConfigError, r"seed must be .*got 1.5"),
        (
            {"on_leakage": "ignore"},
            ConfigError,
            r'on_leakage must be "error", "drop" or "allow"; got \'ignore\'',
        ),
        (
            {"validation": 15, "test": 0.5},
            DataError,
            r"20 rows, and validation=15 and test=10 rows leave none",
        ),
        ({"validation": 1}, DataError, r"validation would get 1 row of 18, .*one for each of the 2 classes"),
        ({"validation": 0, "test": 19}, DataError, r"test would get 19 rows of 20"),
    ],
)
def test_sizes_that_do_not_fit(options: dict[str, Any], error: type[Exception], message: str) -> None:
    """Settings out of range, and sides too small for the classes, are errors with what to do."""
    with pytest.raises(error, match=message):
        split(_data(20), **options)


@pytest.mark.parametrize("rare", [1, 2])
def test_a_class_with_too_few_rows(rare: int) -> None:
    """A class that cannot be on every side is named; without stratify the data can be cut."""
    data = ([str(i) for i in range(40 + rare)], ["a"] * 20 + ["b"] * 20 + ["rare"] * rare)
    with pytest.raises(DataError, match=rf"class 'rare' has {rare} rows? left for 3 sides.*stratify=False"):
        split(data, validation=0.25, test=0.25)
    assert sum(map(len, _sides(split(data, stratify=False)))) == 40 + rare


def test_one_class_cannot_be_stratified() -> None:
    """Rows of one class alone are told early."""
    with pytest.raises(LabelError, match="from one class nothing can be learned"):
        split((["a", "b", "c", "d"], [1, 1, 1, 1]))


def test_bad_rows_are_listed_once() -> None:
    """Dropped rows stand in `train.dropped`: every row is on one side or dropped once."""
    texts, labels = _data(40)
    texts[5] = texts[6] = " "
    splits = split((texts, labels), on_bad_row="drop")
    assert splits.train.dropped == (5, 6)
    assert [rows.dropped for rows in _sides(splits)[1:]] == [(), ()]
    with pytest.raises(DataError, match="2 of 40 rows cannot be used"):
        split((texts, labels))


LEAKY = {
    "train": (["A good film.", "Dull.", "Fine."], [1, 0, 1]),
    "validation": (["a  GOOD film.\n", "Long.", "Loud."], [1, 0, 1]),
    "test": (["Short.", "long.", "DULL."], [1, 0, 1]),
}


def test_leakage_is_an_error_that_names_rows() -> None:
    """Texts that are equal but for case and white space are found on every pair of sides."""
    with pytest.raises(LeakageError) as caught:
        split(LEAKY)
    message = str(caught.value)
    assert "validation has 1 text of an earlier side (row 0), such as 'a  GOOD film.\\n', row 0 of train" in message
    assert "test has 2 texts of an earlier side (rows 1, 2), such as 'long.', row 1 of validation" in message
    assert "Labelled differently there: 1 text." in message
    assert 'on_leakage="drop"' in message


def test_leakage_of_a_whole_side_is_told_too() -> None:
    """Where all texts of a side leak, the error says how many, and hidden labels contradict nothing."""
    with pytest.raises(LeakageError, match=r"validation has 2 texts .*rows 0, 1") as caught:
        split({"train": (["a", "b"], [0, 1]), "validation": ["A", "B"]})
    assert "Labelled" not in str(caught.value)


def test_leakage_can_be_dropped() -> None:
    """Copies leave the later side and are listed; contradicting labels are a warning."""
    with pytest.warns(UserWarning, match="Labelled differently there: 1 text"):
        splits = split(LEAKY, on_leakage="drop")
    assert splits.train.texts == ("A good film.", "Dull.", "Fine.")
    assert splits.validation is not None
    assert splits.test is not None
    assert (splits.validation.texts, splits.validation.dropped) == (("Long.", "Loud."), (0,))
    assert (splits.test.texts, splits.test.dropped) == (("Short.",), (1, 2))


def test_leakage_can_be_allowed() -> None:
    """Nothing is taken out on request; contradicting labels are still a warning."""
    with pytest.warns(UserWarning, match="Labelled differently"):
        splits = split(LEAKY, on_leakage="allow")
    assert [len(rows) for rows in _sides(splits)] == [3, 3, 3]


def test_copies_on_one_side_are_no_leakage() -> None:
    """A text may be repeated where it is."""
    given_sides = {"train": (["a", "A"], [0, 1]), "test": (["b", "b"], [0, 1])}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert split(given_sides, on_leakage="drop") == split(given_sides)


def test_a_side_that_would_be_empty() -> None:
    """A side of copies alone is an error, even where copies may be dropped."""
    with pytest.raises(LeakageError, match=r"every text of test stands on an earlier side too"):
        split({"train": (["a", "b"], [0, 1]), "test": (["A"], [0])}, on_leakage="drop")


@given(st.lists(st.sampled_from("abcdefghij"), min_size=10, max_size=30), st.integers(0, 9))
def test_dropping_leaves_no_leakage(texts: list[str], seed: int) -> None:
    """After dropping no text stands on two sides, and every row is on one side or dropped once."""
    try:
        splits = split(texts, validation=0.2, test=0.2, seed=seed, on_leakage="drop")
    except LeakageError as error:
        assert "none would be left" in str(error)  # noqa: PT017
        return
    sides = _sides(splits)
    assert not any(set(one.texts) & set(two.texts) for one in sides for two in sides if one is not two)
    assert sorted(n for rows in sides for n in (*rows.numbers, *rows.dropped)) == list(range(len(texts)))


def test_a_dataset_dict_is_taken_as_it_is() -> None:
    """Given sides are read, under their usual names, and not moved."""
    table = datasets.Dataset.from_dict({"review": ["a", "b"], "label": [0, 1]})
    other = datasets.Dataset.from_dict({"review": ["c", "d"], "label": [0, 1]})
    splits = split(datasets.DatasetDict({"dev": other, "train": table}), column_mapping={"review": "text"})
    assert splits == Splits(Rows(("a", "b"), labels=(0, 1)), Rows(("c", "d"), labels=(0, 1)))


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (
            LEAKY,
            {"test": 0.2},
            ConfigError,
            r"split already, into \['train', 'validation', 'test'\].*test=0.2",
        ),
        (
            {"train": ["a"], "dev": ["b"], "val": ["c"]},
            {},
            DataError,
            r"at most one validation and one test side",
        ),
        (
            datasets.DatasetDict({"test": datasets.Dataset.from_dict({"text": ["a"]})}),
            {},
            DataError,
            r"called train",
        ),
        (
            datasets.DatasetDict({name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "extra")}),
            {},
            DataError,
            r"\['train', 'extra'\], and must hold train",
        ),
        ({"train": ["a"], "test": [" "]}, {}, DataError, r"data\['test'\]: 1 of 1 row cannot be used"),
    ],
    ids=["sizes", "twice", "no train", "unknown", "bad row"],
)
def test_given_sides_that_do_not_fit(data: Any, options: Any, error: type[Exception], message: str) -> None:
    """Sides that are given must be known ones, and have no sizes."""
    with pytest.raises(error, match=message):
        split(data, **options)


def test_the_table_shows_rows_of_each_class() -> None:
    """A split is printed with its classes by name, and what was dropped."""
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    texts, labels = _data(20)
    table = datasets.Dataset.from_dict({"text": ["", *texts[1:]], "label": labels}, features=features)
    lines = str(split(table, validation=0.2, test=0.2, on_bad_row="drop")).splitlines()
    assert lines[0].split() == ["side", "rows", "neg", "pos", "dropped"]
    assert [line.split()[0] for line in lines[2:]] == ["train", "validation", "test"]
    assert [line.split()[-1] for line in lines[2:]] == ["1", "0", "0"]
    assert sum(int(line.split()[2]) for line in lines[2:]) == 9


@pytest.mark.parametrize("labels", [None, list(range(20)) * 2, [0.5, 1.5] * 20, [["a"], ["b"]] * 20])
def test_the_table_is_narrow_where_classes_do_not_fit(labels: list[Any] | None) -> None:
    """Without labels, with targets, or with many classes only rows are counted."""
    texts = [str(i) for i in range(40)]
    splits = split(texts if labels is None else (texts, labels), stratify=False)
    assert str(splits).splitlines()[0].split() == ["side", "rows"]


def test_find_leakage_gives_numbers_in_the_data() -> None:
    """Each row of the second that stands in the first is given with the first such row."""
    assert find_leakage(["x", "A b", "a  B"], ["y", "a b", "X "]) == ((1, 1), (0, 2))
    first = read_rows({"text": ["", "a"]}, on_bad_row="drop")
    assert find_leakage(first, ["a"]) == ((1, 0),)
    assert find_leakage([{"review": "a"}], [{"review": "A"}], column_mapping={"review": "text"}) == ((0, 0),)


def test_pairs_leak_only_as_pairs() -> None:
    """A premise may stand on both sides with another hypothesis."""
    first = [{"premise": "p", "hypothesis": "h"}]
    assert find_leakage(first, [{"premise": "P", "hypothesis": "other"}]) == ()
    assert find_leakage(first, [{"premise": "P", "hypothesis": "H "}]) == ((0, 0),)


@given(st.lists(st.integers(4, 12), min_size=2, max_size=4), st.integers(0, 99))
def test_few_shot_draws_are_nested(counts: list[int], seed: int) -> None:
    """Each class has k rows, and a larger draw of the same seed includes the smaller one."""
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    data = ([str(i) for i in range(len(labels))], labels)
    one, two, four = (few_shot(data, k, seed=seed) for k in (1, 2, 4))
    assert Counter(four.labels) == dict.fromkeys(range(len(counts)), 4)
    assert set(one.numbers) < set(two.numbers) < set(four.numbers)
    assert list(four.numbers) == sorted(four.numbers)
    assert few_shot(data, 4, seed=seed) == four


def test_few_shot_seeds_differ() -> None:
    """Another seed draws other rows."""
    assert len({few_shot(_data(100), 8, seed=seed).numbers for seed in range(5)}) == 5


def test_few_shot_of_several_labels() -> None:
    """With several labels a row, each class has at least k rows and draws are nested."""
    labels = [[["a"], ["b"], ["a", "b"], ["c"], []][i % 5] for i in range(50)]
    data = ([str(i) for i in range(50)], labels)
    two, four = few_shot(data, 2), few_shot(data, 4)
    found = Counter(label for row in four.labels or () for label in row)
    assert min(found["a"], found["b"], found["c"]) >= 4
    assert set(two.numbers) < set(four.numbers)


def test_few_shot_of_a_regression() -> None:
    """For targets k is the number of rows in all."""
    data = ([str(i) for i in range(50)], [i / 7 for i in range(50)])
    two, four = few_shot(data, 2), few_shot(data, 4)
    assert (len(two), len(four)) == (2, 4)
    assert set(two.numbers) < set(four.numbers)


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (
            _data(6),
            {"k": 4},
            DataError,
            r"k=4 needs 4 rows of each class; there are fewer of \{'0': 3, '1': 3\}",
        ),
        (_data(6), {"k": 0}, ConfigError, r"k, the rows for each class, must be an integer from 1; got 0"),
        (_data(6), {"k": True}, ConfigError, r"got True"),
        (_data(6), {"k": 2, "seed": -3}, ConfigError, r"seed must be .*got -3"),
        (["a", "b"], {"k": 1}, DataError, r"holds texts only"),
        ((["a", "b"], [0.5, 1.5]), {"k": 3}, DataError, r"fewer of \{'regression': 2\}"),
    ],
    ids=["few rows", "zero", "bool", "seed", "no labels", "regression"],
)
def test_draws_that_cannot_be_made(data: Any, options: Any, error: type[Exception], message: str) -> None:
    """A draw that is too large, or of nothing, is an error with the numbers."""
    with pytest.raises(error, match=message):
        few_shot(data, **options)
