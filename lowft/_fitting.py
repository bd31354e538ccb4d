"""What a limit on time or memory asks of a loop: the time of an evaluation, and micro-batches that fit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lowft._probing import eval_batches, longest_step, run_evaluation, run_steps, undone
from lowft._tables import human_bytes
from lowft.errors import TrainingError

if TYPE_CHECKING:
    from lowft.data.epochs import MicroBatch
    from lowft.loop import Loop

__all__ = ["fit_in_memory_", "seconds_of_evaluation"]

_EPOCHS = 3  # in which the longest batch is looked for
_EVAL_BATCHES = 3


def seconds_of_evaluation(loop: Loop) -> float:
    """Return about how many seconds an evaluation takes, by three of its batches; nothing is changed."""
    rows = loop.eval_rows
    assert rows is not None  # noqa: S101 - asked where there are some
    return run_evaluation(loop, rows, eval_batches(loop, rows.lengths, _EVAL_BATCHES), rows.lengths)


def fit_in_memory_(loop: Loop, most: int) -> str:
    """Have micro-batches and evaluation batches of the stage that begins halved until a run keeps to so many bytes.

    Args:
        loop: The run, at the start of a stage.
        most: Bytes.

    Returns:
        What was done, for the history; empty if nothing.

    Raises:
        TrainingError: One row at a time still takes more.
    """
    stage = loop.attached.state.stage
    before = (loop.kept.halvings, loop.kept.eval_halvings)
    epochs = min(_EPOCHS, math.ceil(loop.attached.state.stage_steps / loop.steps_per_epoch))
    step = longest_step(loop, loop.train_rows.lengths, epochs)
    # Of several processes, each tries its own longest batch, and the one that takes most decides for all.
    size = max(loop.placement.gather(max(len(part.indices) for part in step)))
    needed = _fitting_bytes(loop, step, most)
    while needed > most:
        if 2**loop.kept.halvings >= size:
            raise TrainingError(
                f"max_memory={most} ({human_bytes(most)}) cannot be kept in the stage {stage.name!r}: with one row "
                f"at a time it takes {human_bytes(needed)}. Train fewer layers (PartialFreeze(top=...)), lower "
                f"max_length, or allow more; trainer.plan(max_memory=...) suggests settings before the run"
            )
        loop.kept.halvings += 1
        needed = _fitting_bytes(loop, step, most)
    while loop.eval_rows is not None and loop.eval_batch_size > 1 and _evaluation_bytes(loop) > most:
        loop.kept.eval_halvings += 1
    if before == (loop.kept.halvings, loop.kept.eval_halvings):
        return ""
    return (
        f"to keep to max_memory={human_bytes(most)}, {math.ceil(size / 2**loop.kept.halvings)} rows go through the "
        f"model at a time in training, with the same rows in each optimizer step, and {loop.eval_batch_size} in "
        f"evaluations"
    )


def _fitting_bytes(loop: Loop, step: list[MicroBatch], most: int) -> int:
    """Return the bytes that the longest step takes; where memory ran out on the way, more than is allowed."""
    with undone(loop) as memory:
        memory.expect(loop, loop.evaluations)
        allowed = loop.kept.halvings
        # The first step makes the optimizer's state, the second has it beside the activations.
        run_steps(loop, loop.train_rows, [step, step])
        found = max(memory.most() or 0, (memory.while_copying() or 0) if loop.evaluations else 0)
        ran_out = loop.kept.halvings > allowed
    return int(max(loop.placement.gather(most + 1 if ran_out else found)))


def _evaluation_bytes(loop: Loop) -> int:
    with undone(loop) as memory:
        memory.expect(loop, loop.evaluations)
        seconds_of_evaluation(loop)
        found = memory.most() or 0
    return int(max(loop.placement.gather(found)))
