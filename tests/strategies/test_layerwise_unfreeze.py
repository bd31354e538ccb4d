"""Tests of training from the output side downwards, stage by stage."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowft.attach import attach
from lowft.errors import ConfigError, StrategyConflictError
from lowft.models import find_layers, trainable_names
from lowft.stages import MinImprovement, Stage, Target
from lowft.strategies import LayerwiseUnfreeze, PartialFreeze, Unfreeze
from tests.test_stages import BAD_PACE
from tests.test_strategies_table import make_trainer
from tests.tiny import ARCHITECTURES, tiny_model

TOPS = st.lists(st.integers(0, 4) | st.just("all"), min_size=1, max_size=4)


def stages_of(strategy: LayerwiseUnfreeze, model: torch.nn.Module, stage: Stage | None = None) -> tuple[Stage, ...]:
    """Return the stages that the strategy makes of one."""
    return attach(model, [strategy], stage=stage).stages


@pytest.mark.parametrize(
    ("blocks", "names"),
    [
        (1, ["top 1 block", "all layers"]),
        (2, ["top 1 block", "all layers"]),
        (3, ["top 1 block", "top 2 blocks", "all layers"]),
        (6, ["top 2 blocks", "top 4 blocks", "all layers"]),
        (12, ["top 4 blocks", "top 8 blocks", "all layers"]),
    ],
)
def test_the_default_goes_down_in_thirds(blocks: int, names: list[str]) -> None:
    """Without a schedule: a third of the blocks, two thirds, everything; small models skip what would repeat."""
    assert [stage.name for stage in stages_of(LayerwiseUnfreeze(), tiny_model("bert", num_layers=blocks))] == names


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_stage_goes_deeper(arch: str) -> None:
    """On every architecture each stage adds layers below, never takes any away, and the last trains all."""
    model = tiny_model(arch)
    depths = find_layers(model).depths
    trained = [stage.trainable or frozenset() for stage in stages_of(LayerwiseUnfreeze(), model)]
    for before, after in itertools.pairwise(trained):
        assert before < after
        assert max(depths[name] for name in after - before) < min(depths[name] for name in before)
    assert trained[-1] == {name for name, _ in model.named_parameters()}


def test_a_schedule_sets_each_stage() -> None:
    """Name, layers, rate, batch size, epochs, steps and decay are those of the schedule."""
    model = tiny_model("bert")
    head, top, everything = stages_of(
        LayerwiseUnfreeze(
            (
                Unfreeze(top=0, learning_rate=1e-3, epochs=1.5),
                Unfreeze(top=2, batch_size=4, max_steps=7),
                Unfreeze(top="all", layer_decay=0.9),
            )
        ),
        model,
    )
    assert head == Stage("head", trainable_names(model, top=0), learning_rate=1e-3, epochs=1.5)
    assert top == Stage("top 2 blocks", trainable_names(model, top=2), batch_size=4, max_steps=7)
    assert everything == Stage("all layers", trainable_names(model), layer_decay=0.9)


def test_all_blocks_differ_from_all_layers() -> None:
    """The topmost L blocks leave the embeddings frozen; "all" trains them too."""
    model = tiny_model("bert")
    blocks, everything = stages_of(LayerwiseUnfreeze((Unfreeze(top=3), Unfreeze(top="all"))), model)
    assert blocks.name == "top 3 blocks"
    added = (everything.trainable or frozenset()) - (blocks.trainable or frozenset())
    assert added
    assert {find_layers(model).depths[name] for name in added} == {0}


def test_the_settings_of_the_stage_that_is_split_carry_over() -> None:
    """What the schedule leaves open comes from the stage given to `attach`, its gates included."""
    gate = Target("loss", 0.1, greater_is_better=False)
    given = Stage("mine", learning_rate=0.3, layer_decay=0.5, batch_size=3, epochs=2, gates=(gate,))
    strategy = LayerwiseUnfreeze((Unfreeze(top=0), Unfreeze(top="all", epochs=1, layer_decay=1)), target=0.9)
    head, everything = stages_of(strategy, tiny_model("bert"), given)
    assert (head.learning_rate, head.layer_decay, head.batch_size, head.epochs) == (0.3, 0.5, 3, 2)
    assert (everything.learning_rate, everything.layer_decay, everything.epochs) == (0.3, 1, 1)
    assert head.gates == everything.gates == (gate, Target("accuracy", 0.9))


@pytest.mark.parametrize(
    ("settings", "gates"),
    [
        ({}, ()),
        ({"target": 0.8}, (Target("accuracy", 0.8),)),
        ({"min_improvement": 0}, (MinImprovement("accuracy", 0),)),
        ({"min_improvement": "noise"}, (MinImprovement("accuracy", "noise"),)),
        (
            {"target": 0.2, "min_improvement": 0.01, "metric": "loss", "greater_is_better": False},
            (Target("loss", 0.2, greater_is_better=False), MinImprovement("loss", 0.01, greater_is_better=False)),
        ),
    ],
)
def test_every_stage_has_the_gates(settings: dict[str, Any], gates: tuple[Any, ...]) -> None:
    """The target is asked first, then the improvement; without either, no gate."""
    made = stages_of(LayerwiseUnfreeze(**settings), tiny_model("bert"))
    assert [stage.gates for stage in made] == [gates] * 3


@given(tops=TOPS)
def test_a_schedule_must_go_deeper(tops: list[Any]) -> None:
    """A schedule is accepted exactly where each stage trains more than the one before."""
    reach = [math.inf if top == "all" else top for top in tops]
    schedule = tuple(Unfreeze(top=top) for top in tops)
    if all(one < other for one, other in itertools.pairwise(reach)):
        assert LayerwiseUnfreeze(schedule).schedule == schedule
    else:
        with pytest.raises(ConfigError, match=r"schedule must go deeper with each stage; top=.* follows top="):
            LayerwiseUnfreeze(schedule)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ((), "a tuple with at least one Unfreeze(...), or None; received ()"),
        (Unfreeze(top=1), "a tuple with at least one Unfreeze(...), or None; received Unfreeze(top=1"),
        (2, "a tuple with at least one Unfreeze(...), or None; received 2"),
        ((1, 2), "must hold Unfreeze(...) settings; received 1"),
    ],
)
def test_a_schedule_holds_settings(schedule: Any, message: str) -> None:
    """An empty schedule and one of other objects are refused with what belongs there."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        LayerwiseUnfreeze(schedule)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "0.8"}, "LayerwiseUnfreeze.target must be a finite number; received '0.8'"),
        ({"target": math.nan}, "LayerwiseUnfreeze.target must be a finite number; received nan"),
        ({"min_improvement": True}, "LayerwiseUnfreeze.min_improvement must be a finite number; received True"),
        ({"metric": ""}, "LayerwiseUnfreeze.metric must be a text that is not empty; received ''"),
        ({"greater_is_better": "yes"}, "LayerwiseUnfreeze.greater_is_better must be True or False; received 'yes'"),
    ],
)
def test_settings_are_checked_at_once(settings: dict[str, Any], message: str) -> None:
    """A setting of the wrong type is refused where it is written, without a schedule too."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        LayerwiseUnfreeze(**settings)


@pytest.mark.parametrize(("name", "value", "rule"), BAD_PACE)
def test_a_stages_settings_are_checked(name: str, value: Any, rule: str) -> None:
    """A stage's settings are under the same rules as `Stage`, in the same words."""
    with pytest.raises(ConfigError, match=re.escape(f"Unfreeze.{name} must be {rule}; received {value!r}")):
        Unfreeze(**({"top": 1} | {name: value}))


@pytest.mark.parametrize("top", [-1, 1.0, True, "2", "ALL", None])
def test_top_counts_blocks(top: Any) -> None:
    """Only whole numbers from 0 and "all" say how deep a stage goes."""
    message = f"Unfreeze.top must be a number of blocks, at least 0, or 'all'; received {top!r}"
    with pytest.raises(ConfigError, match=re.escape(message)):
        Unfreeze(top=top)


def test_more_blocks_than_there_are_is_refused() -> None:
    """How many blocks a model has is known when the strategy meets it."""
    with pytest.raises(ConfigError, match=r"top must be a whole number from 0 \(head only\) to 3"):
        stages_of(LayerwiseUnfreeze((Unfreeze(top=4),)), tiny_model("bert"))


def test_a_model_without_embeddings_has_no_idle_stage() -> None:
    """Where nothing lies below the blocks, the default leaves the repetition out and a given one is refused."""
    model = torch.nn.Sequential(torch.nn.ModuleList([torch.nn.Linear(3, 3)]))
    assert [stage.name for stage in stages_of(LayerwiseUnfreeze(), model)] == ["all layers"]
    with pytest.raises(ConfigError, match="stage after 'top 1 block' trains the same layers, since this model has no"):
        stages_of(LayerwiseUnfreeze((Unfreeze(top=1), Unfreeze(top="all"))), model)


def test_only_one_stage_is_split() -> None:
    """Stages that something else has made are not split again; the message names them."""
    with pytest.raises(StrategyConflictError, match=r"LayerwiseUnfreeze splits one .* made 2: one, two\. Leave"):
        LayerwiseUnfreeze().stages((Stage("one"), Stage("two")), tiny_model("bert"))


@pytest.mark.parametrize("freeze_first", [True, False])
def test_a_partial_freeze_narrows_the_stages(freeze_first: bool) -> None:
    """Before it or after it, a layer trains where both allow it."""
    model = tiny_model("bert")
    pair = [PartialFreeze(embeddings=False), LayerwiseUnfreeze()]
    stages = attach(model, pair if freeze_first else pair[::-1]).stages
    allowed = trainable_names(model, embeddings=False)
    plain = stages_of(LayerwiseUnfreeze(), model)
    assert [stage.trainable for stage in stages] == [(stage.trainable or frozenset()) & allowed for stage in plain]


@pytest.mark.parametrize("freeze_first", [True, False])
def test_a_freeze_that_levels_stages_is_refused(freeze_first: bool) -> None:
    """If only the head may train, deeper stages would repeat the first; both sides are named."""
    pair = [PartialFreeze(top=0), LayerwiseUnfreeze()]
    with pytest.raises(StrategyConflictError, match="'top 1 block' and 'top 2 blocks' the same layers to train"):
        attach(tiny_model("bert"), pair if freeze_first else pair[::-1])


def test_a_list_is_stored_as_a_tuple() -> None:
    """A schedule given as a list is equal to one given as a tuple, and stays the caller's."""
    schedule = [Unfreeze(top=1), Unfreeze(top="all")]
    strategy = LayerwiseUnfreeze(schedule)  # type: ignore[arg-type]
    schedule.pop()
    assert strategy == LayerwiseUnfreeze((Unfreeze(top=1), Unfreeze(top="all")))
    assert len({strategy, LayerwiseUnfreeze()}) == 2


@pytest.mark.parametrize(("rate", "decision"), [(1e-9, "roll back"), (5e-3, "continue")])
def test_a_stage_within_the_noise_is_undone(rate: float, decision: str) -> None:
    """The Trainer measures the noise of the validation rows: a stage that changes nothing lies within it."""
    schedule = (Unfreeze(top=0, max_steps=1, learning_rate=1e-9), Unfreeze(top=2, epochs=6, learning_rate=rate))
    strategy = LayerwiseUnfreeze(
        (*schedule, Unfreeze(top="all", max_steps=1)), metric="loss", greater_is_better=False, min_improvement="noise"
    )
    trainer = make_trainer(None, (strategy,), metric_for_best_model="loss")
    trainer.fit()
    assert all(record["eval_loss_noise"] > 0 for record in trainer.history.filter("evaluate"))
    assert trainer.history.filter("stage")[1]["decision"] == decision


@pytest.mark.parametrize(("rows", "first"), [(999, "head"), (1000, "top 1 block"), (None, "top 1 block")])
def test_few_rows_begin_with_the_head(rows: int | None, first: str) -> None:
    """Where rows are few, the default stages let the head learn before anything else moves."""
    stages = stages_of(LayerwiseUnfreeze(), tiny_model("bert"), Stage(rows=rows))
    assert stages[0].name == first
    assert [stage.name for stage in stages[-2:]] == ["top 2 blocks", "all layers"]


def test_the_trainer_tells_how_many_rows_there_are() -> None:
    """Fourteen rows are few."""
    assert make_trainer(None, (LayerwiseUnfreeze(),))._loop.attached.stages[0].name == "head"
