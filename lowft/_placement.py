"""Where a run computes: device, processes, and what they must tell each other. Accelerate finds it out."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lowft.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

__all__ = ["Placement", "device_of", "find_placement", "gather", "process_share"]

# What `accelerate launch` tells its processes, and of what.
_DIVIDES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}


@dataclass(frozen=True)
class Placement:
    """The device of this process, and the processes of the run.

    Attributes:
        device: Where model and batches go.
        processes: How many processes train together.
        rank: This process's number; 0 writes files and shows progress.
    """

    device: torch.device
    processes: int = 1
    rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the module to call in training; wrapped anew at each stage, since DDP fixes what it reduces."""
        if self.processes == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        # A classifier may leave a pooler of its body unused, which DDP must look for.
        return torch.nn.parallel.DistributedDataParallel(model, device_ids=ids, find_unused_parameters=True)

    def exchange(self, module: torch.nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        """Return the context of a backward pass: gradients are exchanged in the last one of a step only."""
        if last or not isinstance(module, torch.nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        return module.no_sync()

    def gather(self, value: object) -> list[Any]:
        """Return every process's value, in order of rank."""
        return [value] if self.processes == 1 else gather(value)

    def on_main(self, act: Callable[[], object]) -> None:
        """Let the main process act while the others wait; if it fails, every process raises, so that none waits on.

        Raises:
            CheckpointError: The main process failed; there, its own error is raised.
        """
        failure: Exception | None = None
        if self.is_main:
            try:
                act()
            except Exception as error:  # noqa: BLE001 - raised below, once the others know
                failure = error
        told = self.gather(None if failure is None else str(failure))[0]
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # in a circle with its traceback, it would keep files open that the caller closed
        if told is not None:
            raise CheckpointError(f"the main process failed: {told}")


def device_of(model: torch.nn.Module) -> torch.device:
    """Return where a model's parameters are; without any, as the graph of a runtime is, it computes on the CPU."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def process_share() -> tuple[int, int]:
    """Return this process's number and how many train together, for what has no `Placement` at hand.

    >>> process_share()
    (0, 1)
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def gather(value: object) -> list[Any]:
    """Return every process's value, in order of rank; all must call it, and each gives something that pickles.

    >>> gather(7)
    [7]
    """
    _, processes = process_share()
    if processes == 1:
        return [value]
    values: list[Any] = [None] * processes
    torch.distributed.all_gather_object(values, value)
    return values


def find_placement(device: str | None) -> Placement:
    """Return where to compute: the device asked for, or the one that Accelerate chooses.

    Raises:
        ConfigError: The device does not exist here, or Accelerate is to divide the model among processes.
    """
    from accelerate import PartialState

    for variable, method in _DIVIDES.items():
        if os.environ.get(variable, "false").lower() in {"1", "true", "yes"}:
            raise ConfigError(
                f"Accelerate is set to divide the model among processes with {method} ({variable}="
                f"{os.environ[variable]}), which lowft cannot: its strategies, its optimizer and its checkpoints know "
                f"each weight whole, by its name. Start the processes with torchrun, or with accelerate launch "
                f"--multi_gpu, where each holds the whole model; to make it fit, train fewer layers "
                f"(PartialFreeze(top=...)), or set optim='adamw_8bit', gradient_checkpointing=True, or tokens_per_batch"
            )
    state = PartialState(cpu=device == "cpu")  # one for the whole process: later calls return the first
    if device is None:
        return Placement(state.device, state.num_processes, state.process_index)
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"TrainingConfig.device={device!r} cannot be used here: {error}") from error
    return Placement(chosen, state.num_processes, state.process_index)
