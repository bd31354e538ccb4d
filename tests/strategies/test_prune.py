"""Tests of pruning while training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lowft.attach import attach
from lowft.compress import count_flops
from lowft.compress.costs import Seconds
from lowft.compress.sparsity import masked_layers
from lowft.errors import ConfigError, ModelError, StrategyConflictError
from lowft.stages import Stage
from lowft.strategies import Distill, LayerwiseUnfreeze, PartialFreeze, Prune, Unfreeze
from tests.compress.test_pruning import heads, widths
from tests.runs import tiny_trainer, weights
from tests.strategy_cases import tiny_teacher
from tests.tiny import ARCHITECTURES, tiny_batch, tiny_model, tiny_tokenizer

ALL = ("magnitude", "taylor", "fisher", "random")


def open_neurons(trainer: Any) -> list[int]:
    """Return how many columns of what is gated are open in each layer: neurons, and heads by their size."""
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
    run = attach(tiny_model(arch), [Prune(0.5, heads=0.5, importance="magnitude", when="start")])
    whole = widths(tiny_model(arch))
    assert {block: 2 * width for block, width in widths(run.model).items()} == whole
    assert [2 * count for count in heads(run.model)] == heads(tiny_model(arch))
    assert len(run.stages) == 1


def test_heads_and_neurons_go_together() -> None:
    """Both along one ramp, each to the share asked for; what is deployed answers as the gated model did."""
    strategy = Prune(0.5, heads=0.5, scope="global", epochs=2, multiple_of=4)
    trainer = tiny_trainer(strategies=[strategy], epochs=1, load_best_model_at_end=False)
    counts, logits = [], torch.zeros(())
    batch = tiny_batch("bert")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    for result in trainer.steps():
        gates = open_neurons(trainer)
        if result.stage == "prune":
            counts.append((sum(gates[0::2]), sum(gates[1::2])))  # of each block the attention comes first
        with torch.no_grad():
            trainer.model.train(False)
            logits = trainer.model(**inputs).logits
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == (48, 96)
    assert sum(heads(trainer.model)) == 6
    with torch.no_grad():
        torch.testing.assert_close(trainer.model(**inputs).logits, logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("arch", ["t5", "llama"])
def test_a_budget_is_met_while_training(arch: str) -> None:
    """At the end of the ramp no more is left than was asked for, and little less."""
    whole = count_flops(tiny_model(arch), 16)
    strategy = Prune(flops=0.6, scope="global", importance="taylor", multiple_of=1, shape=(1, 16))
    trainer = tiny_trainer(model=tiny_model(arch), tokenizer=tiny_tokenizer(arch), strategies=[strategy], epochs=1)
    trainer.fit()
    assert 0.5 < count_flops(trainer.model, 16) / whole <= 0.6


def test_a_latency_is_measured_once_and_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the first checkpoint already: a run that is resumed on a slower machine cuts the same."""
    measured = []

    def seconds(self: Seconds, model: torch.nn.Module) -> float:
        measured.append(1)
        return float(count_flops(model, 16) ** speed)

    monkeypatch.setattr(Seconds, "of", seconds)
    strategy = Prune(latency=0.6, importance="magnitude", scope="global", multiple_of=1, shape=(1, 16))
    settings: dict[str, Any] = {"strategies": [strategy], "epochs": 1, "save_steps": 1, "save_total_limit": 100}
    speed = 1.0
    whole = tiny_trainer(output_dir=tmp_path / "whole", **settings)
    whole.fit()
    assert count_flops(whole.model, 16) / count_flops(tiny_model("bert"), 16) <= 0.6 + 1e-6
    shutil.copytree(tmp_path / "whole" / "checkpoint-1", tmp_path / "resumed" / "checkpoint-1")
    speed, count = 0.5, len(measured)
    resumed = tiny_trainer(output_dir=tmp_path / "resumed", **settings)
    resumed.fit(resume_from_checkpoint=True)
    assert len(measured) == count
    expected = weights(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(resumed).items())


def test_layers_go_before_the_training() -> None:
    """By count or by number, with and without a stage in which neurons go."""
    trainer = tiny_trainer(strategies=[Prune(0.5, layers=[1])], epochs=1)
    assert len(widths(trainer.model)) == 2
    trainer.fit()
    assert list(widths(trainer.model).values()) == [32, 32]
    run = attach(tiny_model("bert"), [Prune(layers=1)])
    assert len(run.stages) == 1
    assert len(widths(run.finish())) == 2


def test_weights_stay_at_zero_and_resume(tmp_path: Path) -> None:
    """As many as were asked for are zero at the end, and a resumed run ends with the same bits."""
    strategy = Prune(weights=0.8, epochs=2)
    settings: dict[str, Any] = {"strategies": [strategy], "epochs": 1, "save_steps": 1, "save_total_limit": 100}
    whole = tiny_trainer(output_dir=tmp_path / "whole", **settings)
    shares = []
    names = [f"{name}.weight" for name in masked_layers(tiny_model("bert"))]
    for result in whole.steps():
        if result.stage == "prune":
            masks = [mask for name, mask in whole.model.named_buffers() if name.endswith("lowft_mask")]
            shares.append(1 - float(torch.cat([mask.flatten() for mask in masks]).float().mean()))
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(0.8, abs=0.01)
    zeros = torch.cat([whole.model.get_parameter(name).flatten() == 0 for name in names])
    assert float(zeros.float().mean()) == pytest.approx(0.8, abs=0.01)
    assert not any("lowft" in name for name, _ in whole.model.named_buffers())
    expected = weights(whole)
    for step in (2, 6, 11):
        folder = tmp_path / f"from-{step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        resumed = tiny_trainer(output_dir=folder, **settings)
        resumed.fit(resume_from_checkpoint=True)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(resumed).items())


def test_uniform_refuses_heads_that_the_config_cannot_say() -> None:
    """When the strategies are attached, before anything is trained."""
    with pytest.raises(ModelError, match="uniform=True asks for"):
        attach(tiny_model("bert"), [Prune(heads=0.5, uniform=True)])
    with pytest.raises(ConfigError, match=r"parameters=0\.01 cannot be met"):
        attach(tiny_model("bert"), [Prune(parameters=0.01)])


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
        ({"neurons": 0}, "Prune has nothing to cut: give neurons, heads, layers, weights, or a budget"),
        ({"heads": -1}, "Prune: heads must be a finite number at least 0"),
        ({"flops": 0.5}, "flops and neurons say twice"),
        ({"uniform": True, "scope": "global"}, "uniform=True leaves every layer as many"),
        ({"neurons": 0, "latency": 0.5, "when": "start", "importance": "random"}, "would measure the latency anew"),
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
