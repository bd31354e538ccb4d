"""Mask tuning: what is kept makes up for what is cut."""

from __future__ import annotations

import copy

import pytest
import torch

from lowft.compress.attention import find_heads
from lowft.compress.feed_forward import find_neurons
from lowft.compress.parts import cut_part_
from lowft.compress.tuning import tune_
from tests.compress.test_parts import logits_of
from tests.tiny import ARCHITECTURES, tiny_batch, tiny_model

LAYER = "bert.encoder.layer"


def test_a_unit_that_has_a_twin_is_made_up_for() -> None:
    """Of two equal heads and of two equal neurons one is enough: its factor is 2, and the answers stay."""
    model = tiny_model("bert")
    with torch.no_grad():
        for layer in range(3):
            attention = f"{LAYER}.{layer}.attention"
            for name in ("query", "key", "value"):
                for kind in ("weight", "bias"):
                    tensor = model.get_parameter(f"{attention}.self.{name}.{kind}")
                    tensor[16:] = tensor[:16]
            for name, half in ((f"{attention}.output.dense", 16), (f"{LAYER}.{layer}.output.dense", 32)):
                tensor = model.get_parameter(f"{name}.weight")
                tensor[:, half:] = tensor[:, :half]
            for kind in ("weight", "bias"):
                tensor = model.get_parameter(f"{LAYER}.{layer}.intermediate.dense.{kind}")
                tensor[32:] = tensor[:32]
    whole = logits_of(model, "bert")
    batches = [tiny_batch("bert", seed=seed, rows=8) for seed in range(6)]
    parts = (*find_heads(model), *find_neurons(model))
    kept = [torch.arange(part.units // 2) for part in parts]
    tuned, untuned = copy.deepcopy(model), copy.deepcopy(model)
    tune_(tuned, parts, kept, batches)
    errors = []
    for pruned in (tuned, untuned):
        for part, numbers in zip(parts, kept, strict=True):
            cut_part_(pruned, part, numbers)
        errors.append(float((logits_of(pruned, "bert") - whole).abs().max()))
    assert errors[1] > 0.5
    assert errors[0] < 0.1 * errors[1]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_tuning_comes_nearer_to_the_whole_model(arch: str) -> None:
    """On every architecture a layer's output is nearer to that of the whole model than without."""
    batches = [tiny_batch(arch, seed=seed, rows=6) for seed in range(4)]
    errors = []
    for tune in (False, True):
        model = tiny_model(arch, num_layers=1)
        whole = torch.cat([layer_output(model, arch, batch) for batch in batches])
        parts = find_neurons(model)
        # Of one layer with something to tune: there the promise is exact.
        kept = [torch.arange(part.units) for part in parts[:-1]] + [torch.arange(parts[-1].units // 2)]
        reads = model.get_submodule(parts[-1].sites[0].reads)
        if tune:
            tune_(model, parts, kept, batches)
        with torch.no_grad():
            weight = reads.get_parameter("weight")
            (weight if arch == "gpt2" else weight.T)[parts[-1].units // 2 :] = 0
        now = torch.cat([layer_output(model, arch, batch) for batch in batches])
        errors.append(float((now - whole).square().sum()))
    assert errors[1] < errors[0]


def layer_output(model: torch.nn.Module, arch: str, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return what the last feed-forward layer gives for the tokens that are not pads, `[tokens, width]`."""
    found = []
    reads = model.get_submodule(find_neurons(tiny_model(arch, num_layers=1))[-1].sites[0].reads)
    handle = reads.register_forward_hook(lambda _, __, output: found.append(output[batch["attention_mask"].bool()]))
    with torch.no_grad():
        model(batch["input_ids"], attention_mask=batch["attention_mask"])
    handle.remove()
    return torch.cat(found)


def test_factors_beyond_ten_are_not_taken() -> None:
    """A unit that would have to be scaled beyond all reason leaves its layer as it is."""
    model = tiny_model("bert", num_layers=1)
    with torch.no_grad():
        columns = model.get_parameter(f"{LAYER}.0.output.dense.weight")
        columns[:, 0] = 30 * columns[:, 1]
        for kind in ("weight", "bias"):
            rows = model.get_parameter(f"{LAYER}.0.intermediate.dense.{kind}")
            rows[0] = rows[1]
    before = model.get_parameter(f"{LAYER}.0.output.dense.weight").clone()
    tune_(model, find_neurons(model), [torch.tensor([1])], [tiny_batch("bert")])
    assert torch.equal(model.get_parameter(f"{LAYER}.0.output.dense.weight"), before)


def test_what_keeps_all_is_left_alone() -> None:
    """Nothing is cut: nothing is scaled, and no gate stays behind."""
    model = tiny_model("t5")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parts = (*find_heads(model), *find_neurons(model))
    tune_(model, parts, [torch.arange(part.units) for part in parts], [tiny_batch("t5")])
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
