"""Tests of tokenised rows and of the batches collated from them."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lowft.data.batching import Batch, BatchRandom, Example, TokenizedRows, accepted_inputs
from lowft.data.rows import Rows
from lowft.errors import ConfigError, DataError
from tests.tiny import WORDS, tiny_batch, tiny_model, tiny_tokenizer

TEXTS = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def real_tokenizer(minilm_path: Path) -> Any:
    """Return BERT's own tokenizer, which makes token types."""
    tokenizer: Any = AutoTokenizer
    return tokenizer.from_pretrained(minilm_path)


@pytest.fixture(scope="module", params=itertools.product(["left", "right"], repeat=2), ids=" ".join)
def sided_tokenizer(request: pytest.FixtureRequest, minilm_path: Path) -> Any:
    """Return BERT's tokenizer with each side to pad on and to cut from."""
    sides = dict(zip(("padding_side", "truncation_side"), request.param, strict=True))
    tokenizer: Any = AutoTokenizer
    return tokenizer.from_pretrained(minilm_path, **sides)


def made(texts: Sequence[str], labels: Any = None, *, tokenizer: Any = None, **settings: Any) -> TokenizedRows:
    """Return tokenised rows of at most 16 tokens."""
    pairs = settings.pop("pairs", None)
    rows = Rows(tuple(texts), pairs=None if pairs is None else tuple(pairs))
    return TokenizedRows(rows, tokenizer or tiny_tokenizer(), labels, settings.pop("max_length", 16), **settings)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Compare inputs bit for bit."""
    alike = one.keys() == other.keys()
    return alike and all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)


@given(texts=TEXTS, paired=st.booleans(), data=st.data())
def test_batches_equal_those_of_the_tokenizer(
    texts: list[str], paired: bool, data: st.DataObject, sided_tokenizer: Any
) -> None:
    """Ids, token types and masks are what the tokenizer's own padding gives, on either side, pairs or not."""
    pairs = texts[::-1] if paired else None
    rows = made(texts, tokenizer=sided_tokenizer, pairs=pairs)
    picked = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=5))
    expected = sided_tokenizer(
        [texts[index] for index in picked],
        [pairs[index] for index in picked] if pairs else None,
        truncation=True, max_length=16, padding=True, return_tensors="pt",
    )  # fmt: skip
    assert equal(rows.collate(picked).inputs, dict(expected))
    assert rows.lengths[picked].tolist() == expected["attention_mask"].sum(dim=1).tolist()


def test_only_the_inputs_asked_for_are_made(real_tokenizer: Any) -> None:
    """A model that takes no token types gets none; the mask comes where it is asked for."""
    rows = made(["a", "a good film"], tokenizer=real_tokenizer, inputs=("input_ids", "attention_mask"))
    assert sorted(rows.collate([0, 1]).inputs) == ["attention_mask", "input_ids"]
    assert sorted(made(["a"], tokenizer=real_tokenizer, inputs=("input_ids",)).collate([0]).inputs) == ["input_ids"]
    everything = sorted(made(["a"], tokenizer=real_tokenizer).collate([0]).inputs)
    assert everything == ["attention_mask", "input_ids", "token_type_ids"]


def test_token_types_are_padded_as_the_tokenizer_says(real_tokenizer: Any) -> None:
    """Pad tokens have the type that the tokenizer keeps for them."""
    tokenizer = copy.deepcopy(real_tokenizer)
    tokenizer._pad_token_type_id = 3  # as XLNet has it
    batch = made(["a b", "a"], tokenizer=tokenizer, pairs=["c d", "b"]).collate([0, 1])
    assert batch.inputs["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 3, 3]]


def test_examples_change_batches_and_nothing_else() -> None:
    """A transform sees the raw rows, in order; its copies are collated after it, labels and row numbers with them."""
    rows = TokenizedRows(
        Rows(("a film", "a plot", "a joke"), numbers=(10, 20, 30)), tiny_tokenizer(), np.array([0, 1, 0]), 16
    )
    seen: list[Example] = []

    def doubled(examples: list[Example]) -> list[Example]:
        seen.extend(examples)
        return [*examples, *(dataclasses.replace(example, text="a good film") for example in examples)]

    before = rows.collate([2, 1])
    batch = rows.collate([2, 1], doubled)
    assert [(example.row, example.text, example.pair) for example in seen] == [(2, "a joke", None), (1, "a plot", None)]
    assert batch.rows == (30, 20, 30, 20)
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1, 0, 1]
    expected = tiny_tokenizer()(["a joke", "a plot", "a good film", "a good film"], padding=True, return_tensors="pt")
    assert equal(batch.inputs, {name: expected[name] for name in batch.inputs})
    assert equal(rows.collate([2, 1]).inputs, before.inputs)


def test_only_changed_examples_are_tokenised_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are made once for each row; a batch makes those of texts that a strategy changed, in one call."""
    calls: list[list[str]] = []
    tokenize = TokenizedRows._tokenize

    def counted(self: TokenizedRows, texts: Sequence[str], pairs: Sequence[str] | None) -> Any:
        calls.append(list(texts))
        return tokenize(self, texts, pairs)

    monkeypatch.setattr(TokenizedRows, "_tokenize", counted)
    rows = made(["one", "two", "three"], pairs=["a", "b", "c"])
    assert calls == [["one", "two", "three"]]
    rows.collate([0, 1, 2])
    rows.collate([0, 1, 2], lambda examples: examples[::-1])
    assert len(calls) == 1
    rows.collate([0, 1, 2], lambda e: [e[0], dataclasses.replace(e[1], text="2"), dataclasses.replace(e[2], pair="d")])
    assert calls[1:] == [["2", "three"]]


def test_a_changed_pair_is_read_as_a_pair() -> None:
    """A new second text takes the place of the old one."""
    rows = made(["a film", "a plot"], pairs=["good", "bad"])
    batch = rows.collate([0, 1], lambda e: [e[0], dataclasses.replace(e[1], pair="very bad")])
    expected = tiny_tokenizer()(["a film", "a plot"], ["good", "very bad"], padding=True, return_tensors="pt")
    assert torch.equal(batch.inputs["input_ids"], expected["input_ids"])


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [
        (np.array([0, 2, 1]), torch.int64),
        (np.array([[0, 1], [1, 1], [0, 0]], dtype=np.float32), torch.float32),
        (np.array([0.5, -1.0, 2.0], dtype=np.float32), torch.float32),
    ],
)
@pytest.mark.parametrize("transform", [None, lambda examples: examples + examples])
def test_labels_keep_their_kind(labels: Any, dtype: torch.dtype, transform: Any) -> None:
    """Class ids stay whole numbers, multi-hot rows and amounts stay float32, with copies and without."""
    batch = made(["a", "b", "c"], labels).collate([2, 0], transform)
    assert batch.labels is not None
    assert batch.labels.dtype == dtype
    assert np.array_equal(batch.labels.numpy()[:2], labels[[2, 0]])


def test_unlabelled_rows_make_batches_without_labels() -> None:
    """No labels in, no labels out."""
    rows = made(["a", "b"])
    assert rows.collate([0]).labels is None
    assert rows.collate([0], list).labels is None
    assert rows.example(1) == Example(1, "b", None, None)


def test_a_copy_without_a_label_is_refused() -> None:
    """An example made from scratch that forgets the label is named by its row, with what to write."""
    rows = made(["a", "b"], np.array([0, 1]))
    with pytest.raises(DataError, match=r"returned the rows \[1\] without a label: .*dataclasses\.replace"):
        rows.collate([0, 1], lambda examples: [examples[0], Example(1, "c")])


def test_a_tokenizer_without_a_pad_token_is_refused() -> None:
    """The message says how to give it one."""
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(ConfigError, match=r"no pad token.*tokenizer\.pad_token.*eos_token.*pad_token_id"):
        made(["a"], tokenizer=tokenizer)


@pytest.mark.parametrize(("arch", "pairs", "special"), [("bert", None, 2), ("bert", ["b"], 3), ("t5", None, 1)])
def test_max_length_must_leave_room_for_text(arch: str, pairs: Any, special: int) -> None:
    """A limit that special tokens use up is refused: tokenizers would ignore it and cut nothing."""
    tokenizer = tiny_tokenizer(arch)
    with pytest.raises(ConfigError, match=re.escape(f"max_length must be above {special}, the number of special")):
        made(["a b c"], tokenizer=tokenizer, pairs=pairs, max_length=special)
    rows = made(["a b c"], tokenizer=tokenizer, pairs=pairs, max_length=special + 1)
    assert rows.lengths.tolist() == [special + 1]


def test_texts_without_a_token_are_refused() -> None:
    """A text of invisible characters leaves a decoder nothing to read; the rows are named."""
    rows = Rows(("a film", "\u200b", "\u200b\u200b"), numbers=(4, 5, 9))
    with pytest.raises(DataError, match=r"no token of 2 of the texts.*rows \[5, 9\]\. Correct these texts"):
        TokenizedRows(rows, tiny_tokenizer("gpt2"), None, 16)
    with pytest.raises(DataError, match=r"rows \[0, 1, 2, 3, 4\] and more"):
        made(["\u200b"] * 6, tokenizer=tiny_tokenizer("gpt2"))


def test_rows_at_the_limit_are_counted() -> None:
    """`truncated` counts the rows that reach the limit, of all rows, however many are tokenised together."""
    rows = made(["a " * 20, "a", "a " * 14] * 700)
    assert rows.truncated == 1400
    assert len(rows) == 2100
    assert rows.lengths[:3].tolist() == [16, 3, 16]
    assert rows.collate([2099, 1]).inputs["attention_mask"].sum(dim=1).tolist() == [16, 3]


def test_rows_are_small_and_quick_to_hand_to_workers() -> None:
    """Pickled, tokens take about their own bytes, in as many pieces as the model has inputs."""
    rows = made([" ".join(WORDS[index % 300 :][:12]) for index in range(2000)], np.zeros(2000, int))
    there = pickle.loads(pickle.dumps(rows))  # noqa: S301 - our own bytes
    assert equal(there.collate([5, 1999]).inputs, rows.collate([5, 1999]).inputs)
    texts = len(pickle.dumps(rows.rows)) + len(pickle.dumps(rows.tokenizer))
    assert len(pickle.dumps(rows)) - texts < 2000 * (4 * 16 + 8 * 4)


def test_a_batch_knows_its_size_and_moves() -> None:
    """`len` counts rows; `to` moves tensors and leaves the batch it was called on."""
    batch = Batch({"input_ids": torch.ones(3, 2)}, torch.ones(3), (0, 1, 2))
    moved = batch.to(torch.device("meta"))
    assert len(batch) == len(moved) == 3
    assert moved.inputs["input_ids"].device.type == "meta"
    assert moved.labels is not None
    assert moved.labels.device.type == "meta"
    assert batch.inputs["input_ids"].device.type == "cpu"
    assert Batch({"input_ids": torch.ones(1, 1)}).to(torch.device("cpu")).labels is None


def test_a_batch_is_pinned_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor of a batch is put into pinned memory, which a machine without a GPU does not have."""
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    batch = Batch({"input_ids": torch.ones(3, 2), "attention_mask": torch.ones(3, 2)}, torch.ones(3), (7, 8, 9))
    found = batch.pin_memory()
    assert [*map(id, found.inputs.values()), id(found.labels)] == [*map(id, pinned)]
    assert found.rows == batch.rows
    assert Batch({"input_ids": torch.ones(1, 1)}).pin_memory().labels is None


EPOCHS = st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
POSITIONS = st.tuples(st.integers(0, 5), st.integers(0, 5))


@given(epoch=EPOCHS, position=POSITIONS, other=POSITIONS, row=st.integers(0, 9), drawn=st.integers(0, 3))
def test_a_rows_source_depends_on_epoch_and_row_alone(
    epoch: tuple[int, ...], position: tuple[int, int], other: tuple[int, int], row: int, drawn: int
) -> None:
    """Whatever batch a row is in, and whatever was drawn before, its own source is the same."""
    one, two = BatchRandom(*epoch, position=position), BatchRandom(*epoch, position=other)
    for _ in range(drawn):
        one.random()
    assert one.for_row(row).random() == two.for_row(row).random()
    assert (BatchRandom(*epoch, position=position).random() == two.random()) == (position == other)


@given(one=EPOCHS, other=EPOCHS, row=st.integers(0, 9), step=st.integers(0, 5))
def test_another_epoch_draws_otherwise(one: tuple[int, ...], other: tuple[int, ...], row: int, step: int) -> None:
    """Seed, stage and epoch all count, for the batch's source and for the row's."""
    first, second = (BatchRandom(*epoch, position=(step, 0)) for epoch in (one, other))
    assert (first.for_row(row).random() == second.for_row(row).random()) == (one == other)
    assert (first.random() == second.random()) == (one == other)


@given(epoch=EPOCHS, rows=st.lists(st.integers(0, 99), min_size=2, unique=True))
def test_rows_have_sources_of_their_own(epoch: tuple[int, ...], rows: list[int]) -> None:
    """No two rows of an epoch share a source, and none is the batch's."""
    batch = BatchRandom(*epoch, position=(0, 0))
    draws = [batch.random(), *(batch.for_row(row).random() for row in rows)]
    assert len(set(draws)) == len(draws)


def test_models_get_the_inputs_they_name(real_tokenizer: Any) -> None:
    """What the forward does not take is not made; a wrapper that hands everything on gets everything."""

    class Wrapper(torch.nn.Module):
        def forward(self, **inputs: Any) -> Any:
            return inputs

    types = "token_type_ids"
    assert types in accepted_inputs(tiny_model("bert"), real_tokenizer)
    assert types not in accepted_inputs(tiny_model("distilbert"), real_tokenizer)
    assert accepted_inputs(Wrapper(), real_tokenizer) == tuple(real_tokenizer.model_input_names)
    for arch in ("bert", "gpt2", "t5"):
        names = accepted_inputs(tiny_model(arch), tiny_tokenizer(arch))
        assert names[0] == "input_ids"
        assert set(names) == set(tiny_batch(arch)) - {"labels"}
