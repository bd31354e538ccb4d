"""Rounding: how far it may go, and that it loses nothing twice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowft.compress.integers import pack, round_rows, round_tokens, straight_through, to_floats, to_integers, unpack

SHAPES = st.tuples(st.integers(1, 9), st.sampled_from([1, 5, 31, 32, 64, 96]))
BITS = st.sampled_from([4, 8])


def matrix(shape: tuple[int, int], seed: int) -> torch.Tensor:
    """Return a matrix whose rows differ in size by orders of magnitude; the first is zero."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 10 ** torch.randint(-6, 6, (shape[0], 1), generator=generator).float()
    sizes[0] = 0
    return torch.randn(shape, generator=generator) * sizes


@settings(max_examples=60)
@given(SHAPES, BITS, st.integers(0, 10_000))
def test_a_value_moves_by_half_a_step_at_most(shape: tuple[int, int], bits: int, seed: int) -> None:
    """Whatever the size of a row, rounding moves none of its values by more than half of its scale."""
    values = matrix(shape, seed)
    integers, scale = to_integers(values, bits)
    assert integers.dtype == torch.int8
    assert int(integers.abs().max()) <= 2 ** (bits - 1) - 1
    steps = scale.repeat_interleave(shape[1] // scale.shape[1], dim=1)
    assert bool(((to_floats(integers, scale) - values).abs() <= 0.5001 * steps).all())


@settings(max_examples=60)
@given(SHAPES, BITS, st.integers(0, 10_000))
def test_rounded_values_stay_what_they_are(shape: tuple[int, int], bits: int, seed: int) -> None:
    """Rounding a second time changes no integer: what was trained for is what is exported."""
    values = matrix(shape, seed)
    first, _ = to_integers(values, bits)
    again, _ = to_integers(round_rows(values, bits), bits)
    assert torch.equal(first, again)


@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 10_000))
def test_two_integers_share_a_byte(rows: int, columns: int, seed: int) -> None:
    """Packing halves the bytes, and unpacking gives back every integer, of odd rows too."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-7, 8, (rows, columns), generator=generator).to(torch.int8)
    packed = pack(values)
    assert packed.shape == (rows, (columns + 1) // 2)
    assert torch.equal(unpack(packed, columns), values)


def test_each_token_has_a_scale_of_its_own() -> None:
    """A large token beside a small one does not coarsen it."""
    small, large = torch.linspace(-1e-3, 1e-3, 50), torch.linspace(-1e3, 1e3, 50)
    alone = round_tokens(small[None])
    assert torch.equal(round_tokens(torch.stack([small, large]))[0], alone[0])
    assert float((alone[0] - small).abs().max()) <= 0.5001e-3 / 127


def test_the_gradient_passes_the_rounding() -> None:
    """Rounding has no slope; its gradient goes to the values before it."""
    values = torch.tensor([[0.3, -1.2, 0.7]], requires_grad=True)
    rounded = straight_through(values, round_rows(values.detach(), 4))
    assert not torch.equal(rounded, values)
    torch.autograd.backward((rounded * torch.tensor([1.0, 2.0, 3.0])).sum())
    assert values.grad is not None
    assert values.grad.tolist() == [[1.0, 2.0, 3.0]]


def test_the_grid_is_symmetric() -> None:
    """The largest value of a row is met exactly, of either sign, and zero stays zero."""
    integers, scale = to_integers(torch.tensor([[-2.0, 0.0, 2.0]]), 8)
    assert integers.tolist() == [[-127, 0, 127]]
    assert to_floats(integers, scale).tolist() == [pytest.approx([-2.0, 0.0, 2.0])]
