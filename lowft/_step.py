"""One optimizer step: its micro-batches, the gradient, and what to do where memory or numbers run out."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from lowft._inference import autocast, logits_of
from lowft._memory import is_out_of_memory, release_memory
from lowft._optimization import set_learning_rates_
from lowft._randomness import seeded
from lowft._task_loss import label_weights, task_loss
from lowft.data.epochs import halved
from lowft.errors import NonFiniteError, TrainingError
from lowft.strategy import Strategy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from lowft.data.batching import Batch
    from lowft.data.epochs import MicroBatch
    from lowft.loop import Loop
    from lowft.strategy import Chain

__all__ = ["train_step"]

_logger = logging.getLogger("lowft")


def train_step(loop: Loop, parts: Sequence[MicroBatch], batches: Iterator[Batch]) -> dict[str, Any]:
    """Make one optimizer step and return its figures; where memory runs out, again with fewer rows at a time."""
    collated = list(zip(parts, batches, strict=True))
    while True:
        try:
            return _try_step(loop, collated)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            _halve_or_raise(loop, max(len(batch.places) for _, batch in collated), error)
        # Out here, where the error no longer keeps what was computed alive.
        release_memory()


def _try_step(loop: Loop, collated: Sequence[tuple[MicroBatch, Batch]]) -> dict[str, Any]:
    attached, state, config = loop.attached, loop.attached.state, loop.config
    loop.optimizer.zero_grad(set_to_none=True)  # of a step that was broken off, or of the caller's own making
    state.begin_step()
    pieces = [piece for part, batch in collated for piece in halved(part, batch, loop.kept.halvings)]
    with seeded(loop.seed, state.step, loop.placement.rank):
        rate = set_learning_rates_(loop.optimizer, attached, config)
        with loop.embedding_gradients.gathered(), loop.dropout():
            losses, seen = _backward(loop, pieces)
        norm = _clip(loop)
        total = math.fsum(sum(values) for values in loop.placement.gather([loss.item() for loss in losses]))
        values = {
            "step": state.step + 1,
            "stage": state.stage.name,
            "epoch": (state.stage_step + 1) / loop.steps_per_epoch,
            "loss": total,
            "learning_rate": rate,
            "grad_norm": norm,
        }
        if math.isfinite(total) and math.isfinite(norm):
            attached.step(loop.optimizer)
            loop.heed_strategies()
        else:
            _skip_or_raise(loop, total, norm, seen)
    loop.record("train", **{name: values[name] for name in ("loss", "learning_rate", "grad_norm")})
    return values


def _backward(
    loop: Loop, pieces: Sequence[tuple[MicroBatch, Batch]]
) -> tuple[list[Tensor], list[tuple[Batch, Tensor]]]:
    """Add up the gradients of a step's micro-batches; return their losses, and each with the losses of its rows."""
    attached, placement = loop.attached, loop.placement
    assert loop.forward is not None  # noqa: S101 - entered with the stage
    weights: Sequence[tuple[float | None, float]] = [(None, 1.0)] * len(pieces)
    if loop.train_rows.unlabelled or _makes_copies(attached.strategy):
        weights = label_weights(pieces, placement)
    losses: list[Tensor] = []
    seen: list[tuple[Batch, Tensor]] = []
    for index, (part, piece) in enumerate(pieces):
        known, bare = weights[index]
        batch, on_cpu = _on_device(loop, replace(piece, unlabelled_weight=bare))
        with placement.exchange(loop.forward, last=index == len(pieces) - 1):
            with autocast(loop.kept.precision, placement.device), loop.serving(batch.inputs, on_cpu):
                outputs = loop.forward(**batch.inputs)
            logits, labels = logits_of(outputs).float(), _labels(batch)
            loss, row_losses = task_loss(loop.loss_fn, logits, labels, known, attached.row_weights(outputs, batch))
            loss = attached.on_loss(loss, outputs, batch)
            # DDP averages over processes; shares already add up to one over all of them.
            torch.autograd.backward(loss * (part.share * placement.processes))
        losses.append(loss.detach() * part.share)
        seen.append((batch, row_losses))
    return losses, seen


def _makes_copies(chain: Chain) -> bool:
    """Tell whether micro-batches of as many rows may hold different numbers of labels."""
    return any(type(strategy).on_examples is not Strategy.on_examples for strategy in chain.strategies)


def _on_device(loop: Loop, piece: Batch) -> tuple[Batch, dict[str, Tensor]]:
    """Return a batch on the device as strategies leave it, and its inputs on the CPU, where they can be read at once.

    The tensors that were collated are those inputs, unless a strategy put others in their place or wrote into them.
    """
    moved = piece.to(loop.placement.device)
    before = _state_of(moved.inputs)
    batch = loop.attached.on_batch(moved)
    return batch, piece.inputs if _state_of(batch.inputs) == before else batch.inputs


def _state_of(inputs: dict[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Return which tensors there are, and how often each was written into."""
    return {name: (id(tensor), tensor._version) for name, tensor in inputs.items()}  # noqa: SLF001 - autograd's counter


def _halve_or_raise(loop: Loop, rows: int, error: Exception) -> None:
    """Have this and all further steps go through the model in half as many rows at a time."""
    state, now = loop.attached.state, math.ceil(rows / 2**loop.kept.halvings)
    message = f"step {state.step + 1} of stage {state.stage.name!r}: out of memory with {now} rows at a time"
    if now == 1 or loop.placement.processes > 1:
        # Of several processes, one cannot tell the others in the middle of an exchange.
        raise TrainingError(
            f"{message}. Lower {'max_length' if now == 1 else 'batch_size'}, freeze more layers, or set "
            f"precision='bfloat16'; the device said: {error}"
        ) from error
    loop.kept.halvings += 1
    message += f"; going on with {math.ceil(rows / 2**loop.kept.halvings)}, the same rows in each optimizer step"
    loop.record("note", message=message)
    _logger.warning(message)


def _clip(loop: Loop) -> float:
    """Scale the gradients down to the norm allowed, and return the norm they had."""
    # All that ever train, without a walk through the model, which takes as long as a step of the head alone.
    parameters = [parameter for group in loop.optimizer.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    found, most = norm.item(), loop.config.max_grad_norm
    if most is not None and found > most:  # else each gradient would be read and written to stay as it is
        torch.nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return found


def _skip_or_raise(loop: Loop, loss: float, norm: float, seen: list[tuple[Batch, Tensor]]) -> None:
    """Record a step whose loss or gradient is not finite; then skip it or raise."""
    state = loop.attached.state
    own = [(set(batch.rows), _rows_not_finite(batch, losses)) for batch, losses in seen]
    everywhere = [pair for pairs in loop.placement.gather(own) for pair in pairs]
    every_row, bad_rows = (sorted(set().union(*sets)) for sets in zip(*everywhere, strict=True))
    where = f"the loss of rows {bad_rows}" if bad_rows else f"the step of rows {every_row}"
    message = (
        f"step {state.step + 1} of stage {state.stage.name!r}: loss {loss}, gradient norm {norm}, not finite in "
        f"{where}; no weight was changed by it"
    )
    loop.record("note", message=message)
    loop.kept.skipped_steps += 1
    loop.attached.model.zero_grad(set_to_none=True)
    if loop.config.on_nonfinite == "raise":
        raise NonFiniteError(
            f"{message}. Look at these rows, lower learning_rate, or leave such steps out with on_nonfinite='skip'"
        )
    if loop.kept.skipped_steps > loop.config.max_nonfinite_steps:
        raise NonFiniteError(
            f"{message}. That is {loop.kept.skipped_steps} skipped steps, "
            f"more than max_nonfinite_steps={loop.config.max_nonfinite_steps}"
        )
    state.step += 1
    state.stage_step += 1


def _rows_not_finite(batch: Batch, losses: Tensor) -> set[int]:
    """Return the numbers of the rows whose own loss is not finite; all of them where only a mean is known."""
    if losses.ndim == 0:
        return set() if losses.isfinite() else set(batch.rows)
    return {number for number, loss in zip(batch.rows, losses, strict=True) if not loss.isfinite()}


def _labels(batch: Batch) -> Tensor:
    if batch.labels is None:
        raise TrainingError(f"the batch of rows {list(batch.rows)} has no labels: a strategy's on_batch took them away")
    return batch.labels
