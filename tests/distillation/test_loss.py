"""The distance from a teacher's answers, for each task."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowft.distillation import distillation_loss
from lowft.errors import ConfigError

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def logits(seed: int, columns: int = 3) -> torch.Tensor:
    """Return random logits, `[5, columns]`."""
    return torch.randn(5, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.sampled_from([SINGLE, MULTI, REGRESSION]), st.integers(0, 99), st.floats(0.5, 8))
def test_it_is_least_where_both_agree(task: str, seed: int, temperature: float) -> None:
    """Equal answers cost nothing, and others cost something, whatever the task and the temperature."""
    columns = 1 if task == REGRESSION else 3
    one, other = logits(seed, columns), logits(seed + 100, columns)
    assert distillation_loss(one, one, task=task, temperature=temperature).abs() < 1e-12
    assert distillation_loss(one, other, task=task, temperature=temperature) > 0


def test_the_formula_of_one_label() -> None:
    """A row costs T² · KL(p, q) at temperature T."""
    student, teacher, heat = logits(0), logits(1), 3.0
    p, q = (torch.softmax(side / heat, dim=1) for side in (teacher, student))
    expected = heat**2 * (p * (p / q).log()).sum(dim=1)
    torch.testing.assert_close(distillation_loss(student, teacher, temperature=heat, reduction="none"), expected)


def test_the_formula_of_many_labels() -> None:
    """Each class is a coin of its own, and a row costs the mean over them."""
    student, teacher, heat = logits(0), logits(1), 2.0
    p, q = (torch.sigmoid(side / heat) for side in (teacher, student))
    coins = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    found = distillation_loss(student, teacher, task=MULTI, temperature=heat, reduction="none")
    torch.testing.assert_close(found, heat**2 * coins.mean(dim=1))


def test_the_formula_of_a_number() -> None:
    """A regression costs the squared distance, without a temperature."""
    student, teacher = logits(0, 1), logits(1, 1)
    found = distillation_loss(student, teacher, task=REGRESSION, temperature=9.0)
    torch.testing.assert_close(found, (student - teacher).square().mean())


@pytest.mark.parametrize("task", [SINGLE, MULTI, REGRESSION])
def test_the_teacher_gets_no_gradient(task: str) -> None:
    """The student learns from the teacher, not the other way round."""
    student, teacher = (logits(seed, 1 if task == REGRESSION else 3).requires_grad_() for seed in (0, 1))
    torch.autograd.backward(distillation_loss(student, teacher, task=task))
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"task": "tagging"}, "tagging"),
        ({"teacher_logits": torch.ones(5, 2)}, "the same shape"),
        ({"reduction": "max"}, "reduction must be one of"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    """Shapes and settings are checked, and the message gives the value."""
    arguments = {"student_logits": torch.ones(5, 3), "teacher_logits": torch.ones(5, 3)} | changes
    with pytest.raises(ConfigError, match=message):
        distillation_loss(**arguments)  # type: ignore[arg-type]
