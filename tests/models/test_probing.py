"""The output layer set by regression: for every kind of label, on any head, and nothing else changed."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from lowft.data.batching import Batch
from lowft.errors import ConfigError, DataError, ModelError
from lowft.models.probing import find_output_layer, fit_outputs, probe_head_
from tests.runs import tiny_trainer, weights
from tests.tiny import tiny_model

X = np.random.default_rng(0).normal(size=(60, 5))


def batches_of(trainer: Any) -> list[Batch]:
    """Return the training rows of a Trainer as two batches."""
    rows = trainer._parts.train_rows
    return [rows.collate(list(range(7))), rows.collate(list(range(7, len(rows))))]


@pytest.mark.parametrize("arch", ["bert", "roberta", "distilbert"])
def test_only_the_output_layer_changes(arch: str) -> None:
    """The rows that were fitted are told apart, and every other weight is byte-identical."""
    trainer = tiny_trainer(model=tiny_model(arch))
    before = weights(trainer)
    trainer.model.train()
    report = probe_head_(trainer.model, batches_of(trainer), strengths=[1000.0])
    assert all(module.training for module in trainer.model.modules())
    head = find_output_layer(trainer.model)
    changed = {name for name, tensor in weights(trainer).items() if not torch.equal(tensor, before[name])}
    assert changed == {f"{head}.weight", f"{head}.bias"}
    assert (report.rows, report.strength) == (14, 1000.0)
    trainer.model.eval()
    for batch in batches_of(trainer):
        assert batch.labels is not None
        assert torch.equal(trainer.model(**batch.inputs).logits.argmax(1), batch.labels)


@given(scale=st.floats(1e-3, 1e3), classes=st.integers(2, 4))
@settings(max_examples=15, deadline=None)
def test_the_scale_of_the_features_does_not_matter(scale: float, classes: int) -> None:
    """Longer features get smaller weights and the same logits."""
    labels = X[:, :classes].argmax(1)
    weight, bias, report = fit_outputs(X, labels, classes, strengths=[1.0])
    scaled, shifted, _ = fit_outputs(X * scale, labels, classes, strengths=[1.0])
    assert report.folds == min(4, np.bincount(labels).min())
    np.testing.assert_allclose(X @ weight.T + bias, (X * scale) @ scaled.T + shifted, atol=2e-2)
    assert ((X @ weight.T + bias).argmax(1) == labels).mean() > 0.8


def test_several_classes_a_row_and_numbers() -> None:
    """Each class of several gets its own fit; a class that no row has is improbable; numbers get a line."""
    marks = (X[:, :3] > 0).astype(float)
    marks[:, 2] = 0
    weight, bias, _ = fit_outputs(X, marks, 3)
    logits = X @ weight.T + bias
    assert ((logits[:, :2] > 0) == marks[:, :2]).mean() > 0.9
    assert (logits[:, 2] < -3).all()
    numbers = 2 * X[:, 0] - X[:, 3] + 5
    weight, bias, report = fit_outputs(X, numbers, 1)
    assert report.strength == 100.0
    np.testing.assert_allclose((X @ weight.T + bias)[:, 0], numbers, atol=0.2)


def test_a_class_without_rows_is_never_predicted() -> None:
    """Of three outputs of which two occur, the third has the lowest logit on every row."""
    labels = np.where(X[:, 0] > 0, 2, 0)
    weight, bias, _ = fit_outputs(X, labels, 3)
    logits = X @ weight.T + bias
    assert (logits.argmin(1) == 1).all()
    assert (logits.argmax(1) == labels).mean() > 0.9


def test_one_row_a_class_is_not_cut_into_folds() -> None:
    """What cannot be cross-validated takes the default, and the report says so."""
    _, _, report = fit_outputs(X[:2], np.array([0, 1]), 2)
    assert (report.folds, report.strength) == (0, 1.0)
    assert "too few" in str(report)


def test_what_cannot_be_probed_is_named() -> None:
    """Rows without labels, models without a fitting layer, and settings out of their range."""
    trainer = tiny_trainer()
    bare = [Batch(batch.inputs) for batch in batches_of(trainer)]
    with pytest.raises(DataError, match="labelled rows, and there are none"):
        probe_head_(trainer.model, bare)
    with pytest.raises(ModelError, match=r"'score' of GPT2ForSequenceClassification read .*PooledHead"):
        probe_head_(tiny_model("gpt2"), batches_of(trainer))
    with pytest.raises(ModelError, match="no linear output layer"):
        find_output_layer(nn.Sequential(nn.ReLU()))
    for wrong in ([], [0.0], "1"):
        with pytest.raises(ConfigError, match="strengths"):
            probe_head_(trainer.model, bare, strengths=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="folds"):
        probe_head_(trainer.model, bare, folds=1)
