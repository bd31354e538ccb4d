"""Checkpoints under attack: killed while saving, damaged, no space left, no right to write."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowft.checkpoint import MANIFEST, Checkpoints, verify_folder
from lowft.errors import CheckpointCorruptError, CheckpointError
from lowft.strategies import LayerwiseUnfreeze, Unfreeze
from lowft.strategy import Strategy
from tests.forgery import flip, truncate
from tests.strategy_cases import AllHooks
from tests.test_strategies_table import assert_same, contents, final_weights, make_trainer

# Fills every file of a checkpoint: memory, best weights, weights of before the stage.
STRATEGIES: tuple[Strategy, ...] = (
    LayerwiseUnfreeze((Unfreeze(top=1, max_steps=2), Unfreeze(top="all", max_steps=2)), min_improvement=-1.0),
    AllHooks(),
)
LAST = 4
FILES = (
    "before_stage.safetensors",
    "best.safetensors",
    "history.json",
    MANIFEST,
    "memory.safetensors",
    "model.safetensors",
    "optimizer.safetensors",
    "run.json",
    "state.json",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that was never stopped, with all its checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    make_trainer(folder, STRATEGIES).fit()
    assert [path.name for path in sorted((folder / f"checkpoint-{LAST}").iterdir())] == sorted(FILES)
    return folder


def copy_of(whole: Path, folder: Path, *steps: int) -> Checkpoints:
    """Return a folder with copies of some checkpoints."""
    for step in steps:
        shutil.copytree(whole / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    return Checkpoints(folder)


# --- 1: killed ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return what came of runs that were killed by SIGKILL; see `tests.killed_runs`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.killed_runs", str(tmp_path_factory.mktemp("killed"))],
        check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    answer: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return answer


def test_a_kill_at_any_point_of_a_save_loses_nothing(killed: dict[str, dict[str, Any]]) -> None:
    """Killed before any call that changes the disk, or with a half-written file, a run resumes bit-identically."""
    assert killed["points"]["failures"] == []
    assert killed["points"]["killed"] > 30  # replacing a checkpoint, writing one, and deleting one


def test_kills_at_random_moments_lose_nothing(killed: dict[str, dict[str, Any]]) -> None:
    """A run that is killed again and again at any moment ends as one that was never stopped."""
    assert killed["random"]["failures"] == []
    assert killed["random"]["killed"] > 0


def test_the_kills_would_find_a_save_in_place(killed: dict[str, dict[str, Any]]) -> None:
    """Negative control: where a checkpoint is written in place, the same kills damage it."""
    assert killed["in place"]["failures"] != []


# --- 2: damaged --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_passed_over(
    name: str, damage: Callable[[Path], None], whole: Path, tmp_path: Path
) -> None:
    """A file truncated, changed or deleted: a warning names it, and the checkpoint before serves."""
    checkpoints = copy_of(whole, tmp_path, LAST - 1, LAST)
    damage(checkpoints.path(LAST) / name)
    with pytest.warns(UserWarning, match=f"skipping a damaged checkpoint: .*{name}"):
        assert checkpoints.newest() == checkpoints.path(LAST - 1)


@pytest.mark.parametrize("name", FILES)
def test_a_run_resumes_from_before_the_damage(name: str, whole: Path, tmp_path: Path) -> None:
    """The run goes on from the older checkpoint, replaces the damaged one, and ends bit-identically."""
    checkpoints = copy_of(whole, tmp_path, 2, 3)
    flip(checkpoints.path(3) / name)
    with pytest.warns(UserWarning, match=f"skipping a damaged checkpoint: .*checkpoint-3.*{name}"):
        make_trainer(tmp_path, STRATEGIES).fit(resume_from_checkpoint=True)
    for step in (3, LAST):
        assert_same(contents(whole / f"checkpoint-{step}"), contents(checkpoints.path(step)))


@given(data=st.data())
def test_any_flipped_bit_is_found(data: st.DataObject, whole: Path) -> None:
    """One bit changed anywhere in any file, the manifest included, and the folder does not verify."""
    folder = whole / "checkpoint-3"
    path = folder / data.draw(st.sampled_from(FILES))
    before = path.read_bytes()
    position, bit = data.draw(st.integers(0, len(before) - 1)), data.draw(st.integers(0, 7))
    try:
        flip(path, position, bit)
        with pytest.raises(CheckpointCorruptError):
            verify_folder(folder)
    finally:
        path.write_bytes(before)
    verify_folder(folder)


def test_where_every_checkpoint_is_damaged_all_are_named(whole: Path, tmp_path: Path) -> None:
    """With nothing sound left, the error names each folder and what is wrong with it; no step is made."""
    checkpoints = copy_of(whole, tmp_path, 2, 3)
    truncate(checkpoints.path(2) / "model.safetensors")
    (checkpoints.path(3) / "state.json").unlink()
    trainer = make_trainer(tmp_path, STRATEGIES)
    with (
        pytest.warns(UserWarning, match="skipping a damaged checkpoint"),
        pytest.raises(CheckpointCorruptError, match=r"every checkpoint in .*state\.json is missing; .*model\.safe"),
    ):
        trainer.fit(resume_from_checkpoint=True)
    assert trainer.history.filter("train") == []


def test_a_damaged_checkpoint_that_is_asked_for_by_name_is_an_error(whole: Path, tmp_path: Path) -> None:
    """Where the user names the checkpoint, lowft does not silently take another."""
    checkpoints = copy_of(whole, tmp_path, 2, 3)
    flip(checkpoints.path(3) / "model.safetensors")
    with pytest.raises(CheckpointCorruptError, match=r"checkpoint-3/model\.safetensors has changed since"):
        make_trainer(tmp_path, STRATEGIES).fit(resume_from_checkpoint=checkpoints.path(3))


# --- 3: no space -------------------------------------------------------------------------------------------------


def assert_the_old_one_is_intact(folder: Path, before: dict[str, Any], whole: Path) -> None:
    """Check that a failed save left the checkpoints as they were and nothing else, and that the run goes on."""
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-1", "checkpoint-2"]
    assert_same(before, contents(folder / "checkpoint-2"))
    assert Checkpoints(folder).newest() == folder / "checkpoint-2"
    make_trainer(folder, STRATEGIES).fit(resume_from_checkpoint=True)
    assert_same(contents(whole / f"checkpoint-{LAST}"), contents(folder / f"checkpoint-{LAST}"))


def no_space(*_: Any, **__: Any) -> None:
    """Fail as a call on a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", ["os.fsync", "os.mkdir", "os.rename", "pathlib.Path.write_text"])
def test_a_save_without_space_keeps_the_old_one(
    name: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a write fails for lack of space, the error says so, and the older checkpoints are as they were."""
    trainer = make_trainer(tmp_path, STRATEGIES)
    steps = trainer.steps()
    next(steps), next(steps)
    before = contents(tmp_path / "checkpoint-2")
    with monkeypatch.context() as patch:
        patch.setattr(name, no_space)
        with pytest.raises(CheckpointError, match=r"could not write .*checkpoint-3: .*No space left .* intact; free"):
            next(steps)
    assert_the_old_one_is_intact(tmp_path, before, whole)


@contextmanager
def _limited_files(folder: Path) -> Iterator[None]:
    """Let no file grow beyond 100 kB, which stops a checkpoint in its weights."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def _filled_disk(folder: Path) -> Iterator[None]:
    """Leave 100 kB on the disk of a folder, which must be a small one."""
    filler = folder.parent / "filler"
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    filler.write_bytes(bytes(free - 100_000))
    try:
        yield
    finally:
        filler.unlink()


@pytest.fixture(params=["file size", "disk"])
def limited(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[Path, Callable[[Path], AbstractContextManager[None]]]]:
    """Return a folder and what makes it full: a limit of the process, or a real small disk where one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)]
    mounted = request.param == "disk" and os.geteuid() == 0 and subprocess.run(mount, check=False).returncode == 0
    try:
        yield folder / "run", _filled_disk if mounted else _limited_files
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)  # noqa: S607 - wherever the system keeps it


def test_a_really_full_disk_keeps_the_old_one(
    limited: tuple[Path, Callable[[Path], AbstractContextManager[None]]], whole: Path
) -> None:
    """The system itself refuses to write: a clear error, the old checkpoints sound, no half-written folder."""
    folder, limit = limited
    trainer = make_trainer(folder, STRATEGIES, save_total_limit=2)
    steps = trainer.steps()
    next(steps), next(steps)
    before = contents(folder / "checkpoint-2")
    with limit(folder), pytest.raises(CheckpointError, match=r"could not write .*checkpoint-3: .*\(os error \d+\)"):
        next(steps)
    assert_the_old_one_is_intact(folder, before, whole)


# --- 4: no right to write ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("place", ["a file", "below a file", "/proc/lowft"])
def test_a_folder_that_cannot_be_written_fails_before_the_first_step(place: str, resume: bool, tmp_path: Path) -> None:
    """A place where not even root can make a folder: an error before any weight moves, and advice."""
    (tmp_path / "file").write_text("mine")
    places = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "run", "/proc/lowft": Path(place)}
    trainer = make_trainer(places[place], STRATEGIES)
    before = final_weights(trainer)
    with pytest.raises(CheckpointError, match=r"output_dir='.*' cannot be written \(.*\); choose another folder"):
        trainer.fit(resume_from_checkpoint=resume)
    assert_same(before, final_weights(trainer))
    assert trainer.history.filter("train") == []
    assert (tmp_path / "file").read_text() == "mine"
