"""Rows that say what the classes are called."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import given
from hypothesis import strategies as st

from lowft.data.rows import read_rows
from lowft.data.templates import add_templated_rows
from lowft.errors import ConfigError, DataError, LabelError
from lowft.strategies import Contrastive, PooledHead, Probe
from tests.runs import tiny_trainer

TEXTS = ["so dull", "what a joy", "no"]
WORDS = (TEXTS, ["bad", "very_good", "bad"])
NUMBERS = (TEXTS, [0, 1, 0])


def test_labels_that_are_words_are_said() -> None:
    """Each template makes its copies for each class, with spaces for underscores; the label stays what it is."""
    rows = add_templated_rows(WORDS, templates=["It is {}.", "{}"], copies=2)
    said = [("It is bad.", "bad"), ("It is very good.", "very_good"), ("bad", "bad"), ("very good", "very_good")]
    assert list(zip(rows.texts, rows.labels or (), strict=True))[3:] == said * 2


@given(
    st.lists(st.tuples(st.text(min_size=1).filter(str.strip), st.sampled_from(["up", "down"])), min_size=1).map(
        lambda pairs: [*pairs, ("a", "up"), ("b", "down")]
    ),
    st.integers(1, 5),
)
def test_the_rows_of_the_data_stay(pairs: list[tuple[str, str]], copies: int) -> None:
    """They come first, as they were; the new ones are equally many of each class, under numbers of their own."""
    before = read_rows(pairs)
    after = add_templated_rows(before, copies=copies)
    assert after.select(range(len(before))) == before
    assert (after.labels or ())[len(before) :] == ("down", "up") * copies
    assert len(set(after.numbers)) == len(after)


def test_numbers_of_rows_that_were_dropped_are_not_used_again() -> None:
    """What is left out at the end of the data keeps its number."""
    rows = add_templated_rows((["a", "b", " "], ["up", "down", "up"]), on_bad_row="drop", copies=1)
    assert (rows.numbers, rows.dropped) == ((0, 1, 3, 4), (2,))


def test_the_data_may_name_its_numbers() -> None:
    """The names of `datasets.ClassLabel` are said, and `names` goes before them."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    data = Dataset.from_dict({"text": TEXTS, "label": [0, 1, 0]}, features=features)
    assert add_templated_rows(data, copies=1).texts[3:] == ("This sentence is bad", "This sentence is good")
    said = add_templated_rows(data, copies=1, templates=["{}"], names={1: "a joy"})
    assert (said.texts[3:], said.labels) == (("bad", "a joy"), (0, 1, 0, 0, 1))


def test_other_alphabets_have_words() -> None:
    """One sign may be a word."""
    assert add_templated_rows((["a", "b"], ["好", "да"]), templates=["{}"], copies=1).texts[2:] == ("да", "好")


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (NUMBERS, {}, ConfigError, r"in words what these classes are: \[0, 1\]. Pass names=\{0: '...', 1: '...'\}"),
        (NUMBERS, {"names": {0: "bad"}}, ConfigError, r"these classes are: \[1\]"),
        ((TEXTS[:2], ["LABEL_0", "A2"]), {}, ConfigError, r"these classes are: \['A2', 'LABEL_0'\]"),
        ((TEXTS[:2], [True, False]), {}, ConfigError, r"these classes are: \[False, True\]"),
        (WORDS, {"names": {"baad": "x"}}, ConfigError, r"'baad' is no class .* Did you mean 'bad'\?"),
        (WORDS, {"names": {"bad": " "}}, ConfigError, r"a text that is not empty; got ' ' for 'bad'"),
        (WORDS, {"names": ["bad"]}, ConfigError, r"names must say by label .* got \['bad'\]"),
        (WORDS, {"copies": 0}, ConfigError, r"copies .* at least 1"),
        (WORDS, {"templates": "It is {}"}, ConfigError, r"a list of texts .* got 'It is \{\}'"),
        (WORDS, {"templates": []}, ConfigError, r"a list of texts .* got \[\]"),
        (WORDS, {"templates": ["It is bad"]}, ConfigError, r"one \{\}, .* got 'It is bad'"),
        (WORDS, {"templates": ["{} or {}"]}, ConfigError, r"one \{\}, .* got '\{\} or \{\}'"),
        (TEXTS, {}, DataError, r"holds texts only"),
        ((TEXTS, [0.5, 1.5, 2.0]), {}, DataError, r"these are labels for regression"),
        ((TEXTS, [["a"], ["b"], []]), {}, DataError, r"these are labels for multi_label_classification"),
        ({"premise": TEXTS, "hypothesis": TEXTS, "label": WORDS[1]}, {}, DataError, r"pairs of texts"),
        ((TEXTS, ["bad"] * 3), {}, LabelError, r"bad"),
    ],
)
def test_what_cannot_be_said(data: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    """A mistake is an error that names it, and says what to do."""
    with pytest.raises(error, match=message):
        add_templated_rows(data, **options)


def test_a_trainer_learns_from_them() -> None:
    """They are rows as any others, for the strategies that few labels want."""
    strategies = [PooledHead(), Contrastive(max_steps=2), Probe(strengths=(1e4,), fine_tune=False)]
    trainer = tiny_trainer(train_dataset=add_templated_rows(WORDS), eval_dataset=None, strategies=strategies)
    trainer.fit()
    assert trainer.predict(["This sentence is bad", "This sentence is very good"]) == ["bad", "very_good"]
