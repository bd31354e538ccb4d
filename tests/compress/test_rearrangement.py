"""Mask rearrangement: which units go together."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lowft.compress.pruning import prune_
from lowft.compress.rearrangement import rearranged
from tests.tiny import tiny_batch, tiny_model


def harm(slopes: Tensor, kept: Tensor) -> float:
    """Return the sum over rows of the squared sum of the slopes of the units that go."""
    gone = torch.ones(slopes.shape[1], dtype=torch.bool)
    gone[kept] = False
    return float(slopes[:, gone].double().sum(dim=1).square().sum())


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(2, 9), st.data())
def test_no_exchange_of_two_units_lowers_the_harm_any_more(
    seed: int, rows: int, units: int, data: st.DataObject
) -> None:
    """As many units stay as before, none does more harm than before, and no single exchange would do less."""
    slopes = torch.randn(rows, units, generator=torch.Generator().manual_seed(seed))
    count = data.draw(st.integers(1, units))
    before = torch.arange(count)
    after = rearranged(slopes, before)
    assert len(after) == count
    assert after.tolist() == sorted(set(after.tolist()))
    assert harm(slopes, after) <= harm(slopes, before) + 1e-9
    least = harm(slopes, after)
    kept = set(after.tolist())
    for back, out in itertools.product(set(range(units)) - kept, kept):
        other = torch.tensor(sorted(kept - {out} | {back}))
        assert harm(slopes, other) >= least - 1e-5 * (1 + least)


def test_of_two_units_that_do_the_same_one_stays() -> None:
    """Each of the twins matters less than the third unit, but both together more."""
    slopes = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.3]])
    assert rearranged(slopes, torch.tensor([2])).tolist() in ([0], [1])


def test_fisher_keeps_the_counts_that_the_budget_gave() -> None:
    """A budget is met to the unit whether or not units of a layer change places."""
    batches = [tiny_batch("bert", seed=seed, rows=8) for seed in range(4)]
    report = prune_(tiny_model("bert"), 0.5, heads=0.5, importance="fisher", batches=batches)
    assert set(report.after.values()) == {32}
    assert set(report.heads_after.values()) == {2}
