"""Tests of the state of a run and of the memory of strategies in it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowft.errors import ConfigError
from lowft.stages import Stage
from lowft.state import State

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int8, torch.bool)
TENSORS = st.builds(
    lambda shape, dtype, seed: torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(9).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(DTYPES),
    st.integers(0, 99),
)
KEYS = st.text(max_size=5).filter(lambda key: key != "__tensor__")
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | TENSORS
MEMORY = st.dictionaries(
    KEYS,
    st.dictionaries(
        KEYS,
        st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)),
        max_size=3,
    ),
    max_size=3,
)


def fresh(**position: Any) -> State:
    """Return a state over a small model."""
    return State(torch.nn.Linear(2, 2), Stage(), **position)


def same(one: Any, other: Any) -> bool:
    """Compare nested values, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        alike = isinstance(other, torch.Tensor) and one.dtype == other.dtype and one.device == other.device
        return alike and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        pairs = zip(one, other, strict=True)
        return isinstance(other, list) and len(one) == len(other) and all(same(a, b) for a, b in pairs)
    return type(one) is type(other) and one == other


@given(memory=MEMORY)
def test_memory_returns_as_it_was(memory: dict[str, dict[str, Any]]) -> None:
    """JSON values and tensors, however nested and whatever their keys, come back equal, through JSON text."""
    state = fresh()
    state.memory = memory
    values, tensors = state.state_dict()
    restored = fresh()
    restored.load_state_dict(json.loads(json.dumps(values)), tensors)
    assert same(restored.memory, memory)
    assert all(type(tensor) is torch.Tensor and tensor.is_contiguous() for tensor in tensors.values())


def test_the_position_returns() -> None:
    """Stage, steps and epoch come back; the planned steps are the loop's to say."""
    values, tensors = fresh(stage_index=2, step=30, stage_step=10, epoch=3, stage_steps=12).state_dict()
    restored = fresh()
    restored.load_state_dict(values, tensors)
    assert (restored.stage_index, restored.step, restored.stage_step, restored.epoch) == (2, 30, 10, 3)
    assert restored.stage_steps == 0


def test_what_is_saved_is_a_copy() -> None:
    """What strategies do to their memory after a save does not reach what was saved."""
    state = fresh()
    memory = state.memory_of("Prune")
    memory["mask"] = torch.ones(3)
    memory["list"] = [1]
    values, tensors = state.state_dict()
    memory["mask"].zero_()
    memory["list"].append(2)
    restored = fresh()
    restored.load_state_dict(values, tensors)
    assert restored.memory["Prune"]["mask"].tolist() == [1, 1, 1]
    assert restored.memory["Prune"]["list"] == [1]


def test_views_and_parameters_are_saved_as_plain_tensors() -> None:
    """Two views of one storage, a parameter and a transposed matrix are each written whole."""
    state = fresh()
    whole = torch.arange(6.0).reshape(2, 3)
    parameter = torch.nn.Parameter(torch.ones(2))
    state.memory_of("S").update(row=whole[0], turned=whole.T, weight=parameter)
    _, tensors = state.state_dict()
    assert len({tensor.data_ptr() for tensor in tensors.values()}) == 3
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in tensors.values())


def test_each_strategy_has_its_own_memory() -> None:
    """`memory_of` returns one dictionary a name, empty at first, and the same again."""
    state = fresh()
    state.memory_of("A")["x"] = 1
    assert state.memory_of("B") == {}
    assert state.memory_of("A") == {"x": 1}
    assert fresh().memory == {}


@pytest.mark.parametrize(
    ("value", "kind"),
    [((1, 2), "tuple"), ({1, 2}, "set"), (object, "type"), ({1: "a"}, "dict"), ({"__tensor__": "x"}, "dict")],
)
def test_what_cannot_be_saved_is_named_with_its_place(value: Any, kind: str) -> None:
    """The message has the path to the value, its type, and what a memory may hold."""
    state = fresh()
    state.memory_of("Prune")["masks"] = [0, value]
    with pytest.raises(ConfigError, match=rf"state\.memory\.Prune\.masks\.1 is a {kind} .* cannot be saved") as caught:
        state.state_dict()
    assert "JSON values" in str(caught.value)
