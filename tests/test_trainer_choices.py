"""How the Trainer decides: when to evaluate, which weights to keep, when to stop, by which loss and which metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from lowft.errors import ConfigError
from lowft.losses import cross_entropy
from lowft.strategies import LayerwiseUnfreeze, Unfreeze
from lowft.trainer import Trainer
from tests.runs import NO_DROPOUT, tiny_trainer, train_records, weights
from tests.strategy_cases import tiny_rows
from tests.test_strategies_table import assert_same
from tests.tiny import tiny_model

Metrics = Callable[[Any, Any], Mapping[str, float]]


def scripted(*values: float) -> Metrics:
    """Return a metric function that gives these scores, one an evaluation, whatever the model does."""
    scores: Iterator[float] = iter(values)
    return lambda logits, labels: {"score": next(scores)}


def by_score(*values: float, **settings: Any) -> Trainer:
    """Return a run of 4 epochs that keeps weights by scripted scores."""
    choice: dict[str, Any] = {"metric_for_best_model": "score", "greater_is_better": True, "epochs": 4}
    return tiny_trainer(metrics=scripted(*values), **(choice | settings))


def at_evaluations(trainer: Trainer) -> list[dict[str, torch.Tensor]]:
    """Run to the end, and return the weights as they were at each evaluation."""
    return [weights(trainer) for result in trainer.steps() if result.metrics is not None]


@pytest.mark.parametrize(
    ("scores", "greater", "best"),
    [
        ((0.9, 0.5, 0.4, 0.3), True, 0),
        ((0.1, 0.5, 0.9, 0.3), True, 2),
        ((0.1, 0.2, 0.3, 0.4), True, 3),
        ((0.5, 0.5, 0.5, 0.5), True, 0),
        ((0.5, 0.1, 0.9, 0.2), False, 1),
    ],
)
def test_the_best_weights_are_returned(scores: tuple[float, ...], greater: bool, best: int) -> None:
    """A run that gets worse ends with its best weights; of equals, the first."""
    trainer = by_score(*scores, greater_is_better=greater)
    seen = at_evaluations(trainer)
    assert len(seen) == 4
    assert_same(seen[best], weights(trainer))
    assert not torch.equal(seen[best]["classifier.weight"], seen[best - 1]["classifier.weight"])


def test_a_score_that_is_nan_is_never_the_best() -> None:
    """A warning tells of it, and weights that have a score are preferred, whichever came first."""
    trainer = by_score(math.nan, 0.5, math.nan, 0.4)
    with pytest.warns(UserWarning, match="Your metric function gave NaN for score"):
        seen = at_evaluations(trainer)
    assert_same(seen[1], weights(trainer))


def test_the_last_weights_are_returned_when_asked() -> None:
    """With load_best_model_at_end=False, no copy is kept and the run ends where it ended."""
    trainer = by_score(0.9, 0.5, 0.4, 0.3, load_best_model_at_end=False)
    seen = at_evaluations(trainer)
    assert_same(seen[-1], weights(trainer))
    assert trainer._loop.kept.best == {}


@pytest.mark.parametrize("name", ["loss", "eval_loss", "accuracy", "eval_accuracy", "macro_f1"])
def test_a_known_metric_knows_which_way_it_is_better(name: str) -> None:
    """The kept weights are those of the least loss, or of the greatest accuracy, with or without the prefix."""
    rows = tiny_rows(40)
    trainer = tiny_trainer(
        model=tiny_model("bert", **NO_DROPOUT), train_dataset=rows, eval_dataset=rows,
        epochs=8, eval_steps=20, metric_for_best_model=name,
    )  # fmt: skip
    seen = at_evaluations(trainer)
    values = [record[f"eval_{name.removeprefix('eval_')}"] for record in trainer.history.filter("evaluate")]
    best = values.index(min(values) if "loss" in name else max(values))
    assert len(set(values)) > 1
    assert_same(seen[best], weights(trainer))


def test_metrics_of_ones_own_are_recorded() -> None:
    """They stand beside lowft's own, in results and history, computed from logits and encoded labels."""
    shapes: list[tuple[Any, ...]] = []

    def own(logits: Any, labels: Any) -> dict[str, float]:
        shapes.append((logits.shape, labels.tolist()))
        return {"hits": float((logits.argmax(axis=1) == labels).sum())}

    trainer = tiny_trainer(metrics=own, epochs=1)
    (*_, last) = trainer.steps()
    assert last.metrics is not None
    assert last.metrics["hits"] == 8 * last.metrics["accuracy"]
    assert shapes == [((8, 2), [0, 1, 0, 1, 0, 1, 0, 1])]
    assert trainer.history.filter("evaluate")[0]["eval_hits"] == last.metrics["hits"]
    report = trainer.evaluate()
    assert report.metrics["hits"] == last.metrics["hits"]
    assert "hits" in str(report)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"metric_for_best_model": "acuracy"}, r"'acuracy' is not measured.*did you mean 'accuracy'\?"),
        ({"metric_for_best_model": "mse", "greater_is_better": False}, "'mse' is not measured in single_label"),
        ({"metric_for_best_model": "score", "metrics": scripted(1)}, r"your own metric: say which way.*greater_is_b"),
        (
            {"strategies": [LayerwiseUnfreeze(target=0.8, metric="acc")]},
            r"Target\(metric='acc'\).*measured by accuracy",
        ),
        (
            {"strategies": [LayerwiseUnfreeze(min_improvement=0.1, metric="f1")]},
            r"MinImprovement\(metric='f1'\).*measured by",
        ),
        (
            {"strategies": [LayerwiseUnfreeze(target=0.8)], "eval_dataset": None},
            "a stage has a gate.*pass eval_dataset",
        ),
    ],
)
def test_a_metric_that_is_not_there_is_found_before_training(values: dict[str, Any], text: str) -> None:
    """A misspelt metric costs no training time."""
    with pytest.raises(ConfigError, match=text):
        tiny_trainer(**values)


def test_a_metric_that_ones_own_function_does_not_return_is_named() -> None:
    """The first evaluation says what there is instead."""
    trainer = by_score(0.5, metric_for_best_model="f2")
    with pytest.raises(
        ConfigError, match=r"metric_for_best_model='f2' was not measured.*must return it.*accuracy.*score"
    ):
        trainer.fit()


@pytest.mark.parametrize(
    ("settings", "evaluations"),
    [
        ({}, 7),
        ({"early_stopping_patience": 1}, 3),
        ({"early_stopping_patience": 2}, 6),
        ({"early_stopping_patience": 1, "early_stopping_threshold": 0.25}, 2),
        ({"early_stopping_patience": 3, "early_stopping_threshold": 0.05}, 7),
    ],
)
def test_early_stopping_counts_evaluations_without_gain(settings: dict[str, Any], evaluations: int) -> None:
    """A stage ends after so many evaluations in a row that brought no more than the threshold."""
    trainer = by_score(0.1, 0.3, 0.3, 0.4, 0.2, 0.4, 0.1, epochs=7, **settings)
    trainer.fit()
    assert len(trainer.history.filter("evaluate")) == evaluations
    assert trainer.finished
    assert trainer._loop.kept.best_value == max((0.1, 0.3, 0.3, 0.4, 0.2, 0.4, 0.1)[:evaluations])


def test_each_stage_has_its_own_patience() -> None:
    """A stage that stops early hands over to the next one, which starts counting anew."""
    schedule = LayerwiseUnfreeze((Unfreeze(top=0), Unfreeze(top=1)))
    trainer = by_score(0.5, 0.4, 0.6, 0.5, strategies=[schedule], early_stopping_patience=1)
    trainer.fit()
    stages = [record["stage_name"] for record in trainer.history.filter("evaluate")]
    assert stages == ["head", "head", "top 1 block", "top 1 block"]


@pytest.mark.parametrize(
    ("settings", "steps", "evaluated"),
    [
        ({"epochs": 2}, 8, [4, 8]),
        ({"epochs": 1.5}, 6, [4, 6]),
        ({"epochs": 0.1}, 1, [1]),
        ({"epochs": 5, "max_steps": 3}, 3, [3]),
        ({"epochs": 1, "max_steps": 9}, 9, [4, 8, 9]),
        ({"epochs": 2, "eval_steps": 3}, 8, [3, 6, 8]),
        ({"max_steps": 10, "eval_steps": 4}, 10, [4, 8, 10]),
        ({"max_steps": 6, "batch_size": 14, "eval_steps": 3}, 6, [3, 6]),
        ({"epochs": 1, "eval_steps": 1}, 4, [1, 2, 3, 4]),
        ({"epochs": 1, "eval_steps": 100}, 4, [4]),
        ({"epochs": 1, "batch_size": 2, "gradient_accumulation_steps": 3}, 3, [3]),
    ],
)
def test_a_run_has_the_steps_and_evaluations_that_were_asked_for(
    settings: dict[str, Any], steps: int, evaluated: list[int]
) -> None:
    """Epochs may be fractional; max_steps replaces them; the end is always evaluated."""
    trainer = tiny_trainer(**settings)
    trainer.fit()
    assert len(trainer.history.filter("train")) == steps
    assert [record["step"] for record in trainer.history.filter("evaluate")] == evaluated


def _scaled(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return 2 * cross_entropy(logits, labels)


def test_a_loss_of_ones_own_is_minimised_and_reported() -> None:
    """A function of (logits, labels) takes the place of the task's loss, in training and in evaluation."""
    doubled, plain = tiny_trainer(loss=_scaled, epochs=1), tiny_trainer(epochs=1)
    doubled.fit()
    plain.fit()
    assert train_records(doubled, "loss")[0] == pytest.approx(2 * train_records(plain, "loss")[0])
    assert train_records(doubled, "grad_norm")[0] == pytest.approx(2 * train_records(plain, "grad_norm")[0], rel=1e-5)
    own, usual = (trainer.history.filter("evaluate")[0]["eval_loss"] for trainer in (doubled, plain))
    assert own > 1.5 * usual


def test_balanced_class_weights_are_those_of_the_training_rows() -> None:
    """Asked for "balanced" ones, rare classes weigh as much as frequent ones."""
    rows = {"text": tiny_rows()["text"], "label": ["neg"] * 11 + ["pos"] * 3}
    losses = []
    for weights_ in (None, "balanced", (14 / 22, 14 / 6)):
        trainer = tiny_trainer(train_dataset=rows, class_weights=weights_, epochs=1, eval_dataset=None)
        trainer.fit()
        losses.append(train_records(trainer, "loss"))
    assert losses[1] == pytest.approx(losses[2], rel=1e-5)
    assert losses[0][0] != pytest.approx(losses[1][0], rel=1e-3)


def test_label_smoothing_changes_the_loss() -> None:
    """The first step's loss is the smoothed one of the same logits."""
    losses = []
    for smoothing in (0.0, 0.2):
        trainer = tiny_trainer(label_smoothing=smoothing, epochs=1)
        trainer.fit()
        losses.append(train_records(trainer, "loss")[0])
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
    with pytest.raises(ConfigError, match="label_smoothing has no effect on your own function"):
        tiny_trainer(label_smoothing=0.2, loss=_scaled)


def test_a_regression_predicts_numbers() -> None:
    """Floats make a regression: best weights by the least squared error, predictions as numbers."""
    texts = tiny_rows(20)["text"]
    rows = (texts, [len(text) / 10 for text in texts])
    trainer = tiny_trainer(
        model=tiny_model("bert", num_labels=1), train_dataset=rows, eval_dataset=None, max_steps=60, learning_rate=3e-3
    )
    before = trainer.evaluate(rows).metrics["mse"]
    trainer.fit()
    report = trainer.evaluate(rows)
    assert report.task == "regression"
    assert report.metrics["mse"] < before / 2
    predictions = trainer.predict(texts)
    assert all(isinstance(value, float) for value in predictions)
    assert np.mean((np.array(predictions) - np.array(rows[1])) ** 2) == pytest.approx(report.metrics["mse"], rel=1e-4)
    with pytest.raises(ConfigError, match="a regression predicts numbers"):
        trainer.predict_proba(texts)


def test_several_labels_a_row_are_learned() -> None:
    """Lists of labels make a multi-label task, with one sigmoid a class and lists as predictions."""
    texts = tiny_rows(24)["text"]
    labels = [
        [name for name, bit in (("short", len(text) < 25), ("even", row % 2 == 0)) if bit]
        for row, text in enumerate(texts)
    ]
    trainer = tiny_trainer(train_dataset=(texts, labels), eval_dataset=None, max_steps=120, learning_rate=3e-3)
    trainer.fit()
    assert trainer.labels.task == "multi_label_classification"
    report = trainer.evaluate((texts, labels))
    assert report.metrics["micro_f1"] > 0.9
    predicted = trainer.predict(texts)
    assert sum(set(one) == set(other) for one, other in zip(predicted, labels, strict=True)) == round(
        report.metrics["accuracy"] * 24
    )
    assert trainer.predict_proba(texts).shape == (24, 2)


def test_pairs_of_texts_are_learned() -> None:
    """Two texts a row go into one input; a model of pairs refuses single texts."""
    first, second = tiny_rows(24)["text"], tiny_rows(24, seed=5)["text"]
    rows = {"premise": first, "hypothesis": second, "label": [row % 2 for row in range(24)]}
    trainer = tiny_trainer(train_dataset=rows, eval_dataset=None, max_steps=80, learning_rate=3e-3)
    trainer.fit()
    assert trainer.evaluate(rows).metrics["accuracy"] > 0.9
    assert trainer.predict(list(zip(first, second, strict=True)))[:2] == trainer.predict(rows)[:2]
    with pytest.raises(ValueError, match="trained on pairs of texts; received single texts"):
        trainer.predict(first)
    with pytest.raises(ValueError, match="train_dataset holds pairs and eval_dataset single texts"):
        tiny_trainer(train_dataset=rows)


THREE = (Unfreeze(top=0, max_steps=2), Unfreeze(top=1, max_steps=2), Unfreeze(top="all", max_steps=2))


@pytest.mark.parametrize("keep", [True, False])
def test_a_stage_that_reaches_the_target_ends_the_training(keep: bool) -> None:
    """The deeper stages are never run, and the history says why."""
    unfreeze = LayerwiseUnfreeze(THREE, target=0.8, metric="score")
    trainer = by_score(0.7, 0.85, 0.9, strategies=[unfreeze], load_best_model_at_end=keep)
    seen = at_evaluations(trainer)
    assert trainer.finished
    stages = trainer.history.filter("stage")
    assert [(stage["stage_name"], stage["decision"]) for stage in stages] == [
        ("head", "continue"),
        ("top 1 block", "stop"),
    ]
    assert stages[1]["reason"] == "score 0.8500 reached the target 0.8"
    assert_same(seen[-1], weights(trainer))


@pytest.mark.parametrize("keep", [True, False])
def test_a_stage_that_brings_too_little_is_undone(keep: bool) -> None:
    """Its weights go back to what they were before it, to the bit, and training ends."""
    unfreeze = LayerwiseUnfreeze(THREE, min_improvement=0.05, metric="score")
    trainer = by_score(0.7, 0.72, 0.9, strategies=[unfreeze], load_best_model_at_end=keep)
    after_head, after_block = at_evaluations(trainer)
    assert [stage["decision"] for stage in trainer.history.filter("stage")] == ["continue", "roll back"]
    assert "less than the improvement of 0.05" in trainer.history.filter("stage")[1]["reason"]
    assert not torch.equal(after_head["classifier.weight"], after_block["classifier.weight"])
    assert_same(after_head, weights(trainer))


def test_the_best_weights_pass_from_stage_to_stage() -> None:
    """A stage begins with the best weights so far, not with the last ones of the stage before."""
    schedule = LayerwiseUnfreeze((Unfreeze(top=0, max_steps=4), Unfreeze(top=1, max_steps=1)))
    trainer = by_score(0.9, 0.2, 0.1, 0.1, 0.3, strategies=[schedule], eval_steps=1, learning_rate=1e-9)
    seen: list[dict[str, torch.Tensor]] = []
    for result in trainer.steps():
        seen.append(weights(trainer))
        if result.step in {2, 3, 4}:
            with torch.no_grad():
                trainer.model.get_parameter("classifier.bias").add_(1.0)  # a mark that only worse weights carry
    torch.testing.assert_close(seen[4]["classifier.bias"], seen[0]["classifier.bias"], rtol=0, atol=1e-6)
    assert seen[3]["classifier.bias"][0] > seen[0]["classifier.bias"][0] + 1
    assert_same(seen[0], weights(trainer))
