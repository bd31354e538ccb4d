"""Answers on disk: found by content, bounded, shared, and never a reason for a run to fail."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from lowft.distillation import Teacher
from lowft.distillation import cache as module
from lowft.distillation.cache import AnswerCache, Entry, key_of
from tests.strategy_cases import tiny_teacher

ROOM = 1 << 30


def entries(first: int, count: int, tokens: int = 3) -> dict[bytes, Entry]:
    """Return entries that differ."""
    return {
        key_of(f"text {number}"): Entry(torch.full((2,), float(number)), torch.full((tokens, 4), number + 0.5))
        for number in range(first, first + count)
    }


def same(found: dict[bytes, Entry], wanted: dict[bytes, Entry]) -> bool:
    """Tell whether two sets of entries hold the same bits."""
    return found.keys() == wanted.keys() and all(
        torch.equal(found[key].logits, wanted[key].logits) and torch.equal(found[key].states, wanted[key].states)
        for key in wanted
    )


def parts(folder: Path) -> list[Path]:
    """Return the files of entries."""
    return sorted(folder.rglob("part-*.safetensors"))


def filled(folder: Path, first: int = 0, count: int = 5, identity: str = "one", room: int = ROOM) -> dict[bytes, Entry]:
    """Write some entries, and return them."""
    memory: dict[str, Any] = {}
    cache, wanted = AnswerCache(folder, identity, room), entries(first, count)
    cache.add(memory, wanted)
    cache.flush(memory)
    return wanted


def test_what_was_added_is_found(tmp_path: Path) -> None:
    """Before it is written, after it, and by another run; many texts make one file."""
    cache, memory, wanted = AnswerCache(tmp_path, "one", ROOM), dict[str, Any](), entries(0, 5)
    cache.add(memory, wanted)
    assert same(cache.find(memory, list(wanted)), wanted)
    assert same(AnswerCache(tmp_path, "one", ROOM).find(memory, list(wanted)), wanted)  # resumed before it was written
    cache.flush(memory)
    assert memory == {}
    assert len(parts(tmp_path)) == 1
    for reader in (cache, AnswerCache(tmp_path, "one", ROOM)):
        assert same(reader.find({}, [*wanted, key_of("unknown")]), wanted)
    assert AnswerCache(tmp_path, "another teacher", ROOM).find({}, list(wanted)) == {}


def test_enough_entries_are_written(tmp_path: Path) -> None:
    """Nobody has to flush: a file is made of every so many texts, and of the same ones again in a run that resumed."""
    cache, memory = AnswerCache(tmp_path, "one", ROOM), dict[str, Any]()
    for first in range(0, 600, 10):
        cache.add(memory, entries(first, 10))
    assert len(parts(tmp_path)) == 1
    assert same(cache.find(memory, list(entries(0, 600))), entries(0, 600))


@pytest.mark.parametrize("harm", ["truncate", "flip", "empty", "pickle"])
def test_damage_is_as_if_nothing_were_there(harm: str, tmp_path: Path) -> None:
    """Whatever happened to a file, no wrong entry comes back, and others are found."""
    wanted = filled(tmp_path)
    (path,) = parts(tmp_path)
    content = path.read_bytes()
    spoilt = {
        "truncate": content[:-20], "flip": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:], "empty": b"",
        "pickle": b"\x80\x04K\x01.",
    }[harm]  # fmt: skip
    path.write_bytes(spoilt)
    more = filled(tmp_path, 10)
    cache = AnswerCache(tmp_path, "one", ROOM)
    found = cache.find({}, [*wanted, *more])
    assert more.keys() <= found.keys()
    assert same(found, {key: entry for key, entry in (wanted | more).items() if key in found})
    assert len(found) == (9 if harm == "flip" else 5)


def test_the_folder_is_bounded(tmp_path: Path) -> None:
    """What was used longest ago goes, of whatever teacher; what was read lately stays."""
    filled(tmp_path, 0, 5, "one")
    (oldest,) = parts(tmp_path)
    size = oldest.stat().st_size
    os.utime(oldest, ns=(1, 1))
    filled(tmp_path, 10, 5, "two")
    (second,) = set(parts(tmp_path)) - {oldest}
    os.utime(second, ns=(2, 2))
    assert same(AnswerCache(tmp_path, "one", ROOM).find({}, list(entries(0, 5))), entries(0, 5))  # used now
    filled(tmp_path, 20, 5, "two", room=2 * size + 10)
    assert oldest.exists()
    assert not second.exists()
    assert sum(path.stat().st_size for path in parts(tmp_path)) <= 2 * size + 10


def test_too_little_room_for_one_file_is_a_warning(tmp_path: Path) -> None:
    """Nothing is deleted for what does not fit anyway."""
    filled(tmp_path)
    with pytest.warns(UserWarning, match=r"max_cache_bytes=100.*training goes on"):
        filled(tmp_path, 10, room=100)
    assert len(parts(tmp_path)) == 1


@pytest.mark.parametrize("fault", ["full", "read-only", "a file in the way"])
def test_a_disk_that_cannot_be_written_is_a_warning(fault: str, tmp_path: Path, monkeypatch: Any) -> None:
    """It is said once; what was there is still read, and no partial file remains."""
    wanted = filled(tmp_path)
    folder = tmp_path

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28 if fault == "full" else 30, "No space left" if fault == "full" else "Read-only file system")

    if fault == "a file in the way":
        folder = tmp_path / "file"
        folder.write_text("")
    else:
        monkeypatch.setattr(Path, "write_bytes" if fault == "full" else "mkdir", fail)
    cache, memory = AnswerCache(folder, "one", ROOM), dict[str, Any]()
    cache.add(memory, entries(10, 5))
    with pytest.warns(UserWarning, match="training goes on"):
        cache.flush(memory)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.add(memory, entries(20, 5))
        cache.flush(memory)
    assert memory == {}
    if folder is tmp_path:
        assert same(cache.find({}, list(wanted)), wanted)
        assert not list(folder.rglob(".*partial*"))


def test_leftovers_of_killed_runs_go(tmp_path: Path) -> None:
    """Old temporary files are removed; those of a run that writes now stay."""
    filled(tmp_path)
    old, new = (tmp_path / "one" / f".part-{name}.safetensors.partial-1" for name in ("old", "new"))
    for path in (old, new):
        path.touch()
    os.utime(old, (1, 1))
    filled(tmp_path, 10)
    assert not old.exists()
    assert new.exists()


def test_two_runs_share_one_folder(tmp_path: Path) -> None:
    """A second teacher made of the same model reads nothing; one of another model everything."""
    folder, texts = tiny_teacher(), [(f"film {number}", None) for number in range(5)]
    answers: dict[str, Any] = {}
    first = Teacher([folder], ["neg", "pos"], cache_dir=tmp_path)
    logits = first.logits(texts, answers)
    assert first.cache is not None
    first.cache.flush(answers)
    second: dict[str, Any] = {}
    assert torch.equal(Teacher([folder], ["neg", "pos"], cache_dir=tmp_path).logits(texts, second), logits)
    assert (answers["asked"], second["asked"]) == (5, 0)
    third: dict[str, Any] = {}
    Teacher([tiny_teacher(seed=3)], ["neg", "pos"], cache_dir=tmp_path).logits(texts, third)
    assert third["asked"] == 5


def test_keys_are_of_content_and_its_bounds() -> None:
    """Parts cannot run into each other."""
    assert key_of("ab", "c") != key_of("a", "bc")
    assert len(key_of("a")) == module.KEY_BYTES
