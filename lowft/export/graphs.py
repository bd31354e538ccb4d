"""From a PyTorch model to a graph that ONNX Runtime or OpenVINO runs, in floats or with its integers."""

from __future__ import annotations

import ast
import contextlib
import copy
import io
import logging
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from lowft._inference import logits_of
from lowft.compress.quantized_layers import QuantizedLinear
from lowft.errors import CheckpointError, MissingExtraError
from lowft.models.first_token import FirstToken
from lowft.models.layers import layers_if_any

if TYPE_CHECKING:
    import onnx

__all__ = ["GRAPHS", "Precision", "write_onnx", "write_openvino"]

Precision = Literal["float32", "float16", "int8"]

GRAPHS = {"onnx": "model.onnx", "openvino": "model.xml"}  # the file of each format

_NOISY = ("torch.onnx", "onnxscript", "onnx_ir", "root", "nncf", "torch.export")


def write_onnx(path: Path, model: nn.Module, inputs: Mapping[str, Tensor], precision: Precision) -> None:
    """Write an ONNX graph that takes any number of rows and tokens and gives `logits`.

    With "int8" the linear layers that hold integers in `model` become products of the same integers with eight-bit
    activations, one scale for each activation tensor, as ONNX Runtime computes it; its embeddings keep theirs.

    Args:
        path: The file to write.
        model: The model; it is left as it is.
        inputs: Two rows or more, of two tokens or more, by the names of the model's inputs.
        precision: Of the graph. "int8" needs a model that `quantize_` changed with scheme "int8".

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is missing.
        CheckpointError: The exporter cannot translate this architecture.
    """
    onnx = _import("onnx", "onnx")
    for package in ("onnxscript", "onnxruntime"):
        _import(package, "onnx")
    held = {name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    wrapper = _LogitsOnly(_with_float_layers(model), tuple(inputs))
    if precision == "float16":
        wrapper.half()
    with _quiet(), torch.no_grad():
        graph = _translate(wrapper, inputs, integers=precision == "int8")
        floats = _nodes_outside(graph, held)
        _strip(graph)
        if precision == "int8":
            from onnxruntime.quantization import QuantType, quantize_dynamic

            with tempfile.TemporaryDirectory() as folder:
                whole = Path(folder, "model.onnx")
                onnx.save(graph, whole)
                quantize_dynamic(
                    whole,
                    path,
                    op_types_to_quantize=["MatMul", "Gemm"],
                    nodes_to_exclude=floats,
                    weight_type=QuantType.QInt8,
                    per_channel=True,
                )
        else:
            onnx.save(graph, path)


def write_openvino(
    path: Path,
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    precision: Precision,
    calibration: Sequence[Mapping[str, Tensor]],
) -> None:
    """Write an OpenVINO graph: `path`, which ends in .xml, and a .bin beside it.

    With "int8" activations get fixed ranges, measured on the calibration batches (NNCF's post-training quantization).

    Args:
        path: The file to write.
        model: The model; it is left as it is.
        inputs: As for `write_onnx`.
        precision: Of the graph.
        calibration: Batches like those that the model will meet, for "int8".

    Raises:
        MissingExtraError: openvino, or what it needs, is missing.
        CheckpointError: The exporter cannot translate this architecture.
    """
    openvino = _import("openvino", "openvino")
    nncf = _import("nncf", "openvino")
    onnx = _import("onnx", "onnx")
    held = {name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    with _quiet(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        wrapper = _LogitsOnly(_with_float_layers(model), tuple(inputs))
        graph = _translate(wrapper, inputs, integers=precision == "int8")
        floats = _nodes_outside(graph, held)
        _strip(graph)
        whole = Path(folder, "model.onnx")
        onnx.save(graph, whole)
        found = openvino.convert_model(whole)
        if precision == "int8":
            rows = [{name: tensor.numpy() for name, tensor in batch.items()} for batch in calibration]
            with contextlib.redirect_stdout(io.StringIO()):  # its bars know no other way to be silent
                found = nncf.quantize(
                    found,
                    nncf.Dataset(rows),
                    model_type=nncf.ModelType.TRANSFORMER,
                    subset_size=len(rows),
                    ignored_scope=nncf.IgnoredScope(names=floats, validate=False),
                    advanced_parameters=nncf.AdvancedQuantizationParameters(
                        # It would move scales from activations into weights, which then had other integers.
                        smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=-1, convolution=-1),
                    ),
                )
        openvino.save_model(found, path, compress_to_fp16=precision == "float16")


class _LogitsOnly(nn.Module):
    """A model whose forward takes tensors in a fixed order and returns the logits alone."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *values: Tensor) -> Tensor:
        """Return the logits."""
        return logits_of(self.model(**dict(zip(self.names, values, strict=True))))


def _with_float_layers(model: nn.Module) -> nn.Module:
    """Return a copy in float32 on the CPU, whose linear layers are plain ones with the values of their integers."""
    copied = copy.deepcopy(model).to("cpu").eval()
    if hasattr(copied, "set_attn_implementation"):
        # The fused kernel becomes a graph with checks for rows without a token, which takes an eighth longer.
        copied.set_attn_implementation("eager")  # type: ignore[operator]
    for name, module in list(copied.named_modules()):
        if isinstance(module, QuantizedLinear):
            plain = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            plain.weight = nn.Parameter(module.float_weight())
            plain.register_parameter("bias", module.bias)
            copied.set_submodule(name, plain)
    return copied.float()


def _translate(wrapper: _LogitsOnly, inputs: Mapping[str, Tensor], *, integers: bool) -> onnx.ModelProto:
    """Return the graph of what the logits are made of; for integers, with a product for each linear layer."""
    sizes = tuple({0: "batch", 1: "tokens"} for _ in inputs)
    examples = {name: tensor.cpu() for name, tensor in inputs.items()}
    top = FirstToken.find(wrapper.model.eval(), layers_if_any(wrapper.model), examples)
    try:
        with contextlib.nullcontext() if top is None else top.alone(folded=not integers):
            program = torch.onnx.export(
                wrapper.eval(),
                tuple(examples.values()),
                dynamo=True,
                verbose=False,
                input_names=list(inputs),
                output_names=["logits"],
                dynamic_shapes=(sizes,),
            )
    except Exception as error:  # each architecture fails in its own way
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"torch.onnx cannot translate this {type(wrapper.model).__name__}, so it was not exported: "
            f"{reason[:300]}. Export it with format='safetensors'"
        ) from error
    assert program is not None  # noqa: S101 - None only where a file is asked for
    graph: onnx.ModelProto = program.model_proto
    return graph


def _nodes_outside(graph: onnx.ModelProto, modules: Collection[str]) -> list[str]:
    """Return the names of the matrix products that come from other modules, as either quantizer will call them.

    ONNX Runtime makes a product and a sum of each Gemm, and OpenVINO too, which calls the product by what it gives.
    """
    found: list[str] = []
    weights = {weight.name for weight in graph.graph.initializer}
    for node in graph.graph.node:
        scopes = [entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"]
        names = {str(name).removeprefix("model.") for scope in scopes for name in ast.literal_eval(scope)}
        if node.op_type == "Gemm" and not names & set(modules):
            given = node.output[0]
            found += [node.name, f"{node.name}_MatMul", f"{node.name}/WithoutBiases", given, f"{given}/WithoutBiases"]
        elif node.op_type == "MatMul" and weights & set(node.input) and not names & set(modules):
            found.append(node.name)
    return found


def _strip(graph: onnx.ModelProto) -> None:
    """Take out the traces of where the graph was made: paths of this machine, and line after line of source."""
    for holder in (graph, graph.graph, *graph.graph.node, *graph.graph.value_info, *graph.graph.initializer):
        del holder.metadata_props[:]
        holder.doc_string = ""
    for function in graph.functions:
        for node in function.node:
            del node.metadata_props[:]
            node.doc_string = ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' remarks on what they do to themselves; errors still come through."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _import(package: str, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError.of(package, extra, f"export(format={extra!r})") from error
