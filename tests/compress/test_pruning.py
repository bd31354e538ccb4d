"""Neurons that are cut out: the same answers as with them shut, less to compute, and a shape that loads again."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

from lowft.checkpoint import load_tensors_, model_tensors
from lowft.compress import prune_
from lowft.compress.feed_forward import add_gates_, find_feed_forwards, gate_of, remove_gates_
from lowft.compress.pruning import choose_neurons, cut_
from lowft.compress.structure import rebuild_, structure_of
from lowft.errors import CheckpointCorruptError, ConfigError, ModelError
from lowft.models import load_model
from tests.runs import tiny_trainer
from tests.tiny import ARCHITECTURES, tiny_batch, tiny_model

GRADIENTS = ("taylor", "fisher")


def logits_of(model: torch.nn.Module, arch: str) -> torch.Tensor:
    """Return the logits of a ragged batch."""
    batch = tiny_batch(arch)
    with torch.no_grad():
        answer: torch.Tensor = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return answer


def widths(model: torch.nn.Module, arch: str = "bert") -> dict[str, int]:
    """Return the neurons left in each block, wherever the whole model has them."""
    parts = find_feed_forwards(tiny_model(arch))
    names = {part.block: part.reads for part in parts if part.reads in dict(model.named_modules())}
    sizes = {block: model.get_parameter(f"{name}.weight").shape for block, name in names.items()}
    return {block: int(size[0 if arch == "gpt2" else 1]) for block, size in sizes.items()}


@settings(max_examples=40)
@given(st.sampled_from(ARCHITECTURES), st.integers(0, 10_000))
def test_cutting_neurons_gives_what_shutting_them_gave(arch: str, seed: int) -> None:
    """For any architecture and any choice of neurons, the smaller model answers as the gated one."""
    model = tiny_model(arch, num_layers=2)
    whole, parts = logits_of(model, arch), find_feed_forwards(model)
    add_gates_(model, parts)
    assert torch.equal(logits_of(model, arch), whole)
    generator = torch.Generator().manual_seed(seed)
    for part in parts:
        gate_of(model, part).copy_(torch.rand(part.width, generator=generator) < 0.6)
        gate_of(model, part)[0] = 1
    gated = logits_of(model, arch)
    kept = [gate_of(model, part).nonzero()[:, 0] for part in parts]
    remove_gates_(model, parts)
    assert torch.equal(logits_of(model, arch), whole)
    report = cut_(model, parts, kept)
    torch.testing.assert_close(logits_of(model, arch), gated, rtol=0, atol=1e-5)
    assert report.parameters_after == sum(parameter.numel() for parameter in model.parameters())
    assert report.parameters_after < report.parameters_before
    assert widths(model, arch) == report.after


def test_the_comparison_can_fail() -> None:
    """Negative control: other neurons than those that were shut give other answers."""
    model = tiny_model("bert")
    parts = find_feed_forwards(model)
    one, other = copy.deepcopy(model), copy.deepcopy(model)
    cut_(one, parts, [torch.arange(32) for _ in parts])
    cut_(other, parts, [torch.arange(32, 64) for _ in parts])
    assert (logits_of(one, "bert") - logits_of(other, "bert")).abs().max() > 1e-2


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_one_width_for_all_is_loaded_by_plain_transformers(arch: str, tmp_path: Path) -> None:
    """Where every layer keeps as many, the config says so, and nothing is drawn at random on loading."""
    model = tiny_model(arch)
    report = prune_(model, 0.5)
    assert report.plain
    assert not structure_of(model)
    model.save_pretrained(tmp_path)
    reloaded, told = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["mismatched_keys"]
    assert torch.equal(logits_of(reloaded.eval(), arch), logits_of(model, arch))


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch != "albert"])
def test_widths_that_differ_are_rebuilt(arch: str) -> None:
    """Where layers keep different numbers, the structure says them, and every weight fits the rebuilt model."""
    model = tiny_model(arch)
    report = prune_(model, 0.4, scope="global", importance="random", multiple_of=1, seed=3)
    assert len(set(report.after.values())) > 1
    assert not report.plain
    again = tiny_model(arch, seed=5)
    rebuild_(again, json.loads(json.dumps(structure_of(model))), "memory")
    load_tensors_(again, model_tensors(model), "memory")
    assert torch.equal(logits_of(again, arch), logits_of(model, arch))


def test_a_model_of_many_widths_is_exported_and_loaded_elsewhere(tmp_path: Path) -> None:
    """A fresh process gives the same bits, and so does further training from the folder; plain loading says no."""
    model = tiny_model("bert")
    prune_(model, 0.4, scope="global", importance="random", multiple_of=1, seed=3)
    trainer = tiny_trainer(model=model)
    trainer.fit()
    folder = trainer.export(tmp_path / "small", verify="here")
    texts = ["a dull film", "a warm story"]
    script = f"import lowft, json; print(json.dumps(lowft.load({str(folder)!r}).predict_logits({texts!r}).tolist()))"
    answer = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert json.loads(answer.stdout.splitlines()[-1]) == trainer._predictor().predict_logits(texts).tolist()
    reloaded = load_model(folder)
    assert widths(reloaded) == widths(trainer.model)
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForSequenceClassification.from_pretrained(folder)


def test_two_cuts_in_a_row_are_rebuilt(tmp_path: Path) -> None:
    """A model that was cut unevenly and then evenly has both cuts in its structure."""
    model = tiny_model("bert")
    prune_(model, 0.4, scope="global", importance="random", multiple_of=1, seed=3)
    prune_(model, 0.5, multiple_of=1)
    again = tiny_model("bert", seed=5)
    rebuild_(again, structure_of(model), "memory")
    load_tensors_(again, model_tensors(model), "memory")
    assert torch.equal(logits_of(again, "bert"), logits_of(model, "bert"))


@pytest.mark.parametrize(
    "structure",
    [
        [{"kind": "widths", "plan": {"widths": {"no.such.block": 8}}}],
        [{"kind": "widths", "plan": {"widths": {"bert.encoder.layer.0": 65}}}],
        [{"kind": "widths", "plan": {}}],
        [{"kind": "os.system", "plan": {}}],
        [{"kind": "widths", "plan": None}],
        ["widths"],
    ],
)
def test_a_forged_structure_is_refused(structure: list[Any]) -> None:
    """What does not fit the model is corrupt, not a traceback from its inside."""
    with pytest.raises(CheckpointCorruptError, match="here:"):
        rebuild_(tiny_model("bert"), structure, "here")


@pytest.mark.parametrize("importance", ["magnitude", *GRADIENTS])
def test_what_matters_is_kept(importance: Any) -> None:
    """Neurons that nothing reads are the first to go, whatever measures them; their loss changes nothing."""
    model = tiny_model("bert")
    dead = torch.arange(0, 64, 2)
    with torch.no_grad():
        for layer in range(3):
            block = f"bert.encoder.layer.{layer}"
            model.get_parameter(f"{block}.output.dense.weight")[:, dead] = 0
            model.get_parameter(f"{block}.intermediate.dense.weight")[dead] *= 0.01
    before = logits_of(model, "bert")
    batches = [tiny_batch("bert", seed=seed) for seed in range(2)] if importance in GRADIENTS else None
    prune_(model, 0.5, importance=importance, batches=batches)
    torch.testing.assert_close(logits_of(model, "bert"), before, rtol=0, atol=1e-5)


def test_first_order_importance_is_the_derivative_by_the_gate() -> None:
    """Weight times gradient, summed over a column, is what a gate on the neuron's output would have as gradient."""
    model, batch = tiny_model("gpt2"), tiny_batch("gpt2")
    from lowft.compress.pruning import _gradient_scores

    parts = find_feed_forwards(model)
    found = _gradient_scores(model, parts, [batch], squared=False)
    add_gates_(model, parts)
    gates = [gate_of(model, part).requires_grad_() for part in parts]
    expected = torch.autograd.grad(model(**batch).loss, gates)
    for own, gradient in zip(found, expected, strict=True):
        torch.testing.assert_close(own, gradient.abs(), rtol=1e-4, atol=1e-6)


def test_measuring_leaves_gradients_and_flags_alone() -> None:
    """The caller's gradients, frozen weights and mode are as before."""
    model = tiny_model("bert").train()
    model.classifier.weight.grad = torch.ones_like(model.classifier.weight)
    frozen = model.get_parameter("bert.encoder.layer.0.output.dense.weight").requires_grad_(False)
    prune_(model, 0.5, importance="fisher", batches=[tiny_batch("bert")])
    assert model.training
    assert torch.equal(model.classifier.weight.grad, torch.ones_like(model.classifier.weight))
    assert frozen.shape == (32, 64)  # the module has another, smaller one by now
    assert not model.get_parameter("bert.encoder.layer.0.output.dense.weight").requires_grad
    assert model.get_parameter("bert.encoder.layer.1.output.dense.weight").requires_grad


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.floats(0, 0.99),
    st.sampled_from(["layer", "global"]),
    st.integers(1, 16),
)
def test_what_is_kept(widths: list[int], share: float, scope: Any, multiple: int) -> None:
    """The best of each layer, in order, a multiple of what was asked, and never none."""
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(width, generator=generator) for width in widths]
    for values, kept in zip(scores, choose_neurons(scores, share, scope=scope, multiple_of=multiple), strict=True):
        assert len(kept) >= min(multiple, len(values))
        assert len(kept) % min(multiple, len(values)) == 0 or len(kept) == len(values)
        assert kept.tolist() == sorted(set(kept.tolist()))
        left = sorted(set(range(len(values))) - set(kept.tolist()))
        assert not left or values[kept].min() >= values[left].max()


def test_the_report_is_a_table() -> None:
    """Each block with what it had and has, and what that does to the whole."""
    shown = str(prune_(tiny_model("bert"), 0.25))
    assert "bert.encoder.layer.2       64    48" in shown
    assert "left (" in shown


def test_a_real_model_shrinks(minilm_path: Path) -> None:
    """Half of MiniLM's 6 × 1536 neurons are a sixth of its parameters."""
    report = prune_(load_model(minilm_path), 0.5)
    assert set(report.after.values()) == {768}
    assert report.parameters_before - report.parameters_after == 6 * 768 * (2 * 384 + 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"neurons": 1.0}, "neurons must be a finite number at least 0 and below 1; received 1"),
        ({"importance": "size"}, "importance must be"),
        ({"scope": "head"}, "scope must be"),
        ({"multiple_of": 0}, "multiple_of must be a whole number"),
        ({"seed": -1}, "seed must be"),
        ({"importance": "fisher"}, "batches are needed with importance='fisher'"),
        ({"batches": []}, "batches are of no use with importance='magnitude'"),
        ({"importance": "taylor", "batches": []}, "holds no batch"),
        ({"importance": "taylor", "batches": [{"input_ids": torch.ones(1, 2, dtype=torch.long)}]}, "must hold labels"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_cut(settings: dict[str, Any], message: str) -> None:
    """Each message gives the rule; the model is as it was."""
    model = tiny_model("bert")
    with pytest.raises(ConfigError, match=message):
        prune_(model, **({"neurons": 0.5} | settings))
    assert set(widths(model).values()) == {64}


def test_a_model_without_feed_forward_layers_is_refused() -> None:
    """Layers of one width do not say which of them are neurons."""
    model = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()) for _ in range(3)))
    with pytest.raises(ModelError, match="cannot be told by their shapes"):
        prune_(model, 0.5)
