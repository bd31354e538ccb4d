from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from lowft.errors import ConfigError, ModelError
from lowft.models.layers import find_layers, layer_table
from lowft.models.trainable import (
    Selection,
    freeze_,
    preview,
    set_train_mode_,
    set_trainable_,
    trainable_names,
)
from tests.tiny import ARCHITECTURES, tiny_batch, tiny_model

BERT = tiny_model("bert")
LAYERS = find_layers(BERT)
ALL = frozenset(LAYERS.depths)


def _above(depth: int) -> frozenset[str]:
    return frozenset(name for name, at in LAYERS.depths.items() if at > depth)


def _containing(*parts: str) -> frozenset[str]:
    return frozenset(name for name in ALL if any(part in name for part in parts))


@pytest.fixture(scope="module")
def language_model() -> nn.Module:
    """A causal LM whose word embedding is also its output layer."""
    config = AutoConfig.for_model("gpt2", n_embd=8, n_head=2, n_layer=2, vocab_size=20, n_positions=16)
    auto: Any = AutoModelForCausalLM
    model: nn.Module = auto.from_config(config)
    return model


HEAD = _above(3)
BIASES = frozenset(name for name in ALL if name.endswith("bias"))
CASES: list[tuple[Selection, frozenset[str]]] = [
    ({}, ALL),
    ({"top": None, "embeddings": None, "train": [], "freeze": []}, ALL),
    ({"top": 0}, HEAD),
    ({"top": 2}, _above(1)),
    ({"top": 3}, _above(0)),
    ({"top": 3, "embeddings": True}, ALL),
    ({"embeddings": False}, _above(0)),
    ({"head": False}, ALL - HEAD),
    ({"top": 1, "head": False}, _above(2) - HEAD),
    ({"embeddings": True, "top": 0, "head": False}, frozenset(LAYERS.names_at(0))),
    ({"biases_only": True}, BIASES | HEAD),
    ({"biases_only": True, "top": 1}, (BIASES & _above(2)) | HEAD),
    ({"biases_only": True, "embeddings": False}, (BIASES & _above(0)) | HEAD),
    ({"biases_only": True, "train": ["*.query.*"]}, BIASES | HEAD | _containing(".query.")),
    ({"train": ["*.attention.*"]}, _containing(".attention.") | HEAD),
    ({"train": ["*.attention.*"], "head": False}, _containing(".attention.")),
    ({"train": ["bert.encoder.layer.1"], "head": False}, frozenset(LAYERS.names_at(2))),
    ({"train": ["*"], "embeddings": False}, _above(0)),
    (
        {"top": 1, "train": ["*.layer.0.*.query.*"]},
        _above(2) | _containing("layer.0.attention.self.query"),
    ),
    ({"freeze": ["*.LayerNorm.*"]}, ALL - _containing("LayerNorm")),
    ({"freeze": ["*.LayerNorm"], "top": 2}, _above(1) - _containing("LayerNorm")),
    (
        {"train": ["*.attention.*"], "freeze": ["*.query.*"]},
        (_containing(".attention.") | HEAD) - _containing("query"),
    ),
]


@pytest.mark.parametrize(("selection", "expected"), CASES)
def test_selections(selection: Selection, expected: frozenset[str]) -> None:
    """Every way to choose what trains gives the parameters it speaks of, also after a trip through JSON."""
    assert trainable_names(BERT, layers=LAYERS, **selection) == expected
    again: Selection = json.loads(json.dumps(selection))
    assert trainable_names(BERT, **again) == expected


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_top_blocks_of_every_architecture(arch: str) -> None:
    """In each architecture top=k trains depths above L - k, and a step changes these bytes and no others."""
    model = tiny_model(arch)
    layers = find_layers(model)
    top = min(2, layers.num_blocks)
    names = freeze_(model, top=top)
    assert names == {name for name, depth in layers.depths.items() if depth > layers.num_blocks - top}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    set_train_mode_(model)
    model(**tiny_batch(arch)).loss.backward()
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == names


def test_freezing_drops_gradients_of_what_is_frozen() -> None:
    """A gradient from before stays where a parameter trains and is gone where it is frozen."""
    model = tiny_model("bert")
    model(**tiny_batch("bert")).loss.backward()
    names = freeze_(model, top=0)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name in names)
        assert (parameter.grad is not None) == (name in names)


@given(
    top=st.none() | st.integers(0, 3),
    embeddings=st.sampled_from([None, True, False]),
    head=st.booleans(),
    biases_only=st.booleans(),
    train=st.lists(st.sampled_from(["*.query.*", "*.bias", "classifier"]), max_size=2),
    freeze=st.lists(st.sampled_from(["*.LayerNorm.*", "*.key.weight", "bert.pooler"]), max_size=2),
)
def test_frozen_wins_and_train_is_honoured(
    top: int | None,
    embeddings: bool | None,
    head: bool,
    biases_only: bool,
    train: list[str],
    freeze: list[str],
) -> None:
    """In any combination, what is frozen by name never trains and what is asked for by name does."""
    try:
        names = trainable_names(
            BERT,
            top=top,
            embeddings=embeddings,
            head=head,
            biases_only=biases_only,
            train=train,
            freeze=freeze,
            layers=LAYERS,
        )
    except ConfigError as error:
        assert re.search("contradicts|nothing to train|finds no bias", str(error))  # noqa: PT017
        return
    gone = {
        name
        for pattern in freeze
        for name in _containing(pattern.strip("*"))
        if pattern != "*.key.weight" or name.endswith("key.weight")
    }
    gone |= set(LAYERS.names_at(0)) if embeddings is False else set()
    gone |= HEAD if not head else set()
    assert names
    assert not names & gone
    asked = _containing(".query.") if "*.query.*" in train else frozenset()
    assert asked - gone <= names


@pytest.mark.parametrize("top", [-1, 4, True, 1.0, "2"])
def test_top_out_of_range_names_the_number_of_blocks(top: Any) -> None:
    """`top` that is no number of blocks is refused with L and the value received."""
    with pytest.raises(ConfigError, match=re.escape(f"from 0 (head only) to 3 (all blocks here), not {top!r}")):
        trainable_names(BERT, top=top, layers=LAYERS)


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("*.atention.*", "attention"),
        ("*.layernorm.*", "bert.embeddings.LayerNorm"),
        ("bert.encoder.layer.1.output.densee", "bert.encoder.layer.1.output.dense"),
        ("*.zzz.*", "bert.embeddings.word_embeddings"),
        ("Classifier", "classifier"),
    ],
)
@pytest.mark.parametrize("setting", ["train", "freeze"])
def test_pattern_without_match_lists_near_names(setting: str, pattern: str, near: str) -> None:
    """A pattern that matches nothing is refused, with names that come near it."""
    with pytest.raises(ConfigError, match=re.escape(f"{setting}={pattern!r} matches no parameter")) as caught:
        trainable_names(BERT, layers=LAYERS, **{setting: (pattern,)})  # type: ignore[arg-type]
    assert near in str(caught.value)


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        ({"train": ["*.query.*"], "freeze": ["*.query.*"]}, ["train='*.query.*'", "freeze='*.query.*'"]),
        (
            {"embeddings": True, "freeze": ["bert.embeddings"]},
            ["embeddings=True", "freeze='bert.embeddings'"],
        ),
        ({"train": ["*word_emb*"], "embeddings": False}, ["train='*word_emb*'", "embeddings=False"]),
        ({"train": ["classifier"], "head": False}, ["train='classifier'", "head=False"]),
        ({"top": 1, "freeze": ["bert.encoder"]}, ["top=1", "freeze='bert.encoder'"]),
        ({"biases_only": True, "freeze": ["*.bias"]}, ["biases_only=True", "freeze='*.bias'"]),
    ],
)
def test_contradictions_name_both_settings(selection: Selection, words: list[str]) -> None:
    """A setting that another one cancels altogether is refused, and both are named."""
    with pytest.raises(ConfigError, match="contradicts") as caught:
        trainable_names(BERT, layers=LAYERS, **selection)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("selection", [{"top": 0, "head": False}, {"freeze": ["*"]}, {"top": 0, "freeze": ["*"]}])
def test_everything_frozen_is_an_error(selection: Selection) -> None:
    """A selection that trains nothing is refused, and the model stays as it was."""
    model = tiny_model("bert")
    with pytest.raises(ConfigError, match="nothing to train in BertForSequenceClassification"):
        freeze_(model, **selection)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("patterns", "message"),
    [("*.bias", r"write train=\('\*\.bias',\)"), ([""], "not ''"), ([None], "not None")],
)
def test_patterns_must_be_texts_in_a_sequence(patterns: Any, message: str) -> None:
    """A lone text, which Python would take letter by letter, and empty patterns are refused."""
    with pytest.raises(ConfigError, match=message):
        trainable_names(BERT, train=patterns, layers=LAYERS)


@pytest.mark.parametrize("selection", [{"biases_only": True, "top": 0}, {"biases_only": True}])
def test_no_biases_to_choose_is_an_error(selection: Selection) -> None:
    """biases_only that finds none, for lack of blocks or in an architecture without biases, says so."""
    model = BERT if "top" in selection else tiny_model("llama")
    with pytest.raises(ConfigError, match="finds no bias"):
        trainable_names(model, **selection)


@pytest.mark.parametrize("selection", [{"top": 1}, {"embeddings": False}, {"freeze": ["lm_head"]}])
def test_half_frozen_tied_weight_is_an_error(language_model: nn.Module, selection: Selection) -> None:
    """A weight used as embedding and as output cannot train in one place only; the message names both."""
    with pytest.raises(ModelError, match="one tied weight") as caught:
        trainable_names(language_model, **selection)
    assert {"transformer.wte.weight", "lm_head.weight"} <= set(re.findall(r"[\w.]+weight", str(caught.value)))


def test_tied_weight_chosen_the_same_in_both_places(language_model: nn.Module) -> None:
    """The ways out that the message offers work: train both places, or freeze both."""
    tied = "transformer.wte.weight"
    assert tied in trainable_names(language_model)
    assert tied in trainable_names(language_model, top=1, train=[tied])
    assert tied not in trainable_names(language_model, top=1, freeze=[tied, "lm_head.weight"])


def test_names_of_one_place_are_one() -> None:
    """T5's three names of one embedding are one place: a pattern for any of them speaks for all."""
    names = trainable_names(tiny_model("t5"), freeze=["*.decoder.embed_tokens"])
    assert "transformer.shared.weight" not in names


def test_integer_parameters_never_train() -> None:
    """A quantized weight is left out of every selection, and naming it is an error."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model.register_parameter("packed", nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False))
    assert "packed" not in trainable_names(model)
    with pytest.raises(ModelError, match=r"packed holds torch\.int8"):
        set_trainable_(model, ["packed"])


def test_set_trainable_checks_names_before_it_edits() -> None:
    """An unknown name or no name at all is refused with near names, and nothing is edited."""
    model = tiny_model("bert")
    with pytest.raises(ModelError, match=r"no parameter 'classifier\.wight'.*classifier\.weight"):
        set_trainable_(model, ["classifier.bias", "classifier.wight"])
    with pytest.raises(ConfigError, match="names is empty"):
        set_trainable_(model, [])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_set_trainable_accepts_any_name_of_a_tied_weight(language_model: nn.Module) -> None:
    """A tied weight trains under each of its names."""
    set_trainable_(language_model, ["lm_head.weight"])
    assert language_model.get_parameter("transformer.wte.weight").requires_grad
    set_trainable_(language_model, trainable_names(language_model))


def test_frozen_modules_are_in_eval_mode() -> None:
    """Dropout and norms of frozen blocks stand still, those of trained blocks and of the head do not."""
    model = tiny_model("bert")
    freeze_(model, top=1)
    set_train_mode_(model)
    training = {name for name, module in model.named_modules() if module.training}
    assert "bert.encoder.layer.2.attention.output.dropout" in training
    assert "dropout" in training
    assert not any(name.startswith(("bert.embeddings", "bert.encoder.layer.1")) for name in training)


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch not in {"albert", "t5"}])
def test_frozen_prefix_repeats_itself(arch: str) -> None:
    """With layers given, all that runs below the lowest trained block gives the same output every time."""
    model = tiny_model(arch)
    layers = find_layers(model)
    freeze_(model, top=1, layers=layers)
    set_train_mode_(model, layers)
    seen: list[torch.Tensor] = []
    model.get_submodule(layers.blocks[-1]).register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    for _ in range(2):
        model(**tiny_batch(arch))
    assert torch.equal(seen[0], seen[1])


def test_everything_frozen_is_all_eval() -> None:
    """A model whose every parameter is frozen, as a teacher's, stays in eval mode as a whole."""
    model = tiny_model("bert").requires_grad_(False)
    set_train_mode_(model, LAYERS)
    assert not any(module.training for module in model.modules())


def test_preview_shows_what_freeze_would_do() -> None:
    """The dry run equals the table after freezing, and leaves the model untouched."""
    model = tiny_model("bert")
    shown = preview(model, top=1, freeze=["*.LayerNorm.*"])
    assert all(parameter.requires_grad for parameter in model.parameters())
    freeze_(model, top=1, freeze=["*.LayerNorm.*"])
    assert shown == layer_table(model)
