"""The Trainer at work: what users may do between steps, what they get back, and what does not change a run."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lowft.checkpoint import verify_folder
from lowft.errors import CheckpointError, ConfigError, TrainingError
from lowft.strategies import LayerwiseUnfreeze, PartialFreeze, Unfreeze
from tests.runs import NO_DROPOUT, tiny_trainer, train_records, weights
from tests.strategy_cases import AllHooks, tiny_rows
from tests.test_strategies_table import assert_same, contents
from tests.tiny import tiny_model


def test_workers_change_nothing() -> None:
    """The order of rows and what a strategy draws in workers do not depend on how many there are."""
    runs = [
        tiny_trainer(strategies=[AllHooks()], dataloader_num_workers=workers, epochs=1, eval_dataset=None)
        for workers in (0, 2)
    ]
    for trainer in runs:
        trainer.fit()
    assert_same(weights(runs[0]), weights(runs[1]))
    assert train_records(runs[0], "loss") == train_records(runs[1], "loss")


def test_the_callers_random_numbers_and_the_runs_are_apart() -> None:
    """A caller may seed and draw between steps; the run goes its way, and leaves the caller's streams alone."""
    strategies = [AllHooks(), LayerwiseUnfreeze((Unfreeze(top=1), Unfreeze(top="all")))]
    undisturbed = tiny_trainer(strategies=strategies, epochs=1)
    undisturbed.fit()
    torch.manual_seed(99)
    disturbed = tiny_trainer(strategies=strategies, epochs=1)
    for result in disturbed.steps():
        torch.manual_seed(result.step)
        torch.rand(result.step)
        random.seed(result.step)
        np.random.seed(result.step)  # noqa: NPY002 - the stream that others may draw from
    assert_same(weights(undisturbed), weights(disturbed))

    def streams() -> tuple[str, ...]:
        return tuple(map(repr, (random.getstate(), np.random.get_state(), torch.get_rng_state().tolist())))  # noqa: NPY002

    before = streams()
    tiny_trainer(strategies=strategies, epochs=1).fit()
    assert streams() == before


def test_the_seed_decides_and_data_seed_decides_the_order() -> None:
    """Equal seeds make equal runs; another one another run, with the same order of rows if data_seed says so."""
    settings: dict[str, Any] = {"model": None, "epochs": 1, "eval_dataset": None, "group_by_length": False}

    def losses(**values: Any) -> list[float]:
        trainer = tiny_trainer(**(settings | values))
        trainer.fit()
        return train_records(trainer, "loss")

    assert losses(seed=3) == losses(seed=3)
    assert losses(seed=3) != losses(seed=4)
    assert losses(seed=3, data_seed=8) != losses(seed=4, data_seed=8)  # dropout still follows the seed
    same = [
        losses(seed=seed, data_seed=data_seed, model=tiny_model("bert", **NO_DROPOUT))
        for seed, data_seed in ((3, 8), (4, 8), (3, 9))
    ]
    assert same[0] == same[1] != same[2]


@pytest.mark.parametrize("stop", [1, 4, 5, 8])
def test_a_loop_over_steps_may_be_left_and_gone_on_with(stop: int) -> None:
    """Leaving after any step, the end of an epoch or of the run included, and going on changes nothing."""
    whole, parted = tiny_trainer(), tiny_trainer()
    whole.fit()
    for result in parted.steps():
        if result.step == stop:
            break
    assert not parted.finished
    assert [result.step for result in parted.steps()] == list(range(stop + 1, 9))
    assert parted.finished
    assert_same(weights(whole), weights(parted))
    assert train_records(whole, "loss") == train_records(parted, "loss")
    assert len(whole.history) == len(parted.history)


def test_steps_tell_what_happened() -> None:
    """Each result holds the step's figures, and the validation metrics where there was an evaluation."""
    trainer = tiny_trainer(
        strategies=[LayerwiseUnfreeze((Unfreeze(top=1, epochs=1), Unfreeze(top="all", max_steps=2)))]
    )
    results = list(trainer.steps())
    assert [result.step for result in results] == [1, 2, 3, 4, 5, 6]
    assert [result.stage for result in results] == ["top 1 block"] * 4 + ["all layers"] * 2
    assert [result.epoch for result in results] == [0.25, 0.5, 0.75, 1.0, 0.25, 0.5]
    assert [result.metrics is not None for result in results] == [False, False, False, True, False, True]
    assert results[3].metrics is not None
    assert results[3].metrics.keys() >= {"loss", "accuracy"}
    assert [result.loss for result in results] == train_records(trainer, "loss")
    assert [result.grad_norm for result in results] == train_records(trainer, "grad_norm")


def test_a_checkpoint_of_ones_own_can_be_resumed(tmp_path: Path) -> None:
    """`save_checkpoint` in a loop over steps writes a folder that a new Trainer goes on from."""
    settings: dict[str, Any] = {"save_steps": 100, "save_total_limit": 9}
    first = tiny_trainer(output_dir=tmp_path / "first", **settings)
    for result in first.steps():
        if result.step == 3:
            folder = first.save_checkpoint()
    verify_folder(folder)
    assert folder == tmp_path / "first" / "checkpoint-3"
    second = tiny_trainer(output_dir=tmp_path / "second", **settings)
    second.fit(resume_from_checkpoint=folder)
    assert_same(weights(first), weights(second))
    elsewhere = tiny_trainer(**settings)  # without an output_dir, from a folder that is given
    elsewhere.fit(resume_from_checkpoint=folder)
    assert_same(weights(first), weights(elsewhere))
    assert [path.name for path in (tmp_path / "first").iterdir()] == ["checkpoint-3"]


def test_checkpoints_are_saved_as_the_settings_say(tmp_path: Path) -> None:
    """After each evaluation, or every few steps; the newest few are kept."""
    tiny_trainer(output_dir=tmp_path / "epochs", epochs=3, save_total_limit=2).fit()
    assert sorted(path.name for path in (tmp_path / "epochs").iterdir()) == ["checkpoint-12", "checkpoint-8"]
    tiny_trainer(output_dir=tmp_path / "steps", save_steps=3, save_total_limit=5, eval_dataset=None).fit()
    assert sorted(path.name for path in (tmp_path / "steps").iterdir()) == ["checkpoint-3", "checkpoint-6"]
    assert contents(tmp_path / "steps" / "checkpoint-3")["best.safetensors"] == {}


def test_saving_needs_a_folder_and_a_run_that_is_on(tmp_path: Path) -> None:
    """Without a folder, before the first step and after the end there is nothing that could be saved."""
    with pytest.raises(ConfigError, match=r"save_checkpoint needs a folder: set TrainingConfig\(output_dir"):
        tiny_trainer().save_checkpoint()
    trainer = tiny_trainer(output_dir=tmp_path, epochs=1)
    with pytest.raises(TrainingError, match=r"between two of its steps.*trainer.export\(folder\)"):
        trainer.save_checkpoint()
    trainer.fit()
    with pytest.raises(TrainingError, match="between two of its steps"):
        trainer.save_checkpoint()


def test_a_run_that_has_ended_says_how_to_train_further() -> None:
    """A second `fit` is refused; a new Trainer goes on with the model."""
    trainer = tiny_trainer(epochs=1)
    trainer.fit()
    for act in (trainer.fit, lambda: next(trainer.steps())):
        with pytest.raises(TrainingError, match=r"has ended.*new Trainer with model=trainer.model"):
            act()
    before = weights(trainer)
    again = tiny_trainer(model=trainer.model, load_best_model_at_end=False)
    again.fit()
    assert not torch.equal(before["classifier.weight"], weights(again)["classifier.weight"])


def test_an_export_ends_the_run(tmp_path: Path) -> None:
    """A model that was made ready for use is not trained on by accident."""
    trainer = tiny_trainer(strategies=[PartialFreeze(top=1)])
    next(steps := trainer.steps())
    steps.close()
    trainer.export(tmp_path / "exported", verify="here")
    assert trainer.finished
    with pytest.raises(TrainingError, match="has ended"):
        trainer.fit()


@pytest.mark.parametrize("left_early", [True, False])
def test_an_export_tells_of_evaluations_of_its_own_weights_only(left_early: bool, tmp_path: Path) -> None:
    """What was measured before or during training says nothing about the model that is exported."""
    trainer = tiny_trainer(epochs=1)
    trainer.evaluate(name="before")
    for result in trainer.steps():
        if left_early and result.step == 2:
            break
        trainer.evaluate(name="during")
    report = trainer.evaluate(tiny_rows(6, seed=2))
    reports = json.loads((trainer.export(tmp_path / "exported", verify="here") / "lowft.json").read_text())["metrics"]
    assert reports.keys() == {"test"}
    assert reports["test"]["metrics"] == pytest.approx(dict(report.metrics))


def test_bfloat16_trains_and_evaluates_with_float32_weights() -> None:
    """Autocast lowers the precision of the computation, not of the weights, and changes the result a little."""
    full, half = (
        tiny_trainer(model=tiny_model("bert", **NO_DROPOUT)),
        tiny_trainer(model=tiny_model("bert", **NO_DROPOUT), precision="bfloat16"),
    )
    full.fit()
    half.fit()
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.float32}
    assert train_records(half, "loss") == pytest.approx(train_records(full, "loss"), rel=0.1)
    assert train_records(half, "loss") != train_records(full, "loss")
    assert half.evaluate().rows == 8
    assert half.predict_proba(["a dull film"]).dtype == np.float32


def test_a_folder_of_another_run_is_refused_before_the_first_step(tmp_path: Path) -> None:
    """The message offers to resume, to go elsewhere or to overwrite; nothing is deleted unasked."""
    tiny_trainer(output_dir=tmp_path, epochs=1).fit()
    other = tiny_trainer(output_dir=tmp_path, epochs=1)
    with pytest.raises(CheckpointError, match=r"holds checkpoints of another run, up to step 4.*overwrite_output_dir"):
        other.fit()
    assert len(other.history) == 0
    assert (tmp_path / "checkpoint-4").is_dir()
    tiny_trainer(output_dir=tmp_path, max_steps=1, overwrite_output_dir=True).fit()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_resuming_needs_something_to_resume_from(tmp_path: Path) -> None:
    """No folder, and a folder without checkpoints, are told apart."""
    with pytest.raises(ConfigError, match=r"needs TrainingConfig\(output_dir=\.\.\.\), or give a folder"):
        tiny_trainer().fit(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match="holds no checkpoint to resume from"):
        tiny_trainer(output_dir=tmp_path).fit(resume_from_checkpoint=True)


def test_evaluating_needs_rows() -> None:
    """Without validation rows, `evaluate` asks for some; with rows of its own it tells about those."""
    trainer = tiny_trainer(eval_dataset=None, epochs=1)
    with pytest.raises(ConfigError, match="evaluate needs rows: the Trainer has no eval_dataset"):
        trainer.evaluate()
    report = trainer.evaluate(tiny_rows(6, seed=2))
    assert report.rows == 6
    assert {scores.name for scores in report.classes} == {"neg", "pos"}
