"""Tests of distilling hidden states and relations, with and without answers on disk."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lowft.augment import RandomSwap
from lowft.errors import ConfigError, ModelError
from lowft.export import load
from lowft.strategies import Augment, Distill, PartialFreeze
from lowft.trainer import Trainer
from tests.runs import NO_DROPOUT, tiny_trainer, weights
from tests.strategy_cases import tiny_rows, tiny_teacher
from tests.test_strategies_table import assert_same
from tests.tiny import tiny_model, tiny_tokenizer

TEACHER = tiny_teacher()
WIDE: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def wide_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a classifier with wider layers and one more of them."""
    folder = tmp_path_factory.mktemp("wide")
    tiny_model("bert", seed=9, num_layers=4, **WIDE).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def passes(trainer: Trainer) -> list[int]:
    """Return how many texts the teacher had read after each step of the run."""
    return [trainer._loop.attached.state.memory["Distill"]["asked"] for _ in trainer.steps()]


@pytest.mark.parametrize("part", ["hidden", "relations"])
def test_the_distance_falls(part: str, wide_teacher: Path) -> None:
    """Trained on nothing else, a narrower student comes closer to its teacher inside."""
    weights_of: dict[str, Any] = {part: 1.0}
    strategy = Distill(wide_teacher, alpha=0.0, **weights_of)
    trainer = tiny_trainer(
        model=tiny_model("bert", **NO_DROPOUT), strategies=[strategy], epochs=10, eval_dataset=None,
        loss=lambda logits, labels: 0.0 * logits.sum(dim=1),
    )  # fmt: skip
    losses = [result.loss for result in trainer.steps()]
    assert sum(losses[-4:]) < 0.75 * sum(losses[:4])


def test_projections_train_and_go(wide_teacher: Path, tmp_path: Path) -> None:
    """They are in the optimizer and in checkpoints, and not in the finished model or its folder."""
    trainer = tiny_trainer(strategies=[Distill(wide_teacher, hidden=1.0)], output_dir=tmp_path / "run")
    names = [name for name in trainer._loop.attached.trained if name.startswith("lowft_projections")]
    assert len(names) == 3
    before = weights(trainer)
    for result in trainer.steps():
        if result.step == 2:
            now = weights(trainer)
            assert all(not torch.equal(before[name], now[name]) for name in names)
    plain = tiny_model("bert")
    assert weights(trainer).keys() == plain.state_dict().keys()
    assert not any(module._forward_hooks for module in trainer.model.modules())
    assert load(trainer.export(tmp_path / "out", verify="here")).model.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("strategies", [(0, 1), (1, 0)])
def test_projections_train_beside_frozen_layers(strategies: tuple[int, int], wide_teacher: Path) -> None:
    """Whichever strategy comes first; and what is frozen is computed in each step, for it is compared."""
    both = [PartialFreeze(top=1), Distill(wide_teacher, hidden=1.0)]
    trainer = tiny_trainer(strategies=[both[number] for number in strategies])
    trained = trainer._loop.attached.trained
    assert sum(name.startswith("lowft_projections") for name in trained) == 3
    trainer.fit()
    assert any("not cached: Distill" in note["message"] for note in trainer.history.filter("note"))


@pytest.mark.parametrize("arch", ["distilbert", "electra", "gpt2", "llama", "modernbert", "mpnet", "roberta", "t5"])
def test_every_architecture_distills(arch: str) -> None:
    """A student of two layers learns from a teacher of three of its kind."""
    trainer = tiny_trainer(
        model=tiny_model(arch, num_layers=2), tokenizer=tiny_tokenizer(arch), max_steps=2,
        strategies=[Distill(tiny_teacher(arch), hidden=0.1, relations=1.0)],
    )  # fmt: skip
    trainer.fit()
    assert all(record["loss"] > 0 for record in trainer.history.filter("train"))


@pytest.mark.parametrize(("batch_size", "accumulation"), [(2, 4), (3, 3)])
def test_accumulated_gradients_are_those_of_one_batch(batch_size: int, accumulation: int, wide_teacher: Path) -> None:
    """Ragged rows in small micro-batches give the gradient of all of them together."""

    def norms(**settings: Any) -> list[float]:
        trainer = tiny_trainer(
            model=tiny_model("bert", **NO_DROPOUT), epochs=1, max_grad_norm=None, learning_rate=1e-9,
            strategies=[Distill(wide_teacher, hidden=1.0, relations=1.0)], group_by_length=False,
            unlabeled_dataset=tiny_rows(5, seed=7)["text"], **settings,
        )  # fmt: skip
        return [result.grad_norm for result in trainer.steps()]

    whole = norms(batch_size=batch_size * accumulation)
    assert norms(batch_size=batch_size, gradient_accumulation_steps=accumulation) == pytest.approx(whole, rel=1e-5)


def test_without_a_cache_the_teacher_reads_in_every_epoch() -> None:
    """Hidden states are too large for checkpoints."""
    asked = passes(tiny_trainer(strategies=[Distill(TEACHER, hidden=1.0)]))
    assert asked[-1] == 2 * asked[3] == 28


def test_with_a_cache_the_second_epoch_runs_no_teacher(tmp_path: Path) -> None:
    """Nor does a second run; and both train as without a cache."""
    strategy = Distill(TEACHER, hidden=1.0, relations=1.0, cache_dir=tmp_path / "cache")
    first, second = tiny_trainer(strategies=[strategy]), tiny_trainer(strategies=[strategy])
    asked = passes(first)
    assert asked[3] == asked[-1] == len(set(tiny_rows()["text"]))
    assert passes(second)[-1] == 0
    assert_same(weights(first), weights(second))
    plain = tiny_trainer(strategies=[Distill(TEACHER, hidden=1.0, relations=1.0)])
    plain.fit()
    pairs = zip(plain.history.filter("train"), first.history.filter("train"), strict=True)
    assert all(one["loss"] == pytest.approx(other["loss"], rel=1e-4) for one, other in pairs)


def test_copies_are_texts_of_their_own_in_the_cache(tmp_path: Path) -> None:
    """A changed text never gets the states of the text that it was."""
    strategies = [Augment([RandomSwap(0.5)]), Distill(TEACHER, hidden=1.0, cache_dir=tmp_path)]
    asked = passes(tiny_trainer(strategies=strategies))
    assert asked[-1] > asked[3] > len(set(tiny_rows()["text"]))


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("step", [1, 3, 6])
def test_resume_is_bit_identical(cached: bool, step: int, tmp_path: Path) -> None:
    """Also where the process that stopped had not yet written its answers to disk."""

    def make(name: str) -> Trainer:
        cache = tmp_path / f"cache of {name}" if cached else None
        return tiny_trainer(
            strategies=[Distill(TEACHER, hidden=1.0, relations=0.5, cache_dir=cache)], output_dir=tmp_path / name,
            save_steps=1, save_total_limit=99,
        )  # fmt: skip

    whole = make("whole")
    whole.fit()
    shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", tmp_path / "again" / f"checkpoint-{step}")
    resumed = make("again")
    resumed.fit(resume_from_checkpoint=True)
    assert_same(weights(whole), weights(resumed))
    assert [r["loss"] for r in whole.history.filter("train")] == [r["loss"] for r in resumed.history.filter("train")]


def test_other_tokens_are_refused(tmp_path: Path) -> None:
    """A teacher that reads a text as other tokens cannot be compared with, before any weight has changed."""
    folder = tiny_teacher("gpt2")
    trainer = tiny_trainer(strategies=[Distill(folder, hidden=1.0)])
    before = weights(trainer)
    with pytest.raises(ModelError, match=r"token by token.*as other tokens.*leave hidden and relations out"):
        trainer.fit()
    assert_same(before, weights(trainer))
    tiny_model("bert", max_position_embeddings=8).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"at most 8 tokens.*max_length=8"):
        tiny_trainer(strategies=[Distill(tmp_path, hidden=1.0)]).fit()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": -1}, r"Distill\.hidden must be a finite number at least 0; received -1"),
        ({"relations": "x"}, r"Distill\.relations"),
        ({"layers": "odd"}, r"Distill\.layers must be 'even', or a list of pairs.*received 'odd'"),
        ({"layers": [(0, 1)]}, r"Distill\.layers.*numbers from 1; received \[\(0, 1\)\]"),
        ({"relation_heads": 0}, r"Distill\.relation_heads must be a whole number of at least 1"),
        ({"cache_dir": 3}, r"Distill\.cache_dir must be a folder or None; received 3"),
        ({"max_cache_bytes": 0}, r"Distill\.max_cache_bytes"),
        ({"teacher": ["a", "b"], "hidden": 1.0}, r"one teacher; received 2 teachers"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    """Each message gives the name, the rule and the value."""
    with pytest.raises(ConfigError, match=message):
        Distill(**({"teacher": "folder"} | settings))


def test_layers_that_are_not_there_are_refused() -> None:
    """When the Trainer is built, with the numbers that there are."""
    with pytest.raises(ConfigError, match=r"from 1 to 3; received \(1, 4\)"):
        tiny_trainer(strategies=[Distill(TEACHER, hidden=1.0, layers=[(1, 4)])])
