"""The random numbers of a run: what they depend on, and that the caller's own are left alone."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lowft.data.batching import Batch, BatchRandom, Example
from lowft.data.rows import Rows
from lowft.state import State
from lowft.strategies import LayerwiseUnfreeze, Unfreeze
from lowft.strategy import Strategy
from lowft.trainer import Trainer
from tests.test_strategies_table import assert_same, final_weights, make_trainer


def train(trainer: Trainer, **how: Any) -> dict[str, torch.Tensor]:
    """Train to the end and return the weights."""
    trainer.fit(**how)
    return final_weights(trainer)


def draw() -> list[float]:
    """Draw from each of the three global streams."""
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002 - the global stream


@dataclass(frozen=True)
class DrawsEverywhere(Strategy):
    """A user's strategy that draws from the global streams in every hook, and lets what it draws matter."""

    def prepare_data(self, dataset: Rows) -> Rows:
        """Draw."""
        draw()
        return dataset

    def prepare_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Shift the head."""
        return self._shift(model)

    def on_stage_start(self, state: State) -> None:
        """Shift the head."""
        self._shift(state.model)

    def on_examples(self, examples: list[Example], rng: BatchRandom) -> list[Example]:
        """Draw from the source of the batch, as the interface says."""
        rng.random()
        return examples

    def on_batch(self, batch: Batch, state: State) -> Batch:
        """Remember a number."""
        state.memory_of(self.name)["factor"] = sum(draw())
        return batch

    def on_loss(self, loss: torch.Tensor, outputs: Any, batch: Batch, state: State) -> torch.Tensor:
        """Scale the loss."""
        return loss * float(state.memory_of(self.name)["factor"])

    def before_step(self, state: State) -> None:
        """Shift the head."""
        self._shift(state.model)

    def finish_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Shift the head."""
        return self._shift(model)

    def _shift(self, model: torch.nn.Module) -> torch.nn.Module:
        with torch.no_grad():
            [*model.parameters()][-1].add_(0.01 * sum(draw()))
        return model


def seed_all(seed: int) -> None:
    """Seed the three global streams."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global stream
    torch.manual_seed(seed)


STAGES = LayerwiseUnfreeze((Unfreeze(top=0, max_steps=2), Unfreeze(top="all", max_steps=2)))


def test_the_callers_random_numbers_do_not_matter_to_a_run(tmp_path: Path) -> None:
    """There is no file of random states: every draw of a run, in any hook, is a function of (seed, step).

    So whatever the caller draws before, between the steps and after a resume leads to the same bits.
    """
    runs = []
    for seed in (1, 2):
        seed_all(seed)
        folder = tmp_path / str(seed)
        trainer = make_trainer(folder, (STAGES, DrawsEverywhere()))
        for _ in trainer.steps():
            draw()
        resumed = tmp_path / f"{seed} resumed"
        shutil.copytree(folder / "checkpoint-1", resumed / "checkpoint-1")
        seed_all(seed + 10)
        runs += [final_weights(trainer)]
        runs += [train(make_trainer(resumed, (STAGES, DrawsEverywhere())), resume_from_checkpoint=True)]
    for other in runs[1:]:
        assert_same(runs[0], other)
    with pytest.raises(AssertionError):  # negative control
        assert_same(runs[0], train(make_trainer(None, (STAGES, DrawsEverywhere()), seed=4)))


def test_a_run_does_not_touch_the_callers_random_numbers(tmp_path: Path) -> None:
    """After building, training, evaluating, saving, resuming and exporting, the caller's streams are as before."""
    seed_all(5)
    expected = draw()
    seed_all(5)
    trainer = make_trainer(tmp_path / "run", (STAGES, DrawsEverywhere()))
    for result in trainer.steps():
        if result.step == 3:
            break
    resumed = make_trainer(tmp_path / "run", (STAGES, DrawsEverywhere()))
    resumed.fit(resume_from_checkpoint=True)
    resumed.evaluate()
    resumed.export(tmp_path / "export", verify="here")
    assert draw() == expected
