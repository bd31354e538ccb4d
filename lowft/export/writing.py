"""Writing an exported folder: the model in the format asked for, its papers, and proof that both are what they say."""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from lowft._inference import compute_logits
from lowft._settings import check_choice
from lowft.checkpoint import model_tensors, write_json, write_tensors
from lowft.compress.quantization import quantization_sensitivity, quantize_, scheme_of
from lowft.compress.quantized_layers import count_weights
from lowft.compress.structure import structure_of
from lowft.data.batching import TokenizedRows, accepted_inputs
from lowft.errors import AccuracyDropError, CheckpointError, ConfigError, ModelError
from lowft.export.card import model_card
from lowft.export.folder import EXPORT_FORMAT, Format, read_folder
from lowft.export.graphs import GRAPHS, Precision, write_onnx, write_openvino
from lowft.export.verification import Verify, verify_export
from lowft.models._quiet import quiet
from lowft.models.loading import EXPORT_SETTINGS, INTEGERS, POOLED_WEIGHTS, WEIGHTS
from lowft.models.pooling import is_pooled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lowft.data.rows import Rows
    from lowft.evaluation import EvaluationReport
    from lowft.history import History
    from lowft.predictor import Predictor

__all__ = ["Export", "check_free", "choose_precision"]

_logger = logging.getLogger("lowft")

_PACKAGES = ("lowft", "torch", "transformers", "tokenizers", "safetensors")
_RUNTIME_PACKAGES = {"safetensors": (), "onnx": ("onnx", "onnxruntime"), "openvino": ("openvino", "nncf")}
_CALIBRATION = 300  # rows that give activations their ranges, as NNCF advises
_COMPARED = 8  # rows on which the folder must answer as the model does
_SENSITIVITY_ROWS = 128
_SHOWN = 5


@dataclass(frozen=True)
class Export:
    """What is to be written, and how far it may be from the model that was trained.

    Attributes:
        predictor: The trained model with its tokenizer and labels.
        unquantized: The same model in float, where a strategy has quantized it; else None.
        runtime: The format.
        precision: Of the weights, as `choose_precision` returned it.
        keep: Glob patterns of modules that stay in float, where the export quantizes.
        recipe: Strategies and settings that made the model.
        reports: What it was evaluated on.
        history: How it was trained.
        source: The checkpoint that it started from.
        revision: The revision of that checkpoint.
        rows: Training rows: to compare answers on, to trace a graph with, to calibrate it.
        held_out: Validation rows, on which accuracy is measured before and after; None where there are none.
        metric: The metric that may not drop, and whether more of it is better.
        max_drop: By how much it may; None lets anything pass.
        verify: Where the folder is loaded again.
    """

    predictor: Predictor
    unquantized: torch.nn.Module | None
    runtime: Format
    precision: str
    keep: Sequence[str]
    recipe: Mapping[str, Any]
    reports: Mapping[str, EvaluationReport]
    history: History
    source: str | None
    revision: str | None
    rows: Rows
    held_out: Rows | None
    metric: tuple[str, bool]
    max_drop: float | None
    verify: Verify

    def write(self, folder: Path) -> None:
        """Fill an empty folder, and prove that it answers as it should.

        Raises:
            AccuracyDropError: The quantized model is worse on the validation rows than it may be.
            CheckpointError: The model cannot be written, or does not load again.
            MissingExtraError: What writes the format is not installed.
        """
        model = self.predictor.model
        reference = None if self.unquantized is None else replace(self.predictor, model=self.unquantized)
        predictor = self.predictor
        if self.precision in {"int8", "bfloat16"} and scheme_of(model) is None:
            reference = predictor
            model = copy.deepcopy(model)
            quantize_(model, self.precision, keep=self.keep)  # type: ignore[arg-type] # one of the schemes
            predictor = replace(predictor, model=model)
        elif self.precision == "float16":
            reference = predictor
        if self.runtime == "safetensors":
            _write_weights(folder, model)
        else:
            self._write_graph(folder, predictor)
        predictor.tokenizer.save_pretrained(folder)
        self._write_papers(folder, model, self.reports)
        sample = self.rows.select(range(min(_COMPARED, len(self.rows))))
        verify_export(folder, predictor, sample, runtime=self.runtime, precision=self.precision, verify=self.verify)
        if reference is not None:
            measured = self._measure(folder, predictor, reference)
            self._write_papers(folder, model, {**self.reports, **measured})

    def _measure(self, folder: Path, predictor: Predictor, reference: Predictor) -> dict[str, EvaluationReport]:
        """Return both sides' figures on the validation rows, if the drop between them is allowed."""
        if self.held_out is None:
            _logger.warning("there is no eval_dataset: what quantization costs in accuracy was not measured")
            return {}
        if self.runtime != "safetensors":
            read = read_folder(folder, device=torch.device("cpu"), batch_size=predictor.batch_size)
            predictor = replace(read, progress=predictor.progress)
        before, after = reference.evaluate(self.held_out), predictor.evaluate(self.held_out)
        name, greater = self.metric
        if name not in before.metrics:  # the loss, or a metric of the caller's own
            name, greater = ("accuracy", True) if "accuracy" in before.metrics else ("mean_absolute_error", False)
        drop = (before[name] - after[name]) * (1 if greater else -1)
        if self.max_drop is not None and not drop <= self.max_drop:
            advice = ""
            with contextlib.suppress(ModelError, ConfigError):
                advice = f" {self._worst_layers(reference)}"
            raise AccuracyDropError(
                f"{name} on {len(self.held_out):,} validation rows is {before[name]:.4f} before and {after[name]:.4f} "
                f"after quantization ({self.runtime}, {self.precision}): a drop of {drop:.4f}, and max_drop is "
                f"{self.max_drop:g}. Nothing was exported.{advice} Or train with Quantize(when='stage'), or allow more "
                f"with max_drop"
            )
        return {"validation, in float": before, "validation, as exported": after}

    def _worst_layers(self, reference: Predictor) -> str:
        """Say which layers quantization hurts most."""
        assert self.held_out is not None  # noqa: S101 - asked only where accuracy was measured
        rows = self.held_out.select(range(min(_SENSITIVITY_ROWS, len(self.held_out))))
        inputs = accepted_inputs(reference.model, reference.tokenizer)
        tokenized = TokenizedRows(rows, reference.tokenizer, None, reference.max_length, inputs, progress=False)

        def predict(model: torch.nn.Module) -> Any:
            return compute_logits(model, tokenized, batch_size=reference.batch_size, progress=False)

        scheme: Any = scheme_of(self.predictor.model) or "int8"
        table = quantization_sensitivity(reference.model, predict, scheme, progress=reference.progress)
        listed = ", ".join(f"{name} ({table.changes[name]:.3f})" for name in table.worst(_SHOWN))
        return (
            f"The layers that alone change the logits most, in units of their spread: {listed}. Leave the worst in "
            f"float with keep=[...]."
        )

    def _write_graph(self, folder: Path, predictor: Predictor) -> None:
        inputs = accepted_inputs(predictor.model, predictor.tokenizer)
        rows = self.rows.select(range(min(_CALIBRATION, len(self.rows))))
        tokenized = TokenizedRows(rows, predictor.tokenizer, None, predictor.max_length, inputs, progress=False)
        longest = tokenized.lengths.argsort(kind="stable")[::-1].tolist()
        example = tokenized.collate([longest[0], longest[-1]]).inputs  # sizes of 1 would be taken for fixed
        precision: Any = self.precision
        if self.runtime == "onnx":
            write_onnx(folder / GRAPHS["onnx"], predictor.model, example, precision)
        else:
            calibration = [tokenized.collate([row]).inputs for row in range(len(rows))]
            write_openvino(folder / GRAPHS["openvino"], predictor.model, example, precision, calibration)
        if _is_pretrained(predictor.model):
            predictor.model.config.save_pretrained(folder)  # type: ignore[operator, union-attr]

    def _write_papers(self, folder: Path, model: torch.nn.Module, reports: Mapping[str, EvaluationReport]) -> None:
        """Write `lowft.json` and the card."""
        predictor = self.predictor
        packages = (*_PACKAGES, *_RUNTIME_PACKAGES[self.runtime])
        settings = {
            "format": EXPORT_FORMAT,
            "runtime": self.runtime,
            "weights": self.precision,
            "parameters": count_weights(model),
            "model_class": type(model).__name__,
            "is_transformers": _is_pretrained(model),
            "base_model": _public_name(self.source, model),
            "revision": self.revision,
            "labels": predictor.labels.to_json(),
            "takes_pairs": predictor.takes_pairs,
            "max_length": predictor.max_length,
            "precision": predictor.precision,
            "structure": structure_of(model),
            "recipe": self.recipe,
            "metrics": {name: report.to_dict() for name, report in reports.items()},
            "versions": {name: importlib.metadata.version(name) for name in packages},
        }
        write_json(folder / EXPORT_SETTINGS, settings)
        (folder / "README.md").write_text(model_card(settings, reports, self.history), "utf-8")


def check_free(target: Path, *, overwrite: bool) -> None:
    """Refuse to write where something is that was not exported, or may not be replaced.

    Raises:
        CheckpointError: Something is in the way.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    exported = target.is_dir() and (target / EXPORT_SETTINGS).is_file()
    if not (overwrite and exported):
        raise CheckpointError(
            f"{target} is there already: choose another folder"
            + (", or pass overwrite=True to replace the exported model in it" if exported else "")
        )


def choose_precision(runtime: str, precision: str | None, model: torch.nn.Module) -> str:
    """Return the precision of the weights that are exported: the one asked for, or that of the model.

    Raises:
        ConfigError: There is no such format or precision, or the model has another one already.
    """
    check_choice("export: format", runtime, get_args(Format))
    has = scheme_of(model)
    offered = ("float32", "bfloat16", "int8") if runtime == "safetensors" else get_args(Precision)
    if precision is not None:
        check_choice(f"export(format={runtime!r}): precision", precision, offered)
    if has is None:
        return precision or "float32"
    if precision not in {None, has} or (runtime != "safetensors" and has not in {"int8", "bfloat16"}):
        asked = "" if precision is None else f", precision={precision!r}"
        raise ConfigError(
            f"export(format={runtime!r}{asked}) cannot write this model, which is quantized as {has!r}: "
            + (
                f"leave precision out to write it as it is, or export it from a run without Quantize({has!r})"
                if runtime == "safetensors" or has in {"int8", "bfloat16"}
                else "a graph holds float32, float16 or int8. Use Quantize('int8'), or format='safetensors'"
            )
        )
    return "float32" if runtime != "safetensors" and has == "bfloat16" else has


def _write_weights(folder: Path, model: torch.nn.Module) -> None:
    """Write safetensors, and a config that lets plain transformers load only what it understands."""
    if _is_pretrained(model) and not structure_of(model):
        with quiet():
            model.save_pretrained(folder)  # type: ignore[operator] # a transformers model
        return
    integers = scheme_of(model) not in {None, "bfloat16"}
    floats = POOLED_WEIGHTS if is_pooled(model) else WEIGHTS
    write_tensors(folder / (INTEGERS if integers else floats), model_tensors(model))
    if _is_pretrained(model):
        model.config.save_pretrained(folder)  # type: ignore[operator, union-attr] # a transformers model


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
