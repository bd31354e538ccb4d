"""Exported folders that are damaged or forged: nothing in them is run, and nothing is read that is not vouched for."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lowft.checkpoint import MANIFEST
from lowft.errors import CheckpointCorruptError, CheckpointError, LowftError, ModelError
from lowft.export import load
from lowft.models import load_model
from tests.export.exports import FILES, TEXTS, trained
from tests.export.test_folder import Bag
from tests.forgery import Planter, flip, sign, truncate
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an exported folder; tests copy it before they change it."""
    return trained(tiny_model("bert")).export(tmp_path_factory.mktemp("exports") / "sentiment", verify="here")


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """Return a copy of the exported folder."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def edit(path: Path, **values: object) -> None:
    """Change values of a JSON file, then sign its folder."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    sign(path.parent)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("name", [name for name in FILES if name != "README.md"])
def test_a_damaged_export_is_not_loaded(name: str, damage: Callable[[Path], None], folder: Path) -> None:
    """A file truncated, changed or deleted is found before anything is read, and named."""
    damage(folder / name)
    named = r"lowft-manifest\.json|has changed|is missing" if name == MANIFEST else name.replace(".", r"\.")
    with pytest.raises(CheckpointCorruptError, match=named):
        load(folder)


def test_what_is_no_export_is_not_loaded(tmp_path: Path) -> None:
    """A missing folder, a plain model folder and a later format are told apart."""
    with pytest.raises(CheckpointError, match=r"'nowhere' is not a folder: give the folder that Trainer.export wrote"):
        load("nowhere")
    with pytest.raises(CheckpointCorruptError, match=r"lowft-manifest\.json is missing"):
        load(tmp_path)


@pytest.mark.parametrize("settings", ["[]", "{}", '{"format": 1}', "3"])
def test_settings_of_another_format_are_refused(settings: str, folder: Path) -> None:
    """`lowft.json` must be of the format that this lowft reads."""
    (folder / "lowft.json").write_text(settings)
    sign(folder)
    with pytest.raises(CheckpointCorruptError, match=r"lowft\.json is not of format 2, which this lowft reads"):
        load(folder)


@pytest.mark.parametrize("settings", ["[]", "{}", '{"structure": {}}', '{"structure": null}', "3"])
def test_a_forged_structure_is_refused_where_training_starts_from_it(settings: str, folder: Path) -> None:
    """What `load_model` reads of `lowft.json` is a list, or the message says what it is."""
    (folder / "lowft.json").write_text(settings)
    with pytest.raises(CheckpointCorruptError, match=r"lowft\.json: 'structure' must be a list; the file holds"):
        load_model(folder)


CODE = "import os\nos.mkdir({planted!r})\nclass Evil: pass\nclass Config: pass\nclass Tokenizer: pass\n"


def _pickle_as_safetensors(folder: Path, planted: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Planter(planted)))


def _pickle_beside(folder: Path, planted: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Planter(planted)}, folder / "pytorch_model.bin")


def _huge_header(folder: Path, planted: Path) -> None:
    (folder / "model.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")


def _code_for(file: str, **auto_map: str) -> Callable[[Path, Path], None]:
    def forge(folder: Path, planted: Path) -> None:
        (folder / "evil.py").write_text(CODE.format(planted=str(planted)))
        edit(folder / file, auto_map=auto_map)

    return forge


def _outside(folder: Path, planted: Path) -> None:
    (folder.parent / "weights.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    sign(folder, **{"../weights.safetensors": "0" * 64})


def _absolute(folder: Path, planted: Path) -> None:
    sign(folder, **{str(folder / "model.safetensors"): "0" * 64})


def _link(folder: Path, planted: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "weights.safetensors")
    (folder / "model.safetensors").symlink_to(folder.parent / "weights.safetensors")


def _unlisted_link(folder: Path, planted: Path) -> None:
    _link(folder, planted)
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["files"]["model.safetensors"]
    (folder / MANIFEST).write_text(json.dumps(manifest))


def _unlisted_adapter(folder: Path, planted: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')


FORGED: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "a pickle named .safetensors": (_pickle_as_safetensors, "cannot be loaded.*[Hh]eader"),
    "a pickle instead of safetensors": (_pickle_beside, "has only pickled weights"),
    "a huge header": (_huge_header, "cannot be loaded.*[Hh]eader"),
    "code for the model": (
        _code_for("config.json", AutoConfig="evil.Config", AutoModelForSequenceClassification="evil.Evil"),
        "wants to run Python code of its own",
    ),
    "code for the tokenizer": (
        _code_for("tokenizer_config.json", AutoTokenizer="evil.Tokenizer"),
        "wants to run Python code of its own",
    ),
    "a path outside": (_outside, "lists '../weights.safetensors', which is not a plain file name"),
    "an absolute path": (_absolute, "which is not a plain file name"),
    "a symbolic link": (_link, r"model\.safetensors is a symbolic link"),
    "an unlisted link": (_unlisted_link, r"model\.safetensors is a symbolic link"),
    "an unlisted adapter": (_unlisted_adapter, r"adapter_config\.json is not listed"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_export_is_rejected(name: str, folder: Path, tmp_path: Path) -> None:
    """Pickles, code, huge headers, paths and links are refused even under a fitting manifest; nothing is run."""
    forge, message = FORGED[name]
    planted = tmp_path / "planted"
    forge(folder, planted)
    if "pickle" in name or "header" in name:
        sign(folder)
    with pytest.raises(LowftError, match=message) as caught:
        load(folder)
    assert isinstance(caught.value, ModelError | CheckpointError)
    assert not planted.exists()


def test_a_pickle_as_weights_of_ones_own_module_is_rejected(tmp_path: Path) -> None:
    """The same for a module that transformers does not know."""
    folder = trained(Bag()).export(tmp_path / "model", verify="here")
    _pickle_as_safetensors(folder, tmp_path / "planted")
    sign(folder)
    with pytest.raises(CheckpointCorruptError, match=r"model\.safetensors is not a readable safetensors file"):
        load(folder, model=Bag())
    assert not (tmp_path / "planted").exists()


def test_names_in_a_recipe_are_never_imported(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class path as strategy or model class is a word for the reader: the folder loads and nothing is imported."""
    (tmp_path / "evil.py").write_text(CODE.format(planted=str(tmp_path / "planted")))
    monkeypatch.syspath_prepend(tmp_path)
    recipe = {"strategies": [{"name": "evil.Evil", "settings": {}}], "config": {}}
    edit(folder / "lowft.json", recipe=recipe, model_class="evil.Evil")
    assert load(folder).predict(TEXTS)
    assert "evil" not in sys.modules
    assert not (tmp_path / "planted").exists()
