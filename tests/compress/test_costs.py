"""What a model costs: operations by hand and by count."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lowft.compress import count_flops, prune_
from lowft.compress.attention import find_heads
from lowft.compress.costs import unit_flops, unit_parameters
from lowft.compress.feed_forward import find_neurons
from lowft.compress.parts import cut_part_
from lowft.errors import ConfigError, ModelError
from tests.tiny import ARCHITECTURES, tiny_model


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("tokens", [1, 5, 32])
def test_operations_are_those_of_the_formula(attention: str, tokens: int) -> None:
    """BERT: 2 for each weight and token in the blocks, two products of attention, pooler and classifier once."""
    model: Any = tiny_model("bert")
    model.set_attn_implementation(attention)
    block = 2 * tokens * (4 * 32 * 32 + 2 * 32 * 64) + 2 * 2 * tokens * tokens * 32
    assert count_flops(model, tokens) == 3 * block + 2 * (32 * 32 + 32 * 2)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_cut_saves_what_its_units_cost(arch: str) -> None:
    """What one unit costs, times those that are cut, is what the count of the cut model is less."""
    model = tiny_model(arch)
    parts = (*find_heads(model), *find_neurons(model))
    flops, flops_each = unit_flops(model, parts, 12)
    size, size_each = unit_parameters(model, parts)
    assert flops == count_flops(model, 12)
    for part in parts:
        cut_part_(model, part, torch.arange(part.units // 2))
    cut = [part.units - part.units // 2 for part in parts]
    saved = sum(number * each for number, each in zip(cut, flops_each, strict=True))
    assert count_flops(model, 12) == flops - saved
    saved = sum(number * each for number, each in zip(cut, size_each, strict=True))
    assert sum(parameter.numel() for parameter in model.parameters()) == size - saved


def test_counting_changes_nothing() -> None:
    """Modes, hooks and the random stream are as before."""
    model = tiny_model("bert").train()
    state = torch.get_rng_state()
    count_flops(model, 8)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_a_text_too_long_is_refused() -> None:
    """Both sides of the bounds are said."""
    with pytest.raises(ModelError, match="cannot be run on a made-up text of 4000 tokens"):
        count_flops(tiny_model("bert"), 4000)
    with pytest.raises(ConfigError, match="tokens must be a whole number of at least 1; received 0"):
        count_flops(tiny_model("bert"), 0)


def test_a_model_that_cannot_be_run_is_pruned_all_the_same() -> None:
    """The report then says nothing of operations."""
    model = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Linear(16, 4)) for _ in "ab"))
    report = prune_(model, 0.5)
    assert report.flops_before is None
    assert "operations" not in str(report)
    with pytest.raises(ModelError, match=r"operations of this .* cannot be counted"):
        prune_(tiny_model("bert"), flops=0.5, shape=(1, 4000))
