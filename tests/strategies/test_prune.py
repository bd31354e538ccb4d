"""Tests of pruning while training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lowft.attach import attach
from lowft.errors import ConfigError, StrategyConflictError
from lowft.stages import Stage
from lowft.strategies import Distill, LayerwiseUnfreeze, PartialFreeze, Prune, Unfreeze
from tests.compress.test_pruning import widths
from tests.runs import tiny_trainer, weights
from tests.strategy_cases import tiny_teacher
from tests.tiny import ARCHITECTURES, tiny_batch, tiny_model

ALL = ("magnitude", "taylor", "fisher", "random")


def open_neurons(trainer: Any) -> list[int]:
    """Return how many neurons are open in each block."""
    gates = [tensor for name, tensor in trainer.model.named_buffers() if name.endswith("lowft_gate")]
    return [int(gate.sum()) for gate in gates]


@pytest.mark.parametrize("importance", ALL)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_neurons_go_along_the_ramp(importance: Any, scope: Any) -> None:
    """First none, then more with each step, all that were asked for at the ramp's end, and none after it."""
    strategy = Prune(0.5, importance=importance, scope=scope, epochs=2, ramp=0.5, multiple_of=1)
    trainer = tiny_trainer(strategies=[strategy], epochs=1)
    left = [(result.stage, sum(open_neurons(trainer))) for result in trainer.steps()]
    assert [count for stage, count in left if stage == "training"] == [192] * 4
    counts = [count for stage, count in left if stage == "prune"]
    assert counts == sorted(counts, reverse=True)
    expected = [round(192 * (1 - 0.5 * (1 - (1 - min(1, step / 4)) ** 3))) for step in range(1, 9)]
    assert counts == pytest.approx(expected, abs=2)
    assert counts[3:] == [96] * 5
    assert sum(widths(trainer.model).values()) == 96


def test_what_is_shut_stays_shut() -> None:
    """A neuron never comes back, and its weights are not what the others learn from."""
    trainer = tiny_trainer(strategies=[Prune(0.7, epochs=3, multiple_of=4)], epochs=1)
    shut: set[int] = set()
    for result in trainer.steps():
        if result.stage == "prune" and result.step < 16:
            gate = dict(trainer.model.named_buffers())["bert.encoder.layer.1.output.dense.lowft_gate"]
            now = set((gate == 0).nonzero()[:, 0].tolist())
            assert shut <= now
            shut = now
    assert len(shut) == 64 - 20


def test_the_end_of_the_training_is_what_is_deployed() -> None:
    """The cut model answers as the gated one did after its last step."""
    trainer = tiny_trainer(strategies=[Prune(0.5, epochs=1)], epochs=1, load_best_model_at_end=False)
    batch = tiny_batch("bert")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits = torch.zeros(())
    for _ in trainer.steps():
        with torch.no_grad():
            trainer.model.train(False)
            logits = trainer.model(**inputs).logits
    with torch.no_grad():
        torch.testing.assert_close(trainer.model(**inputs).logits, logits, rtol=0, atol=1e-5)
    assert not any(name.endswith("lowft_gate") for name, _ in trainer.model.named_buffers())
    assert not any(module._forward_pre_hooks for module in trainer.model.modules())


def test_weights_of_the_whole_model_are_not_the_best_of_the_small_one() -> None:
    """However good the model was before: what comes back at the end has as many neurons as were asked for."""
    trainer = tiny_trainer(strategies=[Prune(0.75, epochs=1, ramp=1.0)], epochs=4, metric_for_best_model="loss")
    trainer.fit()
    assert set(widths(trainer.model).values()) == {16}


def test_the_stage_follows_though_a_gate_ended_the_training() -> None:
    """A target that is reached at once leaves out the deeper stages, not the pruning."""
    schedule = (Unfreeze(top=0, epochs=1), Unfreeze(top="all", epochs=1))
    trainer = tiny_trainer(strategies=[LayerwiseUnfreeze(schedule, target=0.0), Prune(0.5)])
    trainer.fit()
    assert [record["stage_name"] for record in trainer.history.filter("stage")] == ["head", "prune"]
    assert set(widths(trainer.model).values()) == {32}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_is_pruned_at_the_start(arch: str) -> None:
    """Before the optimizer exists, half of the neurons are gone."""
    run = attach(tiny_model(arch), [Prune(0.5, importance="magnitude", when="start")])
    whole = widths(tiny_model(arch), arch)
    assert {block: 2 * width for block, width in widths(run.model, arch).items()} == whole
    assert len(run.stages) == 1


def test_a_hand_written_loop_prunes() -> None:
    """Where a loop does not say how many steps a stage has, all neurons are shut at its first step."""
    run = attach(tiny_model("bert"), [Prune(0.5)], stage=Stage("mine"))
    optimizer = torch.optim.SGD(run.parameter_groups(), lr=0.1)
    names = []
    for stage in run:
        names.append(stage.name)
        run.model(**tiny_batch("bert")).loss.backward()
        run.step(optimizer)
    assert names == ["mine", "prune"]
    assert set(widths(run.finish()).values()) == {32}


def test_frozen_blocks_are_pruned_by_magnitude() -> None:
    """Blocks that do not train give no gradients; within a layer their magnitudes decide, and they stay frozen."""
    before = weights(tiny_model("bert"))
    trainer = tiny_trainer(strategies=[PartialFreeze(top=1), Prune(0.5, importance="fisher")])
    trainer.fit()
    assert set(widths(trainer.model).values()) == {32}
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(weights(trainer)[name], before[name])


def test_gradients_of_some_blocks_are_not_compared_with_none_of_others() -> None:
    """In the whole model only like is compared with like; where the order allows, that is said before the training."""
    freeze, prune = PartialFreeze(top=1), Prune(0.5, scope="global")
    message = r"layer\.0, bert\.encoder\.layer\.1 do not train: set scope='layer'"
    with pytest.raises(ConfigError, match=message):
        tiny_trainer(strategies=[freeze, prune])
    trainer = tiny_trainer(strategies=[prune, freeze])
    with pytest.raises(ConfigError, match=message):
        trainer.fit()


def test_prune_then_distill_after_unfreezing(tmp_path: Any) -> None:
    """Three strategies in one run: unfreeze, then prune while a teacher guides."""
    schedule = (Unfreeze(top=1, epochs=1), Unfreeze(top="all", epochs=1))
    strategies = [LayerwiseUnfreeze(schedule), Prune(0.5), Distill(tiny_teacher())]
    trainer = tiny_trainer(strategies=strategies)
    history = trainer.fit()
    assert [record["stage_name"] for record in history.filter("stage")] == ["top 1 block", "all layers", "prune"]
    folder = trainer.export(tmp_path / "small", verify="here")
    assert (folder / "config.json").read_text().count('"intermediate_size": 32') == 1


def test_a_bad_order_is_refused_with_one_that_works() -> None:
    """Stages are split before one is appended."""
    with pytest.raises(StrategyConflictError, match=r"The order that works: \[LayerwiseUnfreeze, Prune\]"):
        attach(tiny_model("bert"), [Prune(0.5), LayerwiseUnfreeze()])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"neurons": 0}, "Prune: neurons must be a finite number above 0 and below 1; received 0"),
        ({"neurons": 1}, "below 1; received 1"),
        ({"importance": "size"}, "Prune: importance"),
        ({"scope": 3}, "Prune: scope"),
        ({"when": "end"}, r"Prune\.when"),
        ({"ramp": 1.5}, r"Prune\.ramp must be a finite number"),
        ({"epochs": 0}, r"Prune\.epochs must be a finite number above 0"),
        ({"learning_rate": -1.0}, r"Prune\.learning_rate"),
        ({"multiple_of": 0}, "Prune: multiple_of"),
        ({"when": "start"}, r"before there are any gradients, which importance='taylor' needs"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    """Each message gives the name, the rule and the value."""
    with pytest.raises(ConfigError, match=message):
        Prune(**({"neurons": 0.5} | settings))
