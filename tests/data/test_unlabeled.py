"""Rows without labels among rows with them: read in every form, joined, encoded and told apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowft.data.batching import Example, TokenizedRows
from lowft.data.labels import Labels
from lowft.data.rows import Rows, read_rows
from lowft.data.unlabeled import encode_known, has_label, join, read_unlabeled
from lowft.errors import DataError
from tests.tiny import tiny_tokenizer

TEXTS = ["a film", "a plot"]


@pytest.mark.parametrize(
    "data",
    [
        TEXTS,
        (TEXTS, ["good", "bad"]),
        [("a film", "good"), ("a plot", "bad")],
        {"text": TEXTS},
        pd.DataFrame({"text": TEXTS, "label": [1, 0]}),
        read_rows((TEXTS, ["good", "bad"])),
    ],
    ids=["texts", "with labels", "rows with labels", "columns", "frame", "read rows"],
)
def test_every_form_gives_texts_alone(data: Any) -> None:
    """Labels that are there are not looked at."""
    rows = read_unlabeled(data, takes_pairs=False)
    assert rows.texts == ("a film", "a plot")
    assert rows.labels is None


def test_a_file_is_read(tmp_path: Path) -> None:
    """With the columns named as for the training rows, of which the label may be missing."""
    (tmp_path / "more.csv").write_text("review\na film\na plot\n")
    mapping = {"review": "text", "stars": "label"}
    assert read_unlabeled(tmp_path / "more.csv", takes_pairs=False, column_mapping=mapping).texts == (
        "a film",
        "a plot",
    )


def test_rows_of_two_texts_are_pairs_where_rows_are_pairs() -> None:
    """A list of (text, second text) needs no column names then."""
    rows = read_unlabeled([("a film", "a plot"), ("love", "a joke")], takes_pairs=True, column_mapping={"x": "text"})
    assert rows.pairs == ("a plot", "a joke")


def test_bad_rows_are_found_or_dropped() -> None:
    """As in labelled data, with the name of the argument in the message."""
    with pytest.raises(DataError, match=r"unlabeled_dataset.*row 1"):
        read_unlabeled(["a film", ""], takes_pairs=False)
    assert read_unlabeled(["a film", "", "love"], takes_pairs=False, on_bad_row="drop").dropped == (1,)


def test_numbers_go_on_after_the_labelled_rows() -> None:
    """Dropped rows at the end count too: no number stands for two rows."""
    labelled = read_rows(({"text": ["a", "b", ""], "label": [1, 0, 1]}), on_bad_row="drop")
    both = join(labelled, read_unlabeled(["", "c"], takes_pairs=False, on_bad_row="drop"))
    assert both.numbers == (0, 1, 4)
    assert both.dropped == (2, 3)
    assert both.labels == (1, 0, None)
    assert both.fingerprint() != replace(both, labels=(1, 0, 1)).fingerprint()


@given(st.lists(st.booleans(), min_size=1), st.sampled_from([["x"], 0.5, "x"]))
def test_what_was_marked_is_told(known: list[bool], label: Any) -> None:
    """For every kind of label, exactly the rows without one are found to have none."""
    other: Any = ["y"] if isinstance(label, list) else "y" if isinstance(label, str) else 0.1
    labels = Labels.infer([label, other])
    rows = Rows(("a",) * len(known), labels=tuple(label if is_known else None for is_known in known))
    found = encode_known(labels, rows, name="rows")
    assert has_label(torch.from_numpy(found)).tolist() == known
    if any(known):
        np.testing.assert_array_equal(found[known.index(True)], labels.encode([label])[0])


def tokenized() -> TokenizedRows:
    """Return a labelled row and one without."""
    return TokenizedRows(Rows(("a film", "a plot"), labels=(1, None)), tiny_tokenizer(), np.array([1, -100]), 20)


def test_strategies_see_none() -> None:
    """An example without a label has None, and may be copied; a label that was there must not go."""
    rows = tokenized()
    assert rows.unlabelled == 1
    seen: list[Any] = []

    def copy(examples: list[Example]) -> list[Example]:
        seen.extend(example.label for example in examples)
        return [*examples, *(replace(example, text="love") for example in examples)]

    batch = rows.collate([0, 1], copy)
    assert seen == [1, None]
    assert batch.labels is not None
    assert batch.labels.tolist() == [1, -100, 1, -100]
    assert batch.labelled.tolist() == [True, False, True, False]
    with pytest.raises(DataError, match=r"rows \[0\] without a label"):
        rows.collate([0, 1], lambda examples: [replace(example, label=None) for example in examples])


def test_a_strategy_may_give_a_label() -> None:
    """A row without a label takes one that a strategy chose for it."""
    batch = tokenized().collate([0, 1], lambda examples: [replace(example, label=0) for example in examples])
    assert batch.labelled.tolist() == [True, True]
