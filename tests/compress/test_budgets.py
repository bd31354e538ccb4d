"""Budgets: what is left costs no more than was asked for, and is the best there is for that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowft.compress import count_flops, prune_
from lowft.compress.budgets import CutPlan, Goal, choose
from lowft.compress.costs import Seconds
from lowft.errors import ConfigError
from tests.tiny import ARCHITECTURES, tiny_batch, tiny_model

SIZES = {"parameters": lambda report: report.parameters_after / report.parameters_before,
         "flops": lambda report: report.flops_after / report.flops_before}  # fmt: skip


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.floats(0, 0.99),
    st.sampled_from(["layer", "global"]),
    st.integers(1, 16),
)
def test_what_is_kept(widths: list[int], share: float, scope: Any, multiple: int) -> None:
    """The best of each layer, in order, a multiple of what was asked, and never none."""
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(width, generator=generator) for width in widths]
    for values, kept in zip(scores, choose(scores, share, scope=scope, multiple_of=multiple), strict=True):
        assert len(kept) >= min(multiple, len(values))
        assert len(kept) % min(multiple, len(values)) == 0 or len(kept) == len(values)
        assert kept.tolist() == sorted(set(kept.tolist()))
        left = sorted(set(range(len(values))) - set(kept.tolist()))
        assert not left or values[kept].min() >= values[left].max()


@settings(max_examples=15)
@given(
    st.sampled_from(ARCHITECTURES),
    st.sampled_from(["parameters", "flops"]),
    st.sampled_from(["layer", "global"]),
    st.sampled_from(["magnitude", "random"]),
    st.floats(0.55, 0.95),
)
def test_a_budget_is_kept_and_used_up(arch: str, what: str, scope: Any, importance: Any, target: float) -> None:
    """What is left costs at most what was asked for, by a count of the cut model, and not much less."""
    model = tiny_model(arch)
    settings: dict[str, Any] = {what: target, "scope": scope, "importance": importance, "shape": (1, 16)}
    goal = Goal(0.0, 0.0, (what, 0.9999), scope, 1, (1, 16), uniform=False)
    least = CutPlan(model, goal, goal.find_parts(model), importance).least()
    if target < least:  # embeddings are most of so small a model
        with pytest.raises(ConfigError, match=f"cannot be met: .* {least:.3f} of the whole"):
            prune_(model, multiple_of=1, **settings)
        return
    report = prune_(model, multiple_of=1, **settings)
    assert SIZES[what](report) <= target + 1e-8
    assert SIZES[what](report) > target - 0.2
    assert report.flops_after == count_flops(model, 16)


def test_neurons_and_heads_compete_by_what_they_cost() -> None:
    """Of units that matter as much, those go that cost more; a unit that matters for its cost stays."""
    model = tiny_model("bert")
    batches = [tiny_batch("bert", seed=seed) for seed in range(3)]
    with torch.no_grad():  # heads that nothing reads
        for layer in range(3):
            model.get_parameter(f"bert.encoder.layer.{layer}.attention.output.dense.weight")[:, :24] = 0
    report = prune_(model, flops=0.8, importance="fisher", scope="global", batches=batches, multiple_of=1)
    assert sum(report.heads_after.values()) < 12  # some of the heads that nothing reads are enough
    assert report.after == report.before


def test_one_share_serves_all_layers() -> None:
    """Within a budget, scope='layer' leaves every layer as many."""
    report = prune_(tiny_model("bert"), flops=0.6)
    assert len(set(report.after.values())) == 1
    assert len(set(report.heads_after.values())) == 1
    assert 0 < next(iter(report.heads_after.values())) < 4


@pytest.fixture
def time_by_size(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Let a forward pass take as long as half of the whole model's operations, and the model's own; note the shapes."""
    shapes: list[tuple[int, int]] = []
    most: list[int] = []

    def seconds(self: Seconds, model: torch.nn.Module) -> float:
        shapes.append(self.shape)
        flops = count_flops(model, 16)
        most.append(flops)
        return max(most) + float(flops)

    monkeypatch.setattr(Seconds, "of", seconds)
    return shapes


def test_a_latency_is_approached_with_cut_models(time_by_size: list[tuple[int, int]]) -> None:
    """The operations are halved in until the time fits; the report says what was reached."""
    model = tiny_model("bert")
    report = prune_(model, latency=0.8, multiple_of=1, shape=(2, 16))
    assert report.latency is not None
    assert report.latency <= 0.8
    assert report.latency > 0.7
    assert SIZES["flops"](report) == pytest.approx(2 * report.latency - 1, abs=1e-6)
    assert set(time_by_size) == {(2, 16)}
    assert f"{100 * report.latency:.0f} % of the time" in str(report)


def test_a_latency_that_cannot_be_met_says_what_can(time_by_size: list[tuple[int, int]]) -> None:
    """Where half of the time is fixed, a quarter cannot be reached; the model is as it was."""
    model = tiny_model("bert")
    with pytest.raises(ConfigError, match=r"latency=0\.25 cannot be met: .* takes 0\.\d+ of the whole model's time"):
        prune_(model, latency=0.25)
    assert count_flops(model) == count_flops(tiny_model("bert"))


def test_real_passes_are_timed() -> None:
    """Without a stand-in for the clock, both models run on batches of the shape, in evaluation mode."""
    small, whole = tiny_model("bert", num_layers=1).train(), tiny_model("bert")
    shapes = []
    for model in (small, whole):
        model.get_input_embeddings().register_forward_hook(
            lambda module, args, _: shapes.append((tuple(args[0].shape), module.training))
        )
    assert Seconds((2, 5)).ratio(small, whole) > 0
    assert set(shapes) == {((2, 5), False)}
    assert small.training
