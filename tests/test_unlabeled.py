"""Training on rows without labels beside those with them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from lowft.augment import RandomSwap
from lowft.data.batching import BatchRandom, Example
from lowft.errors import CheckpointMismatchError, ConfigError, DataError
from lowft.strategies import Augment, Distill, PartialFreeze, SelfTraining
from lowft.strategy import Contract, Strategy
from lowft.trainer import Trainer
from tests.runs import NO_DROPOUT, tiny_trainer, weights
from tests.strategy_cases import tiny_rows, tiny_teacher
from tests.test_strategies_table import assert_same, contents
from tests.tiny import tiny_model

TEACHER = tiny_teacher()
MORE = tiny_rows(9, seed=5)["text"]


@dataclass(frozen=True)
class Ignoring(Strategy):
    """Takes rows without labels and learns nothing from them."""

    contract: ClassVar[Contract] = Contract(provides=frozenset({"unlabeled"}))


@dataclass(frozen=True)
class Labelling(Ignoring):
    """Gives every row without a label the same one."""

    def on_examples(self, examples: list[Example], rng: BatchRandom) -> list[Example]:
        """Label them."""
        return [replace(example, label=1) if example.label is None else example for example in examples]


def gradients(rows: dict[str, Any], strategies: list[Strategy], more: Any, **values: Any) -> list[dict[str, Any]]:
    """Return the gradients of each step of one epoch in which weights hardly move."""
    found: list[dict[str, Any]] = []
    outputs = {float: 1}.get(type(rows["label"][0]), 2)
    trainer = tiny_trainer(
        model=tiny_model("bert", outputs, **NO_DROPOUT), train_dataset=rows, eval_dataset=None, unlabeled_dataset=more,
        strategies=strategies, epochs=1, max_grad_norm=None, learning_rate=1e-12, group_by_length=False, **values,
    )  # fmt: skip
    step = trainer._loop.attached.step

    def keep(optimizer: torch.optim.Optimizer) -> None:
        named = trainer.model.named_parameters()
        found.append({name: value.grad.clone() for name, value in named if value.grad is not None})
        step(optimizer)

    trainer._loop.attached.step = keep  # type: ignore[method-assign]
    found_losses = [result.loss for result in trainer.steps()]
    assert len(found_losses) == len(found)
    return [{**each, "loss": torch.tensor(loss)} for each, loss in zip(found, found_losses, strict=True)]


ROWS = {
    "one class": tiny_rows(),
    "several classes": {"text": tiny_rows()["text"], "label": [["x"], ["y"], ["x", "y"], [], ["x"], [], ["y"]] * 2},
    "numbers": {"text": tiny_rows()["text"], "label": [row / 10 for row in range(14)]},
}


@pytest.mark.parametrize("kind", ROWS)
def test_accumulated_gradients_are_those_of_one_batch(kind: str, tmp_path: Path) -> None:
    """Whatever micro-batches the rows fall into, and however many of them have a label, the gradient is the same."""
    outputs = 1 if kind == "numbers" else 2
    problem = {"numbers": "regression", "several classes": "multi_label_classification"}.get(kind)
    teacher = tiny_trainer(
        train_dataset=ROWS[kind],
        eval_dataset=None,
        model=tiny_model("bert", outputs, problem_type=problem),
        max_steps=1,
    )
    teacher.fit()
    strategies: list[Strategy] = [Distill(teacher.export(tmp_path / "teacher", verify="here"), alpha=0.4)]
    whole = gradients(ROWS[kind], strategies, MORE, batch_size=12)
    parts = gradients(ROWS[kind], strategies, MORE, batch_size=3, gradient_accumulation_steps=4)
    assert len(whole) == len(parts) == 2
    for one, other in zip(whole, parts, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_labels_of_the_models_own_weigh_the_same_in_any_micro_batch() -> None:
    """So do those of copies; micro-batches hold different numbers of rows without a label, and of copies."""
    strategies: list[Strategy] = [Augment([RandomSwap(0.5)], probability=0.5), SelfTraining(0.0, start=0)]
    whole = gradients(tiny_rows(), strategies, MORE, batch_size=23)
    parts = gradients(tiny_rows(), strategies, MORE, batch_size=6, gradient_accumulation_steps=4)
    for name, value in whole[0].items():
        torch.testing.assert_close(parts[0][name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_the_loss_on_labels_is_the_mean_over_labelled_rows() -> None:
    """Rows without labels that nobody learns from change no gradient; a batch of them alone gives 0."""
    alone = gradients(tiny_rows(), [], None, batch_size=14)
    beside = gradients(tiny_rows(), [Ignoring()], MORE, batch_size=23)
    for name, value in alone[0].items():
        torch.testing.assert_close(beside[0][name], value, rtol=1e-4, atol=1e-6, msg=name)
    single = gradients(tiny_rows(), [Ignoring()], MORE, batch_size=1)
    still = [each for each in single if each["loss"] == 0]
    assert len(still) == len(MORE)
    assert all(not value.any() for each in still for value in each.values())


def test_labels_that_a_strategy_gives_count() -> None:
    """A row that was given a label weighs as much as one that came with it."""
    rows = tiny_rows()
    labelled = {"text": [*rows["text"], *MORE], "label": [*rows["label"], *["pos"] * len(MORE)]}
    whole = gradients(labelled, [], None, batch_size=23)
    given = gradients(rows, [Labelling()], MORE, batch_size=6, gradient_accumulation_steps=4)
    for name, value in whole[0].items():
        torch.testing.assert_close(given[0][name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_the_teacher_answers_them() -> None:
    """It reads the rows of both kinds, each once."""
    trainer = tiny_trainer(strategies=[Distill(TEACHER)], unlabeled_dataset=MORE)
    trainer.fit()
    assert trainer._loop.attached.state.memory["Distill"]["asked"] == len({*tiny_rows()["text"], *MORE})
    assert len(trainer.history.filter("train")) == 2 * 6


def test_texts_alone_teach_what_few_labels_cannot(tmp_path: Path) -> None:
    """A student with four labels learns the task from a teacher's answers to texts without one."""
    settings: dict[str, Any] = {"eval_dataset": None, "learning_rate": 2e-3, "batch_size": 8}
    rows, unseen = tiny_rows(150, seed=2), tiny_rows(40, seed=8)
    teacher = tiny_trainer(model=tiny_model("bert", **NO_DROPOUT), train_dataset=rows, epochs=5, **settings)
    teacher.fit()
    reader = Distill(teacher.export(tmp_path / "teacher", verify="here"), alpha=0.7)

    def accuracy(more: Any) -> float:
        trainer = tiny_trainer(
            model=tiny_model("bert", seed=5, **NO_DROPOUT), train_dataset=tiny_rows(4), unlabeled_dataset=more,
            strategies=[reader], max_steps=80, **settings,
        )  # fmt: skip
        trainer.fit()
        return trainer.evaluate(unseen)["accuracy"]

    assert accuracy(rows["text"]) > 0.2 + accuracy(None)


def test_no_strategy_for_them_is_refused() -> None:
    """They would be wasted in silence."""
    with pytest.raises(ConfigError, match=r"unlabeled_dataset is of no use to strategies=\[PartialFreeze\]"):
        tiny_trainer(strategies=[PartialFreeze(top=0)], unlabeled_dataset=MORE)


def test_they_are_checked_as_labelled_rows_are() -> None:
    """Bad rows, pairs among single texts, and texts of the validation rows are found before the training."""
    with pytest.raises(DataError, match=r"unlabeled_dataset.*row 1"):
        tiny_trainer(strategies=[Distill(TEACHER)], unlabeled_dataset=["a film", None])
    with pytest.raises(DataError, match="train_dataset holds single texts and unlabeled_dataset pairs"):
        tiny_trainer(strategies=[Distill(TEACHER)], unlabeled_dataset={"text": ["a"], "text_pair": ["b"]})
    with pytest.warns(UserWarning, match="1 rows of eval_dataset are also in unlabeled_dataset"):
        tiny_trainer(strategies=[Distill(TEACHER)], unlabeled_dataset=["love", tiny_rows(8, seed=1)["text"][3]])


def test_the_run_says_how_many_there_are() -> None:
    """Printed before the training, and in its history."""
    trainer = tiny_trainer(strategies=[Distill(TEACHER)], unlabeled_dataset=MORE, epochs=1)
    assert "14 training rows and 9 without labels, 8 validation rows" in str(trainer)
    trainer.fit()
    assert "9 of 23 training rows have no label" in [note["message"] for note in trainer.history.filter("note")]


def test_pairs_and_class_weights() -> None:
    """Pairs without labels are tuples; classes are weighed by the labelled rows alone."""
    texts = tiny_rows(8)["text"]
    rows = {"text": texts, "text_pair": texts[::-1], "label": ["neg", "pos", "pos", "pos"] * 2}
    trainer = tiny_trainer(
        train_dataset=rows, eval_dataset=None, unlabeled_dataset=[("a film", "a plot"), ("love", "joy")],
        strategies=[Distill(TEACHER)], class_weights="balanced",
    )  # fmt: skip
    trainer.fit()
    assert [result["loss"] for result in trainer.history.filter("train")]


def test_resume_is_bit_identical(tmp_path: Path) -> None:
    """With augmented copies of rows of both kinds, a run stopped after any step ends as one that was not."""

    def make(folder: Path, more: Any = MORE) -> Trainer:
        return tiny_trainer(
            strategies=[Augment([RandomSwap(0.4)]), Distill(TEACHER)], unlabeled_dataset=more, output_dir=folder,
            save_steps=1, save_total_limit=99, batch_size=3, gradient_accumulation_steps=2,
        )  # fmt: skip

    whole = make(tmp_path / "whole")
    whole.fit()
    for step in (1, 4, 6):
        folder = tmp_path / str(step)
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        resumed = make(folder)
        resumed.fit(resume_from_checkpoint=True)
        assert_same(contents(tmp_path / "whole" / "checkpoint-8"), contents(folder / "checkpoint-8"), f"step {step}")
        assert_same(weights(whole), weights(resumed), f"step {step}")
    with pytest.raises(CheckpointMismatchError, match="training rows"):
        make(tmp_path / "1", MORE[:-1]).fit(resume_from_checkpoint=True)
