"""The precision that a machine trains faster in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lowft import _precision
from lowft._precision import faster_precision
from tests.runs import tiny_trainer, weights
from tests.test_strategies_table import assert_same


def let_bfloat16_be(times: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the measurement find that bfloat16 is so many times as fast."""
    monkeypatch.setattr(_precision, "_ratio", lambda *_: times)


@pytest.mark.parametrize(("times", "precision"), [(1.9, "bfloat16"), (1.1, "float32"), (0.5, "float32")])
def test_it_follows_the_machine(times: float, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 is chosen only where it proves faster, and the history says so; the bits are those of that precision."""
    let_bfloat16_be(times, monkeypatch)
    trainer = tiny_trainer(precision="auto", epochs=1)
    trainer.fit()
    told = f"precision: {precision}; products of matrices are {times} times as fast here in bfloat16"
    assert told in [note["message"] for note in trainer.history.filter("note")]
    assert trainer._predictor().precision == precision
    plain = tiny_trainer(precision=precision, epochs=1)
    plain.fit()
    assert_same(weights(plain), weights(trainer))


def test_a_resumed_run_keeps_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the measurement turns out otherwise on resume, the run still ends with the same bits."""
    let_bfloat16_be(2.0, monkeypatch)
    whole = tiny_trainer(precision="auto")
    whole.fit()
    stopped = tiny_trainer(precision="auto", output_dir=tmp_path, save_steps=1)
    next(iter(stopped.steps()))
    let_bfloat16_be(0.5, monkeypatch)
    resumed = tiny_trainer(precision="auto", output_dir=tmp_path, save_steps=1)
    resumed.fit(resume_from_checkpoint=True)
    assert_same(weights(whole), weights(resumed))
    assert resumed._predictor().precision == "bfloat16"


def test_a_product_takes_time() -> None:
    """The measurement itself gives seconds; a model without linear layers is measured too."""
    cpu = torch.device("cpu")
    for dtype in (torch.float32, torch.bfloat16):
        assert 0 < _precision._seconds(torch.Size((64, 32)), dtype, cpu) < 10
    assert faster_precision(torch.nn.Embedding(3, 3), cpu)[0] in {"float32", "bfloat16"}


@pytest.mark.parametrize(("seconds", "products"), [(0.3, 3), (0.03, 4), (0.001, 20)])
def test_a_slow_product_is_timed_a_few_times(seconds: float, products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where bfloat16 crawls, as it does without instructions for it, nobody waits for twenty products."""
    clock, made = [0.0], []

    def product(*_: torch.Tensor) -> None:
        clock[0] += seconds
        made.append(seconds)

    monkeypatch.setattr("lowft._precision.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch, "mm", product)
    assert _precision._seconds(torch.Size((8, 8)), torch.bfloat16, torch.device("cpu")) == pytest.approx(seconds)
    assert len(made) == products


def test_equal_runs_of_a_process_train_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is not measured anew, when the machine may be busy; another shape is."""
    measured: list[torch.Size] = []

    def seconds(shape: torch.Size, *_: object) -> float:
        measured.append(shape)
        return 1.0

    monkeypatch.setattr(_precision, "_seconds", seconds)
    _precision._ratio.cache_clear()
    for size in (1_003, 1_003, 1_004):
        faster_precision(torch.nn.Linear(size, 1), torch.device("cpu"))
    assert measured == [torch.Size((1, 1_003))] * 2 + [torch.Size((1, 1_004))] * 2
