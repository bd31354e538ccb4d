"""Where a run is: what hooks may read, and the memory they may write."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from lowft._placement import device_of
from lowft.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lowft.data.batching import TokenizedRows
    from lowft.stages import Stage

__all__ = ["State"]

_TENSOR = "__tensor__"


@dataclass
class State:
    """Where a run is; handed to hooks, saved with every checkpoint.

    Attributes:
        model: The model in training, never wrapped.
        stage: The stage that runs.
        stage_index: Its number, from 0.
        step: Optimizer steps done in the whole run.
        stage_step: Optimizer steps done in this stage.
        stage_steps: Optimizer steps that this stage plans; 0 where a hand-written loop has not said.
        epoch: Passes over the training rows completed in this stage.
        memory: What strategies keep between steps, by strategy name: JSON values and tensors, nested in lists and
            dictionaries. Everything in it is saved and restored; of several processes, that of the main one, so keep
            in it what all of them share.
        stages: All stages of the run, in order.
        train_rows: The tokenised training rows; None in a hand-written loop.
        eval_rows: The tokenised validation rows; None in a hand-written loop, and where there are none.
        precision: In which the model computes, "float32" or "bfloat16": for passes that a strategy makes of its own.
        tokens_per_batch: Tokens that such a pass sends through the model at once at most, as the settings say; None
            where they set no limit.
        progress: Whether such a pass shows a progress bar; None decides by the terminal.
        stage_is_ended: Whether `end_stage` was called in this stage.
        best_is_forgotten: Whether `forget_best` was called; the run resets it when it has acted on it.
        notes: What `note` was told and the run has not yet written into its history.
        tokenizer: The model's tokenizer; None where a hand-written loop has not said.

    >>> from lowft.stages import Stage
    >>> state = State(torch.nn.Linear(2, 2), Stage())
    >>> state.memory_of("Prune")["sparsity"] = 0.1
    >>> state.memory
    {'Prune': {'sparsity': 0.1}}
    """

    model: torch.nn.Module
    stage: Stage
    stage_index: int = 0
    step: int = 0
    stage_step: int = 0
    stage_steps: int = 0
    epoch: int = 0
    memory: dict[str, dict[str, Any]] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()
    train_rows: TokenizedRows | None = field(default=None, repr=False)
    eval_rows: TokenizedRows | None = field(default=None, repr=False)
    precision: str = "float32"
    tokens_per_batch: int | None = None
    progress: bool | None = None
    stage_is_ended: bool = field(default=False, init=False, repr=False)
    best_is_forgotten: bool = field(default=False, init=False, repr=False)
    notes: list[str] = field(default_factory=list, init=False, repr=False)
    tokenizer: Any = field(default=None, init=False, repr=False)
    _of_step: dict[str, dict[str, Any]] = field(default_factory=dict, init=False, repr=False)

    def forget_best(self) -> None:
        """Let no earlier weights count as the best of the run, nor be returned to.

        For a strategy that changes what the model is: weights from before a pruning step are better, and not wanted.
        """
        self.best_is_forgotten = True

    def end_stage(self) -> None:
        """Let the stage end with the step that is being made, before the steps that it planned."""
        self.stage_is_ended = True

    def note(self, message: str) -> None:
        """Have a line written into the history of the run."""
        self.notes.append(message)

    def memory_of(self, name: str) -> dict[str, Any]:
        """Return the memory of one strategy, an empty dictionary at first."""
        return self.memory.setdefault(name, {})

    def step_memory_of(self, name: str) -> dict[str, Any]:
        """Return what one strategy has noted of the micro-batches of this step, for its `before_step`.

        It is empty when a step begins, and when one begins again because memory ran out; nothing of it is saved.
        """
        return self._of_step.setdefault(name, {})

    def begin_step(self) -> None:
        """Let strategies know nothing of a step that is done, or was broken off."""
        self._of_step.clear()

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the state as a JSON object and the tensors that it refers to.

        Raises:
            ConfigError: Something in the memory is neither a JSON value nor a tensor.
        """
        tensors: dict[str, Tensor] = {}
        values = {
            "stage_index": self.stage_index,
            "step": self.step,
            "stage_step": self.stage_step,
            "epoch": self.epoch,
            "stage_is_ended": self.stage_is_ended,
            "memory": _take_tensors(self.memory, "memory", tensors),
        }
        return values, tensors

    def load_state_dict(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Set the position and the memory to those that `state_dict` returned."""
        self.stage_index = values["stage_index"]
        self.step = values["step"]
        self.stage_step = values["stage_step"]
        self.epoch = values["epoch"]
        self.stage_is_ended = values.get("stage_is_ended", False)  # checkpoints of before do not say
        self.memory = _put_tensors(values["memory"], tensors, device_of(self.model))


def _take_tensors(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Return `value` for JSON, with each tensor moved to `tensors` under its path."""
    if isinstance(value, torch.Tensor):
        key = f"{path}#{len(tensors)}"  # numbered, since a key of the memory may itself contain dots
        # A copy: two entries may view one storage, which safetensors refuses to write.
        tensors[key] = value.detach().cpu().clone().contiguous()
        return {_TENSOR: key, "on_cpu": value.device.type == "cpu"}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value) and _TENSOR not in value:
        # In one order, whether entries were made in the run or read from a checkpoint, so that the numbers agree.
        return {key: _take_tensors(item, f"{path}.{key}", tensors) for key, item in sorted(value.items())}
    if isinstance(value, list):
        return [_take_tensors(item, f"{path}.{index}", tensors) for index, item in enumerate(value)]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise ConfigError(
        f"state.{path} is a {type(value).__name__} ({value!r}), which cannot be saved: a strategy's memory holds "
        f"JSON values (text, numbers, lists, dictionaries with text keys) and tensors"
    )


def _put_tensors(value: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    """Return `value` with its tensors back; those that were beside the model on a device return there."""
    if isinstance(value, dict):
        if _TENSOR in value:
            tensor = tensors[value[_TENSOR]]
            return tensor if value["on_cpu"] else tensor.to(device)
        return {key: _put_tensors(item, tensors, device) for key, item in value.items()}
    if isinstance(value, list):
        return [_put_tensors(item, tensors, device) for item in value]
    return value
