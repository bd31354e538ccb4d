"""Strategies in a training loop of one's own."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lowft.attach import Attached, attach
from lowft.data.batching import Batch
from lowft.data.epochs import plan_epoch
from lowft.errors import ConfigError, ModelError, StrategyConflictError, TrainingError
from lowft.losses import cross_entropy
from lowft.stages import Decision, Stage
from lowft.strategies import LayerwiseUnfreeze, PartialFreeze, Unfreeze
from lowft.strategy import Strategy
from tests.runs import NO_DROPOUT, tiny_trainer, weights
from tests.strategy_cases import AllHooks, tiny_rows
from tests.test_strategies_table import assert_same
from tests.tiny import tiny_model, tiny_tokenizer

ROWS = tiny_rows()
TOKENIZER = tiny_tokenizer()
LABELS = torch.tensor([int(label == "pos") for label in ROWS["label"]])
LENGTHS = TOKENIZER(ROWS["text"], return_length=True)["length"]
SCHEDULE = LayerwiseUnfreeze(
    (Unfreeze(top=0, max_steps=3), Unfreeze(top=1, batch_size=2, epochs=1), Unfreeze(top="all", epochs=2))
)


def batches_of(stage: int, epoch: int, size: int) -> Iterator[Batch]:
    """Yield an epoch's batches as the Trainer would order them, made without it."""
    lengths = torch.tensor(LENGTHS).numpy()
    for (part,) in plan_epoch(lengths, batch_size=size, seed=(3, stage, epoch)):
        rows = list(part.indices)
        inputs = TOKENIZER([ROWS["text"][row] for row in rows], padding=True, return_tensors="pt")
        yield Batch({name: inputs[name] for name in ("input_ids", "attention_mask")}, LABELS[rows], tuple(part.indices))


def train_by_hand(run: Attached, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """Make one step as the documentation tells."""
    batch = run.on_batch(batch)
    outputs = run.model(**batch.inputs)
    assert batch.labels is not None
    run.on_loss(cross_entropy(outputs.logits, batch.labels), outputs, batch).backward()  # type: ignore[no-untyped-call]
    run.step(optimizer)


def optimizer_for(run: Attached) -> torch.optim.AdamW:
    """Return the optimizer that the Trainer would make, at a constant rate."""
    return torch.optim.AdamW(run.parameter_groups(weight_decay=0.1), lr=5e-3, eps=1e-3, fused=True)


@pytest.mark.parametrize("strategies", [[], [PartialFreeze(top=1)], [SCHEDULE]], ids=["none", "freeze", "unfreeze"])
def test_a_loop_of_ones_own_ends_where_the_trainer_does(strategies: list[Strategy]) -> None:
    """The same batches, loss and optimizer through `attach` give the Trainer's very weights."""
    trainer = tiny_trainer(
        model=tiny_model("bert", **NO_DROPOUT),
        strategies=strategies,
        eval_dataset=None,
        weight_decay=0.1,
        adam_epsilon=1e-3,
        warmup_ratio=0.0,
        lr_scheduler_type="constant",
        max_grad_norm=None,
        prefix_cache=False,  # cached activations are the same only up to rounding
        skip_unread_tokens=False,  # and so are those of the first token alone
    )
    trainer.fit()

    run = attach(tiny_model("bert", **NO_DROPOUT), strategies)
    before = weights(run.model)
    optimizer = optimizer_for(run)
    for index, stage in enumerate(run):
        optimizer.state.clear()
        done = 0
        for epoch in range(int(stage.epochs or 2)):
            for batch in batches_of(index, epoch, stage.batch_size or 4):
                if stage.max_steps is None or done < stage.max_steps:
                    train_by_hand(run, optimizer, batch)
                    done += 1
    run.finish()
    assert run.state.step == len(trainer.history.filter("train"))
    trained = weights(trainer)
    assert_same(weights(run.model), trained)
    moved = {name for name in before if not torch.equal(before[name], trained[name])}
    assert len(moved) == (2 + 2 + 16 if strategies == [PartialFreeze(top=1)] else len(before))


def test_every_hook_is_called_in_a_loop_of_ones_own() -> None:
    """Batches, losses, gradients and the finished model pass through the strategies."""
    run = attach(tiny_model("bert"), [AllHooks()])
    bias = run.model.get_parameter("classifier.bias")
    optimizer = torch.optim.SGD(run.parameter_groups(), lr=0.0)
    for _ in run:
        for batch in batches_of(0, 0, 4):
            train_by_hand(run, optimizer, batch)
    memory = run.state.memory["AllHooks"]
    assert memory["stages"] == 1
    assert memory["drawn"].shape == (3,)
    assert memory["mean_loss"] > 0
    untouched = bias.detach().clone()
    finished = run.finish()
    assert torch.equal(bias, 2 * untouched)
    assert run.finish() is finished is run.model
    assert torch.equal(bias, 2 * untouched)  # a second call changes nothing


def test_finishing_restores_what_trained_and_ends_in_eval_mode() -> None:
    """What the caller had frozen is frozen again, the rest trains, and dropout is off."""
    model = tiny_model("bert")
    model.get_parameter("bert.pooler.dense.bias").requires_grad_(False)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    run = attach(model, [PartialFreeze(top=0)])
    run.start_stage(0)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == run.trained
    run.finish()
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert not any(module.training for module in model.modules())


def test_what_the_caller_froze_stays_frozen() -> None:
    """Without strategies, what trains is what trained before."""
    model = tiny_model("bert")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier"))
    run = attach(model, [])
    assert run.trained == {"classifier.weight", "classifier.bias"}
    assert [name for group in run.parameter_groups() for name in group["names"]] == [
        "classifier.weight",
        "classifier.bias",
    ]


def test_parameter_groups_hold_what_any_stage_trains() -> None:
    """One group for each depth and kind of decay; biases and norms are not decayed, frozen layers are in none."""
    run = attach(tiny_model("bert"), [LayerwiseUnfreeze((Unfreeze(top=0), Unfreeze(top=1)))])
    groups = run.parameter_groups(weight_decay=0.3)
    assert {(group["depth"], group["weight_decay"]) for group in groups} == {(3, 0.3), (3, 0.0), (4, 0.3), (4, 0.0)}
    named = dict(run.model.named_parameters())
    for group in groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            assert parameter is named[name]
            assert (parameter.ndim > 1) == (group["weight_decay"] > 0)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(run.trained)
    assert not any("layer.0" in name or "embeddings" in name for name in names)


@pytest.mark.parametrize("stop", [1, 3, 5, 9, 10])
def test_a_saved_loop_goes_on_where_it_was(stop: int) -> None:
    """State, weights and optimizer of a loop, saved after any step, lead a new one to the same end."""
    strategies = [SCHEDULE, AllHooks()]

    def planned(stage: Stage) -> int:
        return stage.max_steps or (7 if stage.batch_size == 2 else 8)

    def go_on(run: Attached, optimizer: torch.optim.Optimizer, until: int = 99) -> None:
        for stage in run:
            index = run.state.stage_index
            batches = [batch for epoch in range(2) for batch in batches_of(index, epoch, stage.batch_size or 4)]
            while run.state.stage_step < planned(stage):
                torch.manual_seed(run.state.step)
                train_by_hand(run, optimizer, batches[run.state.stage_step])
                if run.state.step == until:
                    return
            run.decide({"accuracy": float(index)})

    whole = attach(tiny_model("bert"), strategies)
    go_on(whole, optimizer_for(whole))

    first = attach(tiny_model("bert"), strategies)
    optimizer = optimizer_for(first)
    go_on(first, optimizer, until=stop)
    values, tensors = first.state_dict()
    saved = json.dumps(values)
    moments, trained = copy.deepcopy(optimizer.state_dict()), weights(first.model)

    second = attach(tiny_model("bert", seed=9), strategies)
    second.model.load_state_dict(trained)
    optimizer = optimizer_for(second)
    optimizer.load_state_dict(moments)
    second.load_state_dict(json.loads(saved), tensors)
    assert (second.state.step, second.state.stage_index) == (first.state.step, first.state.stage_index)
    flags = [[parameter.requires_grad for parameter in run.model.parameters()] for run in (first, second)]
    assert flags[0] == flags[1]
    go_on(second, optimizer)

    assert_same(weights(whole.model), weights(second.model))
    assert second.results == whole.results == [{"accuracy": 0.0}, {"accuracy": 1.0}, {"accuracy": 2.0}]
    assert second.state.memory["AllHooks"]["stages"] == 3
    assert_same(whole.state.state_dict()[1], second.state.state_dict()[1])
    assert len(list(second)) == 3  # once through, it can be gone through anew


def test_a_gate_ends_the_iteration() -> None:
    """After a verdict that ends the training no further stage begins; the verdict says why."""
    run = attach(tiny_model("bert"), [LayerwiseUnfreeze(target=0.8)])
    begun = []
    for stage in run:
        begun.append(stage.name)
        verdict = run.decide({"accuracy": 0.9})
    assert begun == ["top 1 block"]
    assert verdict.decision is Decision.STOP
    assert run.verdict is verdict
    assert "accuracy 0.9000 reached the target 0.8" in verdict.reason


def test_a_gate_that_finds_no_metric_says_what_there_is() -> None:
    """The message names the gate, the metric and the nearest one measured."""
    run = attach(tiny_model("bert"), [LayerwiseUnfreeze(target=0.8)])
    run.start_stage(0)
    with pytest.raises(ConfigError, match=r"Target\(metric='accuracy'\).*measured by acuracy.*mean 'acuracy'"):
        run.decide({"acuracy": 0.9})


def test_a_state_of_more_stages_is_refused() -> None:
    """A state saved with other strategies is told apart."""
    first = attach(tiny_model("bert"), [LayerwiseUnfreeze()])
    first.start_stage(2)
    values, tensors = first.state_dict()
    second = attach(tiny_model("bert"), [])
    with pytest.raises(TrainingError, match="saved run is in stage 2, but these strategies make 1 stages"):
        second.load_state_dict(values, tensors)


def test_what_is_attached_is_the_callers_own() -> None:
    """The model is the very object, and the list of strategies is not touched."""
    model, strategies = tiny_model("bert"), [PartialFreeze(top=1)]
    run = attach(model, strategies)
    assert run.model is model
    assert strategies == [PartialFreeze(top=1)]


def test_a_module_without_blocks_can_be_trained_as_a_whole() -> None:
    """Where layers cannot be told apart, everything trains alike, and choosing layers is refused."""
    model = torch.nn.Linear(3, 2)
    run = attach(model, [])
    optimizer = torch.optim.SGD(run.parameter_groups(), lr=0.1)
    before = model.weight.detach().clone()
    for _ in run:
        model(torch.ones(1, 3)).sum().backward()
        run.step(optimizer)
    assert not torch.equal(before, model.weight)
    with pytest.raises(ModelError):
        attach(model, [PartialFreeze(top=1)])


@pytest.mark.parametrize("wrong", ["PartialFreeze", PartialFreeze(top=1), 3, None])
def test_strategies_must_be_a_list(wrong: Any) -> None:
    """A strategy on its own, or a name, is refused with what was received."""
    with pytest.raises(ConfigError, match="strategies must be a list of strategies; received"):
        attach(tiny_model("bert"), wrong)


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ([PartialFreeze], ConfigError, r"write PartialFreeze\(\.\.\.\)"),
        (["PartialFreeze"], ConfigError, "must be lowft.Strategy objects; received 'PartialFreeze'"),
        ([PartialFreeze(top=1), PartialFreeze(top=0)], StrategyConflictError, "stands 2 times"),
        ([PartialFreeze(top=9)], ConfigError, "top must be a whole number from 0"),
        ([PartialFreeze(train=("*no_such*",))], ConfigError, "matches no parameter and no module"),
    ],
)
def test_strategies_that_do_not_fit_are_refused(wrong: Any, error: type[Exception], text: str) -> None:
    """What is in the list is checked before the model is changed."""
    model = tiny_model("bert")
    with pytest.raises(error, match=text):
        attach(model, wrong)
    assert all(parameter.requires_grad for parameter in model.parameters())
