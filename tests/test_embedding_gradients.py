"""Gradients of embeddings, gathered from the rows that were looked up: the same weights as autograd's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lowft import _embedding_gradients
from lowft._embedding_gradients import EmbeddingGradients
from lowft.strategy import Strategy
from lowft.trainer import Trainer
from tests.runs import NO_DROPOUT, tiny_trainer, train_records, weights
from tests.strategy_cases import ALLOWED, STRATEGIES
from tests.test_strategies_table import OTHERS, make_trainer
from tests.tiny import tiny_model


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Have tiny tables gathered too; return the shapes of those that were, as a run goes on."""
    monkeypatch.setattr(_embedding_gradients, "_LEAST", 1)
    shapes: list[tuple[int, ...]] = []
    plain = EmbeddingGradients.__init__

    def noted(self: EmbeddingGradients, model: nn.Module | None) -> None:
        plain(self, model)
        shapes.extend(tuple(table.weight.shape) for table in self._tables)

    monkeypatch.setattr(EmbeddingGradients, "__init__", noted)
    return shapes


def train_both_ways(
    monkeypatch: pytest.MonkeyPatch, strategies: tuple[Strategy, ...], arch: str = "bert"
) -> tuple[Trainer, Trainer]:
    """Return a run with gathered gradients, and the same run as autograd does it."""
    runs = []
    for least in (1, 2**60):
        monkeypatch.setattr(_embedding_gradients, "_LEAST", least)
        trainer = make_trainer(None, strategies, arch, gradient_accumulation_steps=1)
        trainer.fit()
        runs.append(trainer)
    return runs[0], runs[1]


def assert_same_bits(one: Trainer, other: Trainer) -> None:
    """Compare all weights."""
    expected = weights(other)
    assert expected.keys() == weights(one).keys()
    assert [name for name, tensor in weights(one).items() if not torch.equal(tensor, expected[name])] == []


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "masked words"])
def test_every_strategy_ends_with_the_same_bits(
    name: str, gathered: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks, ramps, teachers and rounding included."""
    assert_same_bits(*train_both_ways(monkeypatch, ALLOWED[name]))
    assert bool(gathered) == (name not in {"top", "head", "embeddings frozen", "biases", "quantize from the start"})


@pytest.mark.parametrize("arch", [arch for arch in OTHERS if arch not in {"mpnet", "t5"}])
def test_every_architecture_ends_with_the_same_bits(
    arch: str, gathered: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Narrow tables, and tables of positions."""
    assert_same_bits(*train_both_ways(monkeypatch, (), arch))
    assert gathered


@pytest.mark.parametrize(("name", "arch"), [(None, "t5"), (None, "mpnet"), ("masked words", "bert")])
def test_a_table_that_is_read_twice_trains_the_same(
    name: str | None, arch: str, gathered: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By encoder and decoder, by each block, or as an output layer too: its sums are made in another order."""
    one, other = train_both_ways(monkeypatch, ALLOWED[name] if name else (), arch)
    assert gathered
    assert train_records(one, "loss") == pytest.approx(train_records(other, "loss"), abs=1e-4)


def test_micro_batches_add_up(gathered: list[tuple[int, ...]]) -> None:
    """A step's gradient is the same to rounding however many micro-batches it is made of."""
    whole, parts = (
        tiny_trainer(
            model=tiny_model("bert", **NO_DROPOUT), batch_size=size, gradient_accumulation_steps=4 // size, max_steps=1
        )
        for size in (4, 1)
    )
    for trainer in (whole, parts):
        trainer.fit()
    assert gathered
    assert train_records(whole, "grad_norm")[0] == pytest.approx(train_records(parts, "grad_norm")[0], rel=1e-4)


def test_compiled_and_frozen_tables_are_left_to_autograd(gathered: list[tuple[int, ...]]) -> None:
    """torch.compile cannot trace sparse gradients."""
    tiny_trainer(torch_compile=True, torch_compile_backend="aot_eager", epochs=1).fit()
    assert gathered == []


def test_an_error_leaves_no_table_sparse() -> None:
    """What failed is raised as it was, and the model can be trained otherwise afterwards."""
    table = nn.Embedding(20_000, 64)
    gradients = EmbeddingGradients(table)
    with pytest.raises(ValueError, match="broken"), gradients.gathered():
        raise ValueError("broken")
    assert not table.sparse
    torch.autograd.backward(table(torch.tensor([1])).sum())
    assert table.weight.grad is not None
    assert not table.weight.grad.is_sparse


@pytest.mark.parametrize(
    "table",
    [
        nn.Embedding(20_000, 64, scale_grad_by_freq=True),
        nn.Embedding(20_000, 64, max_norm=1.0),
        nn.Embedding(20_000, 64, sparse=True),
        nn.Embedding(200, 64),
        nn.Embedding(20_000, 64).requires_grad_(requires_grad=False),
    ],
)
def test_other_tables_are_left_alone(table: nn.Embedding) -> None:
    """Small ones, frozen ones, and those that the caller gave another way to look up."""
    before: Any = table.sparse
    with EmbeddingGradients(table).gathered():
        assert table.sparse == before
    assert table.sparse == before


def test_a_table_that_predicts_words_too_has_a_whole_gradient() -> None:
    """Where the table is also an output layer, its gradient is dense to begin with, and stays the sum of both."""
    torch.manual_seed(0)
    table, ids = nn.Embedding(20_000, 64), torch.tensor([3, 5, 3])

    def loss() -> torch.Tensor:
        found: torch.Tensor = (table(ids) @ table.weight.T).logsumexp(-1).sum()
        return found

    torch.autograd.backward(loss())
    expected, table.weight.grad = table.weight.grad, None
    with EmbeddingGradients(table).gathered():
        torch.autograd.backward(loss())
    assert expected is not None
    assert table.weight.grad is not None
    torch.testing.assert_close(table.weight.grad, expected)
