"""Folders that are whole or not there: how checkpoints and exports are written, verified and found again.

A folder is written under a temporary name; each file is flushed to disk; a manifest with every file's SHA-256
comes last; one rename makes it visible. Only safetensors and JSON are read, and only files that the manifest
lists: nothing in a folder can make lowft run code or read outside it.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lowft._alignment import aligned
from lowft.errors import CheckpointCorruptError, CheckpointError, CheckpointMismatchError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from torch import Tensor

__all__ = [
    "Checkpoints",
    "commit_folder",
    "load_tensors_",
    "model_tensors",
    "read_json",
    "read_tensors",
    "verify_folder",
    "write_json",
    "write_tensors",
]

MANIFEST = "lowft-manifest.json"
_FORMAT = 1
_SHOWN = 5
_READ = frozenset({".bin", ".json", ".onnx", ".safetensors", ".xml"})
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_LEFTOVER = re.compile(r"\.(checkpoint-\d+)\.(partial|replaced)-\d+")


def commit_folder(target: Path, write: Callable[[Path], None], *, unlisted: Collection[str] = ()) -> None:
    """Write a folder so that it is whole or not there, replacing one of the same name.

    Args:
        target: The folder to make; its parent is made if missing.
        write: Called with a temporary folder, to fill it with files.
        unlisted: Files that are not put under the manifest, since people edit them.

    Raises:
        CheckpointError: Nothing could be written; what was at `target` before is still there, and no partial
            folder remains.
    """
    partial = target.parent / f".{target.name}.partial-{os.getpid()}"
    replaced = target.parent / f".{target.name}.replaced-{os.getpid()}"
    _bring_back(target)
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a killed process that had the same number
        partial.mkdir(parents=True)
        write(partial)
        _write_manifest(partial, unlisted)
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            target.rename(replaced)
        partial.rename(target)
        _flush(target.parent)
    except BaseException as error:  # Ctrl-C included: what was there before must come back
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        # Libraries written in Rust report a full disk as errors of their own, which only the text tells apart.
        if isinstance(error, OSError) or "(os error " in str(error):
            raise CheckpointError(
                f"could not write {target}: {error}. What was there before is intact; free space or choose "
                f"another folder, then save again"
            ) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if target.exists():  # else it is all there is
            shutil.rmtree(replaced, ignore_errors=True)


def _bring_back(target: Path) -> None:
    """Undo what a process left behind that was killed when the older folder had gone and the newer not yet come."""
    if target.exists():
        return
    leftovers = sorted(target.parent.glob(f".{glob.escape(target.name)}.replaced-*"), key=lambda it: it.stat().st_mtime)
    if leftovers:
        leftovers[-1].rename(target)


def verify_folder(folder: Path, *, optional: Collection[str] = ()) -> list[str]:
    """Check that a folder holds what its manifest says, and nothing else that lowft would read.

    Args:
        folder: The folder.
        optional: Files that may be missing or damaged.

    Returns:
        What is wrong with the optional files, in words.

    Raises:
        CheckpointCorruptError: The manifest is missing or unreadable; a file that it lists is missing, changed, a
            link, or outside the folder; or there is a link, safetensors or JSON that it does not list. The message
            names the file.
    """
    manifest_path = folder / MANIFEST
    try:
        if manifest_path.is_symlink() or not manifest_path.is_file():
            raise CheckpointCorruptError(f"{manifest_path} is missing, or not a real file")
        manifest = json.loads(manifest_path.read_text("utf-8"))
        version, files = (
            manifest["format"],
            {str(name): str(digest) for name, digest in manifest["files"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointCorruptError(f"{manifest_path} is unreadable ({error})") from error
    if version != _FORMAT:
        raise CheckpointCorruptError(f"{manifest_path} has format {version!r}; this lowft reads format {_FORMAT}")
    _check_unlisted(folder, files)
    damaged = []
    for name, digest in files.items():
        if not all(_PART.fullmatch(part) for part in name.split("/")):
            raise CheckpointCorruptError(f"{manifest_path} lists {name!r}, which is not a plain file name")
        path = folder / name
        links = [part for part in (path, *path.parents) if part.is_relative_to(folder) and part != folder]
        if any(part.is_symlink() for part in links):
            raise CheckpointCorruptError(f"{path} is a symbolic link; only real files are read")
        if not path.is_file():
            fault = f"{path} is missing"
        elif _digest(path) != digest:
            fault = f"{path} has changed since it was written (its SHA-256 differs)"
        else:
            continue
        if name not in optional:
            raise CheckpointCorruptError(fault)
        damaged.append(fault)
    return damaged


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors; an empty mapping is fine."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        CheckpointCorruptError: The file is missing or is not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {name: aligned(tensor) for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointCorruptError(f"{path} is not a readable safetensors file ({error})") from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file; floats keep every bit."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        CheckpointCorruptError: The file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointCorruptError(f"{path} is not a readable JSON file ({error})") from error


def model_tensors(model: torch.nn.Module, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Return a model's parameters and saved buffers by name, tied ones once, each detached but not copied.

    Args:
        model: The model.
        names: Parameters to keep (buffers always are); None keeps all.
    """
    tensors: dict[str, Tensor] = {
        name: tensor for name, tensor in model.named_parameters() if names is None or name in names
    }
    saved = model.state_dict(keep_vars=True)
    tensors |= {name: tensor for name, tensor in model.named_buffers() if name in saved}
    return {name: tensor.detach() for name, tensor in tensors.items()}


@torch.no_grad()
def load_tensors_(
    model: torch.nn.Module, tensors: Mapping[str, Tensor], source: object, *, partial: bool = False
) -> None:
    """Copy tensors that `model_tensors` returned into the model.

    Args:
        model: The model.
        tensors: Values by name.
        source: Where they come from, for messages.
        partial: Whether tensors of the model may be missing; they then stay as they are.

    Raises:
        CheckpointMismatchError: A name is not in the model, has another shape there, or is missing; the model is
            then unchanged.
    """
    own = model_tensors(model)
    missing = sorted(own.keys() - tensors.keys())
    if missing and not partial:
        raise CheckpointMismatchError(
            f"{source} lacks {', '.join(map(repr, missing[:_SHOWN]))}{', …' if len(missing) > _SHOWN else ''} of this "
            f"model: the two differ in their layers, or in which weights are tied"
        )
    for name, tensor in tensors.items():
        if name not in own:
            raise CheckpointMismatchError(f"{source} holds {name!r}, which this model does not have")
        if own[name].shape != tensor.shape:
            raise CheckpointMismatchError(
                f"{source} holds {name!r} of shape {list(tensor.shape)}; in this model it is {list(own[name].shape)}"
            )
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run in one folder, named by their step.

    Args:
        folder: Where they are.
        limit: How many to keep.
    """

    folder: Path
    limit: int = 2

    def prepare(self, *, overwrite: bool, resuming: bool) -> None:
        """Make the folder ready before the first step.

        Args:
            overwrite: Delete the checkpoints of another run.
            resuming: The checkpoints there are this run's own.

        Raises:
            CheckpointError: The folder cannot be written, or holds the checkpoints of another run.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".lowft-probe-{os.getpid()}"
            probe.write_bytes(b"lowft")
            probe.unlink()
        except OSError as error:
            raise CheckpointError(
                f"output_dir={str(self.folder)!r} cannot be written ({error}); choose another folder"
            ) from error
        self._clear_leftovers()
        if resuming or not self.steps():
            return
        if not overwrite:
            raise CheckpointError(
                f"output_dir={str(self.folder)!r} holds checkpoints of another run, up to step {self.steps()[-1]}: "
                f"continue it with fit(resume_from_checkpoint=True), choose another folder, or set "
                f"overwrite_output_dir=True to delete them"
            )
        for step in self.steps():
            shutil.rmtree(self.path(step))

    def _clear_leftovers(self) -> None:
        """Remove what a process that was killed while saving left; a checkpoint it had moved aside comes back."""
        for path in list(self.folder.iterdir()):
            match = _LEFTOVER.fullmatch(path.name)
            if match and match[2] == "replaced" and not (self.folder / match[1]).exists():
                path.rename(self.folder / match[1])
            elif match:
                shutil.rmtree(path, ignore_errors=True)

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, in order."""
        if not self.folder.is_dir():
            return []
        matches = [_CHECKPOINT.fullmatch(path.name) for path in self.folder.iterdir()]
        return sorted(int(match[1]) for match in matches if match)

    def path(self, step: int) -> Path:
        """Return the folder of the checkpoint of a step."""
        return self.folder / f"checkpoint-{step}"

    def has(self, step: int) -> bool:
        """Return whether a step has a sound checkpoint."""
        try:
            verify_folder(self.path(step))
        except CheckpointCorruptError:
            return False
        return True

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Commit a checkpoint, and only then delete those beyond the limit.

        Args:
            step: Its step.
            write: Called with a folder to fill.

        Raises:
            CheckpointError: It could not be written; the older ones are untouched.
        """
        commit_folder(self.path(step), write)
        older = [other for other in self.steps() if other != step]
        for other in older[: max(0, len(older) + 1 - self.limit)]:
            shutil.rmtree(self.path(other), ignore_errors=True)
        return self.path(step)

    def newest(self, *, optional: Collection[str] = ()) -> Path:
        """Return the newest checkpoint that verifies; each damaged one that is passed over is a warning.

        Args:
            optional: Files that may be missing or damaged.

        Raises:
            CheckpointError: There is none.
            CheckpointCorruptError: There are some, and all are damaged.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError(
                f"{self.folder} holds no checkpoint to resume from: start the run with "
                f"fit(resume_from_checkpoint=False), or give the folder of the run that was stopped"
            )
        failures = []
        for step in reversed(steps):
            try:
                verify_folder(self.path(step), optional=optional)
            except CheckpointCorruptError as error:
                failures.append(str(error))
                warnings.warn(f"skipping a damaged checkpoint: {error}", stacklevel=2)
            else:
                return self.path(step)
        raise CheckpointCorruptError(f"every checkpoint in {self.folder} is damaged: {'; '.join(failures)}")


def _write_manifest(folder: Path, unlisted: Collection[str]) -> None:
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            _flush(path)
            name = path.relative_to(folder).as_posix()
            if name not in unlisted:
                files[name] = _digest(path)
    manifest = folder / MANIFEST
    # Without spaces: then every byte of the file matters, and any flipped one is found.
    manifest.write_text(json.dumps({"format": _FORMAT, "files": files}, separators=(",", ":")), "utf-8")
    _flush(manifest)
    _flush(folder)


def _check_unlisted(folder: Path, listed: Collection[str]) -> None:
    """Refuse what would be read although the manifest does not vouch for it; notes and the like may lie there."""
    for path in sorted(folder.iterdir()):
        if path.name in listed or path.name == MANIFEST:
            continue
        if path.is_symlink():
            raise CheckpointCorruptError(f"{path} is a symbolic link; only real files are read")
        if path.suffix in _READ:
            raise CheckpointCorruptError(f"{path} is not listed in {MANIFEST}: take it out of the folder")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Have the system write a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
