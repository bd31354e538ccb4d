"""A compiled forward pass: the same training, and nothing else about the model changed.

`eager` traces as the default backend does, and needs no compiler, which is not there everywhere. `aot_eager` traces the
backward pass too.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from lowft import _compiling
from lowft.errors import ConfigError
from lowft.strategies import Distill, LayerwiseUnfreeze, PartialFreeze, Prune, Unfreeze
from lowft.trainer import Trainer
from tests.runs import NO_DROPOUT, tiny_trainer, train_records, weights
from tests.strategy_cases import tiny_teacher
from tests.test_strategies_table import assert_same
from tests.tiny import tiny_model

STAGES = LayerwiseUnfreeze((Unfreeze(top=0, epochs=1), Unfreeze(top="all", epochs=1)))


def made(*, backend: str | None = "eager", **values: Any) -> Trainer:
    """Return a run over two blocks, compiled or, if `backend` is None, not."""
    compiling = {} if backend is None else {"torch_compile": True, "torch_compile_backend": backend}
    model = values.pop("model", None) or tiny_model("bert", num_hidden_layers=2)
    return tiny_trainer(model=model, **compiling, **values)


def run(**values: Any) -> Trainer:
    """Return a run that has ended, without dropout."""
    trainer = made(model=tiny_model("bert", num_hidden_layers=2, **NO_DROPOUT), **values)
    trainer.fit()
    return trainer


@pytest.mark.parametrize(
    ("strategies", "backend"),
    [
        ((), "aot_eager"),
        ((PartialFreeze(top=1),), "eager"),
        ((STAGES,), "eager"),
        ((Distill(tiny_teacher(), hidden=0.5, relations=0.5),), "eager"),
        ((Prune(0.5, multiple_of=4),), "eager"),
    ],
)
def test_it_trains_the_same(strategies: Any, backend: str) -> None:
    """Losses agree to 1e-5 with those of the plain forward pass, cached layers, changing stages and hooks included."""
    plain, fast = (run(strategies=list(strategies), backend=kind) for kind in (None, backend))
    assert train_records(plain, "loss") == pytest.approx(train_records(fast, "loss"), abs=1e-5)
    assert len(set(train_records(fast, "loss"))) > 1
    hits = [[r["hit_rate"] for r in t.history.filter("note") if "hit_rate" in r] for t in (plain, fast)]
    assert hits[0] == hits[1]


def test_the_model_stays_what_it_was() -> None:
    """Names of weights are the same, no module is wrapped, and the model predicts as it does without a compiler."""
    plain, fast = (run(backend=kind, max_steps=1) for kind in (None, "eager"))
    assert list(weights(plain)) == list(weights(fast))
    assert [type(module) for module in plain.model.modules()] == [type(module) for module in fast.model.modules()]


def test_batches_of_other_shapes_are_not_compiled_again() -> None:
    """Sizes are symbols: what is traced in the first steps serves batches of every length."""
    trainer = made(epochs=3, eval_dataset=None)
    rows, steps = trainer._loop.train_rows, trainer._loop.plan_epoch(0)
    lengths = {int(rows.lengths[list(part.indices)].max()) for step in steps for part in step}
    assert len(lengths) > 2
    counters.clear()
    trainer.fit()
    assert 0 < counters["stats"]["unique_graphs"] <= 3


def test_it_resumes_bit_identically(tmp_path: Path) -> None:
    """Stopped in the second stage, dropout on, a compiled run ends as one that was never stopped."""
    settings: dict[str, Any] = {"strategies": [STAGES], "save_steps": 1, "save_total_limit": 99}
    whole = made(**settings, output_dir=tmp_path / "whole")
    whole.fit()
    shutil.copytree(tmp_path / "whole" / "checkpoint-6", tmp_path / "again" / "checkpoint-6")
    again = made(**settings, output_dir=tmp_path / "again")
    again.fit(resume_from_checkpoint=True)
    assert_same(weights(whole), weights(again))


def test_a_plan_is_of_the_compiled_run() -> None:
    """Planning compiles what it measures, and leaves no trace."""
    planned, plain = (made(model=tiny_model("bert", num_hidden_layers=1), max_steps=2) for _ in range(2))
    assert planned.plan().stages[0].train_seconds > 0
    planned.fit()
    plain.fit()
    assert_same(weights(plain), weights(planned))


def test_an_unknown_backend_is_refused() -> None:
    """The message names the setting, the value and what there is."""
    with pytest.raises(ConfigError, match=r"torch_compile_backend must be .*'inductor'.*; received 'indcutor'"):
        tiny_trainer(torch_compile=True, torch_compile_backend="indcutor")


def test_what_a_compiler_needs_is_looked_for_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a C++ compiler, or triton on a GPU, the Trainer says what to install; other backends need neither."""
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setenv("CXX", "my-compiler")
    with pytest.raises(ConfigError, match=r"torch_compile=True needs a C\+\+ compiler.*'my-compiler' was not found"):
        tiny_trainer(torch_compile=True)
    with pytest.raises(ConfigError, match=r"torch_compile=True needs the package 'triton'"):
        _compiling.check_compilable("inductor", torch.device("cuda"))
    _compiling.check_compilable("aot_eager", torch.device("cpu"))
    tiny_trainer()
