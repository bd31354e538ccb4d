"""Which checkpoints of a run are kept, which one counts, and what is never deleted."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowft.checkpoint import (
    Checkpoints,
    verify_folder,
)
from lowft.errors import CheckpointError
from lowft.trainer import Trainer
from tests.test_checkpoint import names, write_number
from tests.test_strategies_table import make_trainer


@settings(max_examples=25)  # each save waits for the disk
@given(steps=st.lists(st.integers(0, 30), min_size=1, max_size=6, unique=True), limit=st.integers(1, 4))
def test_the_newest_within_the_limit_are_kept(
    steps: list[int], limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Saving deletes the oldest beyond the limit, and never the one just written."""
    checkpoints = Checkpoints(tmp_path_factory.mktemp("run"), limit)
    kept: set[int] = set()
    for step in steps:
        assert checkpoints.save(step, write_number(step)) == checkpoints.path(step)
        kept = set(sorted(kept)[max(0, len(kept) + 1 - limit) :]) | {step}
        assert checkpoints.steps() == sorted(kept)
        assert checkpoints.has(step)
    assert checkpoints.newest() == checkpoints.path(max(kept))


def test_a_failed_save_deletes_nothing(tmp_path: Path) -> None:
    """Older checkpoints go only once the new one is there."""
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(1, write_number(1))

    def fail(_: Path) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        checkpoints.save(2, fail)
    assert names(tmp_path) == ["checkpoint-1"]
    assert checkpoints.newest() == checkpoints.path(1)


def test_a_checkpoint_that_was_moved_aside_comes_back(tmp_path: Path) -> None:
    """What a process left that was killed while it replaced a checkpoint is put right before the next run."""
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, write_number(step))
    checkpoints.path(2).rename(tmp_path / ".checkpoint-2.replaced-77")
    (tmp_path / ".checkpoint-2.partial-77").mkdir()
    (tmp_path / ".checkpoint-1.replaced-77").mkdir()
    (tmp_path / ".mine").mkdir()
    assert checkpoints.steps() == [1]
    checkpoints.prepare(overwrite=False, resuming=True)
    assert names(tmp_path) == [".mine", "checkpoint-1", "checkpoint-2"]
    assert checkpoints.newest() == checkpoints.path(2)


def test_a_damaged_checkpoint_counts_as_none(tmp_path: Path) -> None:
    """`has` looks at the content, so that an orderly stop saves anew where a damaged folder lies."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, write_number(1))
    (checkpoints.path(1) / "number.json").write_text("2")
    assert not checkpoints.has(1)
    assert not checkpoints.has(2)


def test_nothing_to_resume_from_says_what_to_do(tmp_path: Path) -> None:
    """An empty or missing folder is an error with both ways out."""
    for folder in (tmp_path, tmp_path / "missing"):
        message = "holds no checkpoint to resume from: start the run with fit(.*) or give the folder of the run"
        with pytest.raises(CheckpointError, match=message):
            Checkpoints(folder).newest()


def test_checkpoints_of_another_run_are_not_overwritten_unasked(tmp_path: Path) -> None:
    """A new run in a used folder is refused with three ways out; asked for, it deletes the checkpoints and no more."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, write_number(7))
    (tmp_path / "notes.txt").write_text("mine")
    message = (
        r"holds checkpoints of another run, up to step 7: .*resume_from_checkpoint=True.*overwrite_output_dir=True"
    )
    with pytest.raises(CheckpointError, match=message):
        checkpoints.prepare(overwrite=False, resuming=False)
    assert checkpoints.steps() == [7]
    checkpoints.prepare(overwrite=True, resuming=False)
    assert names(tmp_path) == ["notes.txt"]


def test_a_trainer_does_not_overwrite_another_run(tmp_path: Path) -> None:
    """The same through the Trainer: refused before the first step, then done when asked for."""
    make_trainer(tmp_path, (), max_steps=2).fit()
    again = make_trainer(tmp_path, (), max_steps=1)
    with pytest.raises(CheckpointError, match="holds checkpoints of another run, up to step 2"):
        again.fit()
    assert again.history.filter("train") == []
    make_trainer(tmp_path, (), max_steps=1, overwrite_output_dir=True).fit()
    assert Checkpoints(tmp_path).steps() == [1]


@pytest.mark.parametrize(("every", "expected"), [(3, [3, 6]), (None, [4, 8])])
def test_save_steps_says_when(every: int | None, expected: list[int], tmp_path: Path) -> None:
    """Every so many steps, or else after each evaluation, of which there is one an epoch."""
    make_trainer(tmp_path, (), save_steps=every).fit()
    assert Checkpoints(tmp_path).steps() == expected


def test_a_checkpoint_in_a_loop_of_ones_own(tmp_path: Path) -> None:
    """`save_checkpoint` saves where the run is; without a folder it says how to name one."""
    trainer = make_trainer(tmp_path, (), save_steps=100)
    next(trainer.steps())
    assert trainer.save_checkpoint() == tmp_path / "checkpoint-1"
    verify_folder(tmp_path / "checkpoint-1")
    homeless: Trainer = make_trainer(None, ())
    with pytest.raises(ValueError, match=r"save_checkpoint needs a folder: set TrainingConfig\(output_dir=\.\.\.\)"):
        homeless.save_checkpoint()
