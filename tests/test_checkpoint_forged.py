"""Forged checkpoints: pickles, huge headers, paths and links out of the folder, names of code; nothing is run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lowft.checkpoint import MANIFEST, read_tensors, verify_folder
from lowft.errors import CheckpointCorruptError, CheckpointError, CheckpointMismatchError, ConfigError
from lowft.registry import from_dict
from lowft.strategies import PartialFreeze
from lowft.strategy import Strategy
from lowft.trainer import Trainer
from tests.forgery import Planter, sign
from tests.strategy_cases import AllHooks
from tests.test_strategies_table import make_trainer

SAFETENSORS = [f"{name}.safetensors" for name in ("best", "before_stage", "memory", "model", "optimizer")]
STRATEGIES: tuple[Strategy, ...] = (PartialFreeze(top=1), AllHooks())


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sound checkpoint."""
    folder = tmp_path_factory.mktemp("sound")
    make_trainer(folder, STRATEGIES, max_steps=2).fit()
    return folder / "checkpoint-1"


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """Return a copy of it, to be forged."""
    return Path(shutil.copytree(sound, tmp_path / "run" / "checkpoint-1"))


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    """Return the run that it belongs to."""
    return make_trainer(tmp_path / "run", STRATEGIES, max_steps=2)


def test_the_planter_plants(tmp_path: Path) -> None:
    """Negative control: a reader that unpickles would run the planted code."""
    pickle.loads(pickle.dumps(Planter(tmp_path / "planted")))  # noqa: S301 - what lowft must never do
    assert (tmp_path / "planted").exists()


def test_a_signed_checkpoint_is_read(folder: Path, trainer: Trainer) -> None:
    """Negative control: a manifest by the tests' forger is a fitting one."""
    sign(folder)
    trainer.fit(resume_from_checkpoint=folder)
    assert [record["step"] for record in trainer.history.filter("train")] == [1, 2]


def rejected(trainer: Trainer, folder: Path, planted: Path, message: str, *, strict: bool = True) -> None:
    """Check that a checkpoint is refused and that nothing in it was run."""
    with pytest.raises(CheckpointError, match=message):
        trainer.fit(resume_from_checkpoint=folder, strict=strict)
    assert not planted.exists()
    assert trainer.history.filter("train") == []


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", SAFETENSORS)
def test_a_pickle_named_safetensors_is_rejected(
    name: str, strict: bool, folder: Path, trainer: Trainer, tmp_path: Path
) -> None:
    """A pickle under a name that lowft reads, signed with a fitting manifest, is refused and never run."""
    (folder / name).write_bytes(pickle.dumps(Planter(tmp_path / "planted")))
    sign(folder)
    message = f"{name} is not a readable safetensors file"
    rejected(trainer, folder, tmp_path / "planted", message, strict=strict)


def test_a_pickled_tensor_file_is_rejected(folder: Path, trainer: Trainer, tmp_path: Path) -> None:
    """What `torch.save` writes is refused under the name of safetensors too."""
    torch.save({"weight": Planter(tmp_path / "planted")}, folder / "model.safetensors")
    sign(folder)
    message = "is not a readable safetensors file"
    rejected(trainer, folder, tmp_path / "planted", message)


@pytest.mark.parametrize("size", [2**20, 2**40, 2**63, 2**64 - 1])
def test_a_huge_header_is_rejected(size: int, tmp_path: Path) -> None:
    """A header that claims more bytes than there are takes no memory and is refused."""
    (tmp_path / "x.safetensors").write_bytes(size.to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointCorruptError, match=r"x\.safetensors is not a readable safetensors file"):
        read_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "name",
    ["../secret.json", "a/../../secret.json", "/etc/passwd", "..", ".", "", "a//b", "~/x", "C:\\x", ".hidden", "a\nb"],
)
def test_a_path_out_of_the_folder_is_rejected(name: str, folder: Path, trainer: Trainer, tmp_path: Path) -> None:
    """A manifest that lists anything but plain names inside the folder is refused, whatever lies there."""
    (folder.parent / "secret.json").write_text("{}")
    sign(folder, **{name: "0" * 64})
    message = r"manifest\.json lists .*, which is not a plain file name"
    rejected(trainer, folder, tmp_path / "planted", message)


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("name", ["model.safetensors", "state.json", MANIFEST])
def test_a_symbolic_link_is_rejected(name: str, listed: bool, folder: Path, trainer: Trainer, tmp_path: Path) -> None:
    """A link is refused even to a file with the right content, whether the manifest lists it or not."""
    (folder / name).rename(tmp_path / name)
    if not listed and name != MANIFEST:
        sign(folder)
    (folder / name).symlink_to(tmp_path / name)
    rejected(trainer, folder, tmp_path / "planted", f"{name} is .*(link|not a real)")


def test_a_linked_folder_in_the_manifest_is_rejected(folder: Path, trainer: Trainer, tmp_path: Path) -> None:
    """A link in the middle of a listed path is refused too."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.txt").write_text("x")
    (folder / "inside").symlink_to(tmp_path / "elsewhere")
    sign(folder, **{"inside/x.txt": "0" * 64})
    with pytest.raises(CheckpointCorruptError, match=r"inside is a symbolic link|x\.txt is a symbolic link"):
        verify_folder(folder)


@pytest.mark.parametrize("name", [MANIFEST, "state.json", "run.json", "history.json"])
def test_json_of_endless_depth_is_rejected(name: str, folder: Path, trainer: Trainer, tmp_path: Path) -> None:
    """JSON nested deeper than Python reads is a damaged file, not a crash."""
    (folder / name).write_text("[" * 200_000)
    if name != MANIFEST:
        sign(folder)
    rejected(trainer, folder, tmp_path / "planted", f"{name} is (unread|not a read)")


def test_a_manifest_that_is_no_file_is_rejected(folder: Path, trainer: Trainer, tmp_path: Path) -> None:
    """A pipe in the manifest's place is refused, not waited for."""
    (folder / MANIFEST).unlink()
    os.mkfifo(folder / MANIFEST)
    with pytest.raises(CheckpointCorruptError, match="is missing, or not a real file"):
        verify_folder(folder)


@pytest.mark.parametrize("strict", [True, False])
def test_a_dotted_path_as_strategy_is_never_imported(
    strict: bool, folder: Path, trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that names a class by its path differs from the run; the module is not imported."""
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'planted')!r})\nclass Strategy: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    run = json.loads((folder / "run.json").read_text())
    run["strategies"]["evil.Strategy"] = {"top": 1}
    (folder / "run.json").write_text(json.dumps(run))
    sign(folder)
    if strict:
        message = r"strategies\.evil\.Strategy was \{'top': 1\} and is now None"
        with pytest.raises(CheckpointMismatchError, match=message):
            trainer.fit(resume_from_checkpoint=folder)
    else:
        with pytest.warns(UserWarning, match=r"strategies\.evil\.Strategy was"):
            trainer.fit(resume_from_checkpoint=folder, strict=False)
    assert "evil" not in sys.modules
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("name", ["evil.Strategy", "os.system", "builtins.eval", "lowft.strategies.PartialFreeze", 3])
def test_a_recipe_names_registered_classes_only(name: Any) -> None:
    """A name that is not in the registry is an error; nothing is looked up by its path."""
    with pytest.raises(ConfigError, match="is not a registered strategy or settings class"):
        from_dict({"name": name, "settings": {}})
