"""Tests of teachers that are held in memory, of the model's own copy, and of what recipes say of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lowft.attach import attach
from lowft.errors import CheckpointMismatchError, ConfigError, ModelError
from lowft.export import load
from lowft.registry import from_dict, to_dict
from lowft.strategies import Distill, PartialFreeze, Prune, Quantize
from lowft.strategy import Strategy
from lowft.trainer import Trainer
from tests.runs import NO_DROPOUT, tiny_trainer, weights
from tests.strategy_cases import tiny_rows, tiny_teacher
from tests.test_strategies_table import assert_same, contents
from tests.tiny import tiny_model, tiny_tokenizer

TEXTS = tiny_rows(5, seed=4)["text"]


def answers(source: Any) -> torch.Tensor:
    """Return what a teacher says of some texts."""
    guide: Any = attach(tiny_model("bert", id2label={0: "neg", 1: "pos"}), [Distill(source)]).model.lowft_guide
    found: torch.Tensor = guide.teacher.logits([(text, None) for text in TEXTS], {})
    return found


def test_every_form_of_a_teacher_answers_alike(tmp_path: Path) -> None:
    """A model with its tokenizer, a Predictor, a Trainer and the folder of one are the same teacher."""
    trainer = tiny_trainer(max_steps=1)
    trainer.fit()
    folder = trainer.export(tmp_path / "teacher", verify="here")
    expected = answers(folder)
    for source in (trainer, load(folder), (trainer.model, trainer.tokenizer), [trainer]):
        torch.testing.assert_close(answers(source), expected)


def test_a_model_knows_where_its_tokenizer_is() -> None:
    """One that was loaded from a folder needs none; one made in memory does."""
    from transformers import AutoModelForSequenceClassification

    auto: Any = AutoModelForSequenceClassification
    answers(auto.from_pretrained(tiny_teacher()))
    with pytest.raises(ConfigError, match="tokenizer is missing"):
        Distill(tiny_model("bert"))


def test_what_cannot_teach_is_refused() -> None:
    """A model without a head, a Trainer that has not run, the model in training itself, and no model at all."""
    with pytest.raises(ModelError, match=r"is a Linear: a model that is held must be a classifier"):
        Distill(torch.nn.Linear(1, 1))
    with pytest.raises(ConfigError, match=r"a Trainer that has not finished: call its fit"):
        Distill(tiny_trainer())
    student = tiny_model("bert")
    with pytest.raises(ConfigError, match=r"is the model in training.*copy\.deepcopy"):
        tiny_trainer(model=student, strategies=[Distill((student, tiny_tokenizer()))])
    with pytest.raises(ConfigError, match=r"'self' stands alone"):
        Distill(["self", "folder"])
    with pytest.raises(ConfigError, match=r"must be a folder, a hub id.*received \[3\]"):
        Distill([3])


def test_a_teacher_that_changes_is_found() -> None:
    """What was held when Distill was called is what must teach."""
    model = tiny_model("bert", seed=9)
    strategy = Distill((model, tiny_tokenizer()))
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    with pytest.raises(ConfigError, match=r"weights of BertForSequenceClassification have changed since"):
        tiny_trainer(strategies=[strategy])


def test_a_recipe_names_a_teacher_that_was_held() -> None:
    """By its digest: it can be written and read, but not trained with until the model is given again."""
    strategy = Distill((tiny_model("bert", seed=9), tiny_tokenizer()))
    again = from_dict(json.loads(json.dumps(to_dict(strategy))))
    assert again == strategy
    with pytest.raises(ConfigError, match=r"give the model or its folder again"):
        tiny_trainer(strategies=[again])


@pytest.mark.parametrize("held", [True, False])
def test_a_resumed_run_needs_the_same_teacher(held: bool, tmp_path: Path) -> None:
    """Given again it goes on bit-identically, from whatever folder; another one is refused by its digest."""

    def make(folder: Path, seed: int, place: str) -> Trainer:
        source: Any = (tiny_model("bert", seed=seed), tiny_tokenizer())
        if not held:
            source = tmp_path / place / "teacher"
            if not source.exists():
                tiny_model("bert", seed=seed).save_pretrained(source)
                tiny_tokenizer().save_pretrained(source)
        return tiny_trainer(strategies=[Distill(source)], output_dir=folder, save_steps=1, save_total_limit=99)

    whole = make(tmp_path / "whole", 9, "here")
    whole.fit()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "again" / "checkpoint-3")
    resumed = make(tmp_path / "again", 9, "there")
    resumed.fit(resume_from_checkpoint=True)
    assert_same(weights(whole), weights(resumed))
    other = make(tmp_path / "again", 8, "elsewhere")
    with pytest.raises(CheckpointMismatchError, match=r"strategies\.Distill\.teacher was .*'digest'.* and is now"):
        other.fit(resume_from_checkpoint=True)


def test_an_export_does_not_tell_where_the_teacher_was(tmp_path: Path) -> None:
    """Its recipe and card name the last part of the folder and a digest, and no path of the cache."""
    teacher = tmp_path / "secret place" / "large"
    shutil.copytree(tiny_teacher(), teacher)
    trainer = tiny_trainer(strategies=[Distill(teacher, cache_dir=tmp_path / "secret place" / "cache")], max_steps=1)
    trainer.fit()
    folder = trainer.export(tmp_path / "out", verify="here")
    for name in ("lowft.json", "README.md"):
        text = (folder / name).read_text()
        assert "secret place" not in text
        assert '"large"' in text
    recipe = json.loads((folder / "lowft.json").read_text())["recipe"]
    assert from_dict(recipe["strategies"][0]).teacher[0].name == "large"


COMPRESSING: dict[str, Strategy] = {"prune": Prune(0.5, multiple_of=4), "quantize": Quantize("int8", when="stage")}


def run(folder: Path | None, strategies: list[Strategy], **values: Any) -> Trainer:
    """Return a run of one epoch and a stage that compresses."""
    return tiny_trainer(
        strategies=strategies, output_dir=folder, save_steps=1, save_total_limit=99, epochs=1, **values,
    )  # fmt: skip


@pytest.mark.parametrize("kind", COMPRESSING)
@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("inside", [0.0, 1.0])
def test_a_model_learns_from_what_it_was(kind: str, ahead: bool, inside: float, tmp_path: Path) -> None:
    """Its teacher is the model of the stage's start, whatever the order; it resumes bit-identically, and exports."""
    distill = Distill("self", alpha=0.7, hidden=inside, relations=inside)
    strategies = [distill, COMPRESSING[kind]] if ahead else [COMPRESSING[kind], distill]
    whole = run(tmp_path / "whole", strategies)
    before: dict[str, torch.Tensor] = {}
    for result in whole.steps():
        state = whole._loop.attached.state
        if result.stage == kind and "self" not in before:
            before["self"] = state.memory["Distill"]["self"]["classifier.weight"].clone()
            assert not torch.equal(before["self"], whole.model.get_parameter("classifier.weight"))
        assert ("self" in state.memory.get("Distill", {})) == (result.stage == kind)
    assert "self" in before
    steps = sorted(int(path.name.split("-")[1]) for path in (tmp_path / "whole").glob("checkpoint-*"))
    for step in (2, steps[-2]):
        folder = tmp_path / str(step)
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        resumed = run(folder, strategies)
        resumed.fit(resume_from_checkpoint=True)
        last = f"checkpoint-{steps[-1]}"
        assert_same(contents(tmp_path / "whole" / last), contents(folder / last), f"step {step}")
        assert_same(weights(whole), weights(resumed), f"step {step}")
    folder = whole.export(tmp_path / "out", verify="here", max_drop=None)
    assert load(folder).predict(TEXTS) == whole.predict(TEXTS)


def test_its_own_copy_answers_as_the_model_did() -> None:
    """The first loss of the stage is near 0 where only the copy teaches, and grows as neurons are shut."""
    strategies: list[Strategy] = [Distill("self", alpha=1.0), Prune(0.5, multiple_of=4, learning_rate=1e-9, ramp=0.5)]
    trainer = run(None, strategies, model=tiny_model("bert", **NO_DROPOUT), eval_dataset=None)
    losses = [result.loss for result in trainer.steps() if result.stage == "prune"]
    assert losses[0] == pytest.approx(0, abs=1e-6)
    assert losses[-1] > 1e-4


def test_nothing_to_learn_from_is_refused() -> None:
    """Without a stage that compresses there is no moment at which to copy the model."""
    with pytest.raises(ConfigError, match=r"there is none: add Prune\(\.\.\.\) or Quantize"):
        tiny_trainer(strategies=[Distill("self"), PartialFreeze(top=1)]).fit()
