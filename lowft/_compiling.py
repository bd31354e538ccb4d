"""The forward pass of training, compiled: the model itself, its names and its hooks stay as they are."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from typing import Any

import torch

from lowft.errors import ConfigError

__all__ = ["check_compilable", "compiled"]

_INDUCTOR = "inductor"
_COMPILERS = {"darwin": "clang++", "win32": "cl"}  # what torch looks for; elsewhere g++


def check_compilable(backend: str, device: torch.device) -> None:
    """Make sure before the run that its forward pass can be compiled here.

    Args:
        backend: The compiler, by its name among torch's.
        device: Where the model computes.

    Raises:
        ConfigError: torch knows no such backend, or what it needs is not installed.
    """
    import torch._dynamo  # takes a second, which runs that do not compile need not spend

    known = torch._dynamo.list_backends(exclude_tags=())  # noqa: SLF001 - documented
    if backend not in known:
        raise ConfigError(
            f"TrainingConfig.torch_compile_backend must be a backend of torch.compile, here one of "
            f"{', '.join(map(repr, known))}; received {backend!r}"
        )
    if backend != _INDUCTOR:
        return
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ConfigError(
            "TrainingConfig.torch_compile=True needs the package 'triton' on a GPU: install it (pip install triton), "
            "or leave torch_compile out"
        )
    compiler = os.environ.get("CXX") or _COMPILERS.get(sys.platform, "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise ConfigError(
            f"TrainingConfig.torch_compile=True needs a C++ compiler on a CPU, and {compiler!r} was not found: install "
            f"one (on Debian and Ubuntu: apt-get install g++), name it in the environment variable CXX, or leave "
            f"torch_compile out"
        )


def compiled(model: torch.nn.Module, backend: str) -> torch.nn.Module:
    """Return a module to call in the model's place, compiled for batches of any size when it is first called.

    What torch compiled before, in this process, is forgotten: a stage may have changed the model's layers, and of each
    forward pass torch keeps only a few variants before it gives up on it.

    Args:
        model: The model, which stays as it is.
        backend: The compiler, by its name among torch's.
    """
    torch.compiler.reset()
    made: Any = torch.compile(model, backend=backend, dynamic=True)
    assert isinstance(made, torch.nn.Module)  # noqa: S101 - as what it was made of
    return made
