"""Tests of random streams that depend on seed and step alone."""

from __future__ import annotations

import contextlib
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowft._randomness import seeded

NUMBERS = st.lists(st.integers(0, 2**63), max_size=4)


def draws() -> tuple[float, float, float]:
    """Draw once from each stream that a strategy might use."""
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002 - the global one is meant


@given(numbers=NUMBERS, before=st.integers(0, 5))
def test_draws_inside_depend_on_the_numbers_alone(numbers: list[int], before: int) -> None:
    """Whatever the caller drew before, a block with the same numbers draws the same."""
    for _ in range(before):
        draws()
    with seeded(*numbers):
        one = draws(), draws()
    with seeded(*numbers):
        other = draws(), draws()
    assert one == other


@given(one=NUMBERS, other=NUMBERS)
def test_other_numbers_draw_otherwise(one: list[int], other: list[int]) -> None:
    """No two lists of numbers share their streams, (1, 2) and (12,) included."""
    with seeded(*one):
        first = draws()
    with seeded(*other):
        second = draws()
    assert (first == second) == (one == other)


@pytest.mark.parametrize("fails", [False, True])
def test_the_callers_streams_go_on_as_if_nothing_had_been_drawn(fails: bool) -> None:
    """After a block, also after one that raised, the caller draws what they would have drawn."""

    def leave() -> None:
        if fails:
            raise KeyError

    def run(*, between: bool) -> list[tuple[float, float, float]]:
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        first = draws()
        if between:
            with contextlib.suppress(KeyError), seeded(5, 6):
                draws()
                leave()
        return [first, draws()]

    assert run(between=True) == run(between=False)


def test_an_error_passes_through() -> None:
    """The block's own error is what the caller sees."""
    error = KeyError("inside")
    with pytest.raises(KeyError) as caught, seeded(1):
        raise error
    assert caught.value is error


def test_blocks_nest() -> None:
    """An inner block leaves the outer one's streams where they were."""
    with seeded(1):
        plain = draws(), draws()
    with seeded(1):
        first = draws()
        with seeded(2):
            inner = draws()
        nested = first, draws()
    assert nested == plain
    assert inner not in plain


def test_a_run_on_the_cpu_wakes_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a GPU is there but not in use, a block asks nothing of it."""

    def busy() -> None:
        pytest.fail("CUDA was initialised")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "_lazy_init", busy)
    with seeded(1):
        draws()
