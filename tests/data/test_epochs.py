"""Tests of the plan of an epoch and of the batches that are made of it."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowft.data.batching import Batch, BatchRandom, Example, TokenizedRows
from lowft.data.epochs import MicroBatch, cut_to_tokens, epoch_batches, longest_first, plan_epoch
from lowft.data.rows import Rows
from lowft.errors import TrainingError
from lowft.strategy import Strategy, chain
from tests.tiny import WORDS, tiny_tokenizer

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=70).map(np.array)
SEEDS = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
Plan = list[list[MicroBatch]]


@dataclasses.dataclass(frozen=True)
class Shuffled(Strategy):
    """Adds a copy of each row with its words in another order, and drops one row by chance."""

    def on_examples(self, examples: list[Example], rng: BatchRandom) -> list[Example]:
        """Draw from the batch's source and from each row's own."""
        copies = []
        for example in examples:
            words = example.text.split()
            rng.for_row(example.row).shuffle(words)
            copies.append(dataclasses.replace(example, text=" ".join(words)))
        copies.pop(rng.randrange(len(copies)))
        return [*examples, *copies]


def plans(lengths: Any, processes: int, **settings: Any) -> list[Plan]:
    """Return the plan of every process."""
    return [plan_epoch(lengths, processes=processes, rank=rank, **settings) for rank in range(processes)]


def windows(ranks: list[Plan]) -> list[tuple[int, ...]]:
    """Return the rows of each optimizer step over all processes, sorted."""
    return [
        tuple(sorted(index for parts in step for part in parts if part.share for index in part.indices))
        for step in zip(*ranks, strict=True)
    ]


def padding(lengths: Any, plan: Plan) -> int:
    """Count the pad tokens of a plan."""
    rows = [lengths[list(part.indices)] for step in plan for part in step]
    return int(sum(len(part) * part.max() - part.sum() for part in rows))


@given(
    lengths=LENGTHS, batch=st.integers(1, 5), accumulation=st.integers(1, 3), processes=st.integers(1, 3), seed=SEEDS,
    group=st.booleans(),
)  # fmt: skip
def test_every_row_counts_once(
    lengths: Any, batch: int, accumulation: int, processes: int, seed: tuple[int, ...], group: bool
) -> None:
    """Each row is in one micro-batch of one process, and what a step's rows count for adds up to one."""
    before = lengths.copy()
    ranks = plans(lengths, processes, batch_size=batch, accumulation=accumulation, seed=seed, group_by_length=group)
    assert Counter(index for window in windows(ranks) for index in window) == Counter(range(len(lengths)))
    assert len({len(plan) for plan in ranks}) == 1
    for step in zip(*ranks, strict=True):
        parts = [part for own in step for part in own]
        counting = [part for part in parts if part.share]
        total = sum(len(part.indices) for part in counting)
        assert sum(part.share for part in parts) == pytest.approx(1, abs=1e-12)
        assert all(part.share == len(part.indices) / total for part in counting)
        assert all(1 <= len(own) <= accumulation for own in step)
        assert all(1 <= len(part.indices) <= batch for part in parts)
    assert np.array_equal(lengths, before)


@given(lengths=LENGTHS, seed=SEEDS, group=st.booleans(), data=st.data())
def test_a_part_of_the_rows_is_planned_as_if_there_were_no_others(
    lengths: Any, seed: tuple[int, ...], group: bool, data: st.DataObject
) -> None:
    """The plan of some rows is that of an array with these rows alone, under their own numbers."""
    chosen = data.draw(st.lists(st.sampled_from(range(len(lengths))), min_size=1, unique=True).map(sorted))
    settings: dict[str, Any] = {"batch_size": 3, "seed": seed, "group_by_length": group}
    found = plan_epoch(lengths, rows=np.array(chosen), **settings)
    alone = plan_epoch(lengths[chosen], **settings)
    assert windows([found]) == [tuple(sorted(chosen[index] for index in window)) for window in windows([alone])]


@given(lengths=LENGTHS, split=st.sampled_from([(12, 1, 1), (6, 2, 1), (6, 1, 2), (2, 3, 2), (1, 4, 3)]), seed=SEEDS)
def test_a_step_sees_the_same_rows_however_it_is_split(lengths: Any, split: tuple[int, int, int], seed: Any) -> None:
    """Accumulation and processes change who computes what, never which rows make a step."""
    batch, accumulation, processes = split
    ranks = plans(lengths, processes, batch_size=batch, accumulation=accumulation, seed=seed)
    assert windows(ranks) == windows([plan_epoch(lengths, batch_size=12, seed=seed)])


@given(rows=st.integers(40, 90), one=SEEDS, other=SEEDS)
def test_the_order_depends_on_the_seed(rows: int, one: tuple[int, ...], other: tuple[int, ...]) -> None:
    """Equal seeds give equal plans, whatever else was drawn; another seed, stage or epoch gives another order."""
    lengths = np.arange(rows) % 7
    plan = plan_epoch(lengths, batch_size=2, seed=one)
    np.random.rand()  # noqa: NPY002 - the caller's stream must not matter
    assert plan_epoch(lengths, batch_size=2, seed=one) == plan
    assert (plan_epoch(lengths, batch_size=2, seed=other) == plan) == (one == other)


@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("rows", [24, 400])
def test_epochs_differ_in_their_batches(rows: int, group: bool) -> None:
    """Not only the order of batches changes from epoch to epoch, but who is in them; with few rows too."""
    lengths = np.arange(1, rows + 1)  # all distinct: sorted as a whole, they could form one set of batches only
    one, other = (
        set(windows([plan_epoch(lengths, batch_size=4, seed=(0, 0, epoch), group_by_length=group)])) for epoch in (0, 1)
    )
    assert len(one & other) < len(one) / 2


@pytest.mark.parametrize(("rows", "most"), [(100, 0.6), (400, 0.25), (4000, 0.05)])
def test_grouping_by_length_saves_padding(rows: int, most: float) -> None:
    """Few pad tokens remain of those that random batches need, the fewer the more rows there are."""
    lengths = np.random.default_rng(0).integers(3, 60, rows)
    grouped, plain = (
        padding(lengths, plan_epoch(lengths, batch_size=16, group_by_length=group)) for group in (True, False)
    )
    assert grouped < most * plain


def test_the_short_step_is_not_always_that_of_the_longest_rows() -> None:
    """A step with few rows weighs each of them more: which rows these are, by their length, is left to chance."""
    lengths = np.arange(1, 162)
    shortest = [
        min((step[0] for step in plan_epoch(lengths, batch_size=16, seed=(epoch,))), key=lambda part: len(part.indices))
        for epoch in range(40)
    ]
    assert {len(part.indices) for part in shortest} == {1}
    assert len({lengths[part.indices[0]] // 40 for part in shortest}) == 5


def test_short_and_long_batches_alternate() -> None:
    """Batches of like length come in random order: lengths do not rise through the epoch."""
    lengths = np.random.default_rng(0).integers(3, 60, 1600)
    means = [np.mean(lengths[list(step[0].indices)]) for step in plan_epoch(lengths, batch_size=16)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


def test_a_process_without_a_row_takes_part_for_nothing() -> None:
    """One row for two processes: both compute, one counts."""
    ranks = plans(np.array([5]), 2, batch_size=4)
    assert [[(part.indices, part.share) for part in plan[0]] for plan in ranks] == [[((0,), 1.0)], [((0,), 0.0)]]


@given(
    lengths=LENGTHS, batch=st.integers(1, 30), accumulation=st.integers(1, 3), processes=st.integers(1, 3),
    most=st.integers(1, 300), group=st.booleans(),
)  # fmt: skip
def test_micro_batches_keep_to_a_budget_of_tokens(
    lengths: Any, batch: int, accumulation: int, processes: int, most: int, group: bool
) -> None:
    """Steps keep their rows and each row its weight; none but a row alone takes more tokens, and what fits stays."""
    whole = plans(lengths, processes, batch_size=batch, accumulation=accumulation, group_by_length=group)
    ranks = [cut_to_tokens(plan, lengths, most) for plan in whole]
    assert windows(ranks) == windows(whole)
    assert Counter(index for window in windows(ranks) for index in window) == Counter(range(len(lengths)))
    for step in zip(*ranks, strict=True):
        assert all(step)  # each process takes part in the exchange
        parts = [part for own in step for part in own]
        rows = sum(len(part.indices) for part in parts if part.share)
        assert sum(part.share for part in parts) == pytest.approx(1, abs=1e-12)
        for part in parts:
            tokens = len(part.indices) * lengths[list(part.indices)].max()
            assert tokens <= most or len(part.indices) == 1
            assert part.share in (0, pytest.approx(len(part.indices) / rows))
    if most >= batch * 40:
        assert ranks == whole


@given(lengths=LENGTHS, most_rows=st.integers(1, 30), most_tokens=st.none() | st.integers(1, 300))
def test_rows_sorted_by_length_fill_their_batches(lengths: Any, most_rows: int, most_tokens: int | None) -> None:
    """Each row is in one batch, none is longer than one before it, and no batch has room for the next row."""
    batches = longest_first(lengths, most_rows, most_tokens)
    order = np.concatenate(batches)
    assert Counter(order.tolist()) == Counter(range(len(lengths)))
    assert (np.diff(lengths[order]) <= 0).all()
    for batch in batches:
        allowed = max(1, min(most_rows, (most_tokens or 10**9) // lengths[batch[0]]))
        assert len(batch) <= allowed
        assert len(batch) == allowed or batch is batches[-1]


@pytest.fixture(scope="module")
def rows() -> TokenizedRows:
    """Return 14 labelled rows of 2 to 11 words."""
    texts = tuple(" ".join(WORDS[index * 12 :][: 2 + index % 10]) for index in range(14))
    return TokenizedRows(Rows(texts), tiny_tokenizer(), np.arange(14) % 2, 32)


def same(one: Batch, other: Batch) -> bool:
    """Compare two batches bit for bit."""
    assert one.labels is not None
    assert other.labels is not None
    return (
        one.rows == other.rows
        and torch.equal(one.labels, other.labels)
        and one.inputs.keys() == other.inputs.keys()
        and all(torch.equal(one.inputs[name], other.inputs[name]) for name in one.inputs)
    )


def collected(rows: TokenizedRows, **settings: Any) -> list[Batch]:
    """Return all batches of an epoch with augmented rows."""
    plan = cut_to_tokens(plan_epoch(rows.lengths, batch_size=2, accumulation=2, seed=(1, 0, 0)), rows.lengths, 16)
    assert len({len(step) for step in plan}) > 1  # the budget cuts some steps and not others
    steps = epoch_batches(rows, plan, seed=(1, 0, 0), transform=chain(Shuffled()).on_examples, **settings)
    return [batch for _, batches in steps for batch in batches]


@pytest.mark.parametrize("first", [0, 1, 3, 4])
def test_an_epoch_goes_on_from_any_step(first: int, rows: TokenizedRows) -> None:
    """The batches from a later step on are those of the whole epoch, random changes included."""
    plan = cut_to_tokens(plan_epoch(rows.lengths, batch_size=2, accumulation=2, seed=(1, 0, 0)), rows.lengths, 16)
    done = sum(len(step) for step in plan[:first])
    rest = collected(rows, first=first)
    whole = collected(rows)
    assert len(rest) == len(whole) - done
    assert all(same(one, other) for one, other in zip(rest, whole[done:], strict=True))


def test_steps_come_with_their_plan(rows: TokenizedRows) -> None:
    """Each step yields its micro-batches and as many batches, of the rows planned."""
    plan = plan_epoch(rows.lengths, batch_size=2, accumulation=2)
    for planned, (parts, batches) in zip(plan, epoch_batches(rows, plan), strict=True):
        assert parts == planned
        assert [batch.rows for batch in batches] == [part.indices for part in planned]


@pytest.mark.parametrize(("context", "workers"), [("fork", 2), ("spawn", 1)])
def test_worker_processes_make_the_same_batches(
    context: str, workers: int, rows: TokenizedRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers, forked or spawned, make the batches that the training process makes."""
    own = collected(rows)
    loader = functools.partial(torch.utils.data.DataLoader, multiprocessing_context=context)
    monkeypatch.setattr(torch.utils.data, "DataLoader", loader)
    assert all(same(one, other) for one, other in zip(collected(rows, workers=workers), own, strict=True))


@pytest.mark.parametrize("pinned", [True, False])
def test_batches_are_pinned_where_that_is_asked_for(
    pinned: bool, rows: TokenizedRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loader pins what it collated, and the batches are the same."""
    plain = collected(rows)
    calls: list[int] = []

    def pin(batch: Batch) -> Batch:
        calls.append(len(batch))
        return batch

    monkeypatch.setattr(Batch, "pin_memory", pin)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    found = collected(rows, pinned=pinned)
    assert all(same(one, other) for one, other in zip(found, plain, strict=True))
    assert len(calls) == (len(plain) if pinned else 0)


def test_an_error_in_a_worker_names_the_hook(rows: TokenizedRows) -> None:
    """What a strategy raises in a worker process arrives as its own class, with the hook's name."""

    @dataclasses.dataclass(frozen=True)
    class Emptying(Strategy):
        def on_examples(self, examples: list[Example], rng: BatchRandom) -> list[Example]:
            return []

    plan = plan_epoch(rows.lengths, batch_size=2)
    with pytest.raises(TrainingError, match=r"raised by Emptying\.on_examples"):
        next(next(epoch_batches(rows, plan, transform=chain(Emptying()).on_examples, workers=1))[1])


def test_the_callers_random_stream_is_left_alone(rows: TokenizedRows) -> None:
    """Making batches draws nothing from torch's global stream."""
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    first = torch.rand(1)
    collected(rows)
    assert torch.equal(torch.cat([first, torch.rand(1)]), expected)


def test_what_a_transform_draws_depends_on_seed_and_position() -> None:
    """Each micro-batch of each step has a source of its own, decided by the epoch's seed."""
    drawn: dict[tuple[int, ...], list[float]] = {}

    def transform_for(seed: tuple[int, ...]) -> Callable[[list[Example], BatchRandom], list[Example]]:
        def transform(examples: list[Example], rng: BatchRandom) -> list[Example]:
            drawn.setdefault(seed, []).append(rng.random())
            return examples

        return transform

    rows = TokenizedRows(Rows(("a film",) * 6), tiny_tokenizer(), None, 16)
    plan = plan_epoch(rows.lengths, batch_size=1, accumulation=2)
    for seed in ((1, 0, 0), (1, 0, 1), (1, 1, 0)):
        for _, batches in epoch_batches(rows, plan, seed=seed, transform=transform_for(seed)):
            assert len(list(batches)) == 2
    everything = [number for numbers in drawn.values() for number in numbers]
    assert len(everything) == len(set(everything)) == 18
