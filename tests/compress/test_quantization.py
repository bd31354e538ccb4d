"""Integers in the place of floats: on every architecture, smaller, close, and read again bit by bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lowft.checkpoint import load_tensors_, model_tensors
from lowft.compress import prune_, quantization_sensitivity, quantize_
from lowft.compress.quantization import layers_to_quantize, scheme_of
from lowft.compress.quantized_layers import (
    FakeQuantization,
    QuantizedEmbedding,
    QuantizedLinear,
    fake_quantize_,
    undo_fake_quantization_,
    unrounded_copy,
)
from lowft.compress.structure import rebuild_, structure_of
from lowft.errors import CheckpointCorruptError, ConfigError, ModelError
from tests.tiny import ARCHITECTURES, tiny_batch, tiny_model

SCHEMES = ("int8", "int8_weight_only", "int4_weight_only", "bfloat16")
# Root mean square of the change of the logits, over their own spread: tiny random models amplify every rounding.
CLOSE = {"int8": 0.12, "int8_weight_only": 0.08, "int4_weight_only": 1.2, "bfloat16": 0.12}


def logits_of(model: nn.Module, arch: str) -> torch.Tensor:
    """Return the logits of a ragged batch in float32."""
    batch = tiny_batch(arch, rows=8)
    with torch.no_grad():
        answer: torch.Tensor = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return answer.float()


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the root mean square of a difference over the spread of the second."""
    return float((one - other).square().mean().sqrt() / other.std())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_is_smaller_and_answers_alike(arch: str, scheme: Any) -> None:
    """Bytes shrink as the bits do, the logits stay close, and a rebuilt model gives the same bits."""
    model = tiny_model(arch)
    before = logits_of(model, arch)
    report = quantize_(model, scheme)
    after = logits_of(model, arch)
    assert not torch.equal(after, before)
    assert distance(after, before) < CLOSE[scheme]
    assert report.bytes_after == sum(tensor.nbytes for tensor in model_tensors(model).values())
    # At width 32 the scales weigh a good deal, and DeBERTa's relative positions stay in float.
    assert report.bytes_after / report.bytes_before < (0.55 if scheme in {"bfloat16", "int8"} else 0.52)
    fresh = tiny_model(arch, seed=5)
    rebuild_(fresh, structure_of(model), "here")
    load_tensors_(fresh, {name: tensor.clone() for name, tensor in model_tensors(model).items()}, "here")
    assert torch.equal(logits_of(fresh, arch), after)
    assert structure_of(fresh) == structure_of(model)


@pytest.mark.parametrize("scheme", ["int8", "int8_weight_only", "int4_weight_only"])
@pytest.mark.parametrize("arch", ["bert", "gpt2", "modernbert"])
def test_what_trains_with_rounding_is_what_is_exported(arch: str, scheme: Any) -> None:
    """A model that rounds while it trains answers as the one with integers, but for the order of additions."""
    model = tiny_model(arch)
    how = FakeQuantization(scheme)
    for name in layers_to_quantize(model, scheme, keep=(), embeddings=True):
        fake_quantize_(model.get_submodule(name), how)
    trained = logits_of(model, arch)
    plain = unrounded_copy(model)
    assert torch.equal(logits_of(plain, arch), logits_of(tiny_model(arch), arch))
    for module in list(model.modules()):
        if type(module).__name__.startswith("FakeQuantized"):
            undo_fake_quantization_(module)
    quantize_(model, scheme)
    assert distance(logits_of(model, arch), trained) < 0.02


def test_the_rounding_can_be_switched_off() -> None:
    """Until its stage begins, a layer that will round does not."""
    model, plain = tiny_model("bert"), logits_of(tiny_model("bert"), "bert")
    how = FakeQuantization("int8", on=False)
    for name in layers_to_quantize(model, "int8", keep=(), embeddings=True):
        fake_quantize_(model.get_submodule(name), how)
    assert torch.equal(logits_of(model, "bert"), plain)
    how.on = True
    assert not torch.equal(logits_of(model, "bert"), plain)


def test_gradients_reach_every_weight_that_rounds() -> None:
    """Nothing stops learning because it rounds."""
    model = tiny_model("bert")
    how = FakeQuantization("int8")
    chosen = layers_to_quantize(model, "int8", keep=(), embeddings=True)
    for name in chosen:
        fake_quantize_(model.get_submodule(name), how)
    model(**tiny_batch("bert")).loss.backward()
    without = [name for name in chosen if model.get_parameter(f"{name}.weight").grad is None]
    assert without == []


def test_patterns_keep_layers_in_float() -> None:
    """Patterns name layers or what holds them; the report says what stayed."""
    model = tiny_model("bert")
    report = quantize_(model, keep=["classifier", "bert.encoder.layer.0.*"], embeddings=False)
    assert isinstance(model.get_submodule("classifier"), nn.Linear)
    assert isinstance(model.get_submodule("bert.encoder.layer.1.output.dense"), QuantizedLinear)
    assert set(report.kept) & set(report.quantized) == set()
    assert {"classifier", "bert.encoder.layer.0.output.dense", "bert.embeddings.word_embeddings"} <= set(report.kept)
    assert str(report).startswith("int8: 13 layers quantized, 10 kept in float (")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheme": "int3"}, "quantize_: scheme must be one of .*'int8'.*received 'int3'"),
        ({"keep": "classifier"}, "quantize_: keep must be a list of patterns"),
        ({"keep": ["clasifier"]}, r"keep='clasifier' matches no linear layer or embedding.*classifier"),
        ({"embeddings": 1}, "embeddings must be True or False"),
        ({"scheme": "bfloat16", "keep": ["classifier"]}, "scheme='bfloat16' shortens every weight"),
    ],
)
def test_settings_out_of_range_leave_the_model_alone(arguments: dict[str, Any], message: str) -> None:
    """Every mistake is found before a weight is touched."""
    model = tiny_model("bert")
    before = {name: tensor.clone() for name, tensor in model_tensors(model).items()}
    with pytest.raises(ConfigError, match=message):
        quantize_(model, **arguments)
    assert structure_of(model) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in model_tensors(model).items())


def test_a_model_is_quantized_once() -> None:
    """Integers of integers would be a second loss."""
    model = tiny_model("bert")
    quantize_(model)
    assert scheme_of(model) == "int8"
    with pytest.raises(ModelError, match="this BertForSequenceClassification is quantized already"):
        quantize_(model, "int4_weight_only")
    with pytest.raises(ModelError, match="quantized already: measure the full-precision model"):
        quantization_sensitivity(model, lambda model: logits_of(model, "bert"))
    with pytest.raises(ModelError, match="has no linear layer or embedding"):
        quantize_(nn.Sequential(nn.LayerNorm(4)))


def test_tied_weights_stay_tied() -> None:
    """An output layer that shares its weight with the embeddings shares their integers."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(50, 32)
            self.output = nn.Linear(32, 50, bias=False)
            self.output.weight = self.words.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = self.output(self.words(ids))
            return answer

    model = Tied()
    quantize_(model)
    words, output = model.words, model.output
    assert isinstance(words, QuantizedEmbedding)
    assert isinstance(output, QuantizedLinear)
    assert words.weight.data_ptr() == output.weight.data_ptr()
    kept = Tied()
    report = quantize_(nn.Sequential(kept, nn.Linear(50, 2)), keep=["0.words"])
    assert report.quantized == ("1",)  # the other side of a tie stays as well
    assert kept.output.weight is kept.words.weight


def test_a_pruned_model_can_be_quantized_and_rebuilt() -> None:
    """Both changes are in the structure, in order, and a fresh model takes them in."""
    model = tiny_model("bert")
    with torch.no_grad():  # so that the blocks end up with different widths
        model.get_submodule("bert.encoder.layer.0.intermediate.dense").weight[:40] *= 5  # type: ignore[index, operator]
    prune_(model, 0.5, scope="global", multiple_of=4)
    quantize_(model, "int4_weight_only")
    assert [entry["kind"] for entry in structure_of(model)] == ["widths", "quantized"]
    fresh = tiny_model("bert", seed=4)
    rebuild_(fresh, structure_of(model), "here")
    load_tensors_(fresh, {name: tensor.clone() for name, tensor in model_tensors(model).items()}, "here")
    assert torch.equal(logits_of(fresh, "bert"), logits_of(model, "bert"))


@pytest.mark.parametrize(
    "plan",
    [
        {"scheme": "int8", "layers": ["bert.encoder"]},
        {"scheme": "int8", "layers": "classifier"},
        {"scheme": "pickle", "layers": []},
        {"layers": []},
        {"scheme": "int8", "layers": ["os.system"]},
    ],
)
def test_a_forged_plan_is_refused(plan: dict[str, Any]) -> None:
    """A plan that does not fit the model is an error of the folder it came from."""
    with pytest.raises(CheckpointCorruptError, match="its structure does not fit the model of its config"):
        rebuild_(tiny_model("bert"), [{"kind": "quantized", "plan": plan}], "here")


def test_sensitivity_names_the_layer_that_suffers() -> None:
    """A layer with one huge weight loses all others; it comes first, and the model is as it was."""
    model = tiny_model("bert")
    with torch.no_grad():
        model.get_submodule("bert.encoder.layer.1.output.dense").weight[:, 0] = 1e4  # type: ignore[operator]
        gate = model.get_submodule("bert.encoder.layer.1.intermediate.dense")
        gate.weight[0], gate.bias[0] = 0, -1e4  # type: ignore[operator] # its neuron is silent
    before, state = logits_of(model, "bert"), copy.deepcopy(model.state_dict())
    table = quantization_sensitivity(model, lambda model: logits_of(model, "bert"), "int8", progress=False)
    assert table.worst(1) == ["bert.encoder.layer.1.output.dense"]
    assert table.changes[table.worst(1)[0]] > 5 * table.changes[table.worst(2)[1]]
    assert str(table).splitlines()[2].startswith("bert.encoder.layer.1.output.dense")
    assert "<table" in table._repr_html_()
    assert torch.equal(logits_of(model, "bert"), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert scheme_of(model) is None
