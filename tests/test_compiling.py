"""A compiled forward pass: the same training, and nothing else about the model changed.

`aot_eager` and `eager` trace as the default backend does, and need no compiler, which is not there everywhere.
"""

from __future__ import annotations

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

STAGES = LayerwiseUnfreeze((Unfreeze(top=0, epochs=1), Unfreeze(top=1, epochs=1), Unfreeze(top="all", epochs=1)))


def run(*, compiling: bool, arch: str = "bert", backend: str = "aot_eager", **values: Any) -> Trainer:
    """Return a run that has ended."""
    dropout = NO_DROPOUT if arch == "bert" else {}
    trainer = tiny_trainer(
        model=tiny_model(arch, **dropout), torch_compile=compiling, torch_compile_backend=backend, **values
    )
    trainer.fit()
    return trainer


@pytest.mark.parametrize(
    "strategies",
    [
        (),
        (PartialFreeze(top=1),),
        (STAGES,),
        (Distill(tiny_teacher(), hidden=0.5, relations=0.5),),
        (Prune(0.5, multiple_of=4),),
    ],
)
def test_it_trains_the_same(strategies: Any) -> None:
    """Losses agree to 1e-5 with those of the plain forward pass, cached layers, changing stages and hooks included."""
    plain, made = (run(compiling=compiling, strategies=list(strategies)) for compiling in (False, True))
    assert train_records(plain, "loss") == pytest.approx(train_records(made, "loss"), abs=1e-5)
    assert len(set(train_records(made, "loss"))) > 1
    hits = [[r["hit_rate"] for r in t.history.filter("note") if "hit_rate" in r] for t in (plain, made)]
    assert hits[0] == hits[1]


def test_the_model_stays_what_it_was() -> None:
    """Names of weights are the same, no module is wrapped, and the model predicts as it does without a compiler."""
    plain, made = (run(compiling=compiling, max_steps=2) for compiling in (False, True))
    assert list(weights(plain)) == list(weights(made))
    assert [type(module) for module in plain.model.modules()] == [type(module) for module in made.model.modules()]


def test_batches_of_other_shapes_are_not_compiled_again() -> None:
    """Sizes are symbols: what is traced in the first steps serves batches of every length."""
    trainer = tiny_trainer(torch_compile=True, torch_compile_backend="eager", epochs=3, eval_dataset=None)
    rows, steps = trainer._loop.train_rows, trainer._loop.plan_epoch(0)
    lengths = {int(rows.lengths[list(part.indices)].max()) for step in steps for part in step}
    assert len(lengths) > 2
    counters.clear()
    trainer.fit()
    assert 0 < counters["stats"]["unique_graphs"] <= 3


def test_it_resumes_bit_identically(tmp_path: Path) -> None:
    """Stopped in the second stage, dropout on, a compiled run ends as one that was never stopped."""
    settings: dict[str, Any] = {
        "strategies": [STAGES], "torch_compile": True, "torch_compile_backend": "aot_eager", "save_steps": 1,
        "save_total_limit": 99,
    }  # fmt: skip
    whole = tiny_trainer(**settings, output_dir=tmp_path / "whole")
    whole.fit()
    shutil.copytree(tmp_path / "whole" / "checkpoint-6", tmp_path / "again" / "checkpoint-6")
    again = tiny_trainer(**settings, output_dir=tmp_path / "again")
    again.fit(resume_from_checkpoint=True)
    assert_same(weights(whole), weights(again))


def test_a_plan_is_of_the_compiled_run() -> None:
    """Planning compiles what it measures, and leaves no trace."""
    settings: dict[str, Any] = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    planned, plain = tiny_trainer(**settings), tiny_trainer(**settings)
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
    monkeypatch.setattr(_compiling.importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setenv("CXX", "my-compiler")
    with pytest.raises(ConfigError, match=r"torch_compile=True needs a C\+\+ compiler.*'my-compiler' was not found"):
        tiny_trainer(torch_compile=True)
    with pytest.raises(ConfigError, match=r"torch_compile=True needs the package 'triton'"):
        _compiling.check_compilable("inductor", torch.device("cuda"))
    _compiling.check_compilable("aot_eager", torch.device("cpu"))
    tiny_trainer()
