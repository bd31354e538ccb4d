"""Tests of training only chosen layers."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from lowft.attach import attach
from lowft.errors import ConfigError, ModelError, StrategyConflictError
from lowft.models import find_layers, preview, trainable_names
from lowft.registry import from_dict, to_dict
from lowft.stages import Stage
from lowft.strategies import PartialFreeze
from tests.test_strategies_table import make_trainer
from tests.tiny import ARCHITECTURES, tiny_model

SELECTIONS: dict[str, PartialFreeze] = {
    "everything": PartialFreeze(),
    "head": PartialFreeze(top=0),
    "one block": PartialFreeze(top=1),
    "embeddings too": PartialFreeze(top=1, embeddings=True),
    "no embeddings": PartialFreeze(embeddings=False),
    "no head": PartialFreeze(top=1, head=False),
}


def trained(model: torch.nn.Module, strategy: PartialFreeze) -> frozenset[str]:
    """Return the names of the parameters that train once the strategy is at work."""
    run = attach(model, [strategy])
    run.start_stage(0)
    names = frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    assert run.stages[0].trainable == run.trained == names
    return names


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", SELECTIONS)
def test_a_selection_chooses_by_depth(name: str, arch: str) -> None:
    """On every architecture, what trains is exactly what lies at the depths that the settings say."""
    strategy, model = SELECTIONS[name], tiny_model(arch)
    layers = find_layers(model)
    blocks = layers.num_blocks
    lowest = 1 if strategy.top is None else blocks + 1 - strategy.top
    depths = set(range(lowest, blocks + 1))
    depths |= {blocks + 1} if strategy.head else set()
    depths |= {0} if strategy.embeddings or (strategy.embeddings is None and strategy.top is None) else set()
    expected = {parameter for parameter, depth in layers.depths.items() if depth in depths}
    assert trained(model, strategy) == expected


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch not in {"llama", "modernbert", "t5"}])
def test_biases_only_trains_biases_and_the_head(arch: str) -> None:
    """BitFit: below the head, every parameter that trains is a bias."""
    model = tiny_model(arch)
    depths, head = find_layers(model).depths, find_layers(model).num_blocks + 1
    names = trained(model, PartialFreeze(biases_only=True))
    assert {name for name in depths if depths[name] == head} <= names
    assert {name for name in names if depths[name] < head}
    assert all(name.endswith("bias") for name in names if depths[name] < head)


def test_patterns_add_and_take_away() -> None:
    """`train` adds parameters by name, `freeze` wins over everything."""
    model = tiny_model("bert")
    by_name = trained(model, PartialFreeze(train=("*.attention.*",), freeze=("*LayerNorm*",)))
    head = trained(tiny_model("bert"), PartialFreeze(top=0))
    assert head < by_name
    assert all(".attention." in name and "LayerNorm" not in name for name in by_name - head)


@pytest.mark.parametrize(
    ("arch", "settings"),
    [
        ("bert", {"top": 1}),
        ("bert", {"biases_only": True}),
        ("gpt2", {"top": 0}),
        ("t5", {"embeddings": False}),
        ("albert", {"train": ("*attention*",)}),
    ],
)
def test_what_is_frozen_stays_byte_identical(arch: str, settings: dict[str, Any]) -> None:
    """After a run with weight decay, every frozen tensor has its very bytes, and every other has moved."""
    trainer = make_trainer(None, (PartialFreeze(**settings),), arch, weight_decay=0.5)
    names = trainable_names(tiny_model(arch), **settings)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.fit()
    after = trainer.model.state_dict()
    frozen = [name for name in before if name not in names]
    assert frozen
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    moved = {name for name in names if not torch.equal(before[name], after[name])}
    assert moved


def test_preview_shows_what_would_train_and_changes_nothing() -> None:
    """The table is that of `lowft.preview`; the model keeps its flags."""
    model = tiny_model("bert")
    model.requires_grad_(requires_grad=False)
    strategy = PartialFreeze(top=1, freeze=("*.bias",))
    table = strategy.preview(model)
    assert table == preview(model, top=1, freeze=("*.bias",))
    names = trained(tiny_model("bert"), strategy)
    assert sum(model.get_parameter(name).numel() for name in names) == 9344
    assert "9.34 k" in table.splitlines()[-1]
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_every_stage_is_narrowed() -> None:
    """Stages keep their settings and lose what the selection freezes."""
    model = tiny_model("bert")
    names = trainable_names(model, top=1)
    weights = frozenset(name for name, _ in model.named_parameters() if name.endswith("weight"))
    stages = (Stage("first", trainable=weights, epochs=1), Stage("second", learning_rate=1e-3))
    one, two = PartialFreeze(top=1).stages(stages, model)
    assert one == Stage("first", trainable=weights & names, epochs=1)
    assert two == Stage("second", trainable=names, learning_rate=1e-3)
    with pytest.raises(StrategyConflictError, match="PartialFreeze leaves the stage 'low' nothing to train"):
        PartialFreeze(top=0).stages((Stage("low", trainable=frozenset({next(iter(weights - names))})),), model)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"top": 4}, ConfigError, "top must be a whole number from 0 (head only) to 3 (all blocks here), not 4"),
        ({"top": "2"}, ConfigError, "not '2'"),
        ({"top": True}, ConfigError, "not True"),
        ({"head": "no"}, ConfigError, "head must be True or False; received 'no'"),
        ({"biases_only": 1}, ConfigError, "biases_only must be True or False; received 1"),
        ({"embeddings": "frozen"}, ConfigError, "embeddings must be True or False; received 'frozen'"),
        ({"train": "classifier"}, ConfigError, "not a text: write train=('classifier',)"),
        ({"freeze": 3}, ConfigError, "freeze must be a sequence of glob patterns, not 3"),
        ({"freeze": ("*atention*",)}, ConfigError, "attention"),
        ({"top": 0, "head": False}, ConfigError, "nothing to train"),
    ],
)
def test_settings_are_checked_before_the_model_is_touched(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    """What cannot work is refused when the strategy meets the model, whose flags stay as they were."""
    model = tiny_model("bert")
    with pytest.raises(error, match=re.escape(message)):
        attach(model, [PartialFreeze(**settings)])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_without_layers_is_refused() -> None:
    """Where no blocks can be told apart, the message says so."""
    with pytest.raises(ModelError, match="has no blocks that lowft can find"):
        attach(torch.nn.Linear(2, 2), [PartialFreeze(top=0)])


def test_lists_are_stored_as_tuples() -> None:
    """Settings given as lists are equal to those given as tuples, hash, return from JSON, and stay the caller's."""
    given = ["*.bias"]
    strategy = PartialFreeze(train=given, freeze=["*norm*"])  # type: ignore[arg-type]
    given.append("more")
    assert strategy == PartialFreeze(train=("*.bias",), freeze=("*norm*",))
    assert hash(strategy) == hash(PartialFreeze(train=("*.bias",), freeze=("*norm*",)))
    assert from_dict(to_dict(strategy)) == strategy
