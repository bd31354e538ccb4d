"""What an optimizer step computes: gradients, learning rates, and which layers move."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples

from lowft.data.batching import Batch
from lowft.errors import ConfigError
from lowft.losses import cross_entropy
from lowft.stages import Stage
from lowft.state import State
from lowft.strategies import PartialFreeze
from lowft.strategy import Strategy
from tests.runs import NO_DROPOUT, tiny_trainer, train_records, weights
from tests.strategy_cases import tiny_rows
from tests.test_strategies_table import assert_same
from tests.tiny import tiny_model

CAPTURED: list[dict[str, torch.Tensor]] = []
BATCHES: list[Batch] = []


@dataclass(frozen=True)
class Capture(Strategy):
    """Keep every batch, and every step's gradients."""

    def on_batch(self, batch: Batch, state: State) -> Batch:
        BATCHES.append(batch)
        return batch

    def before_step(self, state: State) -> None:
        named = state.model.named_parameters()
        CAPTURED.append({name: p.grad.clone() for name, p in named if p.grad is not None})


def _gradients(rows: int = 15, **values: Any) -> tuple[list[dict[str, torch.Tensor]], list[Batch], list[float]]:
    CAPTURED.clear()
    BATCHES.clear()
    trainer = tiny_trainer(
        model=tiny_model("bert", num_labels=3, **NO_DROPOUT).double(),
        train_dataset=tiny_rows(rows, classes=("a", "b", "c")),
        eval_dataset=None,
        strategies=[Capture()],
        epochs=1,
        max_grad_norm=None,
        learning_rate=1e-12,  # the weights stay put, so that every step's gradient can be compared
        weight_decay=0.0,
        **values,
    )
    trainer.fit()
    return CAPTURED.copy(), BATCHES.copy(), train_records(trainer, "loss")


def _own_mean(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits, labels, label_smoothing=0.2)


@pytest.mark.parametrize(
    "settings",
    [
        {"class_weights": (0.2, 1.0, 3.0), "label_smoothing": 0.1},
        {"loss": "focal", "class_weights": (0.2, 1.0, 3.0)},
        {"loss": _own_mean},
        {"group_by_length": False},
    ],
    ids=["weighted and smoothed", "focal", "own mean", "any length"],
)
def test_accumulated_gradients_are_those_of_one_big_batch(settings: dict[str, Any]) -> None:
    """Four micro-batches give one batch's gradient, ragged texts and a partial last window included."""
    whole, _, losses = _gradients(batch_size=8, **settings)
    parts, batches, part_losses = _gradients(batch_size=2, gradient_accumulation_steps=4, **settings)
    assert [len(batch) for batch in batches] in ([2, 2, 2, 2, 2, 2, 2, 1], [2, 2, 2, 1, 2, 2, 2, 2])
    assert len({batch.inputs["input_ids"].shape[1] for batch in batches}) > 2
    assert len(whole) == len(parts) == 2
    for one, other in zip(whole, parts, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-6, atol=1e-7, msg=name)
    assert losses == pytest.approx(part_losses, rel=1e-6)


@examples(max_examples=12)
@given(rows=st.integers(3, 17), size=st.integers(1, 4), parts=st.integers(1, 5), by_length=st.booleans())
def test_any_split_of_a_step_gives_the_same_gradients(*, rows: int, size: int, parts: int, by_length: bool) -> None:
    """However many rows there are, and however a step is cut into micro-batches, each step's gradient is the same."""
    whole, _, losses = _gradients(rows, batch_size=size * parts, group_by_length=by_length)
    cut, batches, cut_losses = _gradients(
        rows, batch_size=size, gradient_accumulation_steps=parts, group_by_length=by_length
    )
    assert sorted(row for batch in batches for row in batch.rows) == list(range(rows))
    assert len(whole) == len(cut) == math.ceil(rows / (size * parts))
    assert losses == pytest.approx(cut_losses, rel=1e-6)
    for one, other in zip(whole, cut, strict=True):
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-6, atol=1e-7, msg=name)


def test_the_gradient_is_the_one_computed_by_hand_and_not_the_mean_of_means() -> None:
    """A second way to the same gradient; and the control that a mean of the micro-batches' means is another one."""
    class_weights = torch.tensor([0.2, 1.0, 3.0])
    (first, second), batches, _ = _gradients(
        batch_size=2, gradient_accumulation_steps=4, class_weights=(0.2, 1.0, 3.0), label_smoothing=0.1
    )
    model = tiny_model("bert", num_labels=3, **NO_DROPOUT).double()

    def losses_of(batch: Batch) -> torch.Tensor:
        assert batch.labels is not None
        return cross_entropy(
            model(**batch.inputs).logits.float(),
            batch.labels,
            label_smoothing=0.1,
            class_weights=class_weights,
            reduction="none",
        )

    def gradient_of(loss: torch.Tensor) -> torch.Tensor:
        model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        gradient = model.get_parameter("classifier.weight").grad
        assert gradient is not None
        return gradient.clone()

    partial = batches[:4] if len(batches[3]) == 1 else batches[4:]
    measured = (first if len(batches[3]) == 1 else second)["classifier.weight"]
    by_hand = gradient_of(torch.cat([losses_of(batch) for batch in partial]).mean())
    mean_of_means = gradient_of(torch.stack([losses_of(batch).mean() for batch in partial]).mean())
    torch.testing.assert_close(measured, by_hand, rtol=1e-6, atol=1e-7)
    assert (measured - mean_of_means).abs().max() > 1e-3 * measured.abs().max()


@pytest.mark.parametrize(
    ("kind", "factors"),
    [
        ("linear", [1 / 3, 2 / 3, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("cosine", [1 / 3, 2 / 3, *((1 + math.cos(math.pi * done / 6)) / 2 for done in range(6))]),
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_the_learning_rate_moves_once_for_each_optimizer_step(kind: str, factors: list[float]) -> None:
    """Warm-up, then the course asked for: the same whether a step is one batch or four micro-batches."""
    for batch_size, accumulation in ((4, 1), (1, 4)):
        trainer = tiny_trainer(
            batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            lr_scheduler_type=kind,
            warmup_ratio=0.25,
            learning_rate=0.01,
            eval_dataset=None,
        )
        trainer.fit()
        assert train_records(trainer, "learning_rate") == pytest.approx([0.01 * factor for factor in factors])


def test_dropout_is_on_in_training() -> None:
    """The models of the resume tests really draw: without dropout the same run ends elsewhere."""
    runs = [tiny_trainer(model=tiny_model("bert", **settings)) for settings in ({}, {}, NO_DROPOUT)]
    for trainer in runs:
        trainer.fit()
    one, other, without = map(weights, runs)
    assert_same(one, other)
    assert not torch.equal(one["classifier.weight"], without["classifier.weight"])


@pytest.mark.parametrize("top", [0, 1])
def test_frozen_layers_stay_byte_identical(top: int) -> None:
    """Fifty steps of AdamW with decay, momentum and evaluations between leave no bit of them changed."""
    trainer = tiny_trainer(
        strategies=[PartialFreeze(top=top)], max_steps=50, eval_steps=5, weight_decay=0.5, load_best_model_at_end=False
    )
    before = weights(trainer)
    trainer.fit()
    after = weights(trainer)
    open_parts = ("classifier", "bert.pooler", *(["bert.encoder.layer.2"] if top else []))
    for name in before:
        assert torch.equal(before[name], after[name]) != name.startswith(open_parts), name
    state = trainer._loop.optimizer.state
    assert 0 < len(state) == sum(name.startswith(open_parts) for name, _ in trainer.model.named_parameters())


@dataclass(frozen=True)
class Alternate(Strategy):
    """Train the head, then only the last block: what trained before must stand still, momentum or not."""

    def stages(self, stages: tuple[Stage, ...], model: torch.nn.Module) -> tuple[Stage, ...]:
        names = [name for name, _ in model.named_parameters()]
        head = frozenset(name for name in names if name.startswith("classifier"))
        block = frozenset(name for name in names if ".layer.2." in name)
        return (Stage("head", head, max_steps=5), Stage("block", block, max_steps=5))


def test_what_a_later_stage_freezes_stands_still() -> None:
    """Momentum and decay of an earlier stage do not move a parameter that is frozen now."""
    trainer = tiny_trainer(strategies=[Alternate()], weight_decay=0.5, eval_dataset=None)
    start = weights(trainer)
    middle, end = (weights(trainer) for result in trainer.steps() if result.step in {5, 10})
    for name in start:
        assert torch.equal(start[name], middle[name]) != name.startswith("classifier"), name
        assert torch.equal(middle[name], end[name]) != (".layer.2." in name), name


@pytest.mark.parametrize("touch", ["evaluate", "eval", "train", "left early"])
def test_frozen_modules_stay_in_eval_mode(touch: str) -> None:
    """Whatever the caller does between steps, frozen layers compute without dropout and the others with it."""
    modes: list[dict[str, bool]] = []

    def run(touch: str) -> dict[str, torch.Tensor]:
        trainer = tiny_trainer(strategies=[PartialFreeze(top=1)], eval_steps=2)
        model = trainer.model
        dropouts = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}

        def watch(*_: Any) -> None:
            if torch.is_grad_enabled():
                modes.append({name: module.training for name, module in dropouts.items()})

        hook = model.get_submodule("bert.embeddings").register_forward_hook(watch)
        for result in trainer.steps():
            if touch == "evaluate":
                trainer.evaluate()
            if touch in {"eval", "train"}:
                model.train(touch == "train")
            if touch == "left early" and result.step == 3:
                break
        if touch == "left early":
            model.train()
            trainer.fit()
        hook.remove()
        return weights(trainer)

    assert_same(run("nothing"), run(touch))
    assert len(modes) == 16
    for mode in modes:
        assert {name for name, training in mode.items() if training} == {
            "bert.encoder.layer.2.attention.self.dropout",
            "bert.encoder.layer.2.attention.output.dropout",
            "bert.encoder.layer.2.output.dropout",
            "dropout",
        }


def test_a_pattern_that_matches_nothing_lists_near_names() -> None:
    """A misspelt freeze pattern is refused before the model is touched."""
    model = tiny_model("bert")
    before = weights(model)
    with pytest.raises(ConfigError, match=r"freeze='\*encodr\*' matches no parameter.*come near: .*encoder"):
        tiny_trainer(model=model, strategies=[PartialFreeze(freeze=("*encodr*",))])
    assert_same(before, weights(model))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_freezing_everything_is_refused() -> None:
    """A run with nothing to train is refused when it is set up."""
    with pytest.raises(ConfigError, match="nothing to train"):
        tiny_trainer(strategies=[PartialFreeze(top=0, head=False)])
