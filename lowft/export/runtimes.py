"""Graphs of ONNX Runtime and OpenVINO in the place of a model, so that the rest of lowft need not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowft.errors import CheckpointCorruptError, MissingExtraError
from lowft.export.graphs import GRAPHS

__all__ = ["RuntimeModel"]


class RuntimeModel(nn.Module):
    """A graph that another runtime computes; called like the model that it was made of.

    Attributes:
        runtime: "onnx" or "openvino".
        input_names: What its forward takes.
    """

    def __init__(self, folder: Path, runtime: str, *, threads: int | None = None) -> None:
        """Open the graph of a folder.

        Args:
            folder: An exported folder.
            runtime: "onnx" or "openvino".
            threads: Threads to compute with; as many as torch uses if None.

        Raises:
            MissingExtraError: The runtime is not installed.
            CheckpointCorruptError: The runtime cannot read the graph.
        """
        super().__init__()
        self.runtime = runtime
        path = folder / GRAPHS[runtime]
        threads = threads or torch.get_num_threads()
        opened = _open_onnx if runtime == "onnx" else _open_openvino
        try:
            self._compute, self.input_names = opened(path, threads)
        except (ImportError, OSError):
            raise
        except Exception as error:  # each runtime has errors of its own
            reason = " ".join(str(error).split())[:300]
            raise CheckpointCorruptError(f"{path} is no graph that {runtime} can run: {reason}") from error
        self.eval()

    def forward(self, **inputs: Tensor) -> Tensor:
        """Return the logits, float32 `[batch, outputs]`."""
        values = {name: inputs[name].numpy() for name in self.input_names}
        return torch.from_numpy(self._compute(values)).float()


def _open_onnx(path: Path, threads: int) -> tuple[Any, tuple[str, ...]]:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError.of("onnxruntime", "onnx", "a folder exported with format='onnx'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = tuple(value.name for value in session.get_inputs())
    return (lambda values: session.run(None, values)[0]), names


def _open_openvino(path: Path, threads: int) -> tuple[Any, tuple[str, ...]]:
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError.of("openvino", "openvino", "a folder exported with format='openvino'") from error
    # Without the hint it computes in bfloat16 where the processor can, and answers depend on the machine.
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    names = tuple(value.any_name for value in compiled.inputs)
    return (lambda values: compiled(values)[0].copy()), names
