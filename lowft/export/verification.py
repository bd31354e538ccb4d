"""An exported folder, loaded again in a fresh process, must answer as the model in memory does."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from lowft._fresh import ProcessError, run_fresh
from lowft._placement import device_of
from lowft.checkpoint import model_tensors, read_tensors
from lowft.errors import CheckpointError, LowftError
from lowft.export.folder import read_folder
from lowft.models.loading import weights_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from lowft.data.rows import Rows
    from lowft.predictor import Predictor

__all__ = ["Verify", "verify_export"]

Verify = Literal["process", "here"]

# Graphs compute in another order, and round activations in their own way: how far the logits may be from those of
# PyTorch, as the root mean square of the difference over that of the logits themselves.
_BOUNDS = {"float32": 1e-4, "float16": 0.02, "int8": 0.5}


def verify_export(
    folder: Path, predictor: Predictor, sample: Rows, *, runtime: str, precision: str, verify: Verify
) -> None:
    """Load a folder and compare its logits with those of the model it was written from.

    PyTorch must give the same bits. A graph may differ: in float32 by 1e-4, in float16 by 0.02 and in int8 by half of
    the logits' root mean square.

    Args:
        folder: The folder, still without a manifest.
        predictor: The model in memory.
        sample: Rows to compare on.
        runtime: The format of the folder.
        precision: Of its weights.
        verify: "process" loads it in a fresh process, "here" in this one.

    Raises:
        CheckpointError: It does not load, or answers otherwise.
    """
    name = type(predictor.model).__name__
    if runtime == "safetensors" and not _is_transformers(folder):
        # Only its author can make the module anew: what was written is compared with what is in memory.
        written = read_tensors(weights_of(folder))
        tensors = model_tensors(predictor.model)
        if not all(torch.equal(tensor.cpu(), written[key]) for key, tensor in tensors.items()):
            raise _differs(name)
        return
    texts = {"text": list(sample.texts)} | ({"text_pair": list(sample.pairs)} if sample.pairs is not None else {})
    expected = predictor.predict_logits(texts)
    device = device_of(predictor.model) if runtime == "safetensors" else torch.device("cpu")
    settings = {
        "device": str(device), "batch_size": predictor.batch_size, "precision": predictor.precision,
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    try:
        ask = _logits_elsewhere if verify == "process" else _logits
        answered = ask(folder, texts, settings)
    except LowftError as error:
        raise CheckpointError(f"the exported {name} does not load again, so it was not exported: {error}") from error
    if runtime == "safetensors":
        if not np.array_equal(answered, expected):
            raise _differs(name)
        return
    spread = max(float(np.sqrt(np.mean(expected.astype(np.float64) ** 2))), 1e-6)
    distance = float(np.sqrt(np.mean((answered.astype(np.float64) - expected) ** 2))) / spread
    if not distance <= _BOUNDS[precision]:  # NaN too
        raise CheckpointError(
            f"the graph of this {name} was not exported: its logits are {distance:.2g} of their own size away from "
            f"PyTorch's, and {precision} may be {_BOUNDS[precision]:g} away. Leave layers in float with keep=[...] "
            f"(lowft.quantization_sensitivity names them), or choose another precision"
        )


def _differs(name: str) -> CheckpointError:
    return CheckpointError(
        f"the exported {name} does not reload to the same logits, so it was not exported: its shape or weights are not "
        f"what its config says. Export the model that the Trainer holds, unchanged"
    )


def _is_transformers(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _logits(folder: Path, texts: Any, settings: dict[str, Any]) -> npt.NDArray[np.float32]:
    device = torch.device(settings["device"])
    how = {key: settings[key] for key in ("batch_size", "precision", "threads")}
    return read_folder(folder, device=device, **how).predict_logits(texts)


def _logits_elsewhere(folder: Path, texts: Any, settings: dict[str, Any]) -> npt.NDArray[np.float32]:
    """Return the logits that a process gives which knows nothing but the folder."""
    with tempfile.TemporaryDirectory() as place:
        question, answer = Path(place, "question.json"), Path(place, "answer.npy")
        question.write_text(json.dumps([str(folder), texts, settings]), "utf-8")
        try:
            run_fresh("lowft.export.verification", question, answer)
        except ProcessError as error:
            raise CheckpointError(f"a fresh process could not read it: {error}") from error
        loaded: npt.NDArray[np.float32] = np.load(answer, allow_pickle=False)
        return loaded


def main(question: str, answer: str) -> None:
    """Answer for a parent process: read a folder, and write the logits of its texts."""
    folder, texts, settings = json.loads(Path(question).read_text("utf-8"))
    torch.set_num_threads(settings["threads"])
    np.save(answer, _logits(Path(folder), texts, settings), allow_pickle=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
