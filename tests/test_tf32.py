"""TensorFloat-32: on while a run computes on a GPU, and the caller's own setting at all other times."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lowft import _tf32, loop, trainer
from lowft._tf32 import products_in_tf32
from tests.runs import tiny_trainer, weights
from tests.test_strategies_table import assert_same

BACKENDS: Any = torch.backends  # whose modules are made at run time
CUDA = torch.device("cuda")  # named, and not needed: what is set is a flag


def settings() -> list[str]:
    """Return all that torch is set to, in its older and its newer way."""
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:
        older = "mixed"
    newer = (BACKENDS.cuda.matmul, BACKENDS.mkldnn.matmul, BACKENDS)
    return [older, *(str(each.fp32_precision) for each in newer)]


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Put the process's own setting back."""
    yield
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cuda.matmul.fp32_precision = "none"
    BACKENDS.mkldnn.matmul.fp32_precision = "none"


@pytest.mark.parametrize("asked", [True, False, None])
@pytest.mark.parametrize("older", [None, "highest", "high", "medium"])
@pytest.mark.parametrize("newer", [None, "ieee", "tf32"])
def test_torch_is_set_as_it_was(asked: bool | None, older: str | None, newer: str | None) -> None:
    """However the caller has set torch, in either way or both, it is so again after the block, and after an error."""
    if older is not None:
        torch.set_float32_matmul_precision(older)
    if newer is not None:
        torch.backends.cuda.matmul.fp32_precision = newer
    before = settings()
    with products_in_tf32(asked, CUDA):
        inside = settings()
    assert inside[1] == {True: "tf32", False: "ieee", None: before[1]}[asked]
    assert settings() == before
    with pytest.raises(ArithmeticError), products_in_tf32(asked, CUDA):
        raise ArithmeticError
    assert settings() == before


@pytest.mark.parametrize("asked", [True, False])
def test_the_compiler_can_read_it(asked: bool) -> None:
    """Both ways agree inside the block, else torch.compile fails."""
    with products_in_tf32(asked, CUDA):
        assert torch.get_float32_matmul_precision() == ("high" if asked else "highest")
        assert torch.backends.cuda.matmul.allow_tf32 == asked


def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs set torch as they would on a GPU."""

    def as_there(wanted: bool | None, _device: torch.device) -> contextlib.AbstractContextManager[None]:
        return _tf32.products_in_tf32(wanted, CUDA)

    monkeypatch.setattr(loop, "products_in_tf32", as_there)
    monkeypatch.setattr(trainer, "products_in_tf32", as_there)


@pytest.mark.parametrize(("asked", "inside"), [(True, "tf32"), (False, "ieee"), (None, "none")])
def test_it_holds_while_the_run_computes(asked: bool | None, inside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training, validation and planning run with it; between steps and afterwards it is the caller's."""
    on_a_gpu(monkeypatch)
    before, seen = settings(), set()
    run = tiny_trainer(tf32=asked, max_steps=2)
    run.model.register_forward_pre_hook(lambda *_: seen.add(settings()[1]))
    run.plan()
    assert settings() == before
    for _ in run.steps():
        assert settings() == before
    assert seen == {inside}
    assert settings() == before


def test_an_error_and_a_loop_left_early_bring_the_setting_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """However a run ends, the caller's setting is there again."""
    on_a_gpu(monkeypatch)
    before = settings()
    run = tiny_trainer(tf32=True)
    for _ in run.steps():
        break
    assert settings() == before

    def fails(*_: Any) -> None:
        raise ArithmeticError

    run.model.register_forward_pre_hook(fails)
    with pytest.raises(ArithmeticError):
        run.fit()
    assert settings() == before


def test_a_cpu_computes_the_same_bits() -> None:
    """On a CPU nothing is set."""
    runs = [tiny_trainer(tf32=asked, max_steps=2) for asked in (None, True)]
    seen: list[str] = []
    runs[1].model.register_forward_pre_hook(lambda *_: seen.append(settings()[1]))
    for run in runs:
        run.fit()
    assert set(seen) == {settings()[1]}
    assert_same(weights(runs[0]), weights(runs[1]))
