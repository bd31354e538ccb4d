"""Tests of training on a teacher's answers."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lowft.attach import attach
from lowft.augment import RandomSwap
from lowft.data.batching import Batch
from lowft.distillation import distillation_loss
from lowft.errors import CheckpointMismatchError, ConfigError, TrainingError
from lowft.registry import from_dict, to_dict
from lowft.state import State
from lowft.strategies import Augment, Distill
from tests.runs import NO_DROPOUT, tiny_trainer
from tests.strategy_cases import tiny_rows, tiny_teacher
from tests.test_strategies_table import make_trainer
from tests.tiny import tiny_model

TEACHER = tiny_teacher()


def batch_of(texts: list[str], labels: Any = None) -> Batch:
    """Return a batch whose inputs do not matter."""
    return Batch(
        {"input_ids": torch.ones(len(texts), 1)},
        torch.zeros(len(texts), dtype=torch.long) if labels is None else labels,
        tuple(range(len(texts))),
        tuple((text, None) for text in texts),
    )


def test_the_loss_is_mixed() -> None:
    """`alpha` parts of the distillation, the rest of the loss on labels."""
    run = attach(tiny_model("bert"), [Distill(TEACHER, alpha=0.25, temperature=3.0)])
    logits, batch = torch.randn(2, 2), batch_of(["a film", "a plot"])
    answers = run.model.lowft_guide.teacher.logits(batch.texts, {})  # type: ignore[operator, union-attr]
    expected = 0.75 * 2.0 + 0.25 * distillation_loss(logits, answers, temperature=3.0)
    torch.testing.assert_close(run.on_loss(torch.tensor(2.0), logits, batch), expected)


@pytest.mark.parametrize(("step", "share"), [(0, 1.0), (2, 0.5), (4, 0.0)])
def test_settings_may_change_in_the_course_of_a_stage(step: int, share: float) -> None:
    """(first, last) goes in a straight line from the first step to the last."""
    run = attach(tiny_model("bert"), [Distill(TEACHER, alpha=(1.0, 0.0), temperature=1.0)])
    run.state.stage_step, run.state.stage_steps = step, 5
    logits, batch = torch.zeros(1, 2), batch_of(["a film"])
    whole = attach(tiny_model("bert"), [Distill(TEACHER, alpha=1.0, temperature=1.0)]).on_loss(
        torch.tensor(0.0), logits, batch
    )
    torch.testing.assert_close(run.on_loss(torch.tensor(0.0), logits, batch), share * whole)


def test_the_second_epoch_runs_no_teacher() -> None:
    """Each of the 14 rows is read once, in the first epoch."""
    trainer = tiny_trainer(strategies=[Distill(TEACHER)], epochs=3)
    asked = [trainer._loop.attached.state.memory["Distill"]["asked"] for _ in trainer.steps()]
    assert asked[3] == asked[-1] == len(set(tiny_rows()["text"]))
    assert len(asked) == 12


def test_augmented_copies_are_texts_of_their_own() -> None:
    """A copy never gets the answer of its row: what the teacher read grows with every epoch."""
    trainer = tiny_trainer(strategies=[Augment([RandomSwap(0.5)]), Distill(TEACHER)], epochs=2)
    asked = [trainer._loop.attached.state.memory["Distill"]["asked"] for _ in trainer.steps()]
    assert asked[3] > len(set(tiny_rows()["text"]))
    assert asked[-1] > asked[3]


def test_a_student_comes_closer_to_its_teacher() -> None:
    """With the teacher alone, the distance between the two falls; without it, it falls less."""
    rows = tiny_rows(40)
    texts = [(text, None) for text in rows["text"]]
    reader = attach(tiny_model("bert"), [Distill(TEACHER)]).model.lowft_guide.teacher  # type: ignore[union-attr]
    answers = reader.logits(texts, {})  # type: ignore[operator, union-attr]

    def distance(strategies: list[Any]) -> float:
        trainer = tiny_trainer(
            model=tiny_model("bert", **NO_DROPOUT), strategies=strategies, train_dataset=rows, epochs=12,
            load_best_model_at_end=False,  # which labels would choose
        )  # fmt: skip
        trainer.fit()
        found = torch.from_numpy(trainer._predictor().predict_logits(rows["text"]))
        return distillation_loss(found, answers).item()

    taught, alone = distance([Distill(TEACHER, alpha=1.0)]), distance([])
    assert taught < 0.5 * alone


@pytest.mark.parametrize(("batch_size", "accumulation"), [(2, 4), (3, 3)])
def test_accumulated_gradients_are_those_of_one_batch(batch_size: int, accumulation: int) -> None:
    """Ragged rows in small micro-batches give the gradient of all of them together."""

    def norms(**settings: Any) -> list[float]:
        trainer = tiny_trainer(
            model=tiny_model("bert", **NO_DROPOUT), strategies=[Distill(TEACHER)], epochs=1, max_grad_norm=None,
            learning_rate=1e-9, group_by_length=False, **settings,
        )  # fmt: skip
        return [result.grad_norm for result in trainer.steps()]

    whole = norms(batch_size=batch_size * accumulation)
    assert norms(batch_size=batch_size, gradient_accumulation_steps=accumulation) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize(
    "rows",
    [
        {"text": ["a film", "a plot", "love", "a joke"] * 2, "label": [0.1, 0.9, 0.4, 0.6] * 2},
        {"text": ["a film", "a plot", "love", "a joke"] * 2, "label": [["x"], ["y"], ["x", "y"], []] * 2},
    ],
    ids=["regression", "many labels"],
)
def test_other_tasks(rows: dict[str, Any], tmp_path: Path) -> None:
    """Numbers and several labels a row are distilled too, from a teacher of the same task."""
    outputs = 1 if isinstance(rows["label"][0], float) else 2
    problem = "regression" if outputs == 1 else "multi_label_classification"
    plain = tiny_trainer(train_dataset=rows, eval_dataset=None, model=tiny_model("bert", outputs, problem_type=problem))
    plain.fit()
    folder = plain.export(tmp_path / "teacher", verify="here")
    student = tiny_model("bert", outputs, seed=5, problem_type=problem, **NO_DROPOUT)
    strategies = [Distill(folder, alpha=1.0)]
    trainer = tiny_trainer(train_dataset=rows, eval_dataset=None, model=student, strategies=strategies, epochs=40)
    losses = [result.loss for result in trainer.steps()]
    assert sum(losses[-4:]) < 0.3 * sum(losses[:4])


def test_the_teacher_is_neither_trained_nor_exported(tmp_path: Path) -> None:
    """No parameter of it is in the optimizer or in the folder, and the model forgets it in the end."""
    trainer = tiny_trainer(strategies=[Distill(TEACHER)])
    assert trainer._loop.attached.trained == {name for name, _ in tiny_model("bert").named_parameters()}
    trainer.fit()
    folder = trainer.export(tmp_path / "student", verify="here")
    assert not hasattr(trainer.model, "lowft_guide")
    assert (folder / "model.safetensors").stat().st_size < 1.1 * Path(TEACHER, "model.safetensors").stat().st_size


def test_a_teacher_that_changed_is_found_on_resume(tmp_path: Path) -> None:
    """The same folder with other weights is another teacher."""
    folder = tmp_path / "teacher"
    shutil.copytree(TEACHER, folder)
    make_trainer(tmp_path / "run", (Distill(folder),)).fit()
    for step in range(3, 20):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}", ignore_errors=True)
    tiny_model("bert", seed=77).save_pretrained(folder)
    again = make_trainer(tmp_path / "run", (Distill(folder),))
    with pytest.raises(CheckpointMismatchError, match=r"Distill\.teacher was .*digest"):
        again.fit(resume_from_checkpoint=True)


def test_a_loop_of_one_s_own_must_bring_the_texts() -> None:
    """Without texts there is nothing that the teacher could read."""
    run = attach(tiny_model("bert"), [Distill(TEACHER)])
    batch = dataclasses.replace(batch_of(["a film"]), texts=())
    with pytest.raises(TrainingError, match=r"0 texts for 1 rows.*texts=\.\.\."):
        run.on_loss(torch.tensor(1.0), torch.zeros(1, 2), batch)


def test_a_module_without_class_names_is_refused() -> None:
    """Outputs that nobody named cannot be compared with the teacher's."""
    with pytest.raises(ConfigError, match=r"config\.id2label"):
        attach(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)), [Distill(TEACHER)])


def test_it_is_written_and_read() -> None:
    """Settings, paths among them, survive the way through JSON."""
    strategy = Distill([Path("one"), "two/three"], alpha=(1, 0.5), teacher_weights=[1, 2])
    assert strategy.teacher == ("one", "two/three")
    assert from_dict(to_dict(strategy)) == strategy


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": ""}, r"Distill\.teacher must be a folder"),
        ({"teacher": []}, r"Distill\.teacher must be a folder"),
        ({"teacher": 7}, r"trainer\.export or save_pretrained"),
        ({"alpha": 1.5}, r"Distill\.alpha must be a finite number at least 0 and at most 1; received 1\.5"),
        ({"alpha": (0.1, 0.2, 0.3)}, r"Distill\.alpha must be a number, or \(first, last\)"),
        ({"temperature": (1.0, 0.0)}, r"Distill\.temperature must be a finite number above 0; received 0"),
        ({"teacher_weights": (1.0, 2.0)}, "one number for each of the 1 teachers"),
        ({"teacher_weights": (-1.0,)}, r"Distill\.teacher_weights must be a finite number above 0"),
        ({"max_answers": -1}, r"Distill\.max_answers"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    """Each message gives the name, the rule and the value."""
    with pytest.raises(ConfigError, match=message):
        Distill(**({"teacher": "folder"} | settings))


def test_the_state_is_small(tmp_path: Path) -> None:
    """What is saved are keys and answers, not the teacher."""
    make_trainer(tmp_path, (Distill(TEACHER),)).fit()
    newest = max(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert (newest / "memory.safetensors").stat().st_size < 100_000
    assert State(tiny_model("bert"), attach(tiny_model("bert"), []).stages[0]).memory == {}
