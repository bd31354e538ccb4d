"""Folders that are whole or not there, tensors by name, and the checkpoints of one run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import nn

from lowft.checkpoint import (
    MANIFEST,
    commit_folder,
    load_tensors_,
    model_tensors,
    read_json,
    read_tensors,
    verify_folder,
    write_json,
    write_tensors,
)
from lowft.errors import CheckpointCorruptError, CheckpointError, CheckpointMismatchError


def fill(folder: Path) -> None:
    """Write two files, one of them in a folder of its own."""
    (folder / "inner").mkdir()
    (folder / "inner" / "b.txt").write_text("b")
    write_json(folder / "a.json", {"a": 1})


def names(folder: Path) -> list[str]:
    """Return the names in a folder, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())


def write_number(number: int) -> Any:
    """Return a function that writes a number into a folder."""
    return lambda folder: write_json(folder / "number.json", number)


# --- commit_folder and verify_folder -----------------------------------------------------------------------------


def test_a_committed_folder_verifies(tmp_path: Path) -> None:
    """The folder appears under its name with a manifest of every file, and nothing else is left."""
    commit_folder(tmp_path / "deep" / "target", fill)
    assert verify_folder(tmp_path / "deep" / "target") == []
    assert read_json(tmp_path / "deep" / "target" / MANIFEST)["files"].keys() == {"a.json", "inner/b.txt"}
    assert names(tmp_path / "deep") == ["target"]


def test_a_commit_replaces_all_of_the_old_folder(tmp_path: Path) -> None:
    """Nothing of what was there before remains."""
    commit_folder(tmp_path / "target", fill)
    commit_folder(tmp_path / "target", write_number(2))
    verify_folder(tmp_path / "target")
    assert names(tmp_path / "target") == [MANIFEST, "number.json"]
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_a_commit_that_fails_leaves_what_was_there(error: type[BaseException], tmp_path: Path) -> None:
    """Whatever is raised while writing goes on to the caller; the old folder stays, the new one vanishes."""
    commit_folder(tmp_path / "target", write_number(1))

    def fail(folder: Path) -> None:
        write_number(2)(folder)
        raise error("no")

    with pytest.raises(error, match="no"):
        commit_folder(tmp_path / "target", fail)
    assert names(tmp_path) == ["target"]
    verify_folder(tmp_path / "target")
    assert read_json(tmp_path / "target" / "number.json") == 1


def test_a_rename_that_fails_brings_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even after the old folder was moved aside, a failure restores it."""
    commit_folder(tmp_path / "target", write_number(1))
    rename = os.rename

    def fail(source: Path, target: Path) -> None:
        if "partial" in source.name:
            raise OSError("no such luck")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(CheckpointError, match=r"could not write .*: no such luck\. What was there before is intact"):
        commit_folder(tmp_path / "target", write_number(2))
    assert names(tmp_path) == ["target"]
    assert read_json(tmp_path / "target" / "number.json") == 1


def test_a_full_disk_that_rust_reports_is_the_same_error(tmp_path: Path) -> None:
    """The tokenizers library raises a bare Exception; only its text says that the system refused."""

    def fail(_: Path) -> None:
        raise Exception("No space left on device (os error 28)")  # noqa: TRY002 - so does the library

    with pytest.raises(CheckpointError, match=r"could not write .*No space left"):
        commit_folder(tmp_path / "target", fail)
    assert names(tmp_path) == []


def test_leftovers_of_a_killed_process_with_the_same_number_do_not_matter(tmp_path: Path) -> None:
    """In a container, each run has the same process number as the one that was killed before it."""
    commit_folder(tmp_path / "target", write_number(1))
    for kind in ("partial", "replaced"):
        fill_me = tmp_path / f".target.{kind}-{os.getpid()}"
        fill_me.mkdir()
        (fill_me / "x").write_text("x")
    commit_folder(tmp_path / "target", write_number(2))
    assert names(tmp_path) == ["target"]
    assert read_json(tmp_path / "target" / "number.json") == 2


def test_unlisted_files_may_be_edited_or_deleted(tmp_path: Path) -> None:
    """A file left out of the manifest is the user's; notes beside it do no harm."""
    commit_folder(tmp_path / "target", fill, unlisted={"inner/b.txt"})
    (tmp_path / "target" / "inner" / "b.txt").write_text("edited")
    (tmp_path / "target" / "notes.txt").write_text("mine")
    verify_folder(tmp_path / "target")
    (tmp_path / "target" / "inner" / "b.txt").unlink()
    verify_folder(tmp_path / "target")


@pytest.mark.parametrize("name", ["adapter_config.json", "extra.safetensors"])
def test_a_file_that_would_be_read_must_be_listed(name: str, tmp_path: Path) -> None:
    """JSON and safetensors that the manifest does not vouch for are refused by name."""
    commit_folder(tmp_path / "target", fill)
    (tmp_path / "target" / name).write_text("{}")
    with pytest.raises(CheckpointCorruptError, match=f"{name} is not listed in {MANIFEST}: take it out"):
        verify_folder(tmp_path / "target")


def test_optional_files_are_reported(tmp_path: Path) -> None:
    """What is wrong with a file that may be damaged is told in words, and is an error for any other."""
    commit_folder(tmp_path / "target", fill)
    (tmp_path / "target" / "a.json").write_text("{}")
    (tmp_path / "target" / "inner" / "b.txt").unlink()
    changed, missing = verify_folder(tmp_path / "target", optional=("a.json", "inner/b.txt"))
    assert changed.endswith("a.json has changed since it was written (its SHA-256 differs)")
    assert missing.endswith("b.txt is missing")
    with pytest.raises(CheckpointCorruptError, match=r"b\.txt is missing"):
        verify_folder(tmp_path / "target", optional=("a.json",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is unreadable"),
        ("[]", "is unreadable"),
        ('{"format": 1}', "is unreadable"),
        ('{"format": 1, "files": []}', "is unreadable"),
        ('{"format": 2, "files": {}}', "has format 2; this lowft reads format 1"),
    ],
)
def test_a_manifest_of_another_shape_is_refused(text: str, message: str, tmp_path: Path) -> None:
    """A manifest that is not one, or is of a later version, is an error with its path."""
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(CheckpointCorruptError, match=f"{MANIFEST} {message}"):
        verify_folder(tmp_path)


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    """Neither an empty folder nor a missing one verifies."""
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CheckpointCorruptError, match=f"{MANIFEST} is missing"):
            verify_folder(folder)


# --- tensors and JSON --------------------------------------------------------------------------------------------


SHAPES = npst.array_shapes(min_dims=0, min_side=0, max_side=4)


@given(
    arrays=st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda name: name != "__metadata__"),
        npst.arrays(
            st.sampled_from(["float32", "float64", "int64", "bool"]),
            npst.array_shapes(min_dims=0, min_side=0, max_side=4),
        ),
        max_size=3,
    )
)
def test_tensors_come_back_bit_for_bit(arrays: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Names, shapes, types and every bit survive, NaN and empty tensors included."""
    path = tmp_path_factory.getbasetemp() / "x.safetensors"
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    write_tensors(path, tensors)
    found = read_tensors(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert found[name].numpy().tobytes() == arrays[name].tobytes()


def test_read_tensors_lie_where_torch_would_put_them(tmp_path: Path) -> None:
    """A value of four bytes shifts all that follow in the file; in memory they begin at a multiple of 64 again."""
    write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(1), "b": torch.ones(32), "c": torch.ones(3)})
    assert {tensor.data_ptr() % 64 for tensor in read_tensors(tmp_path / "x.safetensors").values()} == {0}


def test_transposed_tensors_are_written_as_they_look(tmp_path: Path) -> None:
    """A view in another order of memory is written by its values."""
    tensor = torch.arange(6.0).reshape(2, 3)
    write_tensors(tmp_path / "x.safetensors", {"a": tensor.T})
    assert torch.equal(read_tensors(tmp_path / "x.safetensors")["a"], tensor.T)


TEXT = st.text(st.characters(codec="utf-8"))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT


@given(value=st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=5))
def test_json_keeps_every_bit(value: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Floats come back as they were, infinite ones and NaN included."""
    path = tmp_path_factory.getbasetemp() / "x.json"
    write_json(path, value)
    assert repr(read_json(path)) == repr(json.loads(json.dumps(value, sort_keys=True)))


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_not_json_is_damaged(data: bytes, tmp_path: Path) -> None:
    """Empty, cut, not UTF-8 or endlessly nested: the error names the file."""
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(CheckpointCorruptError, match=r"x\.json is not a readable JSON file"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("reader", [read_json, read_tensors])
def test_a_missing_file_is_damage(reader: Any, tmp_path: Path) -> None:
    """A file that is not there is named."""
    with pytest.raises(CheckpointCorruptError, match=r"nowhere is not a readable"):
        reader(tmp_path / "nowhere")


class Tied(nn.Module):
    """An embedding whose weight is the output layer's too, with a saved buffer and one that is not saved."""

    def __init__(self, *, tied: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.output = nn.Linear(3, 5)
        if tied:
            self.output.weight = self.embedding.weight
        self.register_buffer("seen", torch.zeros(2))
        self.register_buffer("table", torch.ones(2), persistent=False)


def test_tied_weights_are_kept_once() -> None:
    """Of a weight with two names there is one copy; buffers that a model does not save are left out."""
    assert model_tensors(Tied()).keys() == {"embedding.weight", "output.bias", "seen"}
    assert model_tensors(Tied(), {"output.bias"}).keys() == {"output.bias", "seen"}


def test_loading_copies_in_place() -> None:
    """Values are copied into the parameters that are there, so that ties and optimizers stay as they are."""
    source, target = Tied(), Tied()
    weight = target.embedding.weight
    load_tensors_(target, model_tensors(source), "here")
    assert target.embedding.weight is weight is target.output.weight
    assert torch.equal(weight, source.embedding.weight)


@pytest.mark.parametrize(
    ("tensors", "partial", "message"),
    [
        ({"other": torch.zeros(1)}, True, "here holds 'other', which this model does not have"),
        ({"output.bias": torch.zeros(4)}, True, r"here holds 'output.bias' of shape \[4\]; in this model it is \[5\]"),
        ({"output.bias": torch.zeros(5)}, False, "here lacks 'embedding.weight' of this model: the two differ"),
    ],
)
def test_tensors_of_another_model_change_nothing(tensors: Any, partial: bool, message: str) -> None:
    """An unknown name, another shape, or a missing tensor is an error before anything is copied."""
    model = Tied()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointMismatchError, match=message):
        load_tensors_(model, tensors | {"seen": torch.ones(2)}, "here", partial=partial)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_tied_model_is_not_loaded_into_an_untied_one() -> None:
    """Where only one side is tied, a weight would stay random: that is an error, both ways."""
    with pytest.raises(CheckpointMismatchError, match=r"here lacks 'output\.weight' of this model: the two"):
        load_tensors_(Tied(tied=False), model_tensors(Tied()), "here")
    with pytest.raises(CheckpointMismatchError, match=r"holds 'output\.weight', which this model does not have"):
        load_tensors_(Tied(), model_tensors(Tied(tied=False)), "here")


# --- Checkpoints -------------------------------------------------------------------------------------------------
