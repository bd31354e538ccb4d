"""The loss that suits a task, and what classes weigh in it."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowft.errors import ConfigError
from lowft.loss_choice import balanced_class_weights, resolve_loss
from lowft.losses import (
    binary_cross_entropy,
    cosine,
    cross_entropy,
    focal,
    mean_absolute_error,
    mean_squared_error,
)
from tests.test_losses import draw, ids

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


@given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=60))
@settings(max_examples=50, deadline=None)
def test_balanced_class_weights(labels: list[int]) -> None:
    """The mean weight over the rows is 1, every class that occurs has the same total, the others weigh 1."""
    weights = balanced_class_weights(labels, 6)
    assert weights[labels].mean().item() == pytest.approx(1, abs=1e-5)
    totals = {label: labels.count(label) * weights[label].item() for label in set(labels)}
    assert max(totals.values()) == pytest.approx(min(totals.values()), rel=1e-5)
    assert all(weights[label].item() == 1 for label in set(range(6)) - set(labels))


@pytest.mark.parametrize(
    ("task", "name", "function"),
    [
        (SINGLE, None, cross_entropy),
        (SINGLE, "cross_entropy", cross_entropy),
        (SINGLE, "focal", focal),
        (MULTI, None, binary_cross_entropy),
        (MULTI, "binary_cross_entropy", binary_cross_entropy),
        (MULTI, "focal", focal),
        (REGRESSION, None, mean_squared_error),
        (REGRESSION, "mean_squared_error", mean_squared_error),
        (REGRESSION, "mean_absolute_error", mean_absolute_error),
    ],
)
def test_resolve_by_name_or_task(task: str, name: str | None, function: Callable[..., Tensor]) -> None:
    """A name gives its function; no name gives the task's usual loss."""
    assert resolve_loss(name, task) is function


def test_resolve_binds_settings() -> None:
    """Smoothing, weights and reduction are bound, and survive pickling."""
    loss = resolve_loss("cross_entropy", SINGLE, label_smoothing=0.1, class_weights=[1.0, 2.0, 3.0], reduction="none")
    restored = pickle.loads(pickle.dumps(loss))  # noqa: S301 - what was pickled one line above
    logits, labels = draw(4, 3), ids(4, 3)
    expected = cross_entropy(
        logits, labels, label_smoothing=0.1, class_weights=torch.tensor([1.0, 2.0, 3.0]), reduction="none"
    )
    torch.testing.assert_close(loss(logits, labels), expected)
    torch.testing.assert_close(restored(logits, labels), expected)
    assert "cross_entropy" in repr(loss)


def test_resolve_returns_a_callers_function() -> None:
    """The caller's own function comes back as it is."""

    def own(logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.sum(dim=1) - labels).abs()

    assert resolve_loss(own, REGRESSION, reduction="none") is own


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: resolve_loss("mean_squared_error", SINGLE),
            "does not suit single.*use cross_entropy or focal",
        ),
        (lambda: resolve_loss("kl_divergence", SINGLE), "'kl_divergence' does not suit"),
        (lambda: resolve_loss("mse", REGRESSION), "use mean_squared_error or mean_absolute_error"),
        (lambda: resolve_loss(3, SINGLE), "must be a name.*not 3"),  # type: ignore[arg-type]
        (lambda: resolve_loss(None, "ner"), "task must be one of.*not 'ner'"),
        (
            lambda: resolve_loss("focal", SINGLE, label_smoothing=0.1),
            "label_smoothing has no effect on 'focal'",
        ),
        (lambda: resolve_loss(None, MULTI, label_smoothing=0.1), "'binary_cross_entropy' for multi_label"),
        (
            lambda: resolve_loss("focal", MULTI, class_weights=[1, 1]),
            "class_weights has no effect on 'focal'",
        ),
        (lambda: resolve_loss(None, REGRESSION, class_weights=[1, 1]), "'mean_squared_error' for regression"),
        (lambda: resolve_loss(cosine, SINGLE, class_weights=[1, 1]), "your own function"),
        (lambda: resolve_loss(None, SINGLE, label_smoothing=1.0), "below 1, not 1.0"),
        (lambda: resolve_loss(None, SINGLE, label_smoothing=math.nan), "below 1, not nan"),
        (lambda: resolve_loss(None, SINGLE, class_weights=[1, -1]), "not negative"),
        (lambda: resolve_loss(None, SINGLE, class_weights=torch.ones(2, 2)), r"\[classes\]"),
    ],
)
def test_resolve_refusals(call: Callable[[], object], words: str) -> None:
    """A name, task or setting that does not suit is refused with those that do."""
    with pytest.raises(ConfigError, match=words):
        call()
