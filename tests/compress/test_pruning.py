"""prune_: what it keeps, what it says, what plain transformers then loads, and what it refuses."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lowft.checkpoint import load_tensors_, model_tensors
from lowft.compress import prune_, quantize_
from lowft.compress.attention import find_heads
from lowft.compress.feed_forward import find_neurons
from lowft.compress.structure import rebuild_, structure_of
from lowft.errors import ConfigError, ModelError
from lowft.models import load_model
from tests.compress.test_parts import logits_of
from tests.runs import tiny_trainer
from tests.tiny import ARCHITECTURES, tiny_batch, tiny_model

GRADIENTS = ("taylor", "fisher")
LAYER = "bert.encoder.layer"


def widths(model: torch.nn.Module) -> dict[str, int]:
    """Return the neurons left in each block."""
    return {part.sites[0].block: part.units for part in find_neurons(model)}


def heads(model: torch.nn.Module) -> list[int]:
    """Return the heads left in each part."""
    return [part.units for part in find_heads(model)]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_one_width_for_all_is_loaded_by_plain_transformers(arch: str, tmp_path: Path) -> None:
    """Where every layer keeps as many, the config says so, and nothing is drawn at random on loading."""
    model = tiny_model(arch)
    sayable = arch in {"llama", "t5"}  # their configs give the size of a head by itself
    report = prune_(model, 0.5, heads=0.5 if sayable else 0.0, uniform=True)
    assert report.plain
    assert not structure_of(model)
    model.save_pretrained(tmp_path)
    reloaded, told = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["mismatched_keys"]
    assert torch.equal(logits_of(reloaded.eval(), arch), logits_of(model, arch))
    assert heads(reloaded) == [count // (1 + sayable) for count in heads(tiny_model(arch))]


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch not in {"llama", "t5"}])
def test_uniform_refuses_heads_that_a_config_cannot_say(arch: str) -> None:
    """The message says why and the ways out; the model is as it was."""
    model = tiny_model(arch)
    with pytest.raises(ModelError, match=r"config of this .* cannot say .* uniform=True .* leave uniform out"):
        prune_(model, heads=0.5, layers=0 if arch == "albert" else 1, uniform=True)
    assert heads(model) == heads(tiny_model(arch))
    report = prune_(model, parameters=0.9, uniform=True)  # neurons alone can meet a budget
    assert report.plain
    assert report.heads_after == report.heads_before


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch != "albert"])
def test_what_differs_is_rebuilt(arch: str) -> None:
    """Where layers keep different numbers, the structure says them, and every weight fits the rebuilt model."""
    model = tiny_model(arch)
    report = prune_(model, 0.4, heads=0.4, scope="global", importance="random", multiple_of=1, seed=3)
    assert len(set(report.after.values())) > 1
    assert not report.plain
    again = tiny_model(arch, seed=5)
    rebuild_(again, json.loads(json.dumps(structure_of(model))), "memory")
    load_tensors_(again, model_tensors(model), "memory")
    assert torch.equal(logits_of(again, arch), logits_of(model, arch))


def test_an_uneven_model_is_exported_and_loaded_elsewhere(tmp_path: Path) -> None:
    """A fresh process gives the same bits, and so does further training from the folder; plain loading says no."""
    model = tiny_model("bert")
    prune_(model, 0.4, heads=0.5, scope="global", importance="random", multiple_of=1, seed=3)
    trainer = tiny_trainer(model=model)
    trainer.fit()
    folder = trainer.export(tmp_path / "small", verify="here")
    texts = ["a dull film", "a warm story"]
    script = f"import lowft, json; print(json.dumps(lowft.load({str(folder)!r}).predict_logits({texts!r}).tolist()))"
    answer = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert json.loads(answer.stdout.splitlines()[-1]) == trainer._predictor().predict_logits(texts).tolist()
    reloaded = load_model(folder)
    assert widths(reloaded) == widths(trainer.model)
    assert heads(reloaded) == heads(trainer.model)
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForSequenceClassification.from_pretrained(folder)


@pytest.mark.parametrize("importance", ["magnitude", *GRADIENTS])
def test_what_matters_is_kept(importance: Any) -> None:
    """Units that nothing reads are the first to go, whatever measures them; their loss changes nothing."""
    model = tiny_model("bert")
    dead = torch.arange(0, 64, 2)
    with torch.no_grad():
        for layer in range(3):
            model.get_parameter(f"{LAYER}.{layer}.output.dense.weight")[:, dead] = 0
            model.get_parameter(f"{LAYER}.{layer}.intermediate.dense.weight")[dead] *= 0.01
            model.get_parameter(f"{LAYER}.{layer}.attention.output.dense.weight")[:, 8:24] = 0
            for name in ("query", "key", "value"):
                model.get_parameter(f"{LAYER}.{layer}.attention.self.{name}.weight")[8:24] *= 0.01
    before = logits_of(model, "bert")
    batches = [tiny_batch("bert", seed=seed) for seed in range(2)] if importance in GRADIENTS else None
    prune_(model, 0.5, heads=0.5, importance=importance, batches=batches)
    assert heads(model) == [2, 2, 2]
    torch.testing.assert_close(logits_of(model, "bert"), before, rtol=0, atol=1e-5)


def test_chance_is_a_matter_of_the_seed() -> None:
    """Equal seeds cut the same units, others do not."""
    models = [tiny_model("bert") for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        prune_(model, 0.5, heads=0.5, importance="random", seed=seed)
    one, same, other = (logits_of(model, "bert") for model in models)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_measuring_leaves_gradients_and_flags_alone() -> None:
    """The caller's gradients, frozen weights and mode are as before, though nothing of the model trains."""
    model = tiny_model("bert").train()
    model.classifier.weight.grad = torch.ones_like(model.classifier.weight)
    for parameter in model.bert.parameters():
        parameter.requires_grad_(False)
    prune_(model, 0.5, heads=0.5, importance="fisher", batches=[tiny_batch("bert")], tune=True)
    assert model.training
    assert torch.equal(model.classifier.weight.grad, torch.ones_like(model.classifier.weight))
    assert not any(parameter.requires_grad for parameter in model.bert.parameters())
    assert model.classifier.weight.requires_grad
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert not any("lowft" in name for name, _ in model.named_buffers())


def test_the_report_is_a_table() -> None:
    """Each block with what it had and has, and what that does to the whole."""
    report = prune_(tiny_model("bert"), 0.25, heads=0.25, layers=[1])
    shown = str(report)
    assert "block                 neurons  left  heads  left" in shown
    assert "bert.encoder.layer.1       64    48      4     3" in shown
    assert "layers left out: bert.encoder.layer.1" in shown
    assert "parameters, " in shown
    assert "operations, " in shown
    assert shown.endswith("for 64 tokens")
    assert report.flops_after is not None
    assert report.flops_before is not None
    assert report.flops_after < report.flops_before


def test_a_real_model_shrinks(minilm_path: Path) -> None:
    """Half of MiniLM's 6 × 1536 neurons are a sixth of its parameters; half of its heads a quarter of that more."""
    report = prune_(load_model(minilm_path), 0.5, heads=0.5)
    assert set(report.after.values()) == {768}
    assert set(report.heads_after.values()) == {6}
    assert report.parameters_before - report.parameters_after == 6 * (768 * (2 * 384 + 1) + 192 * (4 * 384 + 3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"neurons": 1.0}, "neurons must be a finite number at least 0 and below 1; received 1"),
        ({"heads": 1.0}, "heads must be a finite number at least 0 and below 1; received 1"),
        ({"weights": -0.1}, "weights must be a finite number at least 0 and below 1"),
        ({"neurons": 0}, "prune_ has nothing to cut: give neurons, heads, layers, weights, or a budget"),
        ({"importance": "size"}, "importance must be"),
        ({"scope": "head"}, "scope must be"),
        ({"multiple_of": 0}, "multiple_of must be a whole number"),
        ({"seed": -1}, "seed must be"),
        ({"tune": 1, "batches": []}, "tune must be True or False"),
        ({"uniform": 1}, "uniform must be True or False"),
        ({"uniform": True, "scope": "global"}, "uniform=True leaves every layer as many"),
        ({"shape": 64}, "shape must be two whole numbers, rows and tokens; received 64"),
        ({"shape": (1, 0)}, "tokens of shape must be a whole number"),
        ({"importance": "fisher"}, "batches are needed with importance='fisher'"),
        ({"tune": True}, "batches are needed with tune=True"),
        ({"neurons": 0, "layers": 1, "tune": True}, "none are cut"),
        ({"batches": []}, "batches are of no use with importance='magnitude'"),
        ({"importance": "taylor", "batches": []}, "holds no batch"),
        ({"importance": "taylor", "batches": [{"input_ids": torch.ones(1, 2, dtype=torch.long)}]}, "must hold labels"),
        ({"flops": 0.5}, "flops and neurons say twice how much is to be left"),
        ({"neurons": 0, "flops": 0.5, "latency": 0.5}, "flops and latency say twice"),
        ({"neurons": 0, "layers": 1, "flops": 0.5}, "flops and layers say twice"),
        ({"neurons": 0, "flops": 1.0}, "flops must be a finite number above 0 and below 1"),
        ({"neurons": 0, "parameters": 0.01}, r"parameters=0\.01 cannot be met: .* 0\.\d+ of the whole .* the least"),
        ({"neurons": 0, "flops": 0.01}, r"flops=0\.01 cannot be met: .* the least there can be"),
        ({"weights": 0.5}, "weights sets single weights to zero and goes alone"),
        ({"layers": 3}, "layers=3 would leave none of 3"),
        ({"layers": [0, 1, 2]}, "would leave none of 3"),
        ({"layers": [3]}, "rising numbers from 0 to 2"),
        ({"layers": -1}, "layers must be a whole number"),
        ({"layers": "top"}, "layers must be a whole number"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_cut(settings: dict[str, Any], message: str) -> None:
    """Each message gives the rule; the model is as it was."""
    model = tiny_model("bert")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match=message):
        prune_(model, **({"neurons": 0.5} | settings))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_quantized_model_is_refused() -> None:
    """Integers can neither be measured nor cut; the message gives the order that works."""
    model = tiny_model("bert")
    quantize_(model)
    with pytest.raises(ModelError, match="quantized already: prune the full-precision model, then quantize it"):
        prune_(model, 0.5)
