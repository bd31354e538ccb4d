"""Losses: values against independent formulas, invariants, extremes, and every refusal."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowft.errors import ConfigError, LabelError
from lowft.loss_choice import balanced_class_weights
from lowft.losses import (
    Reduction,
    binary_cross_entropy,
    cosine,
    cross_entropy,
    focal,
    kl_divergence,
    mean_absolute_error,
    mean_squared_error,
    supervised_contrastive,
)


def draw(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    """Return the same normal numbers for the same shape and seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def ids(rows: int, classes: int, seed: int = 1) -> Tensor:
    """Return the same class ids for the same seed."""
    return torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(seed))


# Each loss as a function of (reduction), over the same seven rows: one table for what all must do.
ROWS = 7
LOSSES: dict[str, Callable[[slice, Reduction], Tensor]] = {
    "cross_entropy": lambda part, reduction: cross_entropy(
        draw(ROWS, 4)[part],
        ids(ROWS, 4)[part],
        label_smoothing=0.1,
        class_weights=torch.tensor([1.0, 2.0, 0.5, 4.0]),
        reduction=reduction,
    ),
    "focal": lambda part, reduction: focal(draw(ROWS, 4)[part], ids(ROWS, 4)[part], reduction=reduction),
    "multi_label_focal": lambda part, reduction: focal(
        draw(ROWS, 4)[part], (draw(ROWS, 4, seed=2) > 0)[part], reduction=reduction
    ),
    "binary_cross_entropy": lambda part, reduction: binary_cross_entropy(
        draw(ROWS, 4)[part],
        (draw(ROWS, 4, seed=2) > 0)[part],
        pos_weight=torch.tensor([1.0, 2.0, 0.5, 4.0]),
        reduction=reduction,
    ),
    "mean_squared_error": lambda part, reduction: mean_squared_error(
        draw(ROWS, 1)[part], draw(ROWS, seed=3)[part], reduction=reduction
    ),
    "mean_absolute_error": lambda part, reduction: mean_absolute_error(
        draw(ROWS, 1)[part], draw(ROWS, seed=3)[part], reduction=reduction
    ),
    "kl_divergence": lambda part, reduction: kl_divergence(
        draw(ROWS, 4)[part], draw(ROWS, 4, seed=4)[part], temperature=3.0, reduction=reduction
    ),
    "cosine": lambda part, reduction: cosine(draw(ROWS, 4)[part], draw(ROWS, 4, seed=4)[part], reduction=reduction),
}


@pytest.mark.parametrize("name", LOSSES)
def test_reductions_agree(name: str) -> None:
    """`none` gives one value a row, `sum` their sum, `mean` their sum divided by the number of rows."""
    loss = LOSSES[name]
    rows = loss(slice(None), "none")
    assert rows.shape == (ROWS,)
    torch.testing.assert_close(loss(slice(None), "sum"), rows.sum())
    torch.testing.assert_close(loss(slice(None), "mean"), rows.sum() / ROWS)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("cut", [1, 3, 6])
def test_ragged_parts_make_up_the_batch(name: str, cut: int) -> None:
    """The sums over two unequal parts, divided by all rows, are the mean of the whole: weights included."""
    loss = LOSSES[name]
    parts = loss(slice(0, cut), "sum") + loss(slice(cut, None), "sum")
    torch.testing.assert_close(parts / ROWS, loss(slice(None), "mean"))


def test_cross_entropy_is_pytorchs_without_weights() -> None:
    """Without class weights, value and smoothing are those of PyTorch."""
    logits, labels = draw(9, 5), ids(9, 5)
    expected = F.cross_entropy(logits, labels, label_smoothing=0.2)
    torch.testing.assert_close(cross_entropy(logits, labels, label_smoothing=0.2), expected)


def test_class_weights_multiply_rows_and_divide_by_rows() -> None:
    """A row's loss is multiplied by its class's weight, and the mean divides by rows, unlike PyTorch's."""
    logits, labels, weights = draw(6, 3), ids(6, 3), torch.tensor([0.5, 1.0, 3.0])
    plain = F.cross_entropy(logits, labels, reduction="none")
    expected = (weights[labels] * plain).sum() / 6
    torch.testing.assert_close(cross_entropy(logits, labels, class_weights=weights), expected)
    assert not torch.isclose(F.cross_entropy(logits, labels, weight=weights), expected)


def test_smoothed_and_weighted_row() -> None:
    """With smoothing, the weight of the row's own class multiplies the whole smoothed loss."""
    logits, weights = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([5.0, 1.0, 1.0])
    log_p = logits.log_softmax(dim=1)[0]
    target = torch.tensor([0.8, 0.1, 0.1])
    expected = -5 * (target * log_p).sum()
    actual = cross_entropy(logits, torch.tensor([0]), label_smoothing=0.3, class_weights=weights)
    torch.testing.assert_close(actual, expected)


@given(gamma=st.floats(0, 5), seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_focal_formula(gamma: float, seed: int) -> None:
    """Focal loss is (1 − p)^γ times cross-entropy, so never above it, and equal to it at γ = 0."""
    logits, labels = draw(5, 4, seed=seed).double(), ids(5, 4, seed=seed)
    plain = F.cross_entropy(logits, labels, reduction="none")
    p = logits.softmax(dim=1).gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(focal(logits, labels, gamma=gamma, reduction="none"), (1 - p) ** gamma * plain)


def test_multi_label_focal_formula() -> None:
    """The multi-label form is the formula for each class's own yes or no; γ = 0 is binary cross-entropy."""
    logits, labels = draw(5, 3).double(), draw(5, 3, seed=9) > 0
    p = torch.where(labels, logits.sigmoid(), 1 - logits.sigmoid())
    expected = (-((1 - p) ** 1.5) * p.log()).mean()
    torch.testing.assert_close(focal(logits, labels, gamma=1.5), expected)
    torch.testing.assert_close(focal(logits, labels, gamma=0), binary_cross_entropy(logits, labels))


def test_focal_class_weights() -> None:
    """Class weights multiply a row's focal loss as they do its cross-entropy."""
    logits, labels, weights = draw(6, 3), ids(6, 3), torch.tensor([0.5, 1.0, 3.0])
    rows = focal(logits, labels, reduction="none")
    weighted = focal(logits, labels, class_weights=weights, reduction="none")
    torch.testing.assert_close(weighted, weights[labels] * rows)


def test_kl_divergence_formula() -> None:
    """It is T² times the divergence of the softened teacher from the softened student."""
    student, teacher, temperature = draw(4, 5).double(), draw(4, 5, seed=8).double(), 4.0
    p, q = (teacher / temperature).softmax(dim=1), (student / temperature).softmax(dim=1)
    expected = temperature**2 * (p * (p / q).log()).sum(dim=1)
    actual = kl_divergence(student, teacher, temperature=temperature, reduction="none")
    torch.testing.assert_close(actual, expected)


@given(seed=st.integers(0, 10_000), temperature=st.floats(0.25, 20), shift=st.floats(-50, 50))
@settings(max_examples=30, deadline=None)
def test_kl_divergence_invariants(seed: int, temperature: float, shift: float) -> None:
    """It is not negative, 0 for equal logits, and blind to a constant added to all of a row's logits."""
    student, teacher = draw(3, 4, seed=seed).double(), draw(3, 4, seed=seed + 1).double()
    value = kl_divergence(student, teacher, temperature=temperature)
    assert value >= -1e-12
    torch.testing.assert_close(kl_divergence(student + shift, teacher, temperature=temperature), value)
    assert abs(kl_divergence(teacher, teacher, temperature=temperature).item()) < 1e-12


def test_cosine_values() -> None:
    """0 for one direction at any length, 1 at right angles and for a zero vector, 2 for opposed."""
    states = torch.tensor([[1.0, 2.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    targets = torch.tensor([[10.0, 20.0], [0.0, 2.0], [-3.0, -3.0], [1.0, 1.0]])
    torch.testing.assert_close(cosine(states, targets, reduction="none"), torch.tensor([0.0, 1.0, 2.0, 1.0]))


def contrastive_reference(features: Tensor, labels: list[int], temperature: float) -> list[float]:
    """Write equation 2 out in loops; a row without a positive costs 0."""
    unit = [row / row.norm() for row in features.double()]
    size, losses = len(unit), []
    for i in range(size):
        scores = {a: math.exp(float(unit[i] @ unit[a]) / temperature) for a in range(size) if a != i}
        positives = [a for a in scores if labels[a] == labels[i]]
        terms = [math.log(scores[a] / sum(scores.values())) for a in positives]
        losses.append(-sum(terms) / len(terms) if terms else 0.0)
    return losses


@given(labels=st.lists(st.integers(0, 3), min_size=2, max_size=9), temperature=st.floats(0.2, 2))
@settings(max_examples=30, deadline=None)
def test_supervised_contrastive_formula(labels: list[int], temperature: float) -> None:
    """Rows follow the paper's equation; the mean counts only rows that have a positive."""
    features, targets = draw(len(labels), 6), torch.tensor(labels)
    expected = contrastive_reference(features, labels, temperature)
    rows = supervised_contrastive(features, targets, temperature=temperature, reduction="none")
    torch.testing.assert_close(rows, torch.tensor(expected), atol=1e-4, rtol=1e-4)
    counted = sum(labels.count(label) > 1 for label in labels)
    mean = supervised_contrastive(features, targets, temperature=temperature)
    assert mean.item() == pytest.approx(sum(expected) / max(counted, 1), abs=1e-4)


@pytest.mark.parametrize("labels", [[0], [0, 1, 2]])
def test_supervised_contrastive_without_positives(labels: list[int]) -> None:
    """A batch in which no class occurs twice, even of one row, costs 0 and sends back finite gradients."""
    features = draw(len(labels), 4).requires_grad_()
    loss = supervised_contrastive(features, torch.tensor(labels))
    (gradient,) = torch.autograd.grad(loss, features)
    assert loss.item() == 0
    assert gradient.isfinite().all()


@pytest.mark.parametrize("size", [50.0, 1e4, 1e8])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_extreme_logits_stay_finite(size: float, gamma: float) -> None:
    """In float32, very sure logits, right or wrong, give finite losses and gradients, and 0 where right."""
    logits = torch.tensor([[size, -size], [size, -size]], requires_grad=True)
    losses = [
        cross_entropy(logits, torch.tensor([0, 1]), reduction="none"),
        focal(logits, torch.tensor([0, 1]), gamma=gamma, reduction="none"),
        focal(logits, torch.tensor([[1, 0], [0, 1]]), gamma=gamma, reduction="none"),
        binary_cross_entropy(logits, torch.tensor([[1, 0], [0, 1]]), reduction="none"),
        kl_divergence(logits, torch.tensor([[size, -size], [-size, size]]), reduction="none"),
    ]
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()
        assert loss[0].item() == pytest.approx(0, abs=1e-6)
        assert loss[1].item() >= size


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    """Half-precision logits give the float32 loss of the same numbers."""
    logits, labels = draw(5, 3).to(dtype), ids(5, 3)
    actual = cross_entropy(logits, labels)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, cross_entropy(logits.float(), labels))


def test_regression_shapes() -> None:
    """[batch, 1] is [batch]; several targets are averaged within a row; integer labels are numbers too."""
    predictions, labels = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1, 0, 1])
    rows = torch.tensor([0.0, 4.0, 9.0])
    for shaped in (predictions, predictions[:, 0]):
        for target in (labels, labels[:, None]):
            torch.testing.assert_close(mean_squared_error(shaped, target, reduction="none"), rows)
    two = torch.tensor([[1.0, 3.0]])
    torch.testing.assert_close(mean_absolute_error(two, torch.zeros(1, 2), reduction="none"), torch.tensor([2.0]))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: cross_entropy(draw(2, 3), ids(3, 3)), ConfigError, r"2 rows.*received \[3\] int64"),
        (lambda: cross_entropy(draw(2, 3), torch.zeros(2)), ConfigError, r"class ids.*float32"),
        (
            lambda: cross_entropy(draw(2), ids(2, 3)),
            ConfigError,
            r"\[batch, classes\]; received \[2\] float32",
        ),
        (lambda: cross_entropy(ids(2, 3)[None], ids(1, 2)), ConfigError, r"must be floats.*int64"),
        (lambda: cross_entropy(draw(2, 1), ids(2, 1)), ConfigError, r"at least 2 classes; received \[2, 1\]"),
        (
            lambda: cross_entropy(draw(2, 3), torch.tensor([0, 3])),
            LabelError,
            r"0 to 2; rows \[1\] hold \[3\]",
        ),
        (lambda: cross_entropy(draw(2, 3), torch.tensor([-100, 0])), LabelError, r"rows \[0\] hold \[-100\]"),
        (lambda: cross_entropy(draw(2, 3), ids(2, 3), label_smoothing=1.0), ConfigError, r"below 1, not 1.0"),
        (
            lambda: cross_entropy(draw(2, 3), ids(2, 3), class_weights=torch.ones(2)),
            ConfigError,
            r"class_weights.*3 classes; received \[2\] float32",
        ),
        (
            lambda: cross_entropy(draw(2, 3), ids(2, 3), reduction="avg"),  # type: ignore[arg-type]
            ConfigError,
            "none, mean, sum, not 'avg'",
        ),
        (lambda: cross_entropy(draw(0, 3), ids(0, 3)), ConfigError, "batch without rows"),
        (lambda: focal(draw(2, 3), ids(2, 3), gamma=-1), ConfigError, "gamma must be at least 0, not -1"),
        (
            lambda: focal(draw(2, 3), torch.zeros(2, 3), class_weights=torch.ones(3)),
            ConfigError,
            "one label a row",
        ),
        (lambda: focal(draw(2, 3), torch.full((2, 3), 0.5)), LabelError, "must be 0 or 1"),
        (lambda: focal(draw(2, 3), [0, 1]), ConfigError, "received list"),  # type: ignore[arg-type]
        (
            lambda: binary_cross_entropy(draw(2, 3), ids(2, 3)),
            ConfigError,
            r"logits \[2, 3\] float32 and labels \[2\] int64",
        ),
        (lambda: binary_cross_entropy(draw(2, 3), torch.full((2, 3), 2)), LabelError, "from 0 to 1"),
        (
            lambda: mean_squared_error(draw(2, 3), draw(2)),
            ConfigError,
            r"predictions \[2, 3\] float32 and labels \[2\] float32",
        ),
        (lambda: mean_absolute_error(ids(2, 3), draw(2)), ConfigError, "must be floats"),
        (lambda: kl_divergence(draw(2, 3), draw(2, 4)), ConfigError, r"\[2, 3\] float32 and \[2, 4\]"),
        (
            lambda: kl_divergence(draw(2, 3), draw(2, 3), temperature=0),
            ConfigError,
            "above 0 and finite, not 0",
        ),
        (lambda: cosine(draw(2, 3), draw(3, 3)), ConfigError, "same shape"),
        (
            lambda: supervised_contrastive(draw(2, 3), ids(2, 2), temperature=-1.0),
            ConfigError,
            "temperature must be above 0",
        ),
        (lambda: supervised_contrastive(draw(2, 3), ids(3, 2)), ConfigError, "each of the 2 rows"),
        (lambda: balanced_class_weights([], 2), ConfigError, "at least one"),
        (lambda: balanced_class_weights([0.5], 2), ConfigError, "float32"),
        (lambda: balanced_class_weights([0, 2], 2), LabelError, r"0 to 1; rows \[1\] hold \[2\]"),
    ],
)
def test_refusals(call: Callable[[], object], error: type[Exception], words: str) -> None:
    """What does not fit is refused with the rule and what was received."""
    with pytest.raises(error, match=words):
        call()
