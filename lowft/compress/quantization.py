"""Float weights to low-precision integers, in place, on any model, and which layers suffer from it."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from lowft._progress import progress_bar
from lowft._settings import check_choice, check_flag
from lowft._tables import format_table, html_table, human_bytes
from lowft.checkpoint import model_tensors
from lowft.compress.quantized_layers import (
    FakeQuantization,
    QuantizedEmbedding,
    QuantizedLinear,
    Scheme,
    can_be_quantized,
    fake_quantize_,
    quantized_layer,
    undo_fake_quantization_,
)
from lowft.compress.structure import record_, structure_of
from lowft.errors import ConfigError, ModelError
from lowft.models._trace import used_by_others
from lowft.models.trainable import similar

__all__ = [
    "QuantizationReport",
    "SensitivityTable",
    "check_quantization",
    "layers_to_quantize",
    "quantization_sensitivity",
    "quantize_",
    "rebuild_quantized_",
    "scheme_of",
]

_KIND = "quantized"


@dataclass(frozen=True)
class QuantizationReport:
    """What was quantized, and what that saves.

    Attributes:
        scheme: How.
        quantized: Names of the layers with integers.
        kept: Names of linear layers and embeddings that are still floats.
        bytes_before: Bytes of all tensors of the model before.
        bytes_after: Bytes now.

    >>> print(QuantizationReport("int8", ("query", "key"), ("classifier",), 4_000_000, 1_030_000))
    int8: 2 layers quantized, 1 kept in float (classifier)
    4.00 MB before, 1.03 MB after (26 %)
    """

    scheme: str
    quantized: tuple[str, ...]
    kept: tuple[str, ...]
    bytes_before: int
    bytes_after: int

    def __str__(self) -> str:
        """Return two lines."""
        kept = f"{', '.join(self.kept[:5])}{', …' if len(self.kept) > 5 else ''}"
        return (
            f"{self.scheme}: {len(self.quantized)} layers quantized, {len(self.kept)} kept in float"
            f"{f' ({kept})' if kept else ''}\n{human_bytes(self.bytes_before)} before, {human_bytes(self.bytes_after)} "
            f"after ({100 * self.bytes_after / self.bytes_before:.0f} %)"
        )


def quantize_(
    model: nn.Module, scheme: Scheme = "int8", *, keep: Sequence[str] = (), embeddings: bool = True
) -> QuantizationReport:
    """Put low-precision integers in place of a model's float weights.

    "int8" rounds weights with one scale for each output channel (each row of an embedding) and activations with one for
    each token, at the time they come; "int8_weight_only" and "int4_weight_only" (one scale for 32 inputs) leave
    activations alone; "bfloat16" only shortens every weight. All are symmetric: see Jacob et al. 2018
    (https://arxiv.org/abs/1712.05877) for the arithmetic, Yao et al. 2022 (https://arxiv.org/abs/2206.01861) for scales
    by token.

    The model is a fourth of its size, or an eighth, in memory and on disk. In PyTorch it is no faster, since PyTorch
    multiplies floats here; exported to ONNX or OpenVINO the same integers are multiplied as such, which is.

    Args:
        model: Any model; it is changed in place, and can no longer be trained.
        scheme: How; see above.
        keep: Glob patterns of modules that stay in float, such as "classifier" or "bert.encoder.layer.0.*".
        embeddings: Whether embeddings are quantized too.

    Raises:
        ConfigError: An unknown scheme, or a pattern that matches nothing (near names are listed).
        ModelError: The model is quantized already, or has nothing that can be.

    >>> model = nn.Sequential(nn.Embedding(50, 32), nn.Linear(32, 32), nn.Linear(32, 2))
    >>> report = quantize_(model, "int8", keep=["2"])
    >>> report.quantized, report.kept
    (('0', '1'), ('2',))
    """
    check_quantization("quantize_", scheme=scheme, keep=keep, embeddings=embeddings)
    if scheme_of(model):
        raise ModelError(f"this {type(model).__name__} is quantized already: quantize the full-precision model")
    before = _bytes_of(model)
    chosen = layers_to_quantize(model, scheme, keep=keep, embeddings=embeddings)
    kept = tuple(name for name, module in model.named_modules() if _has_weights(module) and name not in chosen)
    if scheme == "bfloat16":
        model.to(torch.bfloat16)
        settings: Any = getattr(model, "config", None)
        if hasattr(settings, "dtype"):
            settings.dtype = torch.bfloat16
    else:
        _replace_(model, chosen, scheme)
    record_(model, _KIND, {"scheme": scheme, "layers": list(chosen)})
    return QuantizationReport(scheme, chosen, kept, before, _bytes_of(model))


def check_quantization(owner: str, *, scheme: str, keep: Sequence[str], embeddings: bool) -> None:
    """Raise a ConfigError unless the settings that `quantize_` and `Quantize` share are in their ranges."""
    check_choice(f"{owner}: scheme", scheme, get_args(Scheme))
    check_flag(f"{owner}: embeddings", embeddings)
    if isinstance(keep, str) or not all(isinstance(pattern, str) for pattern in keep):
        raise ConfigError(f"{owner}: keep must be a list of patterns of names; received {keep!r}")
    if scheme == "bfloat16" and (keep or not embeddings):
        raise ConfigError(
            f"{owner}: keep and embeddings choose layers, and scheme='bfloat16' shortens every weight: leave them out"
        )


def layers_to_quantize(model: nn.Module, scheme: Scheme, *, keep: Sequence[str], embeddings: bool) -> tuple[str, ...]:
    """Return the names of the layers that a scheme quantizes.

    Raises:
        ConfigError: A pattern matches no module.
        ModelError: There is no such layer.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    floats = {name: module for name, module in modules.items() if _has_weights(module)}
    if scheme == "bfloat16":
        return tuple(floats)
    left: set[int] = set()  # by the weight, so that a tied one is kept on both sides
    for pattern in keep:
        fits = re.compile(fnmatch.translate(pattern)).match
        found = {id(module.weight) for name, module in floats.items() if _under(name, fits)}
        if not found:
            raise ConfigError(f"keep={pattern!r} matches no linear layer or embedding.{similar(pattern, floats)}")
        left |= found
    read = used_by_others(model, floats)
    chosen = tuple(
        name
        for name, module in floats.items()
        if can_be_quantized(module)
        and id(module.weight) not in left
        and name not in read
        and (embeddings or not isinstance(module, nn.Embedding))
    )
    if not chosen:
        raise ModelError(f"this {type(model).__name__} has no linear layer or embedding that could be quantized")
    return chosen


def scheme_of(model: nn.Module) -> str | None:
    """Return how `quantize_` has changed the model; None if it has not."""
    schemes = [str(entry["plan"]["scheme"]) for entry in structure_of(model) if entry["kind"] == _KIND]
    return schemes[0] if schemes else None


def rebuild_quantized_(model: nn.Module, plan: Mapping[str, Any]) -> None:
    """Give a model of the config the layers of a plan; their integers are then still to be filled in."""
    scheme, layers = plan["scheme"], plan["layers"]
    if scheme not in get_args(Scheme) or not isinstance(layers, list):
        raise ValueError(f"not a plan of quantized layers: {scheme!r}")
    if scheme == "bfloat16":
        model.to(torch.bfloat16)
    else:
        for name in layers:
            if not can_be_quantized(model.get_submodule(name)):
                raise ValueError(f"{name} cannot be quantized")
        _replace_(model, layers, scheme)


@dataclass(frozen=True)
class SensitivityTable:
    """How much each layer's quantization alone changes what a model answers; the worst layer first.

    Attributes:
        scheme: How layers were quantized.
        changes: By layer, the root mean square of the change of the logits, in units of their own spread.
        flips: By layer, the share of rows whose highest logit is another one.

    >>> print(SensitivityTable("int8", {"query": 0.004, "output": 0.21}, {"query": 0.0, "output": 0.03}))
    layer   change of logits  answers changed
    ------  ----------------  ---------------
    output             0.210            3.0 %
    query              0.004            0.0 %
    """

    scheme: str
    changes: Mapping[str, float]
    flips: Mapping[str, float]

    def __str__(self) -> str:
        """Return the table."""
        return format_table(*self._table(), align="lrr")

    def _repr_html_(self) -> str:
        return html_table(*self._table(), align="lrr")

    def worst(self, count: int) -> list[str]:
        """Return the names of the layers that suffer most, worst first: what to leave in float with `keep`."""
        return sorted(self.changes, key=lambda name: -self.changes[name])[:count]

    def _table(self) -> tuple[list[str], list[list[str]]]:
        rows = [
            [name, f"{self.changes[name]:.3f}", f"{100 * self.flips[name]:.1f} %"]
            for name in self.worst(len(self.changes))
        ]
        return ["layer", "change of logits", "answers changed"], rows


def quantization_sensitivity(
    model: nn.Module,
    predict: Callable[[nn.Module], Any],
    scheme: Scheme = "int8",
    *,
    progress: bool | None = None,
) -> SensitivityTable:
    """Quantize one layer at a time, and measure what that does to the model's answers; the model stays as it is.

    It needs no labels: the answers are compared with the model's own.

    Args:
        model: A float model.
        predict: Called with the model; returns its logits, `[rows, outputs]`, for the same rows each time.
        scheme: How to quantize: any but "bfloat16".
        progress: Whether to show a progress bar; None decides by the terminal.

    Raises:
        ConfigError: An unknown scheme.
        ModelError: The model is quantized already, or has nothing that can be.

    >>> model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 2))
    >>> table = quantization_sensitivity(model, lambda model: model(torch.eye(32)).detach(), progress=False)
    >>> sorted(table.changes)
    ['0', '1']
    """
    check_choice("quantization_sensitivity: scheme", scheme, [name for name in get_args(Scheme) if name != "bfloat16"])
    if scheme_of(model):
        raise ModelError(f"this {type(model).__name__} is quantized already: measure the full-precision model")
    chosen = layers_to_quantize(model, scheme, keep=(), embeddings=True)
    reference = np.asarray(predict(model), dtype=np.float64)
    spread = max(float(reference.std()), 1e-12)
    how = FakeQuantization(scheme)
    changes, flips = {}, {}
    for name in progress_bar(chosen, "quantizing each layer alone", shown=progress, leave=False):
        module = model.get_submodule(name)
        fake_quantize_(module, how)
        try:
            logits = np.asarray(predict(model), dtype=np.float64)
        finally:
            undo_fake_quantization_(module)
        changes[name] = float(np.sqrt(np.mean((logits - reference) ** 2))) / spread
        flips[name] = float(np.mean(logits.argmax(axis=1) != reference.argmax(axis=1)))
    return SensitivityTable(scheme, changes, flips)


def _replace_(model: nn.Module, names: Collection[str], scheme: Scheme) -> None:
    """Put layers with integers in the place of these; what shares a weight shares the integers."""
    layers: dict[int, nn.Module] = {}
    for name in names:
        module: Any = model.get_submodule(name)
        first = layers.get(id(module.weight))
        layer = quantized_layer(module, scheme)
        if isinstance(first, QuantizedEmbedding | QuantizedLinear) and isinstance(
            layer, QuantizedEmbedding | QuantizedLinear
        ):
            layer.weight, layer.scale = first.weight, first.scale
        layers.setdefault(id(module.weight), layer)
        layer.train(module.training)
        model.set_submodule(name, layer)


def _has_weights(module: nn.Module) -> bool:
    return can_be_quantized(module) or isinstance(module, nn.Linear | nn.Embedding)


def _under(name: str, fits: Callable[[str], Any]) -> bool:
    """Say whether a pattern fits a module or one that holds it."""
    parts = name.split(".")
    return any(fits(".".join(parts[:count])) for count in range(1, len(parts) + 1))


def _bytes_of(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in model_tensors(model).values())
