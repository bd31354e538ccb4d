"""Tests of quantization as a part of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lowft.attach import attach
from lowft.compress.quantization import scheme_of
from lowft.compress.quantized_layers import QuantizedEmbedding, QuantizedLinear, unrounded_copy
from lowft.errors import ConfigError, ModelError, StrategyConflictError
from lowft.export import load
from lowft.strategies import Distill, LayerwiseUnfreeze, PartialFreeze, Prune, Quantize, Unfreeze
from tests.runs import tiny_trainer, weights
from tests.strategy_cases import tiny_rows, tiny_teacher
from tests.test_strategies_table import assert_same
from tests.tiny import tiny_model, tiny_tokenizer


def rounds_now(trainer: Any) -> bool:
    """Say whether the model's answers change when no layer rounds."""
    rows = tiny_rows(8, seed=2)["text"]
    tokens = dict(tiny_tokenizer()(rows, padding=True, return_tensors="pt"))
    inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        answers = [model.eval()(**inputs).logits for model in (trainer.model, unrounded_copy(trainer.model))]
    return not torch.equal(*answers)


@pytest.mark.parametrize("scheme", ["int8", "int8_weight_only", "int4_weight_only"])
@pytest.mark.parametrize(
    ("when", "stages"), [("end", ["training"]), ("start", ["training"]), ("stage", ["training", "quantize"])]
)
def test_the_model_rounds_when_it_is_told_to(when: Any, stages: list[str], scheme: Any) -> None:
    """At the end, from the first step, or in a stage of its own; then there are integers."""
    trainer = tiny_trainer(strategies=[Quantize(scheme, when=when)], epochs=1)
    seen = [(result.stage, rounds_now(trainer)) for result in trainer.steps()]
    assert list(dict.fromkeys(stage for stage, _ in seen)) == stages
    assert {rounds for stage, rounds in seen if stage == stages[-1]} == {when != "end"}
    assert {rounds for stage, rounds in seen if stage != stages[-1]} <= {False}
    assert scheme_of(trainer.model) == scheme
    assert isinstance(trainer.model.get_submodule("classifier"), QuantizedLinear)
    assert isinstance(trainer.model.get_submodule("bert.embeddings.word_embeddings"), QuantizedEmbedding)


def test_what_was_trained_is_what_is_deployed() -> None:
    """The validation figures of the last step are those of the model with integers."""
    strategy = Quantize("int8", when="stage", epochs=2)
    trainer = tiny_trainer(strategies=[strategy], epochs=1, load_best_model_at_end=False)
    trainer.fit()
    last = trainer.history.filter("evaluate")[-1]
    report = trainer.evaluate()
    assert report.metrics["accuracy"] == last["eval_accuracy"]
    logits = torch.from_numpy(trainer._predictor().predict_logits(tiny_rows(8, seed=1)["text"]))
    labels = torch.tensor([0, 1] * 4)
    assert float(torch.nn.functional.cross_entropy(logits, labels)) == pytest.approx(last["eval_loss"], rel=0.01)


def test_training_gets_used_to_four_bits() -> None:
    """With its stage, the model with four-bit weights fits the rows better than the one that is only rounded."""
    losses = {}
    for when in ("end", "stage"):
        pace = {"epochs": 6.0} if when == "stage" else {}
        found = []
        for seed in range(3):
            strategy = Quantize("int4_weight_only", when=when, **pace)  # type: ignore[arg-type]
            trainer = tiny_trainer(
                train_dataset=tiny_rows(24), strategies=[strategy], epochs=4, seed=seed, load_best_model_at_end=False
            )
            trainer.fit()
            logits = torch.from_numpy(trainer._predictor().predict_logits(tiny_rows(24)["text"]))
            labels = torch.tensor([int(label == "pos") for label in tiny_rows(24)["label"]])
            found.append(float(torch.nn.functional.cross_entropy(logits, labels)))
        losses[when] = float(np.mean(found))
    assert losses["stage"] < losses["end"]


def test_the_stage_runs_after_a_gate_ended_the_others() -> None:
    """A model that is good enough early still gets used to its integers."""
    stages = LayerwiseUnfreeze((Unfreeze(top=1, epochs=1), Unfreeze(top="all", epochs=1)), target=0.0)
    trainer = tiny_trainer(strategies=[stages, Quantize("int8", when="stage", learning_rate=1e-3)])
    history = trainer.fit()
    assert [record["stage_name"] for record in history.filter("stage")] == ["top 1 block", "quantize"]
    assert history.filter("train")[-1]["learning_rate"] <= 1e-3


@pytest.mark.parametrize("when", [1, "top 2 blocks"])
def test_it_begins_with_a_stage_of_another_strategy(when: Any) -> None:
    """From the stage that is named or numbered on, and in those after it, the model rounds."""
    tops = (Unfreeze(top=1, epochs=1), Unfreeze(top=2, epochs=1), Unfreeze(top="all", epochs=1))
    trainer = tiny_trainer(strategies=[LayerwiseUnfreeze(tops), Quantize("int8", when=when)])
    seen = {(result.stage, rounds_now(trainer)) for result in trainer.steps()}
    assert seen == {("top 1 block", False), ("top 2 blocks", True), ("all layers", True)}
    assert scheme_of(trainer.model) == "int8"


def test_resume_in_a_stage_that_rounds(tmp_path: Path) -> None:
    """A run that is resumed in the stage goes on rounding, and ends with the same bits."""
    tops = (Unfreeze(top=1, epochs=1), Unfreeze(top="all", epochs=1))
    strategies = [LayerwiseUnfreeze(tops), Quantize("int8", when="all layers")]
    whole = tiny_trainer(strategies=strategies)
    whole.fit()
    stopped = tiny_trainer(strategies=strategies, output_dir=tmp_path, save_steps=1)
    for result in stopped.steps():
        if result.stage == "all layers":
            break
    resumed = tiny_trainer(strategies=strategies, output_dir=tmp_path, save_steps=1)
    resumed.fit(resume_from_checkpoint=True)
    assert_same(weights(whole), weights(resumed))


def test_stages_that_there_are_not() -> None:
    """A name or number of no stage, and a strategy that would split the stages later, are refused by the Trainer."""
    with pytest.raises(ConfigError, match=r"one of the stages so far, 0 'training'; received 'all layers'"):
        tiny_trainer(strategies=[Quantize("int8", when="all layers")])
    with pytest.raises(ConfigError, match=r"0 'training'; received 3"):
        tiny_trainer(strategies=[Quantize("int8", when=3)])
    with pytest.raises(StrategyConflictError, match=r"The order that works: \[LayerwiseUnfreeze, Quantize\]"):
        tiny_trainer(strategies=[Quantize("int8", when=1), LayerwiseUnfreeze()])


def test_frozen_layers_are_rounded_and_stay_frozen() -> None:
    """What does not train keeps its bytes until it is rounded at the end."""
    trainer = tiny_trainer(strategies=[PartialFreeze(top=1), Quantize("int8", when="start")], epochs=2)
    before = weights(trainer)
    for _ in trainer.steps():
        now = weights(trainer)
        frozen = [
            name for name in now if name.startswith(("bert.embeddings", "bert.encoder.layer.0", "bert.encoder.layer.1"))
        ]
        assert all(torch.equal(now[name], before[name]) for name in frozen)
    assert scheme_of(trainer.model) == "int8"


def test_shortened_weights() -> None:
    """bfloat16 halves every weight at the end, and has nothing to get used to."""
    trainer = tiny_trainer(strategies=[Quantize("bfloat16")], epochs=1)
    trainer.fit()
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.bfloat16}
    assert len(trainer.predict(["a dull film"])) == 1
    with pytest.raises(ConfigError, match=r"scheme='bfloat16'\) has nothing to get used to; received when='stage'"):
        Quantize("bfloat16", when="stage")


def test_pruning_cannot_follow() -> None:
    """Neurons cannot be cut out of packed integers: the order that works is named."""
    with pytest.raises(StrategyConflictError, match=r"The order that works: \[Prune, Quantize\]"):
        attach(tiny_model("bert"), [Quantize(), Prune(0.5)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheme": "int2"}, "Quantize: scheme must be one of"),
        ({"when": 0.5}, "Quantize.when must be a whole number"),
        ({"when": -1}, "Quantize.when must be"),
        ({"keep": "classifier"}, "Quantize: keep must be a list"),
        ({"epochs": 0}, "epochs must be"),
        ({"learning_rate": -1.0}, "learning_rate must be"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    """Every setting is checked when the strategy is made."""
    with pytest.raises(ConfigError, match=message):
        Quantize(**settings)


def test_mistakes_are_found_before_training() -> None:
    """A pattern that matches nothing, and a model with integers already, are refused by the Trainer."""
    with pytest.raises(ConfigError, match=r"keep='clasifier' matches no linear layer"):
        tiny_trainer(strategies=[Quantize(keep=("clasifier",))])
    done = tiny_trainer(strategies=[Quantize()], epochs=1)
    done.fit()
    with pytest.raises(ModelError, match="is quantized already, and integers cannot be fine-tuned"):
        tiny_trainer(model=done.model)


def test_prune_then_distill_then_quantize(tmp_path: Any) -> None:
    """All of it in one run: staged unfreezing, fewer neurons, a teacher, integers; a folder gives the same logits."""
    strategies = [
        LayerwiseUnfreeze((Unfreeze(top=1, epochs=1), Unfreeze(top="all", epochs=1))),
        Prune(0.5, multiple_of=4),
        Distill(tiny_teacher()),
        Quantize("int8", when="stage"),
    ]
    trainer = tiny_trainer(strategies=strategies)
    history = trainer.fit()
    names = [record["stage_name"] for record in history.filter("stage")]
    assert names == ["top 1 block", "all layers", "prune", "quantize"]
    folder = trainer.export(tmp_path / "small", max_drop=None, verify="here")
    rows = tiny_rows(6, seed=5)["text"]
    assert np.array_equal(load(folder).predict_logits(rows), trainer._predictor().predict_logits(rows))
    assert trainer.model.get_submodule("bert.encoder.layer.0.output.dense").in_features == 32
