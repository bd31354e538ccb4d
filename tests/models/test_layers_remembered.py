"""Layers that were found once: remembered while a model is as it was, and no longer than there is a model."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from lowft.models.layers import find_layers
from tests.tiny import tiny_model


def test_a_second_look_costs_no_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found once is found again, by every strategy that asks."""
    model = tiny_model("bert")
    first = find_layers(model)
    monkeypatch.setattr("lowft.models.layers.Trace", None)
    assert find_layers(model) is first
    with pytest.raises(TypeError):
        find_layers(copy.deepcopy(model))  # another model is looked at itself


def test_what_was_found_does_not_keep_a_model() -> None:
    """Also where its forward was replaced by a function that refers to it, the model goes when nobody has it."""
    model: Any = tiny_model("bert")
    _reorder(model)
    find_layers(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def _add(model: Any) -> None:
    model.bert.encoder.layer.append(copy.deepcopy(model.bert.encoder.layer[0]))


def _leave_out(model: Any) -> None:
    del model.bert.encoder.layer[1]


def _swap(model: Any) -> None:
    model.bert.encoder.layer[0].output.LayerNorm = nn.Identity()


def _tie(model: Any) -> None:
    model.bert.encoder.layer[1].output.dense.weight = model.bert.encoder.layer[0].output.dense.weight


def _reorder(model: Any) -> None:
    def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        for layer in model.bert.encoder.layer[::-1]:
            hidden_states = layer(hidden_states)
        return BaseModelOutput(last_hidden_state=hidden_states)

    model.bert.encoder.forward = forward


@pytest.mark.parametrize("change", [_add, _leave_out, _swap, _tie, _reorder])
def test_a_model_that_was_changed_is_looked_at_again(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found before the change is not what stands there now."""
    model = tiny_model("bert")
    before = find_layers(model)
    change(model)
    after = find_layers(model)
    assert after != before
    monkeypatch.setattr("lowft.models.layers._found", {})
    assert find_layers(model) == after
