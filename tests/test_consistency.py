"""The consistency losses against their formulas, and what moves them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lowft.consistency import consistency_loss, first_of_row, r_drop_loss, signal_threshold, task_of
from lowft.errors import ConfigError

TASKS = ("single_label_classification", "multi_label_classification", "regression")


def logits(seed: int, rows: int = 4, columns: int = 3) -> torch.Tensor:
    """Return random logits with a gradient."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).mul(2).requires_grad_()


def test_one_class_follows_the_formula() -> None:
    """It is KL(sharpened answer to the row, plain answer to the copy), and no gradient flows to the row."""
    copies, rows = logits(1), logits(2)
    found = consistency_loss(copies, rows, temperature=0.4)
    target = (rows / 0.4).softmax(1).detach()
    expected = (target * (target.log() - copies.log_softmax(1))).sum(1).mean()
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)
    torch.autograd.backward(found)
    assert rows.grad is None
    assert copies.grad is not None


def test_several_classes_are_coins() -> None:
    """With several labels each class is a coin of its own."""
    copies, rows = logits(1), logits(2)
    p, q = rows.sigmoid(), copies.sigmoid()
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    found = consistency_loss(copies, rows, task="multi_label_classification")
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)


def test_numbers_are_compared_by_square() -> None:
    """In a regression it is the squared distance."""
    copies, rows = logits(1, columns=1), logits(2, columns=1)
    found = consistency_loss(copies, rows, task="regression")
    assert found.item() == pytest.approx(F.mse_loss(copies, rows).item(), abs=1e-6)


@given(st.integers(0, 1000), st.sampled_from(TASKS))
def test_equal_answers_cost_nothing_and_others_something(seed: int, task: str) -> None:
    """Both losses are 0 for equal answers, else above; R-Drop's does not mind which pass came first."""
    one, other = logits(seed), logits(seed + 1)
    assert consistency_loss(one, one, task=task).item() == pytest.approx(0, abs=1e-6)
    assert consistency_loss(one, other, task=task).item() > 0
    assert r_drop_loss(one, one, task=task).item() == pytest.approx(0, abs=1e-6)
    assert r_drop_loss(one, other, task=task).item() > 0
    assert r_drop_loss(one, other, task=task).item() == pytest.approx(r_drop_loss(other, one, task=task).item())


def test_r_drop_moves_both() -> None:
    """Gradients flow into both passes, and one class follows the formula."""
    one, other = logits(1), logits(2)
    found = r_drop_loss(one, other)
    p, q = one.softmax(1), other.softmax(1)
    expected = ((p * (p / q).log()).sum(1) + (q * (q / p).log()).sum(1)).mean() / 2
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)
    torch.autograd.backward(found)
    assert one.grad is not None
    assert other.grad is not None


def test_unsure_rows_pull_at_nothing() -> None:
    """Below the confidence a row costs 0, but counts in the mean."""
    rows = torch.tensor([[4.0, 0.0], [0.1, 0.0]])
    each = consistency_loss(torch.zeros(2, 2), rows, confidence=0.9, reduction="none")
    assert each[0] > 0
    assert each[1] == 0
    assert consistency_loss(torch.zeros(2, 2), rows, confidence=0.9) == each[0] / 2
    several = torch.tensor([[4.0, 4.0], [4.0, 0.1]])  # the second is unsure of one of its classes
    each = consistency_loss(
        torch.zeros(2, 2), several, task="multi_label_classification", confidence=0.9, reduction="none"
    )
    assert (each > 0).tolist() == [True, False]


@given(st.sampled_from(["linear", "log", "exp"]), st.floats(0, 1), st.integers(2, 20))
def test_the_threshold_grows_from_chance(annealing: Any, done: float, classes: int) -> None:
    """It stays between 1 ÷ classes and 1, and never falls."""
    now = signal_threshold(annealing, done=done, classes=classes)
    assert 1 / classes - 1e-9 <= now <= 1 + 1e-9
    assert signal_threshold(annealing, done=min(1.0, done + 0.1), classes=classes) >= now


def test_the_schedules_are_those_of_the_paper() -> None:
    """Half way, log has released more of the labels than linear, and exp less."""
    log, linear, exp = (signal_threshold(name, done=0.5, classes=2) for name in ("log", "linear", "exp"))
    assert log == pytest.approx((1 - math.exp(-2.5)) / 2 + 0.5)
    assert linear == pytest.approx(0.75)
    assert exp == pytest.approx(math.exp(-2.5) / 2 + 0.5)


def test_the_task_is_told_from_labels() -> None:
    """Ids, numbers and vectors are the three tasks."""
    labels = (torch.tensor([1, 0]), torch.tensor([[1.0, 0.0]]), torch.tensor([0.5]))
    assert tuple(task_of(values) for values in labels) == TASKS
    assert first_of_row("abab") == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, "temperature must be above 0 and finite, not 0"),
        ({"confidence": 1}, "confidence must be a finite number at least 0 and below 1; received 1"),
        ({"task": "regresion"}, "task must be one of"),
        ({"task": "regression", "confidence": 0.5}, r"leave temperature at 1 and confidence at 0; received .*=0\.5"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    """A setting outside its range is refused with the rule and the value."""
    with pytest.raises(ConfigError, match=message):
        consistency_loss(logits(1), logits(2), **settings)


def test_shapes_must_agree() -> None:
    """Logits of another shape are refused."""
    with pytest.raises(ConfigError, match="same shape"):
        consistency_loss(logits(1), logits(2, rows=3))
