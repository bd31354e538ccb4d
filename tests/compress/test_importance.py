"""What units are worth, against gradients taken the long way."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lowft.compress.attention import find_heads
from lowft.compress.feed_forward import find_neurons
from lowft.compress.importance import gate_gradients, importance_of
from lowft.compress.parts import column_sums
from lowft.errors import ConfigError, ModelError
from tests.tiny import ARCHITECTURES, tiny_batch, tiny_model


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_each_row_has_its_own_gradients(arch: str) -> None:
    """One pass over a batch gives what a batch for each row gives; the weights' gradients give their mean."""
    model: Any = tiny_model(arch, num_layers=2)
    parts = (*find_heads(model), *find_neurons(model))
    batch = tiny_batch(arch)
    (together,) = gate_gradients(model, parts, [batch])
    assert not any(parameter.grad is not None for parameter in model.parameters())
    singly = [{name: tensor[row : row + 1] for name, tensor in batch.items()} for row in range(4)]
    for row, own in enumerate(gate_gradients(model, parts, singly)):
        for one, every in zip(own, together, strict=True):
            torch.testing.assert_close(one[0], every[row], rtol=1e-3, atol=1e-5)
    model(**batch).loss.backward()
    for part, every in zip(parts, together, strict=True):
        slope = column_sums(model, part)
        assert slope is not None
        torch.testing.assert_close(slope, every.mean(dim=0), rtol=1e-3, atol=1e-5)


def test_fisher_squares_rows_and_taylor_batches() -> None:
    """Fisher information does not depend on how rows are batched; the first-order change is that of each batch."""
    model = tiny_model("bert")
    parts = find_neurons(model)
    batch = tiny_batch("bert")
    halves = [{name: tensor[part : part + 2] for name, tensor in batch.items()} for part in (0, 2)]
    one, other = (importance_of(model, parts, "fisher", batches, 0) for batches in ([batch], halves))
    for whole, split in zip(one, other, strict=True):
        torch.testing.assert_close(whole, split, rtol=1e-3, atol=1e-6)
    (slopes,) = gate_gradients(model, parts, [batch])
    taylor = importance_of(model, parts, "taylor", [batch], 0)
    torch.testing.assert_close(taylor[0], slopes[0].mean(dim=0).abs())
    torch.testing.assert_close(one[0], slopes[0].square().sum(dim=0))


def test_what_mixes_rows_is_refused() -> None:
    """Where a layer does not see the rows apart, the message gives a way out."""

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny_model("bert")

        def forward(self, input_ids: torch.Tensor, **inputs: torch.Tensor) -> Any:
            return self.model(input_ids=input_ids.repeat(2, 1))

    model = Flat()
    with pytest.raises(ModelError, match=r"rows: the gradients .* importance='magnitude'"):
        list(gate_gradients(model, find_neurons(model), [tiny_batch("bert")]))
    with pytest.raises(ConfigError, match="must hold labels"):
        list(gate_gradients(tiny_model("bert"), (), [{"input_ids": torch.ones(1, 2, dtype=torch.long)}]))
