"""Heads on pooled states: what they compute, on which architectures, and that they reload."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from lowft.compress import quantize_
from lowft.errors import ConfigError, ModelError, StrategyConflictError
from lowft.export import load
from lowft.models.loading import load_model
from lowft.models.pooling import Pooling, is_pooled, pool_states, pooled_head_
from lowft.strategies import PooledHead, Quantize
from tests.runs import tiny_trainer, weights
from tests.strategy_cases import STRATEGIES
from tests.tiny import ARCHITECTURES, tiny_model, tiny_tokenizer

POOLINGS: tuple[Pooling, ...] = ("mean", "cls", "last", "attention")


@given(seed=st.integers(0, 1000), tokens=st.integers(1, 6), padding=st.integers(0, 4), left=st.booleans())
@settings(max_examples=40, deadline=None)
def test_padding_has_no_part_in_what_is_pooled(seed: int, tokens: int, padding: int, left: bool) -> None:
    """Whatever stands in the padding, and on whichever side it is, the pooled vector is that of the bare tokens."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(1, tokens, 3, generator=generator)
    scores = torch.randn(1, tokens, generator=generator)
    noise = torch.randn(1, padding, 3, generator=generator) * 100
    ones, zeros = torch.ones(1, tokens, dtype=torch.long), torch.zeros(1, padding, dtype=torch.long)
    order = slice(None, None, -1 if left else 1)
    padded = torch.cat([states, noise][order], 1)
    mask = torch.cat([ones, zeros][order], 1)
    more = torch.cat([scores, noise[..., 0]][order], 1)
    for pooling in POOLINGS:
        bare = pool_states(states, ones, pooling, scores)
        torch.testing.assert_close(pool_states(padded, mask, pooling, more), bare)
    torch.testing.assert_close(pool_states(padded, mask, "cls"), states[:, 0])
    torch.testing.assert_close(pool_states(padded, mask, "last"), states[:, -1])


def test_pooling_refuses_what_does_not_fit() -> None:
    """An unknown word, shapes of different texts, and attention without scores are named."""
    states, mask = torch.zeros(1, 2, 3), torch.ones(1, 2)
    with pytest.raises(ConfigError, match="'median'"):
        pool_states(states, mask, "median")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"\[1, 2, 3\] and \[1, 3\]"):
        pool_states(states, torch.ones(1, 3))
    with pytest.raises(ConfigError, match="needs scores"):
        pool_states(states, mask, "attention")
    with pytest.raises(ConfigError, match=r"PooledHead.pooling.*'sum'"):
        PooledHead("sum")  # type: ignore[arg-type]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_trains_and_reloads(arch: str, tmp_path: Path) -> None:
    """The head alone is new, learns, and comes back from a folder with the same logits."""
    trainer = tiny_trainer(
        model=tiny_model(arch), tokenizer=tiny_tokenizer(arch), strategies=[PooledHead()], max_steps=2
    )
    before = weights(trainer)
    trainer.fit()
    model: Any = trainer.model
    assert not torch.equal(before["pooled_head.output.weight"], model.pooled_head.output.weight)
    trainer.export(tmp_path / "model", verify="here")
    texts = ["a bad film", "good"]
    found = load(tmp_path / "model")
    assert is_pooled(found.model)
    assert np.array_equal(found.predict_logits(texts), trainer._predictor().predict_logits(texts))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_logits_are_the_layer_on_the_pooled_states(pooling: Any) -> None:
    """What the model answers is what one computes by hand from the states of its body."""
    model: Any = tiny_model("bert")
    pooled_head_(model, pooling)
    batch = dict(tiny_tokenizer()(["a bad film", "good"], padding=True, return_tensors="pt"))
    batch.pop("token_type_ids", None)
    states = model.bert(**batch).last_hidden_state
    scores = model.pooled_head.attention(states).squeeze(2) if pooling == "attention" else None
    pooled = pool_states(states, batch["attention_mask"], pooling, scores)
    outputs = model(**batch)
    torch.testing.assert_close(outputs.pooled, pooled)
    torch.testing.assert_close(outputs.logits, model.pooled_head.output(pooled))


def test_the_fresh_process_and_plain_transformers(tmp_path: Path) -> None:
    """A fresh process reads the folder; plain transformers finds no weights in it, and the card says so."""
    from transformers import AutoModelForSequenceClassification

    trainer = tiny_trainer(strategies=[PooledHead("attention")], max_steps=1)
    trainer.fit()
    folder = trainer.export(tmp_path / "model", verify="process")
    assert "lowft alone reads it" in (folder / "README.md").read_text("utf-8")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModelForSequenceClassification.from_pretrained(folder)
    structure = json.loads((folder / "lowft.json").read_text("utf-8"))["structure"]
    assert structure == [{"kind": "pooled head", "plan": {"pooling": "attention"}}]


def test_an_exported_model_is_trained_further(tmp_path: Path) -> None:
    """The folder is a model to start from; asking for the same head again changes nothing."""
    first = tiny_trainer(strategies=[PooledHead()], max_steps=1)
    first.fit()
    folder = first.export(tmp_path / "model", verify="here")
    model = load_model(folder)
    before = weights(model)
    pooled_head_(model, "mean")
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(model).items())
    again = tiny_trainer(model=folder, strategies=[PooledHead()], max_steps=1)
    again.fit()
    with pytest.raises(ModelError, match="pooling='mean' already, and pooling='last'"):
        pooled_head_(model, "last")
    fresh = load_model(folder, new_head=True, seed=5)
    after = weights(fresh)
    changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
    assert "pooled_head.output.weight" in changed
    assert all(name.startswith("pooled_head.output.") for name in changed)


def test_only_a_full_precision_classifier_gets_the_head() -> None:
    """Other modules and quantized models are refused, and so is a strategy that rounds before it."""
    with pytest.raises(ModelError, match="received a Linear"):
        pooled_head_(torch.nn.Linear(2, 2))
    model = tiny_model("bert")
    quantize_(model, "int8")
    with pytest.raises(ModelError, match="quantized"):
        pooled_head_(model)
    with pytest.raises(StrategyConflictError, match=r"The order that works: \[PooledHead, Quantize\]"):
        tiny_trainer(strategies=[Quantize(), PooledHead()])


@pytest.mark.parametrize(("pooling", "runtime"), list(zip(POOLINGS, itertools.cycle(["onnx", "openvino"]))))
def test_graphs_hold_the_head(pooling: Pooling, runtime: Any, tmp_path: Path) -> None:
    """ONNX Runtime and OpenVINO give the same logits, for texts of other lengths than the graph was traced with."""
    trainer = tiny_trainer(model=tiny_model("bert", num_layers=1), strategies=[PooledHead(pooling)], epochs=1)
    trainer.fit()
    texts = ["a film", "a warm and funny story about a dull film", "plot"]
    own = trainer._predictor().predict_logits(texts)
    folder = trainer.export(tmp_path / runtime, format=runtime, verify="here")
    assert np.allclose(load(folder).predict_logits(texts), own, atol=1e-4)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_may_follow(name: str) -> None:
    """Whatever stands after it in the list trains with the new head."""
    trainer = tiny_trainer(strategies=[PooledHead(), STRATEGIES[name]], max_steps=1)
    trainer.fit()
    assert is_pooled(trainer.model)


@pytest.mark.parametrize("name", ["distill hidden", "masked words", "reinitialize", "quantize from the start"])
def test_what_the_new_head_would_undo_is_refused_before_it(name: str) -> None:
    """Layers to train with, blocks drawn anew and rounded weights: the message has the order that works."""
    with pytest.raises(StrategyConflictError, match=rf"The order that works: \[PooledHead, {STRATEGIES[name].name}\]"):
        tiny_trainer(strategies=[STRATEGIES[name], PooledHead()])


@pytest.mark.parametrize("name", ["top", "unfreeze", "augment", "distill", "prune", "prune at the start", "every hook"])
def test_it_may_follow_the_rest(name: str) -> None:
    """What it leaves as it is may stand before it."""
    trainer = tiny_trainer(strategies=[STRATEGIES[name], PooledHead()], max_steps=1)
    trainer.fit()
    assert is_pooled(trainer.model)
