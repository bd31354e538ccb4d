"""Tests of the optimizer as a function of stage and step."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowft._optimization import (
    default_learning_rate,
    load_optimizer_,
    make_optimizer,
    optimizer_tensors,
    schedule,
    set_learning_rates_,
)
from lowft.attach import Attached, attach
from lowft.config import TrainingConfig
from lowft.errors import CheckpointMismatchError
from lowft.stages import Stage
from lowft.strategies import LayerwiseUnfreeze, PartialFreeze, Unfreeze
from tests.tiny import tiny_batch, tiny_model

STEPS = st.integers(1, 300)
RATIOS = st.floats(0, 0.999)


def course(steps: int, **settings: Any) -> list[float]:
    """Return the factor at each step of a stage."""
    config = TrainingConfig(**settings)
    return [schedule(step, steps, config) for step in range(steps)]


@given(steps=STEPS, ratio=RATIOS, kind=st.sampled_from(["linear", "cosine", "constant"]))
def test_the_rate_rises_then_falls(steps: int, ratio: float, kind: str) -> None:
    """No step is wasted on a rate of 0 or above the peak; warm-up rises strictly, and then nothing rises."""
    factors = course(steps, warmup_ratio=ratio, lr_scheduler_type=kind)
    warmup = math.ceil(ratio * steps)
    assert all(0 < factor <= 1 for factor in factors)
    rising, after = factors[:warmup], factors[warmup:]
    assert all(one < other for one, other in itertools.pairwise(rising))
    assert after[:1] in ([], [1.0])
    if kind == "constant":
        assert set(after) <= {1.0}
    else:
        assert all(one > other for one, other in itertools.pairwise(after))


@given(steps=st.integers(2, 200), ratio=RATIOS)
def test_a_linear_course_falls_evenly(steps: int, ratio: float) -> None:
    """Linear decay takes equal steps that would reach 0 just after the last one."""
    after = course(steps, warmup_ratio=ratio)[math.ceil(ratio * steps) :]
    assert after == pytest.approx([1 - index / len(after) for index in range(len(after))])


def test_a_cosine_course_is_at_half_in_the_middle() -> None:
    """Cosine decay starts flat, passes one half in the middle, and ends flat."""
    factors = course(100, warmup_ratio=0, lr_scheduler_type="cosine")
    assert factors[50] == pytest.approx(0.5)
    assert factors[0] - factors[1] < factors[50] - factors[51]


@pytest.mark.parametrize(("arch", "rate"), [("bert", 1.2e-3), ("distilbert", 1.2e-3), ("gpt2", 1.2e-3), ("t5", 1.2e-3)])
def test_a_rate_is_chosen_by_width(arch: str, rate: float) -> None:
    """Where no rate is given, narrow models learn faster; a model that tells no width gets the usual rate."""
    assert default_learning_rate(tiny_model(arch)) == pytest.approx(rate)  # 5e-5 × 768 ÷ 32
    assert default_learning_rate(torch.nn.Linear(2, 2)) == 5e-5


def attached(stage: Stage | None = None, **settings: Any) -> tuple[Attached, torch.optim.Optimizer]:
    """Return a tiny model at work under a plain stage, and its optimizer."""
    run = attach(tiny_model("bert"), [], stage=stage)
    run.state.stage_steps = 10
    return run, make_optimizer(run, TrainingConfig(**settings))


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_lower_layers_learn_more_slowly(decay: float) -> None:
    """Each depth below the head has the rate above it times `layer_decay`, scheduled all alike."""
    run, optimizer = attached(Stage(layer_decay=decay))
    config = TrainingConfig(learning_rate=1e-3, warmup_ratio=0)
    run.state.stage_step = 5
    assert set_learning_rates_(optimizer, run, config) == pytest.approx(5e-4)
    rates = {group["depth"]: group["lr"] for group in optimizer.param_groups}
    assert sorted(rates) == [0, 1, 2, 3, 4]
    assert rates == pytest.approx({depth: 5e-4 * decay ** (4 - depth) for depth in range(5)})


def test_a_stages_own_rate_comes_first() -> None:
    """The stage's rate wins over the config's, and that over the model's."""
    for stage, given_rate, expected in (
        (Stage(learning_rate=0.3), 0.2, 0.3),
        (Stage(), 0.2, 0.2),
        (Stage(), None, 1.2e-3),
    ):
        run, optimizer = attached(stage)
        config = TrainingConfig(learning_rate=given_rate, warmup_ratio=0)
        assert set_learning_rates_(optimizer, run, config) == pytest.approx(expected)


def test_the_depth_counts_from_the_highest_that_ever_trains() -> None:
    """The groups hold all stages' parameters from the start, so a stage's rates do not depend on the stages before."""
    strategy = LayerwiseUnfreeze((Unfreeze(top=0), Unfreeze(top="all", layer_decay=0.5)))
    run = attach(tiny_model("bert"), [strategy])
    optimizer = make_optimizer(run, TrainingConfig())
    groups = [[id(parameter) for parameter in group["params"]] for group in optimizer.param_groups]
    run.state.stage_steps = 4
    for index, lowest in ((0, 1.0), (1, 0.5**4)):
        run.start_stage(index)
        set_learning_rates_(optimizer, run, TrainingConfig(learning_rate=1.0, warmup_ratio=0))
        assert min(group["lr"] for group in optimizer.param_groups) == pytest.approx(lowest)
    assert [[id(parameter) for parameter in group["params"]] for group in optimizer.param_groups] == groups


def test_settings_reach_the_optimizer() -> None:
    """Betas, epsilon and decay are the config's; biases and norms are not decayed."""
    run, optimizer = attached(adam_beta1=0.8, adam_beta2=0.9, adam_epsilon=1e-6, weight_decay=0.2)
    vectors = {parameter for parameter in run.model.parameters() if parameter.ndim == 1}
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"]) == ((0.8, 0.9), 1e-6)
        assert group["weight_decay"] == (0.0 if vectors.issuperset(group["params"]) else 0.2)
        assert vectors.issuperset(group["params"]) or vectors.isdisjoint(group["params"])


def test_what_never_trains_is_not_in_the_optimizer() -> None:
    """The optimizer holds what some stage trains, each once."""
    run = attach(tiny_model("bert"), [PartialFreeze(top=1)])
    optimizer = make_optimizer(run, TrainingConfig())
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    trained = [parameter for name, parameter in run.model.named_parameters() if name in run.trained]
    assert len(held) == len(trained)
    assert set(held) == set(trained)


def stepped(run: Attached, optimizer: torch.optim.Optimizer, count: int) -> None:
    """Make steps on one batch."""
    for _ in range(count):
        set_learning_rates_(optimizer, run, TrainingConfig(learning_rate=1e-2))
        run.model.train(False)(**tiny_batch("bert")).loss.backward()
        run.step(optimizer)


def weights(run: Attached) -> dict[str, torch.Tensor]:
    """Return copies of the weights."""
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def test_the_optimizers_state_returns() -> None:
    """A new optimizer with the saved state goes on bit-identically, and leaves what it was loaded from alone."""
    run, optimizer = attached()
    stepped(run, optimizer, 3)
    tensors = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, run.model).items()}
    before = weights(run)
    stepped(run, optimizer, 2)

    other, fresh = attached()
    other.model.load_state_dict(before)
    other.state.stage_step = 3
    loaded = {name: tensor.clone() for name, tensor in tensors.items()}
    load_optimizer_(fresh, other.model, loaded)
    stepped(other, fresh, 2)
    assert all(torch.equal(tensor, weights(run)[name]) for name, tensor in weights(other).items())
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in tensors.items())

    unloaded, empty = attached()  # negative control: without its state, the run goes elsewhere
    unloaded.model.load_state_dict(before)
    unloaded.state.stage_step = 3
    stepped(unloaded, empty, 2)
    assert not all(torch.equal(tensor, weights(run)[name]) for name, tensor in weights(unloaded).items())


def test_only_what_has_trained_has_state() -> None:
    """Frozen parameters take no memory in the optimizer, though a later stage may train them."""
    run = attach(tiny_model("bert"), [LayerwiseUnfreeze((Unfreeze(top=0), Unfreeze(top="all")))])
    optimizer = make_optimizer(run, TrainingConfig())
    run.start_stage(0)
    run.state.stage_steps = 4
    stepped(run, optimizer, 1)
    names = {path.rpartition("/")[0] for path in optimizer_tensors(optimizer, run.model)}
    assert names
    assert names <= run.stages[0].trainable  # type: ignore[operator]


@pytest.mark.parametrize("change", ["name", "shape"])
def test_state_of_another_model_is_refused(change: str) -> None:
    """A parameter that is not there, or has another shape, is named."""
    run, optimizer = attached()
    stepped(run, optimizer, 1)
    tensors = optimizer_tensors(optimizer, run.model)
    path = next(name for name in tensors if name.endswith("/exp_avg"))
    moment = tensors.pop(path)
    tensors |= {f"x.{path}": moment} if change == "name" else {path: moment[:1]}
    named = f"x.{path}" if change == "name" else path
    other, fresh = attached()
    with pytest.raises(CheckpointMismatchError, match=re.escape(f"{named!r} does not fit a parameter")):
        load_optimizer_(fresh, other.model, tensors)


def test_a_stage_is_not_changed_by_training() -> None:
    """Stages are settings: steps leave them as they were made."""
    stage = Stage(layer_decay=0.5)
    run, optimizer = attached(stage)
    before = dataclasses.asdict(run.state.stage)
    stepped(run, optimizer, 1)
    assert dataclasses.asdict(run.state.stage) == before
