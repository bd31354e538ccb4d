"""The distances of hidden states and relations: against plain loops, padding, and accumulation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowft.distillation import hidden_state_loss, relation_loss
from lowft.errors import ConfigError


def drawn(
    rows: int, tokens: int, widths: tuple[int, int], seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a student's and a teacher's states in float64, and a ragged mask."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(rows, tokens, width, generator=generator).double() for width in widths)
    lengths = torch.randint(1, tokens + 1, (rows,), generator=generator)
    return student, teacher, torch.arange(tokens) < lengths[:, None]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 99))
def test_hidden_states_against_a_loop(rows: int, tokens: int, seed: int) -> None:
    """Each row costs the mean over its real tokens alone."""
    student, teacher, mask = drawn(rows, tokens, (6, 6), seed)
    expected = [((student[row] - teacher[row]) ** 2)[mask[row]].mean() for row in range(rows)]
    torch.testing.assert_close(hidden_state_loss(student, teacher, mask, reduction="none"), torch.stack(expected))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.sampled_from([1, 2, 4]), st.integers(0, 99))
def test_relations_against_a_loop(rows: int, tokens: int, heads: int, seed: int) -> None:
    """The KL divergence of softmax(X Xᵀ ÷ √d) for each head and real token, whatever the two widths."""
    student, teacher, mask = drawn(rows, tokens, (8, 12), seed)
    expected = []
    for row in range(rows):
        costs = []
        for head in range(heads):
            sides = []
            for side in (student, teacher):
                part = side[row, mask[row]].chunk(heads, dim=1)[head]
                sides.append((part @ part.T / part.shape[1] ** 0.5).softmax(1))
            own, other = sides
            costs.append((other * (other / own).log()).sum(1).mean())
        expected.append(torch.stack(costs).mean())
    torch.testing.assert_close(
        relation_loss(student, teacher, mask, heads=heads, reduction="none"), torch.stack(expected)
    )


@pytest.mark.parametrize("loss", [hidden_state_loss, lambda *sides: relation_loss(*sides, heads=2)])
def test_padding_changes_nothing_and_gets_no_gradient(loss: Any) -> None:
    """What stands on padding is ignored on both sides; gradients are finite, and none reach the teacher."""
    student, teacher, mask = drawn(3, 4, (4, 4), 1)
    mask[0, 2:] = False
    student.requires_grad_()
    teacher.requires_grad_()
    first = loss(student, teacher, mask)
    first.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert not student.grad[~mask].any()
    assert student.grad[mask].any()
    assert teacher.grad is None
    with torch.no_grad():
        for side in (student, teacher):
            side[~mask] = 1e3
    torch.testing.assert_close(loss(student, teacher, mask), first)


@pytest.mark.parametrize("loss", [hidden_state_loss, lambda *sides: relation_loss(*sides, heads=2)])
def test_the_mean_is_that_of_the_rows(loss: Any) -> None:
    """So that micro-batches of ragged rows, weighed by their rows, add up to one big batch."""
    student, teacher, mask = drawn(5, 6, (4, 4), 2)
    parts = [loss(student[part], teacher[part], mask[part]) for part in (slice(0, 2), slice(2, 5))]
    torch.testing.assert_close((2 * parts[0] + 3 * parts[1]) / 5, loss(student, teacher, mask))


def test_no_distance_from_itself() -> None:
    """Equal states cost nothing."""
    student, _, mask = drawn(2, 3, (4, 4), 3)
    assert hidden_state_loss(student, student, mask) == 0
    assert relation_loss(student, student, mask, heads=2) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, t, m: hidden_state_loss(s, t[:, :, :2], m), r"same shape.*linear layer"),
        (lambda s, t, m: hidden_state_loss(s[0], t[0], m), r"student of hidden_state_loss must be floats"),
        (lambda s, t, m: hidden_state_loss(s, t, m[:, :1]), r"same \[batch, tokens\]"),
        (lambda s, t, m: hidden_state_loss(s, t, m * 0), r"at least one real token"),
        (lambda s, t, m: relation_loss(s, t, m, heads=3), r"heads of relation_loss must divide both widths, 4 and 4"),
        (lambda s, t, m: relation_loss(s, t, m, heads=0), r"received 0"),
        (lambda s, t, m: relation_loss(s, t.long(), m, heads=2), r"teacher of relation_loss must be floats"),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, message: str) -> None:
    """Each message gives the rule and what was received."""
    student, teacher, mask = drawn(2, 3, (4, 4), 4)
    with pytest.raises(ConfigError, match=message):
        call(student, teacher, mask)
