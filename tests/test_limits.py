"""Limits on time and memory: a run ends in time with its best weights, and takes no more rows at a time than fit."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lowft import _peak, _probing
from lowft._peak import PeakMemory
from lowft.checkpoint import Checkpoints
from lowft.errors import ConfigError, TrainingError
from lowft.strategies import LayerwiseUnfreeze, PartialFreeze, Prune, Quantize, Unfreeze
from lowft.trainer import Trainer
from tests.runs import note_records, tiny_trainer
from tests.test_memory import without_dropout
from tests.test_strategies_table import assert_same, final_weights, make_trainer

STEP, EVALUATION, SAVING = 1.0, 2.0, 0.5  # seconds


class Clock:
    """The time that a run sees: forward passes and checkpoints take as long as is said here."""

    def __init__(self) -> None:
        """Begin at zero."""
        self.now = 0.0

    def watch(self, trainer: Trainer) -> Trainer:
        """Let a trainer's forward passes take time."""

        def forward(module: torch.nn.Module, *_: Any) -> None:
            self.now += STEP if module.training else EVALUATION

        trainer.model.register_forward_pre_hook(forward)
        return trainer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the clock for a test."""
    made = Clock()
    save = Checkpoints.save

    def saved(self: Checkpoints, *arguments: Any) -> Path:
        made.now += SAVING
        return save(self, *arguments)

    monkeypatch.setattr("time.perf_counter", lambda: made.now)
    monkeypatch.setattr(Checkpoints, "save", saved)
    return made


def test_a_run_ends_in_time_with_its_best_weights(clock: Clock) -> None:
    """The last step leaves time for the evaluation, after which the best weights are back and the history says why."""
    trainer = clock.watch(tiny_trainer(epochs=50, max_minutes=21 / 60))
    history = trainer.fit()
    # 2 s to learn what an evaluation takes, then 4 steps and an evaluation for each epoch: 6 s.
    assert history.seconds == clock.now == 2 + 3 * 6
    assert [record["step"] for record in history.filter("evaluate")] == [4, 8, 12]
    (stage,) = history.filter("stage")
    assert (stage["decision"], stage["reason"]) == ("stop", "the time was up (max_minutes=0.35)")
    assert "the stage ends after 12 of 200 steps" in history.filter("note")[-1]["message"]
    best = max(record["eval_accuracy"] for record in history.filter("evaluate"))
    assert trainer.evaluate().metrics["accuracy"] == best
    assert trainer.finished


@pytest.mark.parametrize("limit", [6, 9, 11, 14, 15, 20, 23, 38])
def test_a_limit_is_never_passed(limit: int, clock: Clock) -> None:
    """Wherever the limit falls, the evaluation is made within it, and no step is left out that had time."""
    trainer = clock.watch(tiny_trainer(epochs=50, max_minutes=limit / 60))
    history = trainer.fit()
    assert limit - (STEP + EVALUATION) - EVALUATION < clock.now <= limit
    assert history.filter("evaluate")[-1]["step"] == history.filter("train")[-1]["step"]


def test_later_stages_are_skipped(clock: Clock) -> None:
    """When the time is up in the first stage, deeper ones are not begun."""
    unfreeze = LayerwiseUnfreeze((Unfreeze(top=0, epochs=9), Unfreeze(top="all", epochs=9)))
    trainer = clock.watch(tiny_trainer(strategies=[unfreeze], max_minutes=0.3))
    assert [stage["decision"] for stage in trainer.fit().filter("stage")] == ["stop"]


def test_a_stage_is_not_begun_without_time_for_it(clock: Clock) -> None:
    """A stage that ends as planned, with the time all but used up, is the last."""
    unfreeze = LayerwiseUnfreeze((Unfreeze(top=0, epochs=1), Unfreeze(top="all", epochs=9)))
    history = clock.watch(tiny_trainer(strategies=[unfreeze], max_minutes=10 / 60)).fit()
    assert clock.now <= 10
    assert [stage["decision"] for stage in history.filter("stage")] == ["stop"]
    assert len(history.filter("train")) == 4


@pytest.mark.parametrize("last", [Prune(0.5, multiple_of=4), Quantize("int8", when="stage")])
def test_stages_that_compress_keep_their_share(last: Any, clock: Clock) -> None:
    """What prunes or quantizes runs in any case, in the share of the time that its steps were planned to have."""
    trainer = clock.watch(tiny_trainer(strategies=[last], epochs=10, max_minutes=1, eval_dataset=None))
    history = trainer.fit()
    steps = [sum(record["stage"] == stage for record in history.filter("train")) for stage in (0, 1)]
    planned = [stage.epochs or 10 for stage in trainer._loop.attached.stages]
    assert sum(steps) == len(history.filter("train"))
    assert steps[1] / sum(steps) == pytest.approx(planned[1] / sum(planned), abs=0.1)
    assert [stage["decision"] for stage in history.filter("stage")][-1] in {"end", "stop"}
    assert clock.now <= 60


@pytest.mark.parametrize("stopped", [1, 5, 9])
def test_a_resumed_run_counts_the_time_already_spent(stopped: int, clock: Clock, tmp_path: Path) -> None:
    """Stopped and resumed, checkpoints counted, it makes the steps of a run that was never stopped."""
    settings: dict[str, Any] = {"epochs": 50, "max_minutes": 25 / 60, "save_steps": 1, "gradient_accumulation_steps": 1}
    whole = clock.watch(make_trainer(tmp_path / "whole", (), batch_size=4, **settings))
    whole.fit()
    assert clock.now <= 25
    folder = tmp_path / "again"
    shutil.copytree(tmp_path / "whole" / f"checkpoint-{stopped}", folder / f"checkpoint-{stopped}")
    again = clock.watch(make_trainer(folder, (), batch_size=4, **settings))
    began = clock.now
    again.fit(resume_from_checkpoint=True)
    assert clock.now - began < 25 - stopped
    assert abs(len(again.history.filter("train")) - len(whole.history.filter("train"))) <= 1
    assert again.history.seconds <= 25


def test_a_run_that_was_cut_stays_cut_or_goes_on_with_more_time(clock: Clock, tmp_path: Path) -> None:
    """A checkpoint of the last step in time ends at once under the same limit, and trains on under a later one."""
    settings: dict[str, Any] = {"epochs": 50, "batch_size": 4, "gradient_accumulation_steps": 1}
    clock.watch(make_trainer(tmp_path, (), max_minutes=25 / 60, **settings)).fit()
    same = clock.watch(make_trainer(tmp_path, (), max_minutes=25 / 60, **settings))
    steps = len(same.fit(resume_from_checkpoint=True).filter("train"))
    more = clock.watch(make_trainer(tmp_path, (), max_minutes=50 / 60, **settings))
    assert len(more.fit(resume_from_checkpoint=True).filter("train")) > steps
    assert same.history.filter("stage")[0]["decision"] == "stop"


def test_the_callers_own_time_is_not_the_runs(clock: Clock) -> None:
    """What a loop over steps does between them is not counted."""
    trainer = clock.watch(tiny_trainer(epochs=2, max_minutes=0.5))
    for _ in trainer.steps():
        clock.now += 1000
    assert len(trainer.history.filter("train")) == 8


class Scales:
    """Memory as a test sees it: a hundred bytes for each row of the largest batch since the meter was restarted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take the place of the meter."""
        self.rows = {True: 0, False: 0}
        monkeypatch.setattr(PeakMemory, "restart", lambda _: self.rows.update({True: 0, False: 0}))
        monkeypatch.setattr(PeakMemory, "bytes", property(lambda _: 100 * max(self.rows.values())))
        monkeypatch.setattr(PeakMemory, "now", property(lambda _: 0))
        monkeypatch.setattr(_probing, "size_of", lambda _: 0)

    def watch(self, trainer: Trainer) -> Trainer:
        """Weigh a trainer's forward passes."""

        def forward(module: torch.nn.Module, _: Any, inputs: dict[str, Any]) -> None:
            self.rows[module.training] = max(self.rows[module.training], len(inputs["input_ids"]))

        trainer.model.register_forward_pre_hook(forward, with_kwargs=True)
        return trainer


@pytest.mark.parametrize(("limit", "rows", "evaluated"), [(600, 6, 6), (599, 3, 3), (250, 2, 2), (100, 1, 1)])
def test_rows_at_a_time_fit_the_limit(limit: int, rows: int, evaluated: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro-batches and evaluation batches are halved until they fit, and the weights are those of whole ones."""
    scales = Scales(monkeypatch)
    trainer = scales.watch(without_dropout(max_memory=limit, eval_batch_size=6))
    history = trainer.fit()
    assert history.peak_memory_bytes is not None
    assert history.peak_memory_bytes <= limit
    assert scales.rows[True] == rows
    assert scales.rows[False] <= evaluated
    assert len(note_records(trainer)) == (limit < 600)
    reference = without_dropout(eval_batch_size=6)
    reference.fit()
    for name, tensor in final_weights(reference).items():
        torch.testing.assert_close(trainer.model.state_dict()[name], tensor, rtol=0, atol=2e-5)


def test_a_limit_that_one_row_passes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first step, with what the stage takes and what would help; nothing has been trained."""
    trainer = Scales(monkeypatch).watch(tiny_trainer(max_memory=99))
    before = final_weights(trainer)
    with pytest.raises(TrainingError, match=r"max_memory=99 .* cannot be kept in the stage 'training': .* 100 B"):
        trainer.fit()
    assert_same(before, final_weights(trainer))


@pytest.mark.parametrize("strategies", [(), (PartialFreeze(top=1),), (Prune(0.5, multiple_of=4),)])
def test_a_limit_with_room_changes_nothing(strategies: tuple[Any, ...]) -> None:
    """What is tried at the start of each stage leaves no trace: the weights are bit-identical."""
    limited, free = (make_trainer(None, strategies, save_steps=None, max_memory=most) for most in (10**15, None))
    limited.fit()
    free.fit()
    assert_same(final_weights(limited), final_weights(free))
    assert len(limited.history) == len(free.history)


def test_a_resumed_run_keeps_the_halves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was found to fit is saved, and the resumed run ends bit-identical."""
    scales = Scales(monkeypatch)
    settings: dict[str, Any] = {"max_memory": 300, "batch_size": 6, "gradient_accumulation_steps": 1}
    whole = scales.watch(make_trainer(tmp_path / "whole", (), **settings))
    whole.fit()
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "again" / "checkpoint-2")
    again = scales.watch(make_trainer(tmp_path / "again", (), **settings))
    again.fit(resume_from_checkpoint=True)
    assert again._loop.kept.halvings == 1
    assert_same(final_weights(whole), final_weights(again))


def test_memory_that_cannot_be_measured_cannot_be_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes before the model is touched, and names the device; runs without a limit say nothing of it."""
    monkeypatch.setattr(_peak, "_STATUS", Path("/nowhere"))
    with pytest.raises(ConfigError, match=r"max_memory needs a device whose memory can be measured.*'cpu'"):
        tiny_trainer(max_memory=10**9)
    with pytest.raises(ConfigError, match="plan: max_memory needs a device"):
        tiny_trainer().plan(max_memory=10**9)
    trainer = tiny_trainer()
    assert trainer.plan().peak_memory_bytes is None
    assert "unknown" in str(trainer.plan())
    assert trainer.fit().peak_memory_bytes is None
    assert trainer.history.filter("stage")[0]["peak_memory_bytes"] is None


_STRETCH = """
import torch
from lowft._peak import PeakMemory

meter = PeakMemory(torch.device("cpu"))
before = meter.bytes
block = torch.ones(50_000_000)
del block
after, now = meter.bytes, meter.now
meter.restart()
print(before, after, now, meter.bytes)
"""


def test_the_peak_is_what_a_stretch_took() -> None:
    """A block that comes and goes is in the peak until the meter is restarted, and not in what is in use.

    In a process of its own: when memory goes back to the system depends on all that a process has done before.
    """
    done = subprocess.run([sys.executable, "-c", _STRETCH], capture_output=True, text=True, check=True)
    before, after, now, restarted = map(int, done.stdout.split())
    size = 50_000_000 * 4
    assert after - before > 0.9 * size
    assert after - now > 0.9 * size
    assert restarted < before + 0.1 * size
