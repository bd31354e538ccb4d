"""What a run will cost: foretold without a trace, and settings that keep to a limit."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from lowft import _planning, _suggesting
from lowft.config import TrainingConfig
from lowft.errors import ConfigError, TrainingError
from lowft.planning import Plan, PlannedStage
from lowft.strategies import LayerwiseUnfreeze, PartialFreeze, Prune, Unfreeze
from lowft.strategy import Strategy
from lowft.trainer import Trainer
from tests.runs import tiny_trainer
from tests.strategy_cases import ALLOWED, tiny_rows
from tests.test_strategies_table import assert_same, final_weights, make_trainer
from tests.tiny import ARCHITECTURES

CASES = (
    "none", "top", "unfreeze, roll back", "augment", "distill hidden", "prune heads and neurons", "prune at the start",
    "quantize", "quantize in a stage", "quantize from the start", "every hook",
    "unfreeze + prune + distill + quantize in a stage",
)  # fmt: skip
QUICK: dict[str, Any] = {"batch_size": 4, "save_steps": None}
MEASURED = {"seconds", "filling_seconds", "peak_memory_bytes"}


def records(trainer: Trainer) -> list[dict[str, Any]]:
    """Return the history without what is measured."""
    return [{key: value for key, value in record.items() if key not in MEASURED} for record in trainer.history]


def check_untouched(planned: Trainer, plain: Trainer) -> Plan:
    """Plan one of two equal runs, and compare them before and after training."""
    modes = [module.training for module in planned.model.modules()]
    flags = [parameter.requires_grad for parameter in planned.model.parameters()]
    before, stream = final_weights(planned), torch.get_rng_state()
    plan = planned.plan()
    assert_same(before, final_weights(planned))
    assert torch.equal(stream, torch.get_rng_state())
    assert [module.training for module in planned.model.modules()] == modes
    assert [parameter.requires_grad for parameter in planned.model.parameters()] == flags
    assert len(planned.history) == 0
    texts = tiny_rows(4, seed=5)["text"]
    assert (planned.predict_proba(texts) == plain.predict_proba(texts)).all()
    planned.fit()
    plain.fit()
    assert_same(final_weights(plain), final_weights(planned))
    assert records(planned) == records(plain)
    return plan


@pytest.mark.parametrize("name", CASES)
def test_a_run_after_a_plan_is_bit_identical(name: str) -> None:
    """Model, random streams, modes, history and what follows are those of a run without a plan."""
    planned, plain = (make_trainer(None, ALLOWED[name], **QUICK) for _ in range(2))
    stages = [stage.name for stage in planned._loop.attached.stages]
    plan = check_untouched(planned, plain)
    assert [stage.name for stage in plan.stages] == stages
    assert plan.seconds > 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_is_planned_without_a_trace(arch: str) -> None:
    """The same for each architecture, with layers that are frozen and cached."""
    check_untouched(*(make_trainer(None, (PartialFreeze(top=1),), arch, **QUICK) for _ in range(2)))


def test_the_comparison_can_fail() -> None:
    """Negative control: with another seed, nothing is equal."""
    with pytest.raises(AssertionError):
        check_untouched(make_trainer(None, (), **QUICK), make_trainer(None, (), **QUICK, seed=4))


def test_steps_and_evaluations_are_those_of_the_run() -> None:
    """What a plan counts is what the history shows afterwards."""
    unfreeze = LayerwiseUnfreeze((Unfreeze(top=0, epochs=1), Unfreeze(top="all", max_steps=5)))
    trainer = tiny_trainer(strategies=[unfreeze], eval_steps=2)
    plan = trainer.plan()
    history = trainer.fit()
    for index, stage in enumerate(plan.stages):
        assert stage.steps == sum(record["stage"] == index for record in history.filter("train"))
        assert stage.evaluations == sum(record["stage"] == index for record in history.filter("evaluate"))
        assert stage.rows_at_a_time == 4


def test_a_run_without_validation_rows_has_no_evaluations() -> None:
    """Nothing is foretold of what will not be."""
    (stage,) = tiny_trainer(eval_dataset=None).plan().stages
    assert (stage.evaluations, stage.eval_seconds, stage.cache_seconds) == (0, 0.0, 0.0)


def test_the_cache_is_planned_where_it_will_be_used() -> None:
    """Frozen blocks cost the time to fill the cache, and nothing where they are not cached."""
    frozen = PartialFreeze(top=0)
    assert tiny_trainer(strategies=[frozen]).plan().stages[0].cache_seconds > 0
    assert tiny_trainer(strategies=[frozen], prefix_cache=False).plan().stages[0].cache_seconds == 0


def test_memory_is_that_of_the_process() -> None:
    """What is foretold is about what the run then takes: libraries are most of it, for a tiny model."""
    trainer = tiny_trainer()
    plan = trainer.plan()
    trainer.fit()
    assert plan.peak_memory_bytes == pytest.approx(trainer.history.peak_memory_bytes, rel=0.1)


class Priced:
    """Stands for the measurement: what a choice costs follows from depth, length, rows at a time and the cache."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take the place of the measurement."""
        self.asked: list[tuple[int, int, int]] = []
        monkeypatch.setattr(_suggesting, "probe_stages", self)

    def __call__(
        self, loop: Any, stages: Any, config: TrainingConfig, max_length: int, halvings: int = 0
    ) -> tuple[PlannedStage, ...]:
        """Charge a second for each tensor that trains and token, and bytes for those and rows at a time."""
        found = []
        length = min(max_length, int(loop.train_rows.lengths.max()))
        for stage in stages:
            trained = len(loop.attached._trained_before if stage.trainable is None else stage.trainable)
            rows = (stage.batch_size or config.batch_size) >> halvings
            self.asked.append((trained, length, rows))
            cached = 0.5 if config.prefix_cache else 1.0
            memory = trained + 10 * rows + config.eval_batch_size
            found.append(PlannedStage(stage.name, 1, rows, 0.0, cached * trained * length, 0, 0.0, memory))
        return tuple(found)


def test_a_run_that_fits_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that are kept change nothing."""
    priced = Priced(monkeypatch)
    trainer = tiny_trainer()
    plan = trainer.plan(max_minutes=1e6, max_memory=10**9)
    assert plan.fits
    assert (plan.changes, plan.config, plan.strategies) == ((), trainer.config, ())
    assert len(priced.asked) == 1


def test_memory_is_saved_by_fewer_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The micro-batch shrinks until it fits, with the rows of an optimizer step kept and no layer frozen."""
    Priced(monkeypatch)
    trainer = tiny_trainer(batch_size=12, gradient_accumulation_steps=2, eval_batch_size=12)
    whole = trainer.plan().peak_memory_bytes or 0
    plan = trainer.plan(max_memory=whole - 90)
    assert plan.fits
    assert (plan.config.batch_size, plan.config.gradient_accumulation_steps) == (3, 8)
    assert plan.strategies == ()
    assert "same 24 rows are in each optimizer step" in " ".join(plan.changes)


@pytest.mark.parametrize("strategies", [(), (Prune(0.5),), (PartialFreeze(embeddings=False), Prune(0.5))])
def test_time_is_saved_by_the_deepest_training_that_fits(
    strategies: tuple[Strategy, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the depths that keep to the limit, the one that trains most is taken, beside the strategies that are there."""
    Priced(monkeypatch)
    trainer = tiny_trainer(strategies=list(strategies))
    whole = trainer.plan().seconds
    plan = trainer.plan(max_minutes=0.9 * whole / 60)
    freeze = next(part for part in plan.strategies if isinstance(part, PartialFreeze))
    assert plan.fits
    assert [part for part in plan.strategies if part is not freeze] == [
        part for part in strategies if not isinstance(part, PartialFreeze)
    ]
    assert freeze.top is not None
    deeper = tuple(replace(freeze, top=freeze.top + 1) if part is freeze else part for part in plan.strategies)
    loop = trainer._loop
    search = _suggesting._Search(loop, plan.max_minutes, None)
    blocks = loop.attached.layers.num_blocks if loop.attached.layers else 0
    if freeze.top < blocks:
        assert not search.measure(_suggesting._Choice(deeper, loop.config, trainer._parts.max_length)).fits


def test_a_schedule_loses_its_deepest_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer by layer, the stages that train most are left out, and no fewer than must be."""
    Priced(monkeypatch)
    trainer = tiny_trainer(strategies=[LayerwiseUnfreeze((Unfreeze(top=0), Unfreeze(top=1), Unfreeze(top="all")))])
    costs = [stage.seconds for stage in trainer.plan().stages]
    plan = trainer.plan(max_minutes=(sum(costs[:2]) + 1) / 60)
    assert plan.fits
    assert plan.strategies == (LayerwiseUnfreeze((Unfreeze(top=0), Unfreeze(top=1))),)
    assert "without the stages top='all'" in plan.changes[1]


def test_texts_are_cut_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the head alone takes too long, texts are cut, and then as much trains as there is time for."""
    Priced(monkeypatch)
    trainer = tiny_trainer()
    head = tiny_trainer(strategies=[PartialFreeze(top=0)]).plan().seconds
    plan = trainer.plan(max_minutes=0.95 * head / 60)
    assert plan.fits
    assert plan.config.max_length is not None
    assert plan.config.max_length < trainer._loop.train_rows.lengths.max()
    assert "% of the training texts lose their end" in " ".join(plan.changes)


def test_a_cache_that_is_off_is_turned_on_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """What costs no accuracy is tried before what may."""
    Priced(monkeypatch)
    trainer = tiny_trainer(prefix_cache=False)
    plan = trainer.plan(max_minutes=0.6 * trainer.plan().seconds / 60)
    assert plan.fits
    assert plan.config.prefix_cache
    assert plan.strategies == ()


def test_stages_with_batches_of_their_own_are_halved_by_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A micro-batch that the schedule sets stays what it is, and the limit makes the run halve it."""
    Priced(monkeypatch)
    trainer = tiny_trainer(strategies=[LayerwiseUnfreeze((Unfreeze(top=0, batch_size=8), Unfreeze(top="all")))])
    limit = (trainer.plan().peak_memory_bytes or 0) - 10
    plan = trainer.plan(max_memory=limit)
    assert plan.fits
    assert (plan.config.batch_size, plan.config.max_memory) == (4, limit)


def test_what_cannot_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that nothing keeps to give the nearest plan, which says so."""
    Priced(monkeypatch)
    plan = tiny_trainer().plan(max_minutes=1e-6, max_memory=1)
    assert not plan.fits
    assert "does not keep to max_minutes=1e-06" in str(plan)
    assert "does not keep to max_memory=1 B" in str(plan)


def test_a_suggestion_can_be_run() -> None:
    """A Trainer built from a plan's settings trains what the plan says; measured for real."""
    trainer = tiny_trainer(batch_size=4)
    plan = trainer.plan(max_minutes=1e-9)
    assert not plan.fits
    again = tiny_trainer(strategies=list(plan.strategies), config=plan.config)
    history = again.fit()
    assert len(history.filter("train")) == plan.stages[0].steps


def test_a_plan_prints_and_becomes_json() -> None:
    """The table has a row for each stage and one for all; the dictionary survives JSON."""
    plan = tiny_trainer(strategies=[PartialFreeze(top=1)]).plan(max_minutes=60)
    lines = str(plan).splitlines()
    assert [line.split()[0] for line in lines] == ["stage", "--------", "training", "total"]
    assert "<table>" in plan._repr_html_()
    values = json.loads(json.dumps(plan.to_dict()))
    assert values["fits"] is True
    assert values["stages"][0]["name"] == "training"
    assert values["strategies"][0]["name"] == "PartialFreeze"


def test_a_run_that_has_begun_is_not_planned() -> None:
    """A plan is made before the first step, and the error says what to do."""
    trainer = tiny_trainer()
    next(iter(trainer.steps()))
    with pytest.raises(TrainingError, match="make a new Trainer"):
        trainer.plan()


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_minutes": 0}, "plan: max_minutes must be a finite number above 0; received 0"),
        ({"max_minutes": "1"}, "plan: max_minutes must be"),
        ({"max_memory": 0}, "plan: max_memory must be a whole number of at least 1; received 0"),
        ({"max_memory": 1.5}, "plan: max_memory must be a whole number"),
    ],
)
def test_limits_are_checked(limits: dict[str, Any], words: str) -> None:
    """A limit out of its range is refused by name, rule and value."""
    with pytest.raises(ConfigError, match=words):
        tiny_trainer().plan(**limits)


def test_an_error_in_a_probe_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails while it is measured is raised, and the run is as it was."""
    trainer = tiny_trainer()
    before = final_weights(trainer)

    def fail(*_: Any) -> float:
        raise OSError("the disk is gone")

    monkeypatch.setattr(_planning, "run_evaluation", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        trainer.plan()
    assert_same(before, final_weights(trainer))
    assert len(trainer._loop.optimizer.state) == 0
