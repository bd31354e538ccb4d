"""Trainings that end no better than always answering one class: told, and begun again."""

from __future__ import annotations

import functools
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lowft.errors import ConfigError
from lowft.loop import Loop
from lowft.state import State
from lowft.strategies import Augment, LayerwiseUnfreeze, Quantize, Unfreeze
from lowft.strategy import Strategy
from lowft.trainer import Trainer
from tests.runs import NUMBERED, tiny_trainer, train_records, weights
from tests.strategy_cases import tiny_rows
from tests.test_strategies_table import assert_same, contents
from tests.tiny import tiny_model

_THINGS = ("film", "story", "cast", "plot", "end", "music", "scene", "score", "actor", "tale", "joke", "work")


def easy_rows(count: int, end: str = "") -> dict[str, list[str]]:
    """Return rows of two classes, half of each, that a few epochs tell apart."""
    texts = [f"{('bad bad', 'good good')[row % 2]} {_THINGS[row // 2]}{end}" for row in range(count)]
    return {"text": texts, "label": ["neg", "pos"] * (count // 2)}


LEARNS: dict[str, Any] = {
    "epochs": 6, "learning_rate": 1e-3, "train_dataset": easy_rows(24), "eval_dataset": easy_rows(12, " too"),
}  # fmt: skip
STUCK: dict[str, Any] = {**LEARNS, "learning_rate": 1e-12}


@dataclass(frozen=True)
class MayStick(Strategy):
    """Throw the gradients of a whole run away, by a draw at its start: a run that collapses by its seed alone."""

    probability: float = 0.5

    def on_stage_start(self, state: State) -> None:
        """Draw once."""
        state.memory_of(self.name).setdefault("sticks", bool(torch.rand(()) < self.probability))

    def before_step(self, state: State) -> None:
        """Let the optimizer have nothing to act on."""
        if state.memory_of(self.name)["sticks"]:
            state.model.zero_grad(set_to_none=True)


def one_answer() -> Any:
    """Return a model that gives every row the same answer."""
    model: Any = tiny_model("bert")
    torch.nn.init.zeros_(model.classifier.weight)
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([0.1, 0.0]))
    return model


def run(**values: Any) -> Trainer:
    """Return a run that begins with one answer to everything."""
    return tiny_trainer(**{"model": one_answer(), **values})


def told(trainer: Trainer) -> list[str]:
    """Return what the history says of collapses."""
    return [note["message"] for note in trainer.history.filter("note") if "collapsed" in note["message"]]


@functools.cache
def seed_that(*sticks: bool) -> int:
    """Return a seed by which `MayStick` draws these in turn, in a run and those that follow it."""
    for seed in range(1000):
        trainers = (run(strategies=[MayStick()], seed=seed + index, max_steps=1) for index in range(len(sticks)))
        if all(_draw(trainer) == wanted for trainer, wanted in zip(trainers, sticks, strict=True)):
            return seed
    raise AssertionError(sticks)


def _draw(trainer: Trainer) -> bool:
    next(iter(trainer.steps()))
    drawn: bool = trainer._loop.attached.state.memory["MayStick"]["sticks"]
    return drawn


def test_a_collapsed_run_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """History and log say how many rows are right, how many one class would get, and what may help."""
    trainer = run(**STUCK)
    with caplog.at_level(logging.WARNING, "lowft"):
        trainer.fit()
    (message,) = told(trainer)
    assert message == (
        "the training has collapsed: 6 of 12 validation rows are answered rightly, and always answering the most "
        "frequent class gets 6 right. Lower learning_rate, make more steps, or set TrainingConfig(restarts=2)"
    )
    assert message in caplog.text
    assert trainer.history[-1]["message"] == message


def test_a_run_that_learns_is_not_told() -> None:
    """Better than one class, on validation rows or without them on training rows, is no collapse, and begins once."""
    for held_out in (LEARNS["eval_dataset"], None):
        trainer = run(**(LEARNS | {"eval_dataset": held_out, "restarts": 3}))
        trainer.fit()
        assert told(trainer) == []
        assert len(train_records(trainer, "loss")) == 36


@pytest.mark.parametrize("unlabeled", [None, tiny_rows(40, seed=7)["text"]])
def test_without_validation_rows_training_rows_tell(unlabeled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labelled training rows are looked at, at most so many, and the most frequent class is that of the same rows."""
    values: dict[str, Any] = {"train_dataset": tiny_rows(24), "eval_dataset": None, "epochs": 1, "learning_rate": 1e-12}
    if unlabeled is not None:
        from lowft.augment import RandomSwap

        values |= {"unlabeled_dataset": unlabeled, "strategies": [Augment([RandomSwap()], consistency=1.0)]}
    trainer = run(**values)
    trainer.fit()
    assert "12 of 24 training rows are answered rightly" in told(trainer)[0]
    monkeypatch.setattr("lowft._collapse._ROWS", (5, 10))
    trainer = run(**values)
    trainer.fit()
    assert " of 10 training rows" in told(trainer)[0]


@pytest.mark.parametrize(("values", "expected"), [(LEARNS, [20]), (STUCK, [20, 24])])
def test_more_rows_are_looked_at_only_where_a_few_leave_a_doubt(
    values: dict[str, Any], expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most trainings are far above one class on the first rows."""
    looked_at: list[int] = []
    plain = Loop.logits

    def counted(self: Loop, rows: Any, **options: Any) -> Any:
        looked_at.append(len(rows))
        return plain(self, rows, **options)

    monkeypatch.setattr(Loop, "logits", counted)
    monkeypatch.setattr("lowft._collapse._ROWS", (20, 99))
    run(**(values | {"eval_dataset": None})).fit()
    assert looked_at == expected


@pytest.mark.parametrize(
    "values",
    [
        {"train_dataset": NUMBERED, "eval_dataset": NUMBERED, "model": tiny_model("bert", 1)},
        {"train_dataset": {"text": tiny_rows(6)["text"], "label": [["a"], ["b"], [], ["a"], ["b"], ["a", "b"]]}},
        {"eval_dataset": {"text": tiny_rows(4)["text"], "label": ["neg"] * 4}},
        {"max_minutes": 1e-9},
    ],
    ids=["numbers", "several classes", "one class to validate on", "out of time"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_where_nothing_can_be_said_nothing_is(values: dict[str, Any]) -> None:
    """Other tasks, rows of one class, and a run that had no time are left alone."""
    if "eval_dataset" not in values and "train_dataset" in values:
        values = {**values, "eval_dataset": None}
    trainer = run(**({"learning_rate": 1e-12, "restarts": 2, "epochs": 1} | values))
    trainer.fit()
    assert told(trainer) == []


def test_it_begins_again_until_it_learns() -> None:
    """A run that sticks by its first seed is the run of the next seed from its first step on, the history apart."""
    seed = seed_that(True, False)
    trainer = run(**LEARNS, strategies=[MayStick()], seed=seed, restarts=2)
    trainer.fit()
    (message,) = told(trainer)
    assert message.endswith(f"gets 6 right; it begins again with seed {seed + 1} (restart 1 of 2)")
    assert train_records(trainer, "step") == list(range(1, 73))
    assert trainer.evaluate()["accuracy"] > 0.5
    other = run(**LEARNS, strategies=[MayStick()], seed=seed + 1)
    other.fit()
    assert train_records(trainer, "loss")[36] == pytest.approx(train_records(other, "loss")[0], abs=1e-6)


def test_weights_and_memory_are_those_of_before() -> None:
    """In the first step of a restart, the model, what strategies remember, and the optimizer are as at the start."""
    trainer = run(**(STUCK | {"learning_rate": 5e-3}), strategies=[MayStick(1.0)], restarts=1, adam_epsilon=1.0)
    before = weights(trainer)
    model: Any = trainer.model
    seen: list[dict[str, torch.Tensor]] = []
    for result in trainer.steps():
        if result.step == 36:
            with torch.no_grad():
                model.bert.encoder.layer[0].output.dense.weight.add_(1.0)  # as if it had been trained
            trainer._loop.attached.state.memory["MayStick"]["more"] = 1
        if result.step == 37:
            seen.append(weights(trainer))
            assert "more" not in trainer._loop.attached.state.memory["MayStick"]
            assert trainer._loop.attached.state.stage_step == 1
    assert_same(before, seen[0])  # no step changes a weight here
    assert len(told(trainer)) == 2
    assert told(trainer)[1].endswith("gets 6 right, after 1 restart too")


def begun_again(folder: Path, model: torch.nn.Module) -> Trainer:
    """Return a run of 12 steps that sticks, and of 12 more that do not; saved at each."""
    return run(
        **(LEARNS | {"epochs": 2}), model=model, strategies=[MayStick()], seed=seed_that(True, False), restarts=1,
        output_dir=folder, save_steps=1, save_total_limit=100,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Path]:
    """Return such a run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = begun_again(folder, one_answer())
    trainer.fit()
    assert len(train_records(trainer, "loss")) == 24
    return trainer, folder


@pytest.mark.parametrize("step", [7, 12, 15, 24])
def test_a_resumed_run_begins_again_alike(step: int, whole: tuple[Trainer, Path], tmp_path: Path) -> None:
    """Stopped in the first attempt, at its end or in the second, it ends bit-identical, whatever model it was given."""
    unbroken, folder = whole
    checkpoint, last = folder / f"checkpoint-{step}", "checkpoint-24"
    shutil.copytree(checkpoint, tmp_path / checkpoint.name)
    assert (checkpoint / "before_training.safetensors").exists() == (step <= 12)  # gone when no restart is left
    resumed = begun_again(tmp_path, tiny_model("bert", seed=8))
    resumed.fit(resume_from_checkpoint=True)
    assert_same(weights(unbroken), weights(resumed))
    assert_same(contents(folder / last), contents(tmp_path / last))
    assert told(unbroken) == told(resumed)


def test_stages_count_as_one_training() -> None:
    """A stage that brings nothing is no collapse while another follows; what makes the model smaller comes after."""
    stages = LayerwiseUnfreeze((Unfreeze(top=0, learning_rate=1e-12, epochs=1), Unfreeze(top="all", epochs=6)))
    trainer = run(**LEARNS, strategies=[stages], restarts=1)
    trainer.fit()
    assert told(trainer) == []
    trainer = run(**(STUCK | {"epochs": 1}), strategies=[Quantize(when="stage")], restarts=1)
    trainer.fit()
    assert len(told(trainer)) == 2
    assert [record["stage_name"] for record in trainer.history.filter("stage")] == ["training"] * 2 + ["quantize"]


def test_a_stage_that_was_undone_counts_as_the_one_before() -> None:
    """A run whose last stage is rolled back ends with what the stage before brought."""
    stages = LayerwiseUnfreeze(
        (Unfreeze(top=1, epochs=6), Unfreeze(top="all", epochs=1, learning_rate=1e-12)), min_improvement=0.5
    )
    trainer = run(**LEARNS, strategies=[stages], restarts=1)
    trainer.fit()
    assert [record["decision"] for record in trainer.history.filter("stage")] == ["continue", "roll back"]
    assert told(trainer) == []


def test_the_setting_is_checked() -> None:
    """A number of restarts is whole and not negative; a resumed run must share it."""
    with pytest.raises(ConfigError, match=r"TrainingConfig.restarts must be a whole number of at least 0; received -1"):
        run(restarts=-1)
    assert run(restarts=1).config.identity()["restarts"] == 1


def test_the_order_of_rows_is_new_unless_it_is_set() -> None:
    """A restart reads the rows in another order; with `data_seed`, in the same."""
    orders: list[Any] = []
    for data_seed in (None, 5):
        trainer = run(**(STUCK | {"epochs": 1}), restarts=1, data_seed=data_seed)
        found = [
            [part.indices for step in trainer._loop.plan_epoch(0) for part in step]
            for result in trainer.steps()
            if result.step in {1, 7}
        ]
        orders.append(found[0] == found[1])
    assert orders == [False, True]
    assert np.shape(found[0][0]) == (4,)
