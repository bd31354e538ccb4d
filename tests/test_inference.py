"""Tests of how logits are computed for many rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lowft._inference import compute_logits, evaluation_mode, logits_of
from lowft.data.batching import TokenizedRows
from lowft.data.rows import Rows
from lowft.errors import ModelError
from tests.tiny import WORDS, tiny_model, tiny_tokenizer

TEXTS = tuple(" ".join(WORDS[index * 3 :][: 1 + (index * 7) % 13]) for index in range(23))


def tokenized(arch: str = "bert", *, padding_side: str = "right") -> TokenizedRows:
    """Return rows of ragged length, in no order of length."""
    tokenizer = tiny_tokenizer(arch)
    tokenizer.padding_side = padding_side
    return TokenizedRows(Rows(TEXTS), tokenizer, None, 32, ("input_ids", "attention_mask"))


def one_by_one(model: Any, rows: TokenizedRows) -> Any:
    """Return the logits of each row by itself."""
    with torch.no_grad():
        return np.concatenate([model(**rows.collate([index]).inputs).logits.numpy() for index in range(len(rows))])


@pytest.mark.parametrize("arch", ["bert", "gpt2", "t5"])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_logits_come_in_the_order_of_the_rows(arch: str, batch_size: int) -> None:
    """However rows are sorted and put together, each gets the logits it has by itself, in its own place."""
    model, rows = tiny_model(arch), tokenized(arch)
    logits = compute_logits(model, rows, batch_size=batch_size)
    assert logits.shape == (23, 2)
    assert logits.dtype == np.float32
    assert np.allclose(logits, one_by_one(model, rows), atol=1e-5)
    assert len(np.unique(logits.round(4), axis=0)) == 23


def test_the_padding_side_does_not_matter() -> None:
    """A decoder that pads on the left gives the same logits."""
    model = tiny_model("llama")
    left, right = (
        compute_logits(model, tokenized("llama", padding_side=side), batch_size=5) for side in ("left", "right")
    )
    assert np.allclose(left, right, atol=1e-5)


def test_long_rows_come_first() -> None:
    """The first batch is the largest, so that one too large fails at once."""
    model, rows = tiny_model("bert"), tokenized()
    widths: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, inputs: widths.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    compute_logits(model, rows, batch_size=4)
    assert widths == sorted(widths, reverse=True)
    assert len(widths) == 6


def test_modes_and_gradients_are_left_as_they_were() -> None:
    """Dropout is off while predicting; each module is then in its own mode again, and nothing has a gradient."""
    model = tiny_model("bert", hidden_dropout_prob=0.5)
    rows = tokenized()
    expected = compute_logits(model, rows, batch_size=8)
    model.train()
    model.get_submodule("bert.encoder.layer.0").eval()
    modes = [module.training for module in model.modules()]
    assert np.array_equal(compute_logits(model, rows, batch_size=8), expected)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_modes_come_back_after_an_error() -> None:
    """A forward pass that fails leaves the model in training mode all the same."""
    model = tiny_model("bert").train()
    with pytest.raises(ValueError, match="input_ids"), evaluation_mode(model):
        model()
    assert all(module.training for module in model.modules())


def test_bfloat16_gives_float32_logits_nearby() -> None:
    """Autocast changes the logits a little, and their type not at all."""
    model, rows = tiny_model("bert"), tokenized()
    exact, rough = (compute_logits(model, rows, batch_size=8, precision=kind) for kind in ("float32", "bfloat16"))
    assert rough.dtype == np.float32
    assert np.allclose(rough, exact, atol=0.1)
    assert not np.array_equal(rough, exact)


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_processes_share_the_rows(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the processes compute apart is each row once, and together what one computes alone."""
    model, rows = tiny_model("bert"), tokenized()
    expected = compute_logits(model, rows, batch_size=7)
    parts: list[Any] = []

    def record(found: list[Any]) -> list[Any]:
        parts.extend(found)
        return [parts]

    monkeypatch.setattr("lowft._inference.gather", record)
    for rank in range(processes):
        together = compute_logits(model, rows, batch_size=7, share=(rank, processes))
    assert np.array_equal(together, expected)
    if processes > 1:
        assert sorted(index for indices, _ in parts for index in indices) == list(range(len(rows)))


def test_logits_are_found_in_tensors_and_outputs() -> None:
    """A forward may return the logits themselves, or an object that has them."""
    logits = torch.ones(2, 3)
    assert logits_of(logits) is logits
    assert logits_of(SimpleNamespace(logits=logits)) is logits


@pytest.mark.parametrize(
    ("outputs", "got"),
    [
        (torch.ones(2), r"logits of shape \[2\]"),
        (SimpleNamespace(logits=torch.ones(2, 4, 9)), r"logits of shape \[2, 4, 9\]"),
        ((torch.ones(2, 3),), "received tuple"),
        (SimpleNamespace(last_hidden_state=torch.ones(2, 4, 9)), "received SimpleNamespace"),
    ],
)
def test_a_model_without_a_head_is_told_so(outputs: Any, got: str) -> None:
    """The message says what came and what is needed."""
    with pytest.raises(ModelError, match=rf"{got}.*Give a model with a classification or regression head"):
        logits_of(outputs)
