"""Dropout and attention with dropout in training steps: the method that torch has, its gradients, and its place."""

from __future__ import annotations

import contextlib
import math
import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from lowft import _dropout
from lowft._dropout import fast_dropout
from tests.runs import tiny_trainer, train_records

ATTENTION: Any = functional.scaled_dot_product_attention
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def attend(*states: Any, seed: int = 0, **options: Any) -> Tensor:
    """Attend with dropout in lowft's way, always with the same random numbers."""
    torch.manual_seed(seed)
    with fast_dropout():
        found: Tensor = functional.scaled_dot_product_attention(*states, **({"dropout_p": 0.3} | options))
    return found


def states_of(
    rows: int = 3, heads: int = 2, queries: int = 5, keys: int = 7, width: int = 4, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Return random queries, keys and values."""
    generator = torch.Generator().manual_seed(rows)
    shapes = [(rows, heads, tokens, width) for tokens in (queries, keys, keys)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def by_hand(query: Tensor, key: Tensor, value: Tensor, bias: Any, **options: Any) -> Tensor:
    """Attend as the formula says, with the weights that lowft keeps for the same random numbers."""
    everything = torch.eye(key.shape[-2], dtype=key.dtype).expand(*key.shape[:2], -1, -1).contiguous()
    kept = attend(query.detach(), key.detach(), everything, **options).ne(0)
    scores = query @ key.transpose(-1, -2) * options.get("scale", query.shape[-1] ** -0.5) + bias
    dropped = 1 - round(options.get("dropout_p", 0.3) * 65536) / 65536
    found: Tensor = scores.softmax(-1) * kept / dropped @ value
    return found


@given(p=st.floats(0.0001, 0.9), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_the_share_asked_for_is_dropped(p: float, seed: int) -> None:
    """What stays is scaled up by as much, and so keeps its mean."""
    torch.manual_seed(seed)
    with fast_dropout():
        values = functional.dropout(torch.ones(400, 501), p)
    share = 1 - values.count_nonzero().item() / values.numel()
    assert abs(share - p) < 6 * math.sqrt(p * (1 - p) / values.numel()) + 1e-5
    assert sorted(set(values.flatten().tolist())) == pytest.approx([0, 1 / (1 - p)], rel=1e-4)


def test_no_two_values_are_dropped_together() -> None:
    """Each in a quarter of the draws, each pair in a sixteenth: the four that share a word of random bits too."""
    torch.manual_seed(0)
    with fast_dropout():
        dropped = functional.dropout(torch.ones(20_000, 8), 0.25).eq(0).double()
    together = dropped.T @ dropped / len(dropped)
    expected = torch.full((8, 8), 1 / 16, dtype=torch.float64).fill_diagonal_(0.25)
    torch.testing.assert_close(together, expected, atol=0.015, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 5, 7)])
def test_dropout_in_every_precision_and_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """The gradient passes where values stay, and is scaled as they are."""
    values = torch.full(shape, 2.0, dtype=dtype, requires_grad=True)
    torch.manual_seed(1)
    with fast_dropout():
        found = functional.dropout(values, 0.5)
    torch.autograd.backward(found.sum())
    assert (found.dtype, found.shape) == (dtype, values.shape)
    assert values.grad is not None
    torch.testing.assert_close(values.grad * 2, found)


def test_modules_and_models_drop_so_too() -> None:
    """An `nn.Dropout` calls what is in place then, and its gradient is right."""
    module, values = torch.nn.Dropout(0.4), torch.randn(6, 5, dtype=torch.float64, requires_grad=True)

    def drop(values: Tensor) -> Tensor:
        torch.manual_seed(2)
        with fast_dropout():
            found: Tensor = module(values)
        return found

    assert torch.autograd.gradcheck(drop, values)
    assert "_Dropout" in type(drop(values).grad_fn).__name__


BIASES: dict[str, Any] = {
    "none": lambda: None,
    "padding": lambda: torch.tensor([0.0, -1e4, 0.0, 0.0, 0.0, -math.inf, -math.inf], dtype=torch.float64),
    "a row's": lambda: torch.randn(3, 1, 5, 7, dtype=torch.float64),
    "a head's": lambda: torch.randn(1, 2, 5, 7, dtype=torch.float64),
}


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("together", [1, 2**19])
def test_attention_is_the_formula(bias: str, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output and all gradients, in one piece and row by row, with scale and rate of the caller's choice."""
    monkeypatch.setattr(_dropout, "_TOGETHER", together)
    torch.manual_seed(0)
    mask = BIASES[bias]()
    options: dict[str, Any] = {"scale": 0.7, "dropout_p": 0.2}
    query, key, value = states_of()
    leaves = [each.requires_grad_() for each in (query, key, value, mask) if each is not None]
    found = attend(query, key, value, attn_mask=mask, **options)
    expected = by_hand(query, key, value, 0 if mask is None else mask, **options)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), leaves),
        torch.autograd.grad((expected * weights).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_gradients_agree_with_finite_differences() -> None:
    """A learnt bias too, as T5 adds to its scores."""
    leaves = [each.requires_grad_() for each in [*states_of(), torch.randn(1, 2, 5, 7, dtype=torch.float64)]]
    assert torch.autograd.gradcheck(lambda *them: attend(*them[:3], attn_mask=them[3]), leaves)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_without_a_drop_would_be_torchs(*, causal: bool, dtype: torch.dtype) -> None:
    """Two values in a million dropped: masks of booleans, later tokens hidden, every precision."""
    states = states_of(dtype=dtype)
    options: dict[str, Any] = {"is_causal": True} if causal else {"attn_mask": torch.rand(3, 1, 5, 7) > 0.4}
    if not causal:
        options["attn_mask"][..., 0] = True
    found = attend(*states, dropout_p=1e-5, **options)
    assert found.dtype == dtype
    expected = ATTENTION(*states, **options)
    torch.testing.assert_close(found, expected, atol=0.02 if dtype == torch.bfloat16 else 2e-3, rtol=0.02)


def test_autocast_casts_states_as_for_torch() -> None:
    """In bfloat16 whatever comes in, and gradients as precise as what came in."""
    states = [each.requires_grad_() for each in states_of(dtype=torch.float32)]
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(*states, attn_mask=torch.zeros(3, 1, 5, 7))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), attend(*states), atol=0.05, rtol=0.05)
    torch.autograd.backward(found.float().sum())
    assert {each.grad.dtype for each in states if each.grad is not None} == {torch.float32}


LEFT_TO_TORCH: dict[str, tuple[list[Tensor], dict[str, Any]]] = {
    "no dropout": (states_of(), {"dropout_p": 0.0}),
    "three dimensions": ([each[0] for each in states_of()], {}),
    "grouped heads": (
        [states_of(heads=4)[0], *states_of(heads=2)[1:]],
        {"enable_gqa": True},
    ),
    "nothing to attend to": (states_of(), {"attn_mask": torch.ones(3, 1, 5, 7).tril(-2).bool()}),
    "another device": ([each.to("meta") for each in states_of()], {}),
}


@pytest.mark.parametrize("case", LEFT_TO_TORCH)
def test_what_is_left_to_torch(case: str) -> None:
    """Comes out as torch has it, bit for bit."""
    states, options = LEFT_TO_TORCH[case]
    found = attend(*states, **options)
    torch.manual_seed(0)
    expected = ATTENTION(*states, **({"dropout_p": 0.3} | options))
    assert found.shape == expected.shape
    assert found.is_meta or torch.equal(found, expected)


def test_torch_still_refuses_what_it_refuses() -> None:
    """Two masks, and rates that are none."""
    with pytest.raises(RuntimeError, match="is_causal"):
        attend(*states_of(), is_causal=True, attn_mask=torch.zeros(5, 7, dtype=torch.float64))
    with fast_dropout(), pytest.raises(ValueError, match="probability has to be between 0 and 1"):
        functional.dropout(torch.ones(3), 1.5)


@pytest.mark.parametrize(("p", "left"), [(0.0, 1.0), (1e-9, 1.0), (1.0, 0.0)])
def test_rates_at_the_ends(p: float, left: float) -> None:
    """Everything stays, or nothing."""
    with fast_dropout():
        assert functional.dropout(torch.ones(100), p).tolist() == [left] * 100


def test_in_evaluation_nothing_is_dropped() -> None:
    """And in place, torch's own is what is asked for."""
    values = torch.ones(100)
    with fast_dropout():
        assert torch.equal(functional.dropout(values, 0.5, training=False), values)
        assert functional.dropout(values, 0.5, inplace=True) is values
    assert 0 < values.count_nonzero() < 100


def test_torch_is_as_before_once_the_last_block_is_left() -> None:
    """Whatever the order in which threads leave, and after an error."""
    before = functional.dropout, functional.scaled_dot_product_attention
    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        with fast_dropout():
            inside.set()
            done.wait()

    thread = threading.Thread(target=other)
    with contextlib.suppress(KeyError), fast_dropout():
        thread.start()
        inside.wait()
        raise KeyError
    assert functional.dropout is not before[0]
    done.set()
    thread.join()
    assert (functional.dropout, functional.scaled_dot_product_attention) == before


def test_what_another_library_has_put_in_place_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a step, or within one."""
    plain = functional.dropout

    def theirs(*arguments: Any) -> Tensor:
        return plain(*arguments)

    monkeypatch.setattr(functional, "dropout", theirs)
    with fast_dropout():
        assert functional.dropout is theirs
    assert functional.dropout is theirs
    monkeypatch.setattr(functional, "dropout", plain)
    with fast_dropout():
        monkeypatch.setattr(functional, "dropout", theirs)
    assert functional.dropout is theirs


def test_training_steps_drop_so_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs with torch's own end elsewhere; between steps a caller's own code finds torch as it is."""
    own, plain = tiny_trainer(epochs=1), functional.dropout
    for _ in own.steps():
        assert functional.dropout is plain
    monkeypatch.setattr(_dropout, "_OWN", _dropout._TORCHS)
    torchs = tiny_trainer(epochs=1)
    torchs.fit()
    assert train_records(own, "loss") != train_records(torchs, "loss")


def test_torch_compile_keeps_to_torch() -> None:
    """It has kernels of its own, and no use for lowft's."""
    torchs = tiny_trainer(epochs=1, torch_compile=True, torch_compile_backend="eager")
    for _ in torchs.steps():
        pass
    plain = tiny_trainer(epochs=1)
    plain.fit()
    assert train_records(torchs, "loss") != train_records(plain, "loss")
