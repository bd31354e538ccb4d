"""What a strategy that compresses asks of the loop: a stage that runs in any case, and no return to better days."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from lowft.attach import attach
from lowft.config import TrainingConfig
from lowft.stages import Stage
from lowft.state import State
from lowft.strategies import LayerwiseUnfreeze, Unfreeze
from lowft.strategy import Contract, Strategy
from lowft.trainer import Trainer
from tests.strategy_cases import tiny_rows
from tests.test_strategies_table import assert_same, final_weights, make_trainer
from tests.tiny import tiny_model, tiny_tokenizer

SCHEDULE = (Unfreeze(top=0, epochs=1), Unfreeze(top=1, epochs=1), Unfreeze(top="all", epochs=1))


@dataclass(frozen=True)
class AppendStage(Strategy):
    """Appends a stage, and spoils the model at its start as pruning would."""

    contract: ClassVar[Contract] = Contract(provides=frozenset({"shapes"}))

    forgets: bool = True
    always: bool = True

    def prepare_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Add a switch that is saved with the weights, and a parameter that did not exist before."""
        model.register_buffer("shrunk", torch.zeros(()))
        model.helper = torch.nn.Linear(1, 1)
        return model

    def stages(self, stages: tuple[Stage, ...], model: torch.nn.Module) -> tuple[Stage, ...]:
        """Append the stage."""
        return (*stages, replace(stages[-1], name="shrink", gates=(), always=self.always, epochs=1))

    def on_stage_start(self, state: State) -> None:
        """Throw the switch."""
        if state.stage.name == "shrink":
            state.model.shrunk.fill_(1)  # type: ignore[operator]
            if self.forgets:
                state.forget_best()


def stages_run(trainer: Trainer) -> list[str]:
    """Return the names of the stages that ran."""
    return [record["stage_name"] for record in trainer.history.filter("stage")]


def test_a_stage_that_must_run_does_so_after_a_gate_ended_the_training() -> None:
    """The target is met at once: the deeper stages are left out, the compressing one is not."""
    trainer = make_trainer(None, (LayerwiseUnfreeze(SCHEDULE, target=0.0), AppendStage()))
    trainer.fit()
    assert stages_run(trainer) == ["head", "shrink"]
    assert [record["decision"] for record in trainer.history.filter("stage")] == ["stop", "end"]


def test_without_the_mark_it_is_left_out() -> None:
    """Negative control: an ordinary stage does not run after the end."""
    trainer = make_trainer(None, (LayerwiseUnfreeze(SCHEDULE, target=0.0), AppendStage(always=False)))
    trainer.fit()
    assert stages_run(trainer) == ["head"]


@pytest.mark.parametrize("step", [3, 5, 7])
def test_a_run_resumes_on_both_sides_of_the_end(step: int, tmp_path: Path) -> None:
    """Resumed in the stage that a gate ends or in the one that runs in any case, a run ends the same."""
    strategies = (LayerwiseUnfreeze(SCHEDULE, target=0.0), AppendStage())
    whole = make_trainer(tmp_path / "whole", strategies)
    whole.fit()
    shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", tmp_path / "again" / f"checkpoint-{step}")
    again = make_trainer(tmp_path / "again", strategies)
    again.fit(resume_from_checkpoint=True)
    assert stages_run(again) == stages_run(whole)
    assert_same(final_weights(whole), final_weights(again))


def test_a_hand_written_loop_sees_the_same_stages() -> None:
    """Iteration over attached strategies skips to the stages that run in any case."""
    run = attach(tiny_model("bert"), [LayerwiseUnfreeze(SCHEDULE, target=0.5), AppendStage()])
    seen = []
    for stage in run:
        seen.append(stage.name)
        run.decide({"accuracy": 0.4 if len(seen) == 1 else 0.6})
    assert seen == ["head", "top 1 block", "shrink"]


@pytest.mark.parametrize("forgets", [True, False])
def test_forgotten_weights_do_not_come_back(forgets: bool) -> None:
    """The best weights of the whole run are from before the change unless the strategy has them forgotten."""
    metric = iter([0.1, 0.2, 0.9, 0.9])  # the loss, by which the weights before the change are the better ones

    def metrics(logits: object, labels: object) -> dict[str, float]:
        return {"pain": next(metric)}

    trainer = Trainer(
        tiny_model("bert"),
        tiny_rows(),
        tiny_rows(8, seed=1),
        strategies=[AppendStage(forgets=forgets)],
        tokenizer=tiny_tokenizer("bert"),
        config=TrainingConfig(
            epochs=2, device="cpu", progress=False, metric_for_best_model="pain", greater_is_better=False
        ),
        metrics=metrics,
    )
    trainer.fit()
    assert bool(trainer.model.shrunk) is forgets


def test_parameters_that_a_strategy_adds_are_trained() -> None:
    """What trains is read off the model that the strategies made, not off the one they were given."""
    run = attach(tiny_model("bert"), [AppendStage()])
    assert "helper.weight" in run.trained
