"""Stopping a run from outside: Ctrl-C, SIGTERM, and runs outside the main thread."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lowft._signals import StopRequest
from lowft.checkpoint import Checkpoints, verify_folder
from lowft.history import History
from lowft.trainer import Trainer
from tests.runs import tiny_trainer, train_records, weights
from tests.test_strategies_table import assert_same, contents

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LAST = "checkpoint-8"
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _same_handlers() -> Iterator[None]:
    """Begin each test with Python's own handlers, and require that they are there again in the end.

    A process that a shell started in the background ignores Ctrl-C from the start.
    """
    found = [signal.getsignal(number) for number in SIGNALS]
    before: list[Any] = [signal.default_int_handler, signal.SIG_DFL]
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)
    yield
    after = [signal.getsignal(number) for number in SIGNALS]
    for number, handler in zip(SIGNALS, found, strict=True):
        signal.signal(number, handler)
    assert after == before


def interrupted(folder: Path | None, *numbers: int, forward: int = 5, **settings: Any) -> Trainer:
    """Return a run of 8 steps of 2 micro-batches; the signals come in one forward pass, by default in step 3."""
    values: dict[str, Any] = {"batch_size": 2, "gradient_accumulation_steps": 2, "save_total_limit": 9}
    trainer = tiny_trainer(output_dir=folder, **(values | settings))
    calls = iter(range(1000))

    def interrupt(*_: Any) -> None:
        if torch.is_grad_enabled() and next(calls) == forward:
            for number in numbers:
                signal.raise_signal(number)

    trainer.model.register_forward_pre_hook(interrupt)
    return trainer


@pytest.mark.parametrize("forward", [4, 5])
@pytest.mark.parametrize("save_steps", [None, 1, 2])
def test_ctrl_c_stops_at_the_end_of_the_step_and_fit_goes_on(
    forward: int, save_steps: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the middle of gradient accumulation: the step is finished and saved, and the history is returned."""
    trainer = interrupted(tmp_path, signal.SIGINT, forward=forward, save_steps=save_steps)
    history = trainer.fit()
    assert isinstance(history, History)
    assert len(history.filter("train")) == 3
    verify_folder(tmp_path / "checkpoint-3")
    assert f"stopped by SIGINT after step 3; saved {tmp_path / 'checkpoint-3'}" in caplog.text
    assert len(trainer.fit().filter("train")) == 8
    whole = interrupted(None)
    whole.fit()
    assert_same(weights(whole), weights(trainer))


def test_the_step_of_the_stop_is_saved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the step has been saved anyway, stopping saves no second time."""
    saved: list[int] = []
    save = Checkpoints.save

    def counting(self: Checkpoints, step: int, write: Callable[[Path], None]) -> Path:
        saved.append(step)
        return save(self, step, write)

    monkeypatch.setattr(Checkpoints, "save", counting)
    interrupted(tmp_path / "each", signal.SIGINT, save_steps=1).fit()
    assert saved == [1, 2, 3]
    saved.clear()
    interrupted(tmp_path / "every other", signal.SIGINT, save_steps=2).fit()
    assert saved == [2, 3]


def test_a_stopped_run_resumes_bit_identically(tmp_path: Path) -> None:
    """What a stop in the middle of an accumulation saved leads a new Trainer to where an undisturbed run ends."""
    interrupted(tmp_path / "whole", save_steps=1).fit()
    interrupted(tmp_path / "resumed", signal.SIGINT).fit()
    assert not (tmp_path / "resumed" / LAST).exists()
    interrupted(tmp_path / "resumed").fit(resume_from_checkpoint=True)
    assert_same(contents(tmp_path / "whole" / LAST), contents(tmp_path / "resumed" / LAST))
    with pytest.raises(AssertionError):  # the comparison can fail
        assert_same(contents(tmp_path / "whole" / LAST), contents(tmp_path / "resumed" / "checkpoint-3"))


def test_without_a_folder_a_stop_just_stops(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is saved where there is nowhere to save, and the log does not claim it."""
    assert len(interrupted(None, signal.SIGINT).fit().filter("train")) == 3
    assert "stopped by SIGINT after step 3" in caplog.text
    assert "saved" not in caplog.text


@pytest.mark.parametrize("first", SIGNALS)
def test_a_second_ctrl_c_stops_at_once(first: int, tmp_path: Path) -> None:
    """It raises KeyboardInterrupt in the middle of the step; a further `fit` does that step again."""
    trainer = interrupted(tmp_path, first, signal.SIGINT, save_steps=1)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert len(trainer.history.filter("train")) == 2
    assert not (tmp_path / "checkpoint-3").exists()
    trainer.fit()
    whole = interrupted(None)
    whole.fit()
    assert_same(weights(whole), weights(trainer))


@pytest.mark.parametrize("numbers", [(signal.SIGTERM,), (signal.SIGINT, signal.SIGTERM)])
def test_sigterm_saves_then_calls_the_callers_own_handler(numbers: tuple[int, ...], tmp_path: Path) -> None:
    """The handler is called once, after the save and after it has been put back; then the process exits with 143."""
    seen: list[tuple[int, bool, bool]] = []

    def own(number: int, frame: Any) -> None:
        seen.append((number, signal.getsignal(signal.SIGTERM) is own, (tmp_path / "checkpoint-3").is_dir()))

    previous = signal.signal(signal.SIGTERM, own)
    try:
        with pytest.raises(SystemExit) as caught:
            interrupted(tmp_path, *numbers).fit()
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert caught.value.code == 143
    assert seen == [(signal.SIGTERM, True, True)]


def test_outside_the_main_thread_a_run_neither_fails_nor_touches_handlers() -> None:
    """Python allows handlers in the main thread only: a run elsewhere does without."""
    trainer = tiny_trainer()
    found: list[Any] = []

    def run() -> None:
        found.append(trainer.fit())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert found == [trainer.history]
    whole = tiny_trainer()
    whole.fit()
    assert_same(weights(whole), weights(trainer))


def test_a_handler_that_python_did_not_install_gives_way_to_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a handler cannot be called or put back from Python, which must not fail."""
    put_back: list[Any] = []
    install = signal.signal

    def foreign(number: int, handler: Any) -> Any:
        put_back.append(handler)
        install(number, handler)

    before = [signal.getsignal(number) for number in SIGNALS]
    with monkeypatch.context() as patch:
        patch.setattr(signal, "signal", foreign)
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
    assert stop.received is signal.SIGINT
    assert put_back[2:] == [signal.SIG_DFL, signal.SIG_DFL]
    for number, handler in zip(SIGNALS, before, strict=True):
        install(number, handler)


_SCRIPT = """
import signal, sys
import torch
from tests.runs import tiny_trainer

torch.set_num_threads(1)
folder = sys.argv[1]

def own(number, frame):
    print("own handler", number, flush=True)

signal.signal(signal.SIGTERM, own)
trainer = tiny_trainer(epochs=100000, output_dir=folder, save_steps=10**9, eval_dataset=None)
trainer.model.register_forward_hook(lambda *_: print("forward", flush=True))
try:
    trainer.fit()
    print("came back", flush=True)
finally:
    print("restored", signal.getsignal(signal.SIGTERM) is own, len(trainer.history.filter("train")), flush=True)
"""


def test_a_real_sigterm_ends_a_real_process_in_order(tmp_path: Path) -> None:
    """The process stops at a step's end, saves once, calls the handler it had, puts it back, and exits with 143."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        for _ in range(5):
            assert "forward" in process.stdout.readline()
        process.terminate()
        printed, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    *_, handler, restored = [line for line in printed.splitlines() if line != "forward"]
    assert process.returncode == 143
    assert handler == "own handler 15"
    steps = int(restored.removeprefix("restored True "))
    (checkpoint,) = tmp_path.iterdir()
    assert checkpoint.name == f"checkpoint-{steps}"
    verify_folder(checkpoint)
    assert "came back" not in printed
    going_on = tiny_trainer(epochs=100000, output_dir=tmp_path, save_steps=10**9, eval_dataset=None)
    result = next(going_on.steps(resume_from_checkpoint=True))
    assert result.step == steps + 1
    assert len(train_records(going_on, "loss")) == steps + 1
