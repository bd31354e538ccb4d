"""Single weights at zero: as many as were asked for, the smallest, and never those of embeddings or head."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lowft.compress import prune_
from lowft.compress.sparsity import add_masks_, bake_masks_, masked_layers, set_masks_, smallest
from tests.tiny import ARCHITECTURES, tiny_batch, tiny_model


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_smallest_weights_are_zero(arch: str, scope: Any) -> None:
    """The share is exact, in each layer or over all; what is not zero is as it was, and larger."""
    model = tiny_model(arch)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    report = prune_(model, weights=0.8, scope=scope)
    names = {f"{name}.weight" for name in masked_layers(model)}
    zeros = sum(int((model.get_parameter(name) == 0).sum()) for name in names)
    total = sum(before[name].numel() for name in names)
    assert zeros == pytest.approx(0.8 * total, abs=len(names))
    assert report.zeros == zeros
    assert "weights are zero" in str(report)
    assert report.parameters_after == report.parameters_before
    for name, tensor in model.named_parameters():
        own = tensor[tensor != 0]
        assert torch.equal(own, before[name][tensor != 0])
        if name in names and scope == "layer":
            assert int((tensor == 0).sum()) == round(0.8 * tensor.numel())
            assert own.abs().min() >= before[name][tensor == 0].abs().max()
        if name not in names:
            assert torch.equal(tensor, before[name])


def test_no_share_leaves_all() -> None:
    """The start of a ramp shuts nothing, not even weights that happen to be zero."""
    model = tiny_model("bert")
    masks = smallest(model, masked_layers(model), 0.0, "global")
    assert all(bool(mask.all()) for mask in masks.values())


@pytest.mark.parametrize("arch", ["bert", "albert", "gpt2"])
def test_masked_weights_are_zero_whatever_the_optimizer_does(arch: str) -> None:
    """Momentum moves them off zero; every forward pass, and the end, puts them back. Shared layers train too."""
    model: Any = tiny_model(arch).train()
    names = masked_layers(model)
    add_masks_(model, names)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    shut: dict[str, torch.Tensor] = {}
    for step in range(4):
        model(**tiny_batch(arch, seed=step)).loss.backward()
        if step == 1:  # momentum is there by now
            shut = smallest(model, names, 0.5, "layer")
            assert set_masks_(model, shut)
            assert not set_masks_(model, shut)
        optimizer.step()
        optimizer.zero_grad()
    moved = [model.get_submodule(name).weight[~shut[name]] for name in names]
    assert any(bool((weights != 0).any()) for weights in moved)
    with torch.no_grad():
        model(**tiny_batch(arch))
    assert all(bool((model.get_submodule(name).weight[~shut[name]] == 0).all()) for name in names)
    bake_masks_(model, names)
    assert all(bool((model.get_submodule(name).weight[~shut[name]] == 0).all()) for name in names)
    assert not any("lowft" in name for name, _ in model.named_buffers())
    assert not any(module._forward_pre_hooks for module in model.modules())
