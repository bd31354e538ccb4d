"""Blocks drawn anew: which ones, how, and by which seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lowft.compress import quantize_
from lowft.errors import ConfigError, ModelError
from lowft.models import find_layers
from lowft.models.layers import within
from lowft.models.pooling import pooled_head_
from lowft.models.reinitialization import reinitialize_
from tests.runs import weights
from tests.tiny import ARCHITECTURES, tiny_batch, tiny_model

SHARED = "albert"
MARK = 7.0  # a value that no initialiser gives
OWN_POOLER = {"bert": "bert.pooler", "deberta-v2": "pooler"}


def marked(arch: str) -> Any:
    """Return a tiny model all of whose weights are the same impossible value."""
    model = tiny_model(arch)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(MARK)
    return model


@pytest.mark.parametrize("top", [1, 3])
@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch != SHARED])
def test_the_top_blocks_are_drawn_and_nothing_else(arch: str, top: int) -> None:
    """No weight of the chosen blocks is left as it was, and no weight outside them changes, shared tables included."""
    model = marked(arch)
    layers = find_layers(model)
    names = reinitialize_(model, top)
    pooler = (OWN_POOLER[arch],) if arch in OWN_POOLER else ()
    assert names == (*layers.blocks[-top:], *pooler)
    lowest = layers.num_blocks - top + 1
    for name, parameter in model.named_parameters():
        block = lowest <= layers.depths[name] <= layers.num_blocks
        drawn = block or any(within(name, module) for module in pooler)
        assert bool((parameter == MARK).any()) != drawn, name
        assert drawn or bool((parameter == MARK).all()), name


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch != SHARED])
def test_weights_are_spread_as_in_a_fresh_model(arch: str) -> None:
    """Each weight has the spread that transformers gives it in a model made new, and each norm is its identity."""
    model = marked(arch)
    fresh: Any = type(model)(model.config)
    drawn = reinitialize_(model, 2, seed=3)
    expected = dict(fresh.named_parameters())
    for name, parameter in model.named_parameters():
        if not any(within(name, module) for module in drawn) or bool((parameter == MARK).all()):
            continue
        if parameter.ndim == 1:
            assert torch.equal(parameter, expected[name]), name
        else:
            torch.testing.assert_close(parameter.std(), expected[name].std(), rtol=0.3, atol=0, msg=name)


def test_the_seed_decides_what_is_drawn() -> None:
    """Equal seeds draw equal weights, other seeds others; the caller's random state is left alone with a seed only."""
    one, same, other, free = (tiny_model("bert") for _ in range(4))
    state = torch.random.get_rng_state()
    for model, seed in ((one, 5), (same, 5), (other, 6)):
        reinitialize_(model, seed=seed)
    assert torch.equal(torch.random.get_rng_state(), state)
    name = "bert.encoder.layer.2.output.dense.weight"
    assert torch.equal(weights(one)[name], weights(same)[name])
    assert not torch.equal(weights(one)[name], weights(other)[name])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        reinitialize_(free)
        assert not torch.equal(torch.random.get_rng_state(), state)


def test_a_pooled_head_stays() -> None:
    """The head is no pooler: it may have been set already."""
    model = tiny_model("bert")
    pooled_head_(model, "attention")
    before = weights(model)
    assert reinitialize_(model) == ("bert.encoder.layer.2",)
    changed = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("bert.encoder.layer.2.") for name in changed)


def test_the_body_of_another_model_is_drawn_as_its_own() -> None:
    """A module of one's own around a model of transformers draws by that model's initialiser."""

    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder: Any = marked("bert").bert
            self.head = nn.Linear(32, 2)

        def forward(self, **inputs: Any) -> torch.Tensor:
            out: torch.Tensor = self.head(self.encoder(**inputs)[0].mean(1))
            return out

    model = Mine()
    batch = tiny_batch("bert")
    assert reinitialize_(model, seed=1) == ("encoder.encoder.layer.2", "encoder.pooler")
    spread = model.encoder.encoder.layer[2].output.dense.weight.std().item()
    assert spread == pytest.approx(0.2, rel=0.1)
    assert model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).shape == (4, 2)


def test_a_plain_torch_model_is_drawn_as_torch_does() -> None:
    """Without an initialiser of its own, each module resets itself; one that cannot is named before any is changed."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(MARK)
    assert reinitialize_(model) == ("1.layers.1",)
    for name, parameter in model.named_parameters():
        assert bool((parameter == MARK).all()) != name.startswith("1.layers.1."), name

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)
            self.factor = nn.Parameter(torch.ones(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.inner(x) * self.factor
            return out

    odd = nn.Sequential(nn.Sequential(Scale(), Scale()), nn.Linear(4, 2))
    before = weights(odd)
    with pytest.raises(ModelError, match=r"'0\.1' does not say how it is drawn.*Scale a method reset_parameters"):
        reinitialize_(odd)
    assert all(torch.equal(value, before[name]) for name, value in weights(odd).items())


def test_what_cannot_be_drawn_is_refused() -> None:
    """More blocks than there are, shared blocks, integers, and numbers that are none are named."""
    with pytest.raises(ConfigError, match=r"top must be .* from 1 to 3, the blocks of this BertFor.*received 4"):
        reinitialize_(tiny_model("bert"), 4)
    with pytest.raises(ModelError, match="blocks of this AlbertForSequenceClassification share their weights"):
        reinitialize_(tiny_model(SHARED))
    quantized = tiny_model("bert")
    quantize_(quantized)
    with pytest.raises(ModelError, match="quantized"):
        reinitialize_(quantized)
    for wrong in ({"top": 0}, {"top": True}, {"seed": -1}):
        with pytest.raises(ConfigError, match=f"reinitialize_: {next(iter(wrong))}"):
            reinitialize_(tiny_model("bert"), **wrong)
