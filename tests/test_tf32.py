"""TensorFloat-32: on while the run computes, and the caller's own setting at all other times."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.runs import tiny_trainer, weights
from tests.test_strategies_table import assert_same


def now() -> str:
    """Return how CUDA multiplies float32 matrices."""
    return str(torch.backends.cuda.matmul.fp32_precision)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Put the process's own setting back."""
    before = now()
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def watched(seen: list[str], **settings: Any) -> Any:
    """Return a Trainer whose forward passes note the setting."""
    trainer = tiny_trainer(**settings)
    trainer.model.register_forward_pre_hook(lambda *_: seen.append(now()))
    return trainer


@pytest.mark.parametrize("own", ["none", "ieee", "tf32"])
@pytest.mark.parametrize(("asked", "inside"), [(True, "tf32"), (False, "ieee"), (None, None)])
def test_it_holds_for_the_run_alone(asked: bool | None, inside: str | None, own: str) -> None:
    """Training, validation and planning run with it; between steps and afterwards it is the caller's."""
    torch.backends.cuda.matmul.fp32_precision = own
    before = now()
    seen: list[str] = []
    trainer = watched(seen, tf32=asked, max_steps=2)
    trainer.plan()
    assert now() == before
    for _ in trainer.steps():
        assert now() == before
    assert set(seen) == {inside or before}
    assert now() == before


def test_an_error_and_a_loop_left_early_bring_the_setting_back() -> None:
    """However a run ends, the caller's setting is there again."""
    before = now()
    trainer = tiny_trainer(tf32=True)
    for _ in trainer.steps():
        break
    assert now() == before

    def fails(*_: Any) -> None:
        raise ArithmeticError

    trainer.model.register_forward_pre_hook(fails)
    with pytest.raises(ArithmeticError):
        trainer.fit()
    assert now() == before


def test_a_cpu_computes_the_same_bits() -> None:
    """On a CPU the setting changes nothing."""
    runs = [tiny_trainer(tf32=asked) for asked in (None, True, False)]
    for trainer in runs:
        trainer.fit()
    assert_same(weights(runs[0]), weights(runs[1]))
    assert_same(weights(runs[0]), weights(runs[2]))
