"""A run and its checkpoints: made ready, saved by the main process, resumed by all."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowft._optimization import load_optimizer_, optimizer_tensors
from lowft.checkpoint import (
    Checkpoints,
    load_tensors_,
    model_tensors,
    read_json,
    read_tensors,
    verify_folder,
    write_json,
    write_tensors,
)
from lowft.errors import CheckpointCorruptError, CheckpointMismatchError
from lowft.history import History
from lowft.results import Kept

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lowft._placement import Placement
    from lowft.loop import Loop

__all__ = ["RunFolder"]

_MAY_START_AFRESH = "optimizer.safetensors"
_BEFORE_TRAINING = "before_training.safetensors"  # there only where the training may begin again


@dataclass(frozen=True)
class RunFolder:
    """Where a run is saved.

    Args:
        checkpoints: The checkpoints in its folder.
        loop: The run.
        placement: The processes that take part in it.
        identity: What must agree between this run and one that it resumes.
    """

    checkpoints: Checkpoints
    loop: Loop
    placement: Placement
    identity: dict[str, Any]

    def prepare(self, *, overwrite: bool = False, resuming: bool = False) -> None:
        """Make the folder ready before the first step.

        Raises:
            CheckpointError: It cannot be written, or holds another run.
        """
        self.placement.on_main(lambda: self.checkpoints.prepare(overwrite=overwrite, resuming=resuming))

    def save(self) -> Path:
        """Save the run where it is.

        Raises:
            CheckpointError: It could not be written, which every process hears of.
        """
        step, began = self.loop.attached.state.step, time.perf_counter()
        self.placement.on_main(lambda: self.checkpoints.save(step, self._write))
        self.loop.limit.count_saving(time.perf_counter() - began)
        return self.checkpoints.path(step)

    def save_once(self) -> Path:
        """Save the run where it is, unless that has been done."""
        step = self.loop.attached.state.step
        # What the main process sees decides, so that all of them do the same.
        if not self.placement.gather(self.checkpoints.has(step))[0]:
            self.save()
        return self.checkpoints.path(step)

    def resume(self, folder: Path | None, *, strict: bool) -> None:
        """Go on from a checkpoint: the folder given, or the newest sound one.

        Raises:
            CheckpointError: There is none, or the folder for checkpoints cannot be written.
            CheckpointMismatchError: It belongs to another run, and `strict` is set.
        """
        self.prepare(resuming=True)
        optional = () if strict else (_MAY_START_AFRESH,)
        self.read(folder or self.checkpoints.newest(optional=optional), strict=strict)

    def read(self, folder: Path, *, strict: bool) -> None:
        """Check that a checkpoint is sound and of this run, then go on from it."""
        damaged = verify_folder(folder, optional=() if strict else (_MAY_START_AFRESH,))
        differences = list(_differences(read_json(folder / "run.json"), self.identity))
        if differences:
            message = f"{folder} belongs to another run: {'; '.join(differences)}"
            if strict:
                raise CheckpointMismatchError(
                    f"{message}. Resume with what the run was started with, start a new one in another output_dir, or "
                    f"pass strict=False to go on regardless"
                )
            warnings.warn(message, stacklevel=6)
        if damaged:
            warnings.warn(f"the optimizer starts afresh: {damaged[0]}", stacklevel=6)
        _read(self.loop, folder, with_optimizer=not damaged)

    def _write(self, folder: Path) -> None:
        loop = self.loop
        values, memory = loop.attached.state_dict()
        write_tensors(folder / "model.safetensors", model_tensors(loop.attached.model))
        write_tensors(folder / _MAY_START_AFRESH, optimizer_tensors(loop.optimizer, loop.attached.model))
        write_tensors(folder / "best.safetensors", loop.kept.best)
        write_tensors(folder / "before_stage.safetensors", loop.kept.before_stage)
        if loop.kept.before_training:
            write_tensors(folder / _BEFORE_TRAINING, loop.kept.before_training)
        write_tensors(folder / "memory.safetensors", memory)
        write_json(folder / "state.json", {"attached": values, "kept": loop.kept.values()})
        (folder / "history.json").write_text(loop.history.to_json(), "utf-8")
        write_json(folder / "run.json", self.identity)


def _read(loop: Loop, folder: Path, *, with_optimizer: bool) -> None:
    """Return the run to where a verified checkpoint was written, its optimizer too or that afresh."""
    weights, memory = read_tensors(folder / "model.safetensors"), read_tensors(folder / "memory.safetensors")
    moments = read_tensors(folder / _MAY_START_AFRESH) if with_optimizer else {}
    best, before_stage = (read_tensors(folder / f"{name}.safetensors") for name in ("best", "before_stage"))
    before_training = read_tensors(folder / _BEFORE_TRAINING) if (folder / _BEFORE_TRAINING).exists() else {}
    saved = read_json(folder / "state.json")
    history = _read_history(folder / "history.json")
    try:
        kept = Kept(**saved["kept"], best=best, before_stage=before_stage, before_training=before_training)
        loop.attached.load_state_dict(saved["attached"], memory)
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointCorruptError(
            f"{folder / 'state.json'} is not what this version of lowft writes: {type(error).__name__} {error}"
        ) from error
    load_tensors_(loop.attached.model, weights, folder)
    load_optimizer_(loop.optimizer, loop.attached.model, moments)
    loop.resume(kept, history)


def _read_history(path: Path) -> History:
    try:
        return History.from_json(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointCorruptError(f"{path} is not a readable history ({error})") from error


def _differences(saved: Any, own: Any, path: str = "") -> Iterator[str]:
    """Yield each place where two JSON values differ, with both values."""
    if isinstance(saved, dict) and isinstance(own, dict):
        for key in sorted(saved.keys() | own.keys()):
            yield from _differences(saved.get(key), own.get(key), f"{path}.{key}" if path else key)
    elif saved != own:
        yield f"{path} was {saved!r} and is now {own!r}"
