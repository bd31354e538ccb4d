"""The run itself: stages, steps, evaluations, best weights, checkpoints. `lowft.strategy` draws its order."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from typing import TYPE_CHECKING, Any

import torch

from lowft._alignment import align_
from lowft._amounts import Amounts
from lowft._choices import noise_wanted
from lowft._collapse import begins_again
from lowft._compiling import compiled
from lowft._dropout import fast_dropout
from lowft._embedding_gradients import EmbeddingGradients
from lowft._fitting import fit_in_memory_
from lowft._inference import compute_logits, evaluation_mode, kept_modes
from lowft._optimization import make_optimizer
from lowft._peak import PEAK, PeakMemory
from lowft._precision import faster_precision
from lowft._randomness import seeded
from lowft._recomputing import keep_activations_
from lowft._stage_caches import StageCaches
from lowft._step import train_step
from lowft._tf32 import products_in_tf32
from lowft._time_limit import TimeLimit
from lowft.checkpoint import load_tensors_, model_tensors
from lowft.compress.quantized_layers import unrounded_copy
from lowft.data.epochs import epoch_batches
from lowft.errors import ConfigError
from lowft.history import History
from lowft.metrics import bootstrap_error
from lowft.models.first_token import FirstToken
from lowft.models.prefix_filling import sample_inputs
from lowft.results import Kept, StepResult
from lowft.stages import Decision

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from lowft._placement import Placement
    from lowft.attach import Attached
    from lowft.config import TrainingConfig
    from lowft.data.batching import Batch, TokenizedRows
    from lowft.data.epochs import MicroBatch

__all__ = ["Loop"]

_logger = logging.getLogger("lowft")


class Loop(Amounts):
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
        self.train_rows = attached.state.train_rows = train_rows
        self.eval_rows = attached.state.eval_rows = eval_rows
        self.loss_fn = loss_fn
        self.measure = measure
        self.best_metric = best_metric
        self.history = History()
        self.opening: list[str] = []  # what the history says first
        precision = config.precision
        if precision == "auto":
            with products_in_tf32(config.tf32, placement.device):
                found = faster_precision(attached.model, placement.device)
            precision, why = placement.gather(found)[0]
            self.opening.append(why)
        self.kept = Kept(precision=precision)
        attached.state.precision = precision
        attached.state.tokens_per_batch = config.tokens_per_batch
        attached.state.progress = config.progress if placement.is_main else False
        self.optimizer = make_optimizer(attached, config)
        self.finished = False
        self.unquantized: torch.nn.Module | None = None  # what a strategy made integers of, to compare with
        self.forward: torch.nn.Module | None = None
        self.top: FirstToken | None = None
        self.embedding_gradients = EmbeddingGradients(None)
        cheaper = placement.device.type == "cpu" and not config.torch_compile  # which would trace lowft's own
        self.dropout = fast_dropout if cheaper else contextlib.nullcontext
        self.caches = StageCaches(attached, config, placement, train_rows, eval_rows)
        self.peak = PeakMemory(placement.device)
        self.limit = TimeLimit(self)

    def steps(self) -> Iterator[StepResult]:
        """Run on from where the state is, a step at a time, to the end of the last stage."""
        with contextlib.closing(self._steps()) as steps:
            while True:
                with products_in_tf32(self.config.tf32, self.placement.device):  # not while the caller looks at a step
                    result = next(steps, None)
                if result is None:
                    return
                yield result

    def _steps(self) -> Generator[StepResult]:
        state, again = self.attached.state, True
        while again:
            for index in self.attached.remaining_stages():
                if self.forward is None or index != state.stage_index:
                    self._start_stage(index)
                yield from self._run_stage()
                metrics = self._end_stage()
                self.forward, self.embedding_gradients = None, EmbeddingGradients(None)
                again = begins_again(self, metrics)
                self.caches.leave()
                if again:
                    break
        self.finish()

    def finish(self) -> None:
        """Make the model what will be deployed, which ends the run; a second call changes nothing."""
        self.caches.close()
        quantizes = any("precision" in part.contract.provides for part in self.attached.strategy.strategies)
        if quantizes and not self.finished:
            self.unquantized = unrounded_copy(self.attached.model)
        if self.config.gradient_checkpointing and not self.finished:
            keep_activations_(self.attached.model)
        with seeded(self.seed):
            align_(self.attached.finish())
        self.finished = True

    def evaluate(self) -> dict[str, float]:
        """Return the validation metrics, the loss among them."""
        if self.eval_rows is None:
            return {}
        logits = self.logits(self.eval_rows, progress=self.config.progress if self.placement.is_main else False)
        labels: Any = self.eval_rows.labels

        def measured(logits: Any, labels: Any) -> dict[str, float]:
            loss = self.loss_fn(torch.from_numpy(logits), torch.as_tensor(labels)).mean().item()
            return {"loss": loss, **self.measure(logits, labels)}

        wanted = noise_wanted(self.attached.stages)
        errors = bootstrap_error(measured, logits, labels) if wanted else {}
        return measured(logits, labels) | {f"{name}_noise": errors[name] for name in sorted(wanted & errors.keys())}

    def logits(self, rows: TokenizedRows, *, progress: bool | None) -> npt.NDArray[np.float32]:
        """Return the logits of rows, `[rows, outputs]`, each process computing its share, in batches as evaluations."""
        return compute_logits(
            self.attached.model,
            rows,
            batch_size=self.eval_batch_size,
            most_tokens=self.eval_tokens,
            precision=self.kept.precision,
            share=(self.placement.rank, self.placement.processes),
            progress=progress,
            description="evaluating",
            serving=self.serving,
        )

    @contextlib.contextmanager
    def serving(self, inputs: dict[str, Tensor], on_cpu: dict[str, Tensor]) -> Iterator[None]:
        """Have the model's forward on these inputs compute nothing that is known, or that nobody reads.

        Args:
            inputs: The inputs on the model's device.
            on_cpu: The same on the CPU.
        """
        top = None if self.top is None or self.top.is_watched else self.top
        with contextlib.nullcontext() if top is None else top.alone(), self.caches.serving(inputs, on_cpu):
            yield

    def resume(self, kept: Kept, history: History) -> None:
        """Go on from a position that was loaded into what is attached.

        Args:
            kept: What the run kept to choose weights by.
            history: What happened before.
        """
        self.kept = kept
        if self.config.precision != "auto":
            self.kept.precision = self.config.precision
        self.attached.state.precision = self.kept.precision
        self.history = history
        self.peak.restart()
        self._enter()

    def _start_stage(self, index: int) -> None:
        self.peak.restart()
        self.kept.measured.pop(PEAK, None)
        rolls_back = any(gate.may_roll_back for gate in self.attached.stages[index].gates)
        self.kept.before_stage = self._copy_weights() if rolls_back else {}
        if index == 0:
            self.kept.before_training = self._copy_weights() if self.kept.restarts < self.config.restarts else {}
        with seeded(self.seed, index):  # the same on every process, and wherever the run was resumed
            self.attached.start_stage(index)
        # Moments of earlier stages belong to weights that the best ones may have replaced.
        self.optimizer.state.clear()
        self.kept.evaluations_without_gain = 0
        self.heed_strategies()
        self._enter()
        bare, rows = self.train_rows.unlabelled, len(self.train_rows)
        if index == 0 and not self.kept.restarts:
            self._note(f"{bare:,} of {rows:,} training rows have no label" if bare else "")
            for message in self.opening:
                self._note(message)

    def heed_strategies(self) -> None:
        """Do what strategies have asked for since the last call: forget the best weights, note things."""
        if self.attached.state.best_is_forgotten:
            self.kept.forget_best()
            self.attached.state.best_is_forgotten = False
        for message in self.attached.state.notes:
            self.record("note", message=message)
        self.attached.state.notes.clear()

    def _enter(self) -> None:
        self.attached.state.stage_steps = self.limit.cut_again(self.planned_steps(self.attached.state.stage))
        self.wrap_model()

    def wrap_model(self) -> None:
        """Set what is called in training: the model, compiled where that is asked for, one of several processes'."""
        model = self.attached.model
        # Neither torch.compile nor DDP takes sparse gradients, and on a GPU zeros cost next to nothing.
        plain = not self.config.torch_compile and self.placement.processes == 1 and self.placement.device.type == "cpu"
        self.embedding_gradients = EmbeddingGradients(model if plain else None)
        self.top = None
        rows, layers = self.train_rows, self.attached.layers
        # A compiled forward, and one that is run again for its gradients, are not the model's own.
        as_it_is = not (self.config.torch_compile or self.config.gradient_checkpointing)
        if self.config.skip_unread_tokens and as_it_is and rows.tokenizer.padding_side == "right":
            with evaluation_mode(model):
                self.top = FirstToken.find(model, layers, sample_inputs(rows, self.placement.device))
        if self.config.torch_compile:
            model = compiled(model, self.config.torch_compile_backend)
        self.forward = self.placement.wrap(model)

    def _run_stage(self) -> Iterator[StepResult]:
        state = self.attached.state
        started = time.perf_counter() - self.kept.seconds
        self.attached.train()
        self._fill_caches()
        if self.config.max_memory is not None and state.stage_step == 0:
            self._measure_peak()
            self._note(fit_in_memory_(self, self.config.max_memory))
            self.peak.restart()  # what was tried is no part of the run
        self.limit.measure_evaluation()
        self.kept.seconds = time.perf_counter() - started
        self.limit.start_stage()
        while not self._stage_is_over():
            epoch, first = divmod(state.stage_step, self.steps_per_epoch)
            for parts, batches in self._batches(epoch, first):
                values = train_step(self, parts, batches)
                state.epoch = state.stage_step // self.steps_per_epoch
                self.kept.seconds = time.perf_counter() - started
                self._note(self.limit.after_step())
                metrics = self._evaluate_and_keep() if self.is_milestone and self.eval_rows is not None else None
                self.kept.seconds = time.perf_counter() - started
                self._measure_peak()
                self.limit.after_evaluation()
                paused = time.perf_counter()
                with kept_modes(self.attached.model):  # a caller may evaluate, or call model.train(), between steps
                    yield StepResult(**values, metrics=metrics)
                started += time.perf_counter() - paused  # the caller's work between steps is not the run's
                if self._stage_is_over():
                    break

    def _fill_caches(self) -> None:
        note = self.caches.enter(self.passes(), self.kept.precision)
        if note is not None and self.attached.state.stage_step == 0:
            self.record("note", **note)

    def _measure_peak(self) -> None:
        most = self.peak.bytes
        if most is not None:
            self.kept.measured[PEAK] = max(most, self.kept.measured.get(PEAK, 0))

    def _stage_is_over(self) -> bool:
        state, patience = self.attached.state, self.config.early_stopping_patience
        stale = patience is not None and self.kept.evaluations_without_gain >= patience
        return stale or state.stage_is_ended or state.stage_step >= state.stage_steps

    def _batches(self, epoch: int, first: int) -> Iterator[tuple[Sequence[MicroBatch], Iterator[Batch]]]:
        state = self.attached.state
        strategy = self.attached.strategy.for_epoch(state)
        self.heed_strategies()
        return epoch_batches(
            self.train_rows,
            self.plan_epoch(epoch)[: first + state.stage_steps - state.stage_step],
            first=first,
            seed=(self.seed, state.stage_index, epoch),
            transform=strategy.on_examples if strategy.strategies else None,
            workers=self.config.dataloader_num_workers,
            pinned=self.placement.device.type == "cuda",
        )

    def _evaluate_and_keep(self) -> dict[str, float]:
        metrics = self.evaluate()
        self.record("evaluate", **{f"eval_{name}": value for name, value in metrics.items()})
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

    def _end_stage(self) -> dict[str, float]:
        """Return to the best weights, ask the gates, undo the stage if they say so; return what the weights bring."""
        note = self.caches.hits()
        if note is not None:
            self.record("note", **note)
        metrics = self.kept.last_metrics
        if self.kept.best:
            load_tensors_(self.attached.model, self.kept.best, "the best weights", partial=True)
            metrics = self.kept.best_metrics
        verdict = self.attached.decide(metrics)
        if verdict.decision is Decision.ROLL_BACK:
            load_tensors_(self.attached.model, self.kept.before_stage, "the weights before the stage", partial=True)
            metrics = self.attached.results[-2] if len(self.attached.results) > 1 else {}
        model = self.attached.model
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        is_last = not list(self.attached.remaining_stages())[1:]
        decision = "end" if is_last and not verdict.ends_training else str(verdict.decision)
        stage = self.attached.state.stage
        reason = verdict.reason if stage.gates or not is_last else "it was the last stage"
        if (self.kept.cut_stage == self.attached.state.stage_index or self.limit.is_up) and not verdict.ends_training:
            self.attached.ended = True
            decision, reason = "stop", self.limit.reason
        self._measure_peak()
        peaks = self.placement.gather(self.kept.measured.get(PEAK))
        peak = max((int(peak) for peak in peaks if peak is not None), default=None)  # of any process
        self.record("stage", trainable_parameters=trainable, decision=decision, reason=reason, peak_memory_bytes=peak)
        _logger.info("stage %r: %s (%s)", stage.name, decision, reason)
        return metrics

    def _copy_weights(self) -> dict[str, Tensor]:
        tensors = model_tensors(self.attached.model, self.attached.trained)
        return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}

    def _note(self, message: str) -> None:
        """Put a message into the history; an empty one says nothing."""
        if message:
            self.record("note", message=message)

    def record(self, event: str, **values: Any) -> None:
        """Put a record into the history, with where the run is."""
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
