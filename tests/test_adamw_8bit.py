"""AdamW with moments of 8 bits: as good as AdamW, in a quarter of its memory, and bit-identical when resumed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lowft import _adamw_8bit
from lowft._adamw_8bit import BLOCK, AdamW8bit
from lowft._optimization import load_optimizer_, optimizer_tensors
from lowft._peak import size_of
from lowft.checkpoint import read_tensors
from lowft.errors import CheckpointMismatchError
from lowft.strategies import LayerwiseUnfreeze, PartialFreeze, Unfreeze
from lowft.trainer import Trainer
from tests.runs import tiny_trainer, weights
from tests.test_strategies_table import assert_same
from tests.tiny import tiny_model

CPU = torch.device("cpu")
SETTINGS: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}


def regression(optimizer: type[Any], shape: tuple[int, int], steps: int = 200) -> tuple[float, Tensor, Any]:
    """Fit a noisy linear map of inputs of very different sizes; return the loss, the weight and the optimizer."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(512, shape[1], generator=generator) * torch.logspace(-3, 0, shape[1])
    targets = inputs @ torch.randn(shape[1], shape[0], generator=generator)
    weight = torch.nn.Parameter(torch.zeros(shape))
    made = optimizer([weight], **SETTINGS)
    loss = torch.zeros(())
    for step in range(steps):
        rows = slice(step * 64 % 512, step * 64 % 512 + 64)
        loss = (inputs[rows] @ weight.T - targets[rows]).square().mean()
        weight.grad = None
        torch.autograd.backward(loss)
        made.step()
    return loss.item(), weight.detach(), made


def test_small_parameters_are_stepped_as_by_adamw() -> None:
    """Where nothing is stored in 8 bits, the weights are AdamW's."""
    (_, plain, _), (_, own, made) = (regression(kind, (4, 16)) for kind in (torch.optim.AdamW, AdamW8bit))
    torch.testing.assert_close(own, plain, rtol=1e-5, atol=1e-6)
    (state,) = made.state.values()
    assert state["exp_avg"].dtype == torch.float32


@pytest.mark.parametrize("shape", [(64, 64), (67, 97)])
def test_it_learns_as_adamw_does(shape: tuple[int, int]) -> None:
    """The loss comes down as far, though weights differ; a last block that is not full is no different."""
    first, _, _ = regression(torch.optim.AdamW, shape, steps=1)
    plain, _, reference = regression(torch.optim.AdamW, shape)
    own, _, made = regression(AdamW8bit, shape)
    assert plain < first / 5
    assert own == pytest.approx(plain, rel=0.15)
    needed, whole = (size_of(next(iter(kind.state.values())).values()) for kind in (made, reference))
    assert needed < 0.27 * whole


def test_pieces_make_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parameter that is worked on in several pieces, the last ragged, gets the same bits."""
    _, whole, _ = regression(AdamW8bit, (67, 97), steps=5)
    monkeypatch.setattr(_adamw_8bit, "_TOGETHER", 4 * BLOCK)
    _, pieces, _ = regression(AdamW8bit, (67, 97), steps=5)
    assert torch.equal(whole, pieces)


@given(
    values=st.lists(st.floats(-1e3, 1e3).map(lambda value: round(value, 9)), min_size=1, max_size=3 * BLOCK),
    scale=st.sampled_from([1e-20, 1e-6, 1.0, 1e6]),
    signed=st.booleans(),
)
def test_each_value_gets_the_nearest_code(values: list[float], scale: float, signed: bool) -> None:
    """No other code is nearer, to float16's rounding; and a second moment is stored as zero only if it is zero."""
    exact = torch.tensor(values, dtype=torch.float32) * scale
    exact = exact if signed else exact.abs()
    codes = torch.zeros(len(exact), dtype=torch.uint8)
    scales = torch.zeros(-(-len(exact) // BLOCK))
    _adamw_8bit._encode_(codes, scales, signed, exact)
    found = _adamw_8bit._decoded(codes, scales, signed)
    largest = scales.repeat_interleave(BLOCK)[: len(exact)]
    book = _adamw_8bit._codebook(CPU, signed=signed)
    nearest = (exact[:, None] - book * largest[:, None]).abs().amin(dim=1)
    rounding = exact.abs() * 2**-10 + largest * 2**-24
    kept_from_zero = 0.0 if signed else largest * book[1]
    assert bool(((found - exact).abs() <= nearest + rounding + kept_from_zero).all())
    assert bool((found[exact == 0] == 0).all())
    if not signed:
        assert bool((found[exact > 0] > 0).all())


@pytest.mark.parametrize("signed", [True, False])
def test_there_are_256_distinct_codes(signed: bool) -> None:
    """Each code stands for a share of its own, comes back as itself, and the largest value of a block is exact."""
    book = _adamw_8bit._codebook(CPU, signed=signed)
    assert len(set(book.tolist())) == 256
    assert book.min().item() == pytest.approx(-0.993 if signed else 0, abs=1e-3)
    assert book.max().item() == 1
    codes, scales = torch.zeros(256, dtype=torch.uint8), torch.zeros(1)
    _adamw_8bit._encode_(codes, scales, signed, book * 3)
    assert scales.item() == 3
    assert codes.tolist() == list(range(256))


def wide(**settings: Any) -> Trainer:
    """Return a run over a model whose larger matrices are stored in 8 bits."""
    return tiny_trainer(model=tiny_model("bert", hidden_size=64, intermediate_size=128), optim="adamw_8bit", **settings)


def test_a_run_trains_and_resumes_bit_identically(tmp_path: Path) -> None:
    """Codes and scales go through a checkpoint of plain tensors; frozen weights have no state and do not move."""
    strategies = [LayerwiseUnfreeze((Unfreeze(top=1, epochs=1), Unfreeze(top=2, epochs=2)))]
    whole = wide(strategies=strategies, save_steps=1, save_total_limit=99, output_dir=tmp_path / "whole")
    before = weights(whole)
    whole.fit()
    after = weights(whole)
    assert torch.equal(
        before["bert.embeddings.word_embeddings.weight"], after["bert.embeddings.word_embeddings.weight"]
    )
    assert not torch.equal(before["classifier.weight"], after["classifier.weight"])
    saved = read_tensors(tmp_path / "whole" / "checkpoint-7" / "optimizer.safetensors")
    assert {tensor.dtype for name, tensor in saved.items() if name.endswith("intermediate.dense.weight/exp_avg")} == {
        torch.uint8
    }
    for step in (2, 7):
        folder = tmp_path / f"again-{step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        again = wide(strategies=strategies, save_steps=1, save_total_limit=99, output_dir=folder)
        again.fit(resume_from_checkpoint=True)
        assert_same(after, weights(again))


def test_a_run_learns_as_with_adamw() -> None:
    """The losses of a short run are near AdamW's, and not the same: the moments were rounded."""
    (plain, own) = (
        [record["loss"] for record in run.history.filter("train")]
        for run in (fitted(optim="adamw"), fitted(optim="adamw_8bit"))
    )
    assert plain == pytest.approx(own, abs=0.02)
    assert plain != own


def fitted(**settings: Any) -> Trainer:
    """Return a run that has ended."""
    model = tiny_model("bert", hidden_size=64, intermediate_size=128)
    trainer = tiny_trainer(model=model, epochs=4, learning_rate=1e-3, **settings)
    trainer.fit()
    return trainer


def test_state_that_does_not_fit_is_refused() -> None:
    """Scales of another number of blocks, or codes for an optimizer without, are named."""
    run = wide(strategies=[PartialFreeze(top=1)], max_steps=1)
    loop, model = run._loop, run.model
    next(iter(run.steps()))
    tensors = optimizer_tensors(loop.optimizer, model)
    path = next(name for name in tensors if name.endswith("_scale"))
    with pytest.raises(CheckpointMismatchError, match="does not fit a parameter"):
        load_optimizer_(loop.optimizer, model, {**tensors, path: tensors[path][:1]})
    with pytest.raises(CheckpointMismatchError, match="does not fit a parameter"):
        load_optimizer_(torch.optim.AdamW(model.parameters()), model, tensors)
