"""A teacher answers each distinct text once, with its own tokenizer, in the student's order of classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowft.distillation import Teacher
from lowft.errors import CheckpointMismatchError, ConfigError, ModelError
from tests.strategy_cases import tiny_rows, tiny_teacher
from tests.test_strategies_table import make_trainer
from tests.tiny import tiny_model, tiny_tokenizer

FOLDER = tiny_teacher()
NAMES = ("neg", "pos")
TEXTS: list[tuple[str, str | None]] = [
    ("a dull film", None),
    ("a warm story about love", None),
    ("plot", None),
    ("a dull film", None),
]


def plain(folder: str, texts: list[tuple[str, str | None]], arch: str = "bert", seed: int = 9) -> torch.Tensor:
    """Return the logits of the model in the folder, one text at a time, without lowft."""
    model, tokenizer = tiny_model(arch, seed=seed), tiny_tokenizer(arch)
    names = ("input_ids", "attention_mask")
    with torch.no_grad():
        return torch.cat(
            [model(**{name: tokenizer(text, return_tensors="pt")[name] for name in names}).logits for text, _ in texts]
        )


def test_the_answers_are_the_model_s_own() -> None:
    """What comes back is what the model gives, in order, a text that comes twice included."""
    found = Teacher([FOLDER], NAMES).logits(TEXTS, {})
    torch.testing.assert_close(found, plain(FOLDER, TEXTS), rtol=0, atol=1e-5)


def test_each_text_is_read_once() -> None:
    """A second time nothing is read, and the answers are the same bits."""
    teacher, answers = Teacher([FOLDER], NAMES), dict[str, Any]()
    first = teacher.logits(TEXTS, answers)
    assert answers["asked"] == 3
    assert torch.equal(teacher.logits(TEXTS[::-1], answers), first.flip(0))
    assert answers["asked"] == 3
    teacher.logits([("a dull film !", None)], answers)
    assert answers["asked"] == 4


def test_answers_outlive_the_teacher() -> None:
    """A teacher made anew, as after a resume, goes on with the answers of the first."""
    answers: dict[str, Any] = {}
    first = Teacher([FOLDER], NAMES).logits(TEXTS, answers)
    assert torch.equal(Teacher([FOLDER], NAMES).logits(TEXTS, answers), first)
    assert answers["asked"] == 3


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.sampled_from(["a", "b c", "film", "plot", "b  c"]), min_size=1), min_size=1), st.integers(0, 4)
)
def test_any_order_and_any_room_give_the_same_answers(batches: list[list[str]], most: int) -> None:
    """Neither what was asked before nor how many answers are kept changes an answer."""
    teacher = _SHARED
    answers: dict[str, Any] = {}
    for batch in batches:
        texts: list[tuple[str, str | None]] = [(text, None) for text in batch]
        torch.testing.assert_close(teacher.logits(texts, answers, most=most), plain(FOLDER, texts), rtol=0, atol=1e-5)
    assert answers.get("count", 0) <= most
    teacher._known._known.clear()


_SHARED = Teacher([FOLDER], NAMES)


def test_more_answers_than_the_first_room_holds() -> None:
    """The room grows, and what was known stays."""
    teacher, answers = Teacher([FOLDER], NAMES), dict[str, Any]()
    first = teacher.logits(TEXTS, answers)
    teacher.logits([(f"film {number}", None) for number in range(1500)], answers)
    assert torch.equal(teacher.logits(TEXTS, answers), first)
    assert answers["asked"] == 1503
    assert len(answers["keys"]) >= answers["count"] == 1503


def test_pairs_differ_from_texts() -> None:
    """The second text is part of what is known."""
    teacher, answers = Teacher([FOLDER], NAMES), dict[str, Any]()
    one = teacher.logits([("a film", "a plot")], answers)
    other = teacher.logits([("a film", "a story")], answers)
    assert answers["asked"] == 2
    assert not torch.equal(one, other)


def test_another_architecture_reads_with_its_own_tokenizer() -> None:
    """A GPT-2 teaches as well: only texts pass between the two."""
    folder = tiny_teacher("gpt2", seed=4)
    found = Teacher([folder], NAMES).logits(TEXTS, {})
    torch.testing.assert_close(found, plain(folder, TEXTS, "gpt2", seed=4), rtol=0, atol=1e-5)


def test_several_teachers_are_averaged() -> None:
    """The logits are the weighted mean."""
    other = tiny_teacher("distilbert", seed=2)
    one, two = plain(FOLDER, TEXTS), plain(other, TEXTS, "distilbert", seed=2)
    found = Teacher([FOLDER, other], NAMES, weights=[3, 1]).logits(TEXTS, {})
    torch.testing.assert_close(found, 0.75 * one + 0.25 * two, rtol=0, atol=1e-5)


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    """A teacher that numbers the classes otherwise is read in the student's order."""
    trainer = make_trainer(None, (), max_steps=1)
    trainer.fit()
    folder = trainer.export(tmp_path / "teacher", verify="here")
    texts: list[tuple[str, str | None]] = [(text, None) for text in tiny_rows(3)["text"]]
    ahead, turned = (Teacher([folder], names).logits(texts, {}) for names in (("neg", "pos"), ("Pos", "Neg")))
    assert torch.equal(ahead, turned.flip(1))
    torch.testing.assert_close(
        ahead, torch.from_numpy(trainer._predictor().predict_logits([text for text, _ in texts])), rtol=0, atol=1e-5
    )
    with pytest.raises(ConfigError, match=r"tells apart neg, pos, the student good, bad.*same classes"):
        Teacher([folder], ("good", "bad"))


def test_answers_of_another_teacher_are_refused() -> None:
    """A teacher whose weights changed since the run began is found out."""
    answers: dict[str, Any] = {}
    Teacher([FOLDER], NAMES).logits(TEXTS, answers)
    with pytest.raises(CheckpointMismatchError, match="another teacher"):
        Teacher([tiny_teacher(seed=1)], NAMES).logits(TEXTS, answers)


def test_a_body_without_a_head_is_no_teacher(minilm_path: Path) -> None:
    """Random answers would teach nothing."""
    with pytest.raises(ModelError, match="no trained head"):
        Teacher([minilm_path], NAMES)
