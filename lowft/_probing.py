"""A few real steps and evaluations of a run, measured and then undone: what plans and limits are made from."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from lowft._inference import evaluation_mode, kept_modes, logits_of_rows
from lowft._peak import PeakMemory, size_of
from lowft._randomness import seeded
from lowft._step import train_step
from lowft.checkpoint import model_tensors
from lowft.data.epochs import epoch_batches, longest_first
from lowft.history import History

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from lowft.data.batching import TokenizedRows
    from lowft.data.epochs import MicroBatch
    from lowft.loop import Loop

__all__ = ["Memory", "eval_batches", "longest_step", "run_evaluation", "run_steps", "tokens_of", "undone"]

_Steps = list[list["MicroBatch"]]


@dataclass
class Memory:
    """Measures what a run would hold at its most, by what its probe held.

    Args:
        meter: Measures the device.
        copied: Bytes of the copies by which the probe is undone, which the run does not make.
        weights: Bytes of one copy of what trains, where such copies are made in the memory that is measured.
        copies: How many of those the run will hold in this stage, and the probe does not.
    """

    meter: PeakMemory
    copied: int
    weights: int
    copies: int = 0

    def most(self) -> int | None:
        """Return the bytes at the peak since the meter was restarted."""
        return self._of_run(self.meter.bytes)

    def while_copying(self) -> int | None:
        """Return the bytes while the next best weights are copied, the last still there, beside what is in use now."""
        return self._of_run(self.meter.now, 1)

    def expect(self, loop: Loop, evaluations: int) -> None:
        """Learn which copies of weights the run will hold in the stage that the loop is in."""
        rolls_back = any(gate.may_roll_back for gate in loop.attached.state.stage.gates)
        keeps_best = loop.eval_rows is not None and loop.config.load_best_model_at_end
        after_others = evaluations > 1 or loop.attached.state.stage_index > 0
        self.copies = (keeps_best and after_others and not loop.kept.best) + (rolls_back and not loop.kept.before_stage)
        self.copies += loop.kept.restarts < loop.config.restarts and not loop.kept.before_training

    def _of_run(self, measured: int | None, more: int = 0) -> int | None:
        return None if measured is None else measured - self.copied + (self.copies + more) * self.weights


@contextlib.contextmanager
def undone(loop: Loop) -> Iterator[Memory]:
    """Let a block train with the loop at the start of a stage; afterwards all is as it was.

    Weights, buffers, what trains, modes, the position, the strategies' memory and what they have put on the model,
    history, settings and random streams are put back. The optimizer has no state at the start of a stage, and has none
    afterwards.
    """
    attached, model, state = loop.attached, loop.attached.model, loop.attached.state
    named = dict(model.named_parameters())
    tensors = [named[name] for name in sorted(attached.trained) if name in named] + list(model.buffers())
    saved = [tensor.detach().to("cpu", copy=True) for tensor in tensors]
    flags = [(parameter, parameter.requires_grad) for parameter in named.values()]
    notes = [(note, dict(vars(note))) for note in vars(model).values() if dataclasses.is_dataclass(note)]
    position, memory = dict(vars(state)), copy.deepcopy(state.memory)
    run, own = dict(vars(loop)), dict(vars(attached))
    loop.history, loop.kept = History(), dataclasses.replace(loop.kept, measured=dict(loop.kept.measured))
    on_cpu = loop.placement.device.type == "cpu"
    weights = size_of(model_tensors(model, attached.trained).values()) if on_cpu else 0
    try:
        with kept_modes(model), seeded(loop.config.seed):
            yield Memory(PeakMemory(loop.placement.device), size_of(saved) if on_cpu else 0, weights)
    finally:
        model.zero_grad(set_to_none=True)
        loop.optimizer.state.clear()
        with torch.no_grad():
            for tensor, value in zip(tensors, saved, strict=True):
                tensor.copy_(value)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for note, attributes in notes:
            vars(note).clear()
            vars(note).update(attributes)
        vars(state).update(position)
        state.memory = memory
        vars(attached).update(own)
        vars(loop).update(run)


def tokens_of(step: Sequence[MicroBatch], lengths: npt.NDArray[np.int64]) -> int:
    """Return the tokens, padding included, of an optimizer step."""
    return sum(len(part.indices) * int(lengths[list(part.indices)].max()) for part in step)


def longest_step(loop: Loop, lengths: npt.NDArray[np.int64], epochs: int) -> list[MicroBatch]:
    """Return the step of these epochs whose largest micro-batch has the most tokens."""
    steps = [step for epoch in range(epochs) for step in loop.plan_epoch(epoch, lengths)]
    return max(steps, key=lambda step: max(tokens_of([part], lengths) for part in step))


def run_steps(loop: Loop, rows: TokenizedRows, steps: _Steps) -> list[float]:
    """Make optimizer steps with these micro-batches, and return the seconds of each."""
    state, config, strategy = loop.attached.state, loop.config, loop.attached.strategy
    found = []
    began = time.perf_counter()
    for parts, batches in epoch_batches(
        rows,
        steps,
        seed=(config.seed, state.stage_index, 0),
        transform=strategy.on_examples if strategy.strategies else None,
    ):
        collated = list(batches)
        if config.dataloader_num_workers:
            began = time.perf_counter()  # workers collate while the step before is made
        train_step(loop, parts, iter(collated))
        _wait(loop)
        found.append(time.perf_counter() - began)
        began = time.perf_counter()
    return found


def eval_batches(loop: Loop, lengths: npt.NDArray[np.int64], most: int) -> list[npt.NDArray[np.int64]]:
    """Return so many of the batches in which rows of these lengths are evaluated: the longest, and a spread."""
    batches = longest_first(lengths, loop.eval_batch_size, loop.eval_tokens)
    return [batches[index] for index in sorted({round(place) for place in np.linspace(0, len(batches) - 1, most)})]


def run_evaluation(
    loop: Loop, rows: TokenizedRows, batches: Sequence[npt.NDArray[np.int64]], lengths: npt.NDArray[np.int64]
) -> float:
    """Put some batches of an evaluation through the model; return the seconds of the whole one.

    Args:
        loop: The run.
        rows: Where the batches' rows are.
        batches: Indices into `rows`.
        lengths: Tokens of each row of the whole evaluation.
    """
    model = loop.attached.model
    began = time.perf_counter()
    with evaluation_mode(model):
        for indices in batches:
            logits_of_rows(model, rows, indices, precision=loop.kept.precision, serving=loop.serving)
    _wait(loop)
    seconds = time.perf_counter() - began
    whole = sum(_padded(lengths, batch) for batch in longest_first(lengths, loop.eval_batch_size, loop.eval_tokens))
    return seconds * whole / sum(_padded(rows.lengths, batch) for batch in batches) / loop.placement.processes


def _padded(lengths: npt.NDArray[np.int64], indices: npt.NDArray[np.int64]) -> int:
    return len(indices) * int(lengths[indices].max())


def _wait(loop: Loop) -> None:
    """Wait for a GPU, whose work is otherwise still to be done when a call returns."""
    if loop.placement.device.type == "cuda":
        torch.cuda.synchronize(loop.placement.device)
