"""Batches of at most so many tokens: the same training, whatever strategies do beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from lowft.augment import RandomSwap
from lowft.data.batching import BatchRandom, Example
from lowft.strategies import (
    Augment,
    Distill,
    LayerwiseUnfreeze,
    PartialFreeze,
    PooledHead,
    Probe,
    Prune,
    Quantize,
    SelfTraining,
    Unfreeze,
)
from lowft.strategy import Strategy
from lowft.trainer import Trainer
from tests.runs import NO_DROPOUT, tiny_trainer, train_records, weights
from tests.strategy_cases import tiny_rows, tiny_teacher
from tests.test_strategies_table import assert_same
from tests.tiny import tiny_model

_EXAMINED = 4  # rows from which a cache learns what the model is like
_MOST = 14  # tokens: from one to a few of the rows that `tiny_rows` makes


def run(strategies: Any = (), most: int | None = _MOST, **settings: Any) -> tuple[Trainer, list[tuple[int, int]]]:
    """Return a run that has ended, and the shape of each batch that went through its model."""
    values = {"batch_size": 6, "adam_epsilon": 1e-3, "prefix_cache": True, **settings}
    trainer = tiny_trainer(
        model=tiny_model("bert", **NO_DROPOUT),
        train_dataset=tiny_rows(20),
        strategies=list(strategies),
        tokens_per_batch=most,
        **values,
    )
    shapes: list[tuple[int, int]] = []

    def seen(_module: Any, _arguments: Any, inputs: dict[str, torch.Tensor]) -> None:
        rows, tokens = inputs["input_ids"].shape
        shapes.append((rows, tokens))

    handle = trainer.model.register_forward_pre_hook(seen, with_kwargs=True)
    trainer.fit()
    handle.remove()
    return trainer, shapes


def too_large(shapes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the batches of more than one row that exceed the budget."""
    return [shape for shape in shapes if shape[0] > 1 and shape[0] * shape[1] > _MOST]


@pytest.mark.parametrize(
    "strategies",
    [
        (),
        (PartialFreeze(top=1),),
        (LayerwiseUnfreeze((Unfreeze(top=0, epochs=1), Unfreeze(top=2, epochs=1, batch_size=5))),),
        (Distill(tiny_teacher(), hidden=0.5),),
        (Prune(0.5, multiple_of=4),),
        (Quantize("int8", when="end"),),
    ],
)
def test_training_is_the_same(strategies: Any) -> None:
    """No batch exceeds the budget, in training and evaluation; losses agree to 1e-5 and steps are as many."""
    (plain, before), (cut, shapes) = run(strategies, most=None), run(strategies)
    assert too_large(before)
    caching = any(isinstance(part, PartialFreeze | LayerwiseUnfreeze) for part in strategies)
    assert not [shape for shape in too_large(shapes) if not caching or shape[0] > _EXAMINED]
    assert train_records(plain, "loss") == pytest.approx(train_records(cut, "loss"), abs=1e-5)
    names = ("eval_loss", "eval_accuracy")
    one, other = ([[r[name] for name in names] for r in trainer.history.filter("evaluate")] for trainer in (plain, cut))
    assert one == [pytest.approx(values, abs=1e-4) for values in other]


@pytest.mark.parametrize(
    ("strategies", "bare"),
    [((PooledHead(), Probe(fine_tune=False)), None), ((SelfTraining(0.0, start=0),), tiny_rows(9, seed=4)["text"])],
)
def test_passes_of_a_strategys_own_keep_to_it(strategies: Any, bare: Any) -> None:
    """Before the first step, the probe reads all rows with a label, and self-training all without one."""
    (plain, before), (cut, shapes) = (run(strategies, most, unlabeled_dataset=bare) for most in (None, _MOST))
    assert too_large(before)
    assert not too_large(shapes)
    notes = [[record["message"] for record in trainer.history.filter("note")] for trainer in (plain, cut)]
    assert notes[0][0] == notes[1][0]


def test_the_look_for_harm_keeps_to_it() -> None:
    """Validation rows and what augmenters make of them go through the model in batches like those of evaluations."""
    trainer = tiny_trainer(
        strategies=[Augment([RandomSwap(0.5)], drop_harmful=0.5)], train_dataset=tiny_rows(20), tokens_per_batch=_MOST,
        eval_dataset=tiny_rows(20, seed=3),
    )  # fmt: skip
    shapes: list[tuple[int, int]] = []

    def seen(module: Any, _arguments: Any, inputs: dict[str, torch.Tensor]) -> None:
        if not module.training:
            shapes.append((inputs["input_ids"].shape[0], inputs["input_ids"].shape[1]))

    trainer.model.register_forward_pre_hook(seen, with_kwargs=True)
    trainer.fit()
    assert any("read rightly and surely" in record["message"] for record in trainer.history.filter("note"))
    assert shapes
    assert not too_large(shapes)


@dataclass(frozen=True)
class Doubled(Strategy):
    """Adds to each row a copy whose words stand the other way round."""

    def on_examples(self, examples: list[Example], rng: BatchRandom) -> list[Example]:
        return [*examples, *(replace(it, text=" ".join(reversed(it.text.split()))) for it in examples)]


def test_accumulation_and_copies_stay_within_the_step() -> None:
    """With accumulation and copies of rows, steps are as many, and each row keeps its copies and its weight."""
    strategies = (Doubled(),)
    plain, cut = (run(strategies, most=most, gradient_accumulation_steps=2, batch_size=4)[0] for most in (None, _MOST))
    assert train_records(plain, "loss") == pytest.approx(train_records(cut, "loss"), abs=1e-5)


def test_a_predictor_keeps_to_it() -> None:
    """What the Trainer predicts with holds no larger batches either, and says the same."""
    trainer, _ = run(max_steps=1, epochs=1)
    texts = tiny_rows(9)["text"]
    shapes: list[tuple[int, int]] = []
    trainer.model.register_forward_pre_hook(
        lambda _module, _arguments, inputs: shapes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    trainer.predict(texts)
    assert shapes
    assert not too_large(shapes)


def test_workers_and_resume_see_the_same_batches(tmp_path: Any) -> None:
    """Dropout on: bit-identical with workers, and when stopped and resumed."""
    settings: dict[str, Any] = {"batch_size": 6, "tokens_per_batch": _MOST, "train_dataset": tiny_rows(20)}
    whole = tiny_trainer(**settings)
    whole.fit()
    working = tiny_trainer(**settings, dataloader_num_workers=1)
    working.fit()
    assert_same(weights(whole), weights(working))
    stopped = tiny_trainer(**settings, output_dir=tmp_path, save_steps=1)
    for result in stopped.steps():
        if result.step == 3:
            break
    resumed = tiny_trainer(**settings, output_dir=tmp_path, save_steps=1)
    resumed.fit(resume_from_checkpoint=True)
    assert_same(weights(whole), weights(resumed))


def test_a_plan_counts_the_batches_as_they_are_cut() -> None:
    """A plan with a budget puts no more rows at a time through the model than the run will."""
    trainer = tiny_trainer(batch_size=6, train_dataset=tiny_rows(20), tokens_per_batch=_MOST)
    (stage,) = trainer.plan().stages
    assert stage.rows_at_a_time < 6
    assert stage.steps == 8
