"""The precision that a machine trains faster in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lowft import _precision
from lowft._precision import faster_precision
from tests.runs import tiny_trainer, weights
from tests.test_strategies_table import assert_same


def let_bfloat16_be(times: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the measurement find that bfloat16 is so many times as fast."""

    def seconds(_shape: Any, dtype: torch.dtype, _device: Any) -> float:
        return 1.0 if dtype == torch.float32 else 1 / times

    monkeypatch.setattr(_precision, "_seconds", seconds)


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
