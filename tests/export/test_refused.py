"""Exports that are refused or fail: what is in the way stays, and nothing half-written does."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from lowft.checkpoint import verify_folder
from lowft.errors import CheckpointError
from lowft.export import load
from lowft.strategy import Strategy
from lowft.trainer import Trainer
from tests.export.exports import FILES, names, trained

# --- what is in the way ------------------------------------------------------------------------------------------


def test_an_empty_folder_may_be_the_target(trainer: Trainer, tmp_path: Path) -> None:
    """A folder that is there but empty is filled; parents are made."""
    (tmp_path / "empty").mkdir()
    load(trainer.export(tmp_path / "empty", verify="here"))
    load(trainer.export(str(tmp_path / "deep" / "er"), verify="here"))
    assert names(tmp_path) == ["deep", "empty"]


def test_an_export_is_replaced_only_when_asked(trainer: Trainer, folder: Path) -> None:
    """What is there stays unless overwrite=True, which the message tells of; then nothing of the old one remains."""
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is there already: choose another folder, or pass overwrite=True to rep"):
        trainer.export(folder, verify="here")
    assert (folder / "notes.txt").exists()
    trainer.export(folder, overwrite=True, verify="here")
    assert names(folder) == sorted(FILES)
    assert names(folder.parent) == [folder.name]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("place", ["folder", "file"])
def test_what_is_no_export_is_never_replaced(trainer: Trainer, place: str, overwrite: bool, tmp_path: Path) -> None:
    """Neither a folder of the user's own nor a file is deleted, whatever is asked for."""
    target = tmp_path / "mine"
    if place == "folder":
        target.mkdir()
    mine = target / "thesis.txt" if place == "folder" else target
    mine.write_text("years of work")
    with pytest.raises(CheckpointError, match=r"mine is there already: choose another folder$"):
        trainer.export(target, overwrite=overwrite, verify="here")
    assert mine.read_text() == "years of work"


@pytest.mark.parametrize("place", ["file/model", "/proc/lowft/model"])
def test_an_export_that_cannot_be_written_says_so(trainer: Trainer, place: str, tmp_path: Path) -> None:
    """A place where nobody can make a folder is an error with the path."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match=r"could not write .*model: .*choose another folder"):
        trainer.export(tmp_path / place, verify="here")
    assert (tmp_path / "file").read_text() == "mine"


def _fail(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("name", ["os.fsync", "os.rename", "pathlib.Path.write_text", "tokenizers.Tokenizer.save"])
def test_an_export_that_fails_leaves_what_was_there(
    name: str, there: bool, trainer: Trainer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it fails, no half-written folder is left, and an export that was there is as before."""
    if not there:
        shutil.rmtree(folder)
    if name.startswith("tokenizers"):  # compiled, so it is replaced where it is held
        owner: Any = trainer.tokenizer
        monkeypatch.setattr(type(owner), "save_pretrained", _fail)
    else:
        monkeypatch.setattr(name, _fail)
    with pytest.raises(CheckpointError, match=r"could not write .*No space left on device"):
        trainer.export(folder, overwrite=True, verify="here")
    monkeypatch.undo()
    assert names(folder.parent) == ([folder.name] if there else [])
    if there:
        verify_folder(folder)


# --- a model that does not come back as it was -------------------------------------------------------------------


@dataclass(frozen=True)
class Spoils(Strategy):
    """Finishes a model so that no file can tell how."""

    how: str = "activation"

    def finish_model(self, model: nn.Module) -> nn.Module:
        """Spoil it."""
        bert: Any = model
        if self.how == "activation":  # not a weight
            bert.bert.encoder.layer[0].intermediate.intermediate_act_fn = nn.Tanh()
        elif self.how == "width":  # not what the config says
            layer = bert.bert.encoder.layer[0]
            layer.intermediate.dense, layer.output.dense = nn.Linear(32, 16), nn.Linear(16, 32)
        else:  # fewer blocks than the config says
            bert.bert.encoder.layer = bert.bert.encoder.layer[:1]
        return bert  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("activation", "the exported BertForSequenceClassification does not reload to the same logits"),
        ("width", "the exported BertForSequenceClassification does not load again, so it was not exported: .*intermed"),
        ("depth", "the exported BertForSequenceClassification does not load again, so it was not exported: .*layer"),
    ],
)
def test_a_model_that_does_not_reload_is_not_exported(how: str, message: str, folder: Path) -> None:
    """The folder is read again before it appears; a difference is an error, and what was there stays."""
    trainer = trained(strategies=(Spoils(how),))
    before = (folder / "model.safetensors").read_bytes()
    for target in (folder.parent / "new", folder):
        with pytest.raises(CheckpointError, match=message):
            trainer.export(target, overwrite=True, verify="here")
    assert names(folder.parent) == [folder.name]
    assert (folder / "model.safetensors").read_bytes() == before
