"""Neurons and heads that are cut out: the same answers as with them shut, and a shape that is rebuilt."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lowft.checkpoint import load_tensors_, model_tensors
from lowft.compress import prune_
from lowft.compress.attention import find_heads
from lowft.compress.feed_forward import find_neurons
from lowft.compress.parts import Part, add_gates_, cut_part_, gate_of, remove_gates_, set_gate_
from lowft.compress.pruning import Size, cut_
from lowft.compress.structure import rebuild_, structure_of
from lowft.errors import CheckpointCorruptError, ModelError
from tests.tiny import ARCHITECTURES, tiny_batch, tiny_model

FIND = {"neurons": find_neurons, "heads": find_heads}


def logits_of(model: nn.Module, arch: str) -> torch.Tensor:
    """Return the logits of a ragged batch."""
    batch = tiny_batch(arch)
    with torch.no_grad():
        answer: torch.Tensor = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return answer


def drawn(part: Part, generator: torch.Generator) -> torch.Tensor:
    """Return which units of a part stay, `[units]`, one at least."""
    mask = (torch.rand(part.units, generator=generator) < 0.6).float()
    mask[int(torch.randint(part.units, (), generator=generator))] = 1
    return mask


@settings(max_examples=40)
@given(st.sampled_from(ARCHITECTURES), st.sampled_from([["neurons"], ["heads"], ["neurons", "heads"]]), st.integers(0))
def test_cutting_gives_what_shutting_gave(arch: str, kinds: list[str], seed: int) -> None:
    """For any architecture and any choice of units, the smaller model answers as the gated one, and is rebuilt."""
    model = tiny_model(arch, num_layers=2)
    whole = logits_of(model, arch)
    parts = [part for kind in kinds for part in FIND[kind](model)]
    size = Size.of(model, 8)
    add_gates_(model, parts)
    assert torch.equal(logits_of(model, arch), whole)
    generator = torch.Generator().manual_seed(seed % 2**63)
    masks = [drawn(part, generator) for part in parts]
    for part, mask in zip(parts, masks, strict=True):
        set_gate_(model, part, mask)
        assert torch.equal(gate_of(model, part), mask)
    gated = logits_of(model, arch)
    remove_gates_(model, parts)
    assert torch.equal(logits_of(model, arch), whole)
    report = cut_(model, parts, [mask.nonzero()[:, 0] for mask in masks], before=size)
    cut = logits_of(model, arch)
    torch.testing.assert_close(cut, gated, rtol=0, atol=1e-5)
    assert [part.units for kind in kinds for part in FIND[kind](model)] == [int(mask.sum()) for mask in masks]
    assert report.parameters_after == sum(parameter.numel() for parameter in model.parameters())
    again = tiny_model(arch, num_layers=2, seed=5, **said_by_config(model))
    rebuild_(again, json.loads(json.dumps(structure_of(model))), "memory")
    load_tensors_(again, model_tensors(model), "memory")
    assert torch.equal(logits_of(again, arch), cut)


def said_by_config(model: Any) -> dict[str, Any]:
    """Return the words of a config that a cut may have changed."""
    words = ("intermediate_size", "d_ff", "n_inner", "hidden_dim", "num_heads", "num_key_value_heads", "head_dim")
    found = {word: getattr(model.config, word, None) for word in words}
    if found["num_key_value_heads"]:
        found["num_attention_heads"] = model.config.num_attention_heads
    if model.config.model_type != "t5":
        found["num_heads"] = None
    return {word: value for word, value in found.items() if value is not None}


def test_the_comparison_can_fail() -> None:
    """Negative control: other units than those that were shut give other answers."""
    model = tiny_model("bert")
    for find, half in ((find_neurons, 32), (find_heads, 2)):
        one, other = copy.deepcopy(model), copy.deepcopy(model)
        for part in find(model):
            cut_part_(one, part, torch.arange(half))
            cut_part_(other, part, torch.arange(half, 2 * half))
        assert (logits_of(one, "bert") - logits_of(other, "bert")).abs().max() > 1e-2


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch not in {"deberta-v2", "mpnet"}])
def test_heads_are_cut_whatever_computes_the_attention(arch: str, attention: str) -> None:
    """PyTorch's fused attention and the plain one agree on a model with fewer heads, backwards too."""
    model: Any = tiny_model(arch)
    model.set_attn_implementation(attention)
    prune_(model, heads=0.5, importance="random")
    reference: Any = copy.deepcopy(model)
    reference.set_attn_implementation("eager")
    torch.testing.assert_close(logits_of(model, arch), logits_of(reference, arch), rtol=0, atol=1e-4)
    model.train()(**tiny_batch(arch)).loss.backward()


def test_a_group_of_query_heads_goes_as_one() -> None:
    """Where query heads share keys and values, the unit is the key head with all its query heads."""
    model = tiny_model("llama", num_layers=2)
    prune_(model, heads=0.5)
    attention = model.get_submodule("model.layers.1.self_attn")
    assert [tuple(attention.get_parameter(f"{name}_proj.weight").shape) for name in "qkvo"] == [
        (16, 32), (8, 32), (8, 32), (32, 16),
    ]  # fmt: skip


@pytest.mark.parametrize("arch", ["t5", "mpnet"])
def test_layers_that_share_a_table_of_positions_lose_the_same_heads(arch: str) -> None:
    """The table has a column for each head, so what a stack loses in one layer it loses in all."""
    parts = find_heads(tiny_model(arch))
    assert [len(part.sites) for part in parts] == ([3] * 3 if arch == "t5" else [3])
    model = tiny_model(arch)
    prune_(model, heads=0.5, scope="global")
    tables = [tensor for name, tensor in model.named_parameters() if "relative_attention_bias" in name]
    assert [table.shape[1] for table in tables] == [
        part.units for part in find_heads(model) if "relative_attention_bias" in part.table
    ]


def test_what_is_frozen_stays_frozen() -> None:
    """A cut makes new parameters, which train where the old ones did."""
    model = tiny_model("t5")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("decoder" in name and "relative" not in name)
    prune_(model, 0.5, heads=0.5)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("decoder" in name and "relative" not in name)


def test_a_cut_model_is_cut_again() -> None:
    """Even where there are fewer neurons than the model is wide, they are told from the attention."""
    model = tiny_model("bert")
    prune_(model, 0.75, heads=0.25)
    report = prune_(model, 0.5, heads=0.25)
    assert set(report.after.values()) == {8}
    assert set(report.heads_after.values()) == {2}
    again = tiny_model("bert", seed=5, intermediate_size=8)
    rebuild_(again, structure_of(model), "memory")
    load_tensors_(again, model_tensors(model), "memory")
    assert torch.equal(logits_of(again, "bert"), logits_of(model, "bert"))


LAYER = "bert.encoder.layer.0"
HEADS = f"{LAYER}.attention.self"


@pytest.mark.parametrize(
    "structure",
    [
        [{"kind": "widths", "plan": {"widths": {"no.such.block": 8}}}],
        [{"kind": "widths", "plan": {"widths": {LAYER: 65}}}],
        [{"kind": "widths", "plan": {}}],
        [{"kind": "heads", "plan": {"heads": {"no.such.attention": 1}}}],
        [{"kind": "heads", "plan": {"heads": {HEADS: 5}}}],
        [{"kind": "heads", "plan": {"heads": {HEADS: 0}}}],
        [{"kind": "heads", "plan": {"heads": {HEADS: True}}}],
        [{"kind": "heads", "plan": {"heads": {HEADS: "2"}}}],
        [{"kind": "heads", "plan": {"heads": [HEADS]}}],
        [{"kind": "heads", "plan": {}}],
        [{"kind": "os.system", "plan": {}}],
        [{"kind": "widths", "plan": None}],
        ["widths"],
    ],
)
def test_a_forged_structure_is_refused(structure: list[Any]) -> None:
    """What does not fit the model is corrupt, not a traceback from its inside."""
    with pytest.raises(CheckpointCorruptError, match="here:"):
        rebuild_(tiny_model("bert"), structure, "here")


def test_a_forged_plan_that_parts_a_shared_table_is_refused() -> None:
    """Layers that share one table cannot have different numbers of heads."""
    model = tiny_model("mpnet")
    sites = [site.name for part in find_heads(model) for site in part.sites]
    plan = {"heads": dict(zip(sites, (2, 3, 2), strict=True))}
    with pytest.raises(CheckpointCorruptError, match="cannot be cut"):
        rebuild_(model, [{"kind": "heads", "plan": plan}], "here")


class Plain(nn.Module):
    """Two linear layers beside which nothing says what they are."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, inner), nn.ReLU(), nn.Linear(inner, 4)) for _ in range(3)
        )

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            values = values + block(values)
        return values


def test_a_model_of_ones_own() -> None:
    """Neurons are found by shape alone; attention that no family describes is refused, with the way out."""
    model = Plain(8)
    assert prune_(model, 0.5, multiple_of=2).after == {f"blocks.{number}": 4 for number in range(3)}
    with pytest.raises(ModelError, match=r"blocks\.0' cannot be told: lowft knows .* Leave heads at 0"):
        prune_(Plain(8), heads=0.5)
    with pytest.raises(ModelError, match="cannot be told by their shapes"):
        prune_(Plain(4), 0.5)
