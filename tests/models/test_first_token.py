"""Where the head reads the first token alone, the top block computes no other, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lowft.augment import RandomSwap
from lowft.models import find_layers
from lowft.models.first_token import FirstToken
from lowft.models.pooling import pooled_head_
from lowft.strategies import (
    Augment,
    Distill,
    LayerwiseUnfreeze,
    MaskedLanguageModeling,
    PartialFreeze,
    PooledHead,
    Prune,
    Quantize,
)
from lowft.strategy import Strategy
from lowft.trainer import Trainer
from tests.runs import NO_DROPOUT, tiny_trainer
from tests.strategy_cases import tiny_rows, tiny_teacher
from tests.tiny import ARCHITECTURES, tiny_model, tiny_tokenizer

READ_FIRST = ("bert", "distilbert", "electra", "roberta")
TEXTS = ["a film", "a warm , funny story about love", "plot", "dull and lazy"]


def inputs_of(arch: str, texts: list[str] = TEXTS) -> dict[str, Any]:
    """Return the inputs of an architecture for some texts."""
    known = {"input_ids", "attention_mask"} | ({"token_type_ids"} if arch == "bert" else set())
    encoded = tiny_tokenizer(arch)(texts, padding=True, return_tensors="pt")
    return {name: tensor for name, tensor in encoded.items() if name in known}


def found_in(model: nn.Module, arch: str = "bert") -> FirstToken | None:
    """Return what is found in a model."""
    return FirstToken.find(model.eval(), find_layers(model), inputs_of(arch))


def gradients(model: nn.Module, outputs: Any) -> dict[str, torch.Tensor]:
    """Return the gradient of a loss for each parameter."""
    model.zero_grad()
    outputs.logits.square().sum().backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def positions(model: nn.Module, arch: str = "bert") -> list[int]:
    """Return where the numbers of tokens that enter the top block's feed-forward layer will be noted."""
    seen: list[int] = []
    top = model.get_submodule(find_layers(model).blocks[-1])
    layer = top.get_submodule("ffn.lin1" if arch == "distilbert" else "intermediate.dense")
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    return seen


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("arch", READ_FIRST)
def test_logits_and_gradients_are_those_of_the_whole_block(arch: str, attention: str) -> None:
    """In double precision nothing is left of rounding: every weight of the block has the gradient it had."""
    model = tiny_model(arch).double()
    model.set_attn_implementation(attention)
    top, inputs, seen = found_in(model, arch), inputs_of(arch), positions(model, arch)
    assert top is not None
    whole = model(**inputs)
    expected = gradients(model, whole)
    with top.alone():
        alone = model(**inputs)
    torch.testing.assert_close(alone.logits, whole.logits, rtol=0, atol=1e-12)
    found = gradients(model, alone)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-12)
    assert seen[-2:] == [inputs["input_ids"].shape[1], 1]
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-3


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_padding_is_not_read(lengths: list[int], seed: int) -> None:
    """Rows of any lengths, with any padding or none, have the logits they had."""
    model = tiny_model("bert", seed=seed)
    top = found_in(model)
    assert top is not None
    inputs = inputs_of("bert", [" ".join(["film", "dull", "warm"][place % 3] for place in range(n)) for n in lengths])
    whole = model(**inputs).logits
    with top.alone():
        torch.testing.assert_close(model(**inputs).logits, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch not in READ_FIRST])
def test_other_architectures_are_left_as_they_are(arch: str) -> None:
    """What reads more, shares its blocks, or attends in its own way runs whole."""
    assert found_in(tiny_model(arch), arch) is None


@pytest.mark.parametrize(("pooling", "reads_first"), [("cls", True), ("mean", False), ("last", False)])
def test_a_pooled_head_is_looked_at(pooling: Any, reads_first: bool) -> None:
    """The head that lowft gives may read the first token, or all of them."""
    model = tiny_model("bert")
    pooled_head_(model, pooling)
    assert (found_in(model) is not None) == reads_first


class MaxHead(nn.Module):
    """A head that reads the largest value over all tokens."""

    def __init__(self) -> None:
        """Take a body."""
        super().__init__()
        body: Any = tiny_model("bert")
        self.bert = body.bert
        self.head = nn.Linear(body.config.hidden_size, 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        """Return logits."""
        return self.head(self.bert(input_ids=input_ids, attention_mask=attention_mask)[0].amax(1))


def test_what_else_a_model_gives_is_looked_at() -> None:
    """States that a model returns are read by somebody; so are all that a head takes the largest of."""
    model = tiny_model("bert")
    model.config.output_hidden_states = True
    assert found_in(model) is None
    assert found_in(MaxHead(), "distilbert") is None


def test_rows_of_one_token_tell_nothing() -> None:
    """Where there is no second token, nothing shows whether it would be read."""
    model = tiny_model("bert")
    inputs = {name: tensor[:, :1] for name, tensor in inputs_of("bert").items()}
    assert FirstToken.find(model, find_layers(model), inputs) is None


def test_hooks_are_not_passed_over() -> None:
    """A hook within the attention runs; one that looks at what modules give is told of."""
    model = tiny_model("bert")
    top, inputs, seen = found_in(model), inputs_of("bert"), positions(model)
    assert top is not None
    attention: Any = model.get_submodule(find_layers(model).blocks[-1]).attention
    handle = attention.register_forward_pre_hook(lambda *_: None)
    assert found_in(model) is None  # nothing can be tried
    with top.alone():
        model(**inputs)
    handle.remove()
    with top.alone():
        model(**inputs)
    assert [count > 1 for count in seen[-2:]] == [True, False]
    assert not top.is_watched
    handle = model.get_submodule("bert.encoder").register_forward_hook(lambda *_: None)
    assert top.is_watched
    handle.remove()
    assert not top.is_watched


@pytest.mark.parametrize("part", ["key", "value"])
def test_a_layer_that_is_more_than_its_weight_runs(part: str) -> None:
    """Masks, adapters and rounding on keys and values count as they did."""
    model = tiny_model("bert")
    attention: Any = model.get_submodule(find_layers(model).blocks[-1]).attention
    layer = getattr(attention.self, part)
    layer.register_forward_pre_hook(lambda _, args: (args[0] * 0.5,))
    inputs, top = inputs_of("bert"), found_in(model)
    assert top is not None
    whole = model(**inputs).logits
    with top.alone():
        torch.testing.assert_close(model(**inputs).logits, whole)
    layer._forward_pre_hooks.clear()
    assert not torch.allclose(model(**inputs).logits, whole)


RUNS: dict[str, tuple[Callable[[], list[Strategy]], bool]] = {
    "full": (list, True),
    "top": (lambda: [PartialFreeze(top=1)], True),
    "head": (lambda: [PartialFreeze(top=0)], True),
    "unfreeze": (lambda: [LayerwiseUnfreeze()], True),
    "augment": (lambda: [Augment([RandomSwap(0.5)], consistency=1.0)], True),
    "prune": (lambda: [Prune(0.5, heads=0.5, multiple_of=4)], True),
    "quantize": (lambda: [Quantize("int8", when="start")], True),
    "masked words": (lambda: [MaskedLanguageModeling(0.5)], True),
    "distill": (lambda: [Distill(tiny_teacher())], True),
    "first of a pooled head": (lambda: [PooledHead("cls"), PartialFreeze(top=1)], True),
    "distill hidden": (lambda: [Distill(tiny_teacher(), hidden=0.5, relations=1.0)], False),
    "mean": (lambda: [PooledHead("mean")], False),
}


def losses(strategies: list[Strategy], **settings: Any) -> tuple[list[float], Trainer]:
    """Return the losses of a run without dropout, those of its evaluations too."""
    trainer = tiny_trainer(
        model=tiny_model("bert", **NO_DROPOUT), strategies=strategies, train_dataset=tiny_rows(24), epochs=2,
        learning_rate=1e-3, adam_epsilon=1e-3, **settings,
    )  # fmt: skip
    trainer.fit()
    found = [record["loss"] for record in trainer.history.filter("train")]
    return found + [record["eval_loss"] for record in trainer.history.filter("evaluate")], trainer


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses are those of whole blocks to 1e-5, whatever trains, and whatever else strategies look at."""
    make, alone = RUNS[name]
    whole, _ = losses(make(), skip_unread_tokens=False)
    tried: list[bool] = []
    original = FirstToken.alone

    def noted(self: FirstToken, *, trial: bool = False) -> Any:
        tried.append(trial)
        return original(self, trial=trial)

    monkeypatch.setattr(FirstToken, "alone", noted)
    found, _ = losses(make())
    assert (tried.count(False) > 6) == alone
    assert found == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("setting", ["torch_compile", "gradient_checkpointing"])
def test_a_forward_that_is_not_the_models_own_stays_whole(setting: str) -> None:
    """What is compiled, or runs again for its gradients, is left alone."""
    backend = {"torch_compile_backend": "eager"} if setting == "torch_compile" else {}
    _, trainer = losses([], **{setting: True}, **backend)
    assert trainer._loop.top is None
    _, trainer = losses([])
    assert trainer._loop.top is not None


def test_predictions_of_many_rows_do_without_other_tokens() -> None:
    """From 256 rows on a look at the model pays; logits are the same, and another head is left alone."""
    model = tiny_model("bert")
    predictor = tiny_trainer(model=model)._predictor()
    seen = positions(predictor.model)
    rows = tiny_rows(256)["text"]
    found = predictor.predict_logits(rows)
    assert set(seen[-2:]) == {1}
    whole = predictor.predict_logits(rows[:255])
    assert min(seen[-2:]) > 1
    np.testing.assert_allclose(found[:255], whole, rtol=1e-4, atol=1e-5)
    pooled_head_(model, "mean")
    predictor.predict_logits(rows)
    assert min(seen[-2:]) > 1
