"""The run itself: stages, steps, evaluations, best weights, checkpoints. `lowft.strategy` draws its order."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Any

import torch

from lowft._alignment import align_
from lowft._choices import noise_wanted
from lowft._inference import autocast, compute_logits, kept_modes, logits_of
from lowft._memory import is_out_of_memory, release_memory
from lowft._optimization import make_optimizer, set_learning_rates_
from lowft._precision import faster_precision
from lowft._randomness import seeded
from lowft._stage_caches import Passes, StageCaches
from lowft._task_loss import label_weights, task_loss
from lowft.checkpoint import load_tensors_, model_tensors
from lowft.compress.quantized_layers import unrounded_copy
from lowft.data.epochs import epoch_batches, halved, plan_epoch
from lowft.errors import ConfigError, NonFiniteError, TrainingError
from lowft.history import History
from lowft.metrics import bootstrap_error
from lowft.results import Kept, StepResult
from lowft.stages import Decision, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from lowft._placement import Placement
    from lowft.attach import Attached
    from lowft.config import TrainingConfig
    from lowft.data.batching import Batch, TokenizedRows
    from lowft.data.epochs import MicroBatch

__all__ = ["Loop"]

_logger = logging.getLogger("lowft")


class Loop:
    """Drives attached strategies over tokenised rows; the Trainer prepares its parts and reads its results."""

    def __init__(
        self,
        attached: Attached,
        config: TrainingConfig,
        placement: Placement,
        *,
        train_rows: TokenizedRows,
        eval_rows: TokenizedRows | None,
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        measure: Callable[[Any, Any], dict[str, float]],
        best_metric: tuple[str, bool],
    ) -> None:
        """Make the optimizer; nothing is trained yet."""
        self.attached = attached
        self.config = config
        self.placement = placement
        self.train_rows = train_rows
        self.eval_rows = eval_rows
        self.loss_fn = loss_fn
        self.measure = measure
        self.best_metric = best_metric
        self.history = History()
        precision, self._why_precision = config.precision, ""
        if precision == "auto":
            precision, self._why_precision = placement.gather(faster_precision(attached.model, placement.device))[0]
        self.kept = Kept(precision=precision)
        self.optimizer = make_optimizer(attached, config)
        self.finished = False
        self.unquantized: torch.nn.Module | None = None  # what a strategy made integers of, to compare with
        self._forward: torch.nn.Module | None = None
        self._caches = StageCaches(attached, config, placement, train_rows, eval_rows)

    def planned_steps(self, stage: Stage) -> int:
        """Return the optimizer steps that a stage plans."""
        if stage.max_steps is not None:
            return stage.max_steps
        if stage.epochs is None and self.config.max_steps is not None:
            return self.config.max_steps
        return math.ceil((stage.epochs or self.config.epochs) * self.planned_steps_per_epoch(stage))

    def planned_steps_per_epoch(self, stage: Stage) -> int:
        """Return the optimizer steps of one pass over the training rows in a stage."""
        rows = self._batch_size(stage) * self.config.gradient_accumulation_steps * self.placement.processes
        return math.ceil(len(self.train_rows) / rows)

    @property
    def steps_per_epoch(self) -> int:
        """Return the optimizer steps of one pass over the training rows in the current stage."""
        return self.planned_steps_per_epoch(self.attached.state.stage)

    def _batch_size(self, stage: Stage) -> int:
        return stage.batch_size or self.config.batch_size

    @property
    def is_milestone(self) -> bool:
        """Whether an evaluation falls on the step that was just made: after each epoch, or as the settings say."""
        state = self.attached.state
        every = self.config.eval_steps or self.steps_per_epoch
        return state.stage_step % every == 0 or state.stage_step == state.stage_steps

    def steps(self) -> Iterator[StepResult]:
        """Run on from where the state is, a step at a time, to the end of the last stage."""
        state = self.attached.state
        for index in self.attached.remaining_stages():
            if self._forward is None or index != state.stage_index:
                self._start_stage(index)
            yield from self._run_stage()
            self._end_stage()
            self._forward = None
        self.finish()

    def finish(self) -> None:
        """Make the model what will be deployed, which ends the run; a second call changes nothing."""
        self._caches.close()
        quantizes = any("precision" in part.contract.provides for part in self.attached.strategy.strategies)
        if quantizes and not self.finished:
            self.unquantized = unrounded_copy(self.attached.model)
        with seeded(self.config.seed):
            align_(self.attached.finish())
        self.finished = True

    def evaluate(self) -> dict[str, float]:
        """Return the validation metrics, the loss among them."""
        if self.eval_rows is None:
            return {}
        logits = compute_logits(
            self.attached.model,
            self.eval_rows,
            batch_size=self.config.eval_batch_size,
            precision=self.kept.precision,
            share=(self.placement.rank, self.placement.processes),
            progress=self.config.progress if self.placement.is_main else False,
            description="evaluating",
            serving=self._caches.serving,
        )
        labels: Any = self.eval_rows.labels

        def measured(logits: Any, labels: Any) -> dict[str, float]:
            loss = self.loss_fn(torch.from_numpy(logits), torch.as_tensor(labels)).mean().item()
            return {"loss": loss, **self.measure(logits, labels)}

        wanted = noise_wanted(self.attached.stages)
        errors = bootstrap_error(measured, logits, labels) if wanted else {}
        return measured(logits, labels) | {f"{name}_noise": errors[name] for name in sorted(wanted & errors.keys())}

    def resume(self, kept: Kept, history: History) -> None:
        """Go on from a position that was loaded into what is attached.

        Args:
            kept: What the run kept to choose weights by.
            history: What happened before.
        """
        self.kept = kept
        if self.config.precision != "auto":
            self.kept.precision = self.config.precision
        self.history = history
        self._enter()

    def _start_stage(self, index: int) -> None:
        rolls_back = any(gate.may_roll_back for gate in self.attached.stages[index].gates)
        self.kept.before_stage = self._copy_weights() if rolls_back else {}
        with seeded(self.config.seed, index):  # the same on every process, and wherever the run was resumed
            self.attached.start_stage(index)
        # Moments of earlier stages belong to weights that the best ones may have replaced.
        self.optimizer.state.clear()
        self.kept.evaluations_without_gain = 0
        self._forget_best_if_told()
        self._enter()
        bare, rows = self.train_rows.unlabelled, len(self.train_rows)
        if index == 0 and bare:
            self._record("note", message=f"{bare:,} of {rows:,} training rows have no label")
        if index == 0 and self._why_precision:
            self._record("note", message=self._why_precision)
            _logger.info(self._why_precision)

    def _forget_best_if_told(self) -> None:
        if self.attached.state.best_is_forgotten:
            self.kept.forget_best()
            self.attached.state.best_is_forgotten = False

    def _enter(self) -> None:
        self.attached.state.stage_steps = self.planned_steps(self.attached.state.stage)
        self._forward = self.placement.wrap(self.attached.model)

    def _run_stage(self) -> Iterator[StepResult]:
        state = self.attached.state
        started = time.perf_counter() - self.kept.seconds
        self.attached.train()
        self._fill_caches()
        while not self._stage_is_over():
            epoch, first = divmod(state.stage_step, self.steps_per_epoch)
            for parts, batches in self._batches(epoch, first):
                values = self._train_step(parts, batches)
                state.epoch = state.stage_step // self.steps_per_epoch
                self.kept.seconds = time.perf_counter() - started
                metrics = self._evaluate_and_keep() if self.is_milestone and self.eval_rows is not None else None
                self.kept.seconds = time.perf_counter() - started
                paused = time.perf_counter()
                with kept_modes(self.attached.model):  # a caller may evaluate, or call model.train(), between steps
                    yield StepResult(**values, metrics=metrics)
                started += time.perf_counter() - paused  # the caller's work between steps is not the run's
                if self._stage_is_over():
                    break

    def _fill_caches(self) -> None:
        passes = []
        for stage in self.attached.stages:
            steps, epoch = self.planned_steps(stage), self.planned_steps_per_epoch(stage)
            passes.append(Passes(steps / epoch, steps / (self.config.eval_steps or epoch)))
        note = self._caches.enter(passes, self.kept.precision)
        if note is not None and self.attached.state.stage_step == 0:
            self._record("note", **note)

    def _stage_is_over(self) -> bool:
        state, patience = self.attached.state, self.config.early_stopping_patience
        stale = patience is not None and self.kept.evaluations_without_gain >= patience
        return stale or state.stage_step >= state.stage_steps

    def _plan(self, epoch: int) -> list[list[MicroBatch]]:
        config = self.config
        seed = config.seed if config.data_seed is None else config.data_seed
        return plan_epoch(
            self.train_rows.lengths,
            batch_size=self._batch_size(self.attached.state.stage),
            accumulation=config.gradient_accumulation_steps,
            processes=self.placement.processes,
            rank=self.placement.rank,
            seed=(seed, self.attached.state.stage_index, epoch),
            group_by_length=config.group_by_length,
        )

    def _batches(self, epoch: int, first: int) -> Iterator[tuple[Sequence[MicroBatch], Iterator[Batch]]]:
        state, strategy = self.attached.state, self.attached.strategy
        return epoch_batches(
            self.train_rows,
            self._plan(epoch)[: first + state.stage_steps - state.stage_step],
            first=first,
            seed=(self.config.seed, state.stage_index, epoch),
            transform=strategy.on_examples if strategy.strategies else None,
            workers=self.config.dataloader_num_workers,
        )

    def _train_step(self, parts: Sequence[MicroBatch], batches: Iterator[Batch]) -> dict[str, Any]:
        """Make one optimizer step and return its figures; where memory runs out, again with fewer rows at a time."""
        collated = list(zip(parts, batches, strict=True))
        while True:
            try:
                return self._try_step(collated)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._halve_or_raise(max(len(batch) for _, batch in collated), error)
            # Out here, where the error no longer keeps what was computed alive.
            release_memory()

    def _try_step(self, collated: Sequence[tuple[MicroBatch, Batch]]) -> dict[str, Any]:
        attached, state, config = self.attached, self.attached.state, self.config
        assert self._forward is not None  # noqa: S101 - entered with the stage
        losses: list[Tensor] = []
        seen: list[tuple[Batch, Tensor]] = []
        self.optimizer.zero_grad(set_to_none=True)  # of a step that was broken off, or of the caller's own making
        pieces = [piece for part, batch in collated for piece in halved(part, batch, self.kept.halvings)]
        weights: Sequence[float | None] = [None] * len(pieces)
        if self.train_rows.unlabelled:
            weights = label_weights(pieces, self.placement)
        with seeded(config.seed, state.step, self.placement.rank):
            rate = set_learning_rates_(self.optimizer, attached, config)
            for index, (part, piece) in enumerate(pieces):
                batch = attached.on_batch(piece.to(self.placement.device))
                with self.placement.exchange(self._forward, last=index == len(pieces) - 1):
                    with autocast(self.kept.precision, self.placement.device), self._caches.serving(batch.inputs):
                        outputs = self._forward(**batch.inputs)
                    logits, labels = logits_of(outputs).float(), _labels(batch)
                    loss, row_losses = task_loss(self.loss_fn, logits, labels, weights[index])
                    loss = attached.on_loss(loss, outputs, batch)
                    # DDP averages over processes; shares already add up to one over all of them.
                    torch.autograd.backward(loss * (part.share * self.placement.processes))
                losses.append(loss.detach() * part.share)
                seen.append((batch, row_losses))
            norm = self._clip()
            total = math.fsum(sum(values) for values in self.placement.gather([loss.item() for loss in losses]))
            values = {
                "step": state.step + 1,
                "stage": state.stage.name,
                "epoch": (state.stage_step + 1) / self.steps_per_epoch,
                "loss": total,
                "learning_rate": rate,
                "grad_norm": norm,
            }
            if math.isfinite(total) and math.isfinite(norm):
                attached.step(self.optimizer)
                self._forget_best_if_told()
            else:
                self._skip_or_raise(total, norm, seen)
        self._record("train", **{name: values[name] for name in ("loss", "learning_rate", "grad_norm")})
        return values

    def _halve_or_raise(self, rows: int, error: Exception) -> None:
        """Have this and all further steps go through the model in half as many rows at a time."""
        state, now = self.attached.state, math.ceil(rows / 2**self.kept.halvings)
        message = f"step {state.step + 1} of stage {state.stage.name!r}: out of memory with {now} rows at a time"
        if now == 1 or self.placement.processes > 1:
            # Of several processes, one cannot tell the others in the middle of an exchange.
            raise TrainingError(
                f"{message}. Lower {'max_length' if now == 1 else 'batch_size'}, freeze more layers, or set "
                f"precision='bfloat16'; the device said: {error}"
            ) from error
        self.kept.halvings += 1
        message += f"; going on with {math.ceil(rows / 2**self.kept.halvings)}, the same rows in each optimizer step"
        self._record("note", message=message)
        _logger.warning(message)

    def _clip(self) -> float:
        """Scale the gradients down to the norm allowed, and return the norm they had."""
        # All that ever train, without a walk through the model, which takes as long as a step of the head alone.
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        if self.config.max_grad_norm is None:
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            return torch.nn.utils.get_total_norm(gradients).item()
        return torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm).item()

    def _skip_or_raise(self, loss: float, norm: float, seen: list[tuple[Batch, Tensor]]) -> None:
        """Record a step whose loss or gradient is not finite; then skip it or raise."""
        state = self.attached.state
        own = [(set(batch.rows), _rows_not_finite(batch, losses)) for batch, losses in seen]
        everywhere = [pair for pairs in self.placement.gather(own) for pair in pairs]
        every_row, bad_rows = (sorted(set().union(*sets)) for sets in zip(*everywhere, strict=True))
        where = f"the loss of rows {bad_rows}" if bad_rows else f"the step of rows {every_row}"
        message = (
            f"step {state.step + 1} of stage {state.stage.name!r}: loss {loss}, gradient norm {norm}, not finite in "
            f"{where}; no weight was changed by it"
        )
        self._record("note", message=message)
        self.kept.skipped_steps += 1
        self.attached.model.zero_grad(set_to_none=True)
        if self.config.on_nonfinite == "raise":
            raise NonFiniteError(
                f"{message}. Look at these rows, lower learning_rate, or leave such steps out with on_nonfinite='skip'"
            )
        if self.kept.skipped_steps > self.config.max_nonfinite_steps:
            raise NonFiniteError(
                f"{message}. That is {self.kept.skipped_steps} skipped steps, "
                f"more than max_nonfinite_steps={self.config.max_nonfinite_steps}"
            )
        state.step += 1
        state.stage_step += 1

    def _evaluate_and_keep(self) -> dict[str, float]:
        metrics = self.evaluate()
        self._record("evaluate", **{f"eval_{name}": value for name, value in metrics.items()})
        name, greater = self.best_metric
        if name not in metrics:
            raise ConfigError(
                f"metric_for_best_model={name!r} was not measured: your metrics function must return it; there are "
                f"{', '.join(metrics)}"
            )
        gain = math.inf
        if math.isnan(metrics[name]):
            gain = -math.inf  # as the best so far, NaN would never be beaten
        elif self.kept.best_value is not None:
            gain = (metrics[name] - self.kept.best_value) * (1 if greater else -1)
        enough = gain > self.config.early_stopping_threshold
        self.kept.evaluations_without_gain = 0 if enough else self.kept.evaluations_without_gain + 1
        self.kept.last_metrics = metrics
        if gain > 0:
            self.kept.best_value = metrics[name]
            self.kept.best_metrics = metrics
            self.kept.best = self._copy_weights() if self.config.load_best_model_at_end else {}
        return metrics

    def _end_stage(self) -> None:
        """Return to the best weights, ask the gates, undo the stage if they say so."""
        note = self._caches.leave()
        if note is not None:
            self._record("note", **note)
        metrics = self.kept.last_metrics
        if self.kept.best:
            load_tensors_(self.attached.model, self.kept.best, "the best weights", partial=True)
            metrics = self.kept.best_metrics
        verdict = self.attached.decide(metrics)
        if verdict.decision is Decision.ROLL_BACK:
            load_tensors_(self.attached.model, self.kept.before_stage, "the weights before the stage", partial=True)
        model = self.attached.model
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        is_last = not list(self.attached.remaining_stages())[1:]
        decision = "end" if is_last and not verdict.ends_training else str(verdict.decision)
        stage = self.attached.state.stage
        reason = verdict.reason if stage.gates or not is_last else "it was the last stage"
        self._record("stage", trainable_parameters=trainable, decision=decision, reason=reason)
        _logger.info("stage %r: %s (%s)", stage.name, decision, reason)

    def _copy_weights(self) -> dict[str, Tensor]:
        tensors = model_tensors(self.attached.model, self.attached.trained)
        return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}

    def _record(self, event: str, **values: Any) -> None:
        state = self.attached.state
        self.history.append(
            event,
            step=state.step,
            stage=state.stage_index,
            stage_name=state.stage.name,
            epoch=state.stage_step / self.steps_per_epoch,
            seconds=self.kept.seconds,
            **values,
        )


def _rows_not_finite(batch: Batch, losses: Tensor) -> set[int]:
    """Return the numbers of the rows whose own loss is not finite; all of them where only a mean is known."""
    if losses.ndim == 0:
        return set() if losses.isfinite() else set(batch.rows)
    return {number for number, loss in zip(batch.rows, losses, strict=True) if not loss.isfinite()}


def _labels(batch: Batch) -> Tensor:
    if batch.labels is None:
        raise TrainingError(f"the batch of rows {list(batch.rows)} has no labels: a strategy's on_batch took them away")
    return batch.labels
