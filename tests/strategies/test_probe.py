"""The probe and the contrastive stage in front of it, in a run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lowft.attach import attach
from lowft.augment import RandomDeletion, RandomSwap
from lowft.config import TrainingConfig
from lowft.errors import ConfigError, DataError, StrategyConflictError, TrainingError
from lowft.losses import supervised_contrastive
from lowft.models.probing import find_output_layer, probe_head_
from lowft.strategies import (
    Augment,
    Contrastive,
    Distill,
    LayerwiseUnfreeze,
    MaskedLanguageModeling,
    PartialFreeze,
    PooledHead,
    Probe,
    SelfTraining,
    Unfreeze,
)
from lowft.strategy import Strategy
from lowft.trainer import Trainer
from tests.runs import NUMBERED, tiny_trainer, train_records, weights
from tests.strategy_cases import tiny_rows
from tests.test_strategies_table import assert_same, contents
from tests.tiny import tiny_model, tiny_tokenizer


def notes(trainer: Any) -> list[str]:
    """Return the notes of the history."""
    return [record["message"] for record in trainer.history.filter("note")]


def test_the_probe_alone_changes_nothing_but_the_head() -> None:
    """Without fine-tuning, the model is what `probe_head_` makes of it, and one step of training is none."""
    trainer = tiny_trainer(strategies=[PooledHead(), Probe(fine_tune=False)])
    before = weights(trainer)
    by_hand = tiny_trainer(strategies=[PooledHead()])
    by_hand.model.load_state_dict(before)
    rows = by_hand._parts.train_rows
    order = rows.lengths.argsort(kind="stable").tolist()
    probe_head_(by_hand.model, [rows.collate(order)])
    trainer.fit()
    assert [stage.name for stage in trainer._loop.attached.stages] == ["probe"]
    assert all(torch.equal(tensor, weights(by_hand)[name]) for name, tensor in weights(trainer).items())
    assert notes(trainer)[0].startswith("output layer fitted on 14 rows, C = ")


def test_fine_tuning_begins_where_the_probe_ended() -> None:
    """At a rate that moves nothing, the head stays the fitted one; it is set once, not at each stage."""
    stages = LayerwiseUnfreeze((Unfreeze(top=0, epochs=1), Unfreeze(top=1, epochs=1)))

    def trained(*strategies: Strategy) -> Trainer:
        trainer = tiny_trainer(strategies=[PooledHead(), *strategies], learning_rate=1e-9)
        trainer.fit()
        return trainer

    def head(trainer: Trainer) -> torch.Tensor:
        return weights(trainer)[f"{find_output_layer(trainer.model)}.weight"]

    tuned, fitted = trained(stages, Probe(strengths=(100.0,))), trained(Probe(strengths=(100.0,), fine_tune=False))
    torch.testing.assert_close(head(tuned), head(fitted), atol=1e-6, rtol=0)
    assert (head(trained(stages)) - head(fitted)).abs().max() > 0.1
    assert sum("output layer" in note for note in notes(tuned)) == 1


def test_only_labelled_rows_are_read() -> None:
    """Rows without labels go through the model in training, and not for the probe."""
    seen: list[int] = []
    trainer = tiny_trainer(
        eval_dataset=None, unlabeled_dataset=tiny_rows(40, seed=7)["text"], max_steps=1,
        strategies=[PooledHead(), Probe(strengths=(1.0,)), SelfTraining()],
    )  # fmt: skip
    trainer.model.register_forward_hook(lambda *_: seen.append(0) if not torch.is_grad_enabled() else None)
    next(iter(trainer.steps()))
    assert len(seen) == 1
    assert "output layer fitted on 14 rows" in " ".join(notes(trainer))


def test_the_probe_waits_for_what_prepares_the_layers_below() -> None:
    """The model's own head, not one lent for hidden words, is fitted on what these have taught the model."""
    before = MaskedLanguageModeling(when="before", max_steps=2)
    trainer = tiny_trainer(strategies=[PooledHead(), before, Probe(fine_tune=False)])
    trainer.fit()
    assert [stage.name for stage in trainer._loop.attached.stages] == ["masked words", "probe"]
    (probed,) = (note for note in trainer.history.filter("note") if note["message"].startswith("output layer fitted"))
    assert (probed["stage_name"], probed["step"]) == ("probe", 2)


def test_what_a_strategy_lends_is_no_head() -> None:
    """Projections of a distillation are linear layers too, behind the head."""
    teacher = (tiny_model("bert"), tiny_tokenizer())
    trainer = tiny_trainer(strategies=[PooledHead(), Probe(), Distill(teacher, hidden=1.0)], max_steps=1)
    assert find_output_layer(trainer.model) == "pooled_head.output"
    trainer.fit()
    assert "output layer fitted on 14 rows" in " ".join(notes(trainer))


@pytest.mark.parametrize(
    ("rows", "task"),
    [
        (NUMBERED, "regression"),
        ({"text": tiny_rows(6)["text"], "label": [["a"], ["b"], ["a", "b"], [], ["a"], ["b"]]}, "multi_label"),
    ],
)
def test_the_probe_takes_every_kind_of_label(rows: Any, task: str) -> None:
    """Numbers and several classes a row are probed as well; the contrastive stage refuses them."""
    settings: dict[str, Any] = {"train_dataset": rows, "eval_dataset": None, "new_head": True}
    outputs = 1 if task == "regression" else 2
    model = tiny_model("bert", outputs)
    trainer = tiny_trainer(model=model, strategies=[PooledHead(), Probe(fine_tune=False)], **settings)
    trainer.fit()
    assert "output layer fitted" in notes(trainer)[0]
    with pytest.raises(ConfigError, match=f"labels are for {task}"):
        tiny_trainer(model=tiny_model("bert", outputs), strategies=[PooledHead(), Contrastive()], **settings)


def test_the_contrastive_stage_moves_classes_apart(minilm_path: Path) -> None:
    """The stage comes first, the head rests in it, and its loss on the training rows falls: of a real encoder."""
    good = ["a joy", "great fun", "warm and witty", "a lovely film", "moving and wise", "a delight", "superb", "tender"]
    bad = ["a bore", "no fun", "cold and dull", "an ugly film", "clumsy and loud", "a mess", "awful", "tedious"]
    strategies = [PooledHead(), Contrastive(max_steps=6, batch_size=16, stop_below=0), Probe()]
    config = TrainingConfig(max_steps=1, device="cpu", progress=False)
    trainer = Trainer(minilm_path, (good + bad, ["good"] * 8 + ["bad"] * 8), strategies=strategies, config=config)
    head = weights(trainer)["pooled_head.output.weight"]
    rows = trainer._parts.train_rows.collate(range(16))
    assert rows.labels is not None

    def loss(labels: torch.Tensor) -> float:
        with torch.no_grad():
            return supervised_contrastive(trainer.model.eval()(**rows.inputs).pooled, labels, temperature=0.1).item()

    before = loss(rows.labels)
    for result in trainer.steps():
        if result.stage == "contrastive":
            assert torch.equal(weights(trainer)["pooled_head.output.weight"], head)
            after = loss(rows.labels)
    assert after < before - 0.2
    assert train_records(trainer, "loss")[0] == pytest.approx(before, abs=0.5)
    assert [stage.name for stage in trainer._loop.attached.stages] == ["contrastive", "training"]


def test_the_stage_ends_before_it_overfits() -> None:
    """A loss near the least that is possible ends the stage before its budget, and the history says so."""
    eager = Contrastive(max_steps=30, learning_rate=5e-3, batch_size=14, stop_below=10.0)
    trainer = tiny_trainer(strategies=[PooledHead(), eager, Probe(fine_tune=False)])
    trainer.fit()
    assert [record["stage_name"] for record in trainer.history.filter("train")] == ["contrastive", "probe"]
    assert "ends after 1 of 30 steps" in notes(trainer)[0]


def test_the_last_weights_of_the_stage_count() -> None:
    """Validation figures of a head that was never trained do not choose the weights that go on."""
    trainer = tiny_trainer(
        strategies=[PooledHead(), Contrastive(max_steps=5, learning_rate=5e-3, stop_below=0), Probe(fine_tune=False)]
    )
    seen: dict[str, Any] = {}
    for result in trainer.steps():
        if result.stage == "contrastive":
            seen = weights(trainer)
    kept = weights(trainer)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in seen.items() if "pooled_head.output" not in name)


def test_what_cannot_work_is_refused() -> None:
    """Orders, labels and settings that make no sense are named with what to do."""
    with pytest.raises(StrategyConflictError, match="Contrastive needs 'pooled'"):
        tiny_trainer(strategies=[Contrastive()])
    with pytest.raises(StrategyConflictError, match=r"order that works: \[PooledHead, Contrastive\]"):
        tiny_trainer(strategies=[Contrastive(), PooledHead()])
    with pytest.raises(StrategyConflictError, match="nothing to train"):
        tiny_trainer(strategies=[PooledHead(), Contrastive(), PartialFreeze(top=0)])
    with pytest.raises(StrategyConflictError, match="plans the stages"):
        tiny_trainer(strategies=[LayerwiseUnfreeze(), Probe(fine_tune=False)])
    for wrong in ({"temperature": 0}, {"stop_below": -1}, {"max_steps": 0}, {"learning_rate": -1.0}):
        with pytest.raises(ConfigError, match=f"Contrastive.{next(iter(wrong))}"):
            Contrastive(**wrong)
    with pytest.raises(ConfigError, match=r"Probe.strengths\[1\]"):
        Probe(strengths=(1.0, -1.0))
    lone = {"text": ["a bad film", "a good film"], "label": ["neg", "pos"]}
    trainer = tiny_trainer(train_dataset=lone, eval_dataset=None, strategies=[PooledHead(), Contrastive()])
    with pytest.raises(DataError, match="no two share one"):
        trainer.fit()
    run = attach(tiny_model("bert"), [Probe()])
    with pytest.raises(TrainingError, match="probe_head_"):
        next(iter(run))


@pytest.mark.parametrize(("bound", "ended"), [(0.0, 3), (10.0, 1)])
def test_a_stopped_run_resumes_bit_identically(bound: float, ended: int, tmp_path: Path) -> None:
    """Stopped in the contrastive stage, at its end (early or not), and after the probe, it ends as an unbroken one."""

    def trainer(folder: str) -> Any:
        first = Contrastive(max_steps=3, learning_rate=5e-3, batch_size=7, stop_below=bound)
        return tiny_trainer(
            strategies=[PooledHead("attention"), first, Probe()],
            max_steps=2,
            output_dir=tmp_path / folder,
            save_steps=1,
        )

    whole = trainer("whole")
    whole.fit()
    stages = ["contrastive"] * ended + ["training"] * 2
    assert [record["stage_name"] for record in whole.history.filter("train")] == stages
    for stop in sorted({1, ended, ended + 1}):
        broken = trainer(f"stopped-{stop}")
        for result in broken.steps():
            if result.step == stop:
                break
        resumed = trainer(f"stopped-{stop}")
        resumed.fit(resume_from_checkpoint=True)
        assert [record["stage_name"] for record in resumed.history.filter("train")] == stages
        assert all(torch.equal(tensor, weights(resumed)[name]) for name, tensor in weights(whole).items())
        assert notes(resumed) == notes(whole)


def test_four_workers_and_a_resume_in_mid_epoch_compare_the_same_copies(tmp_path: Path) -> None:
    """Rows are compared with fresh copies of them; who makes these, and where the run was stopped, changes no bit."""

    def trainer(folder: str, **settings: Any) -> Any:
        return tiny_trainer(
            strategies=[
                PooledHead(),
                Contrastive(max_steps=5, learning_rate=5e-3, batch_size=4, stop_below=0),
                Augment([RandomSwap(0.3), RandomDeletion(0.3)], copies=2),
                Probe(strengths=(1.0,)),
            ],
            max_steps=3,
            output_dir=tmp_path / folder,
            save_steps=1,
            save_total_limit=20,
            **settings,
        )

    trainer("whole").fit()
    trainer("shared", dataloader_num_workers=4).fit()
    last = "checkpoint-8"
    whole, shared = (contents(tmp_path / folder / last) for folder in ("whole", "shared"))
    assert_same(whole, shared)
    for step in (2, 7):  # in the middle of an epoch of the contrastive stage, and of the next
        shutil.copytree(tmp_path / "shared" / f"checkpoint-{step}", tmp_path / f"from-{step}" / f"checkpoint-{step}")
        trainer(f"from-{step}", dataloader_num_workers=4).fit(resume_from_checkpoint=True)
        assert_same(whole, contents(tmp_path / f"from-{step}" / last))
    trainer("other", seed=4).fit()
    with pytest.raises(AssertionError):
        assert_same(whole, contents(tmp_path / "other" / last))
