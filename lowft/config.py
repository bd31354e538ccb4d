"""The settings of a run that are not a strategy's: field names as transformers' users know them."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lowft._settings import check_choice, check_flag, check_real, check_text, check_whole
from lowft.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["TrainingConfig"]

# Settings that do not change what is computed, but for how much of it there is room: a resumed run may have others.
_FREE_ON_RESUME = frozenset(
    {
        "eval_batch_size",
        "max_memory",
        "max_minutes",
        "output_dir",
        "overwrite_output_dir",
        "prefix_cache_memory",
        "progress",
        "save_steps",
        "save_total_limit",
    }
)

_LEAST: Mapping[str, int] = {
    "batch_size": 1,
    "data_seed": 0,
    "dataloader_num_workers": 0,
    "early_stopping_patience": 1,
    "eval_batch_size": 1,
    "eval_steps": 1,
    "gradient_accumulation_steps": 1,
    "max_length": 1,
    "max_memory": 1,
    "max_nonfinite_steps": 0,
    "max_steps": 1,
    "prefix_cache_memory": 0,
    "restarts": 0,
    "save_steps": 1,
    "save_total_limit": 1,
    "seed": 0,
    "tokens_per_batch": 1,
}
_BOUNDS: Mapping[str, Mapping[str, float]] = {
    "adam_beta1": {"least": 0, "below": 1},
    "adam_beta2": {"least": 0, "below": 1},
    "adam_epsilon": {"above": 0},
    "early_stopping_threshold": {"least": 0},
    "epochs": {"above": 0},
    "label_smoothing": {"least": 0, "below": 1},
    "learning_rate": {"above": 0},
    "max_grad_norm": {"above": 0},
    "max_minutes": {"above": 0},
    "warmup_ratio": {"least": 0, "below": 1},
    "weight_decay": {"least": 0},
}
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "lr_scheduler_type": ("linear", "cosine", "constant"),
    "on_bad_row": ("error", "drop"),
    "on_nonfinite": ("raise", "skip"),
    "optim": ("adamw", "adamw_8bit"),
    "precision": ("auto", "float32", "bfloat16"),
}


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train, with defaults that suit a few hundred to a few thousand rows on a small machine.

    Attributes:
        epochs: Passes over the training rows in each stage; may be fractional.
        max_steps: Optimizer steps of each stage; replaces `epochs` when set.
        max_minutes: Minutes that training and its evaluations may take, checkpoints included and your own code between
            steps not. When too little is left for another step and an evaluation, the stage is evaluated and ends with
            its best weights, and later stages are skipped, but for those that prune or quantize. A resumed run goes on
            counting.
        max_memory: Bytes that the run may take: of the process, or on a GPU of what torch allocates there. At the start
            of each stage the longest batches are tried, and go through the model in halves until they fit, with the
            same rows in each optimizer step. None halves them only where memory runs out.
        batch_size: Rows in a micro-batch of one process. An optimizer step sees
            `batch_size × gradient_accumulation_steps × processes` rows.
        eval_batch_size: Rows in an evaluation batch of one process at most; on a CPU such a batch also holds no more
            than 2,048 tokens, padding included.
        tokens_per_batch: Tokens in a micro-batch or evaluation batch at most, padding included, and in the passes that
            caches and strategies make of their own: batches that hold more are cut, with the same rows in each
            optimizer step. Give a large `batch_size` with it, so that short rows go together and long ones in small
            groups. A longer row goes alone; copies that strategies add to a batch come on top. None sets no limit.
        gradient_accumulation_steps: Micro-batches in an optimizer step. The gradient equals that of one big
            batch, ragged batches included.
        learning_rate: Peak learning rate of AdamW; None takes 5e-5 × 768 ÷ the model's width, which is 5e-5 for
            BERT-base and 1e-4 for MiniLM. Adam's best rate falls with the width (Yang et al. 2022, Tensor
            Programs V, table 3).
        optim: "adamw", or "adamw_8bit", which stores the moments in 8 bits and so needs a quarter of the memory for
            them; a step takes longer, and is the same but for that rounding.
        weight_decay: Decoupled weight decay, not applied to biases and normalisation weights.
        adam_beta1: Decay rate of the first moment.
        adam_beta2: Decay rate of the second moment.
        adam_epsilon: Added to the denominator of the update.
        warmup_ratio: Share of each stage's steps in which the learning rate rises linearly from 0.
        lr_scheduler_type: Course after the warm-up: "linear" and "cosine" fall to 0, "constant" stays.
        max_grad_norm: Gradients are scaled down to this L2 norm; None leaves them.
        precision: "float32", or "bfloat16" for autocast with float32 weights; "auto" takes the faster one, by a short
            measurement which the history tells. A resumed run goes on in the precision that was found.
        tf32: Whether a CUDA GPU multiplies float32 matrices in TF32, with 10 bits of mantissa, while the run trains and
            validates; None leaves what torch is set to. It changes nothing on other devices, and no setting of torch
            once a step is made.
        torch_compile: Compile the forward pass of training with `torch.compile`, anew for each stage; evaluations run
            as they are. Needs a C++ compiler on a CPU. Losses agree with those without it to rounding.
        torch_compile_backend: The backend of `torch.compile`.
        gradient_checkpointing: Keep only what enters each block that trains, and compute the rest again in the backward
            pass: less memory, more time, and the losses of a run with `skip_unread_tokens=False`.
        max_length: Tokens after which a text is cut; None is the model's own limit.
        group_by_length: Put rows of like length into one batch, in random order, so that little is padded.
        label_smoothing: Share of the target spread evenly over all classes, 0 up to but not 1.
        class_weights: None, "balanced" (inverse frequency in the training rows), or one weight a class.
        eval_steps: Optimizer steps between evaluations; None evaluates after each epoch. The end of a stage
            is always evaluated.
        metric_for_best_model: Validation metric by which weights are kept, or "loss"; None takes the task's first
            metric (accuracy, micro F1, or mean squared error).
        greater_is_better: Whether a greater value of that metric is better; needed for a metric of your own.
        early_stopping_patience: Evaluations without improvement after which a stage ends; None never.
        early_stopping_threshold: Improvement that counts, in units of the metric.
        load_best_model_at_end: Return to the best weights seen on the validation set after each stage.
        restarts: How often a training that has collapsed begins again, from the weights as they were before its first
            step, with `seed` + 1, + 2 and so on; 0 only tells. Collapsed is one that ends no better than always
            answering the most frequent class, on the validation rows, else on training rows. What is new is the order
            of rows (unless `data_seed` decides it), dropout and the draws of strategies while they train; a new head
            begins as before. Steps go on counting. A run that `max_minutes` ends does not begin again.
        on_nonfinite: A NaN or infinite loss or gradient either raises, or skips the step and counts.
        max_nonfinite_steps: Skipped steps after which skipping ends in an error.
        on_bad_row: Rows without a usable text or label raise, or are dropped and counted.
        seed: Decides initialisation of new heads, order of rows, dropout and every strategy's draws.
        data_seed: Decides the order of rows instead of `seed`.
        dataloader_num_workers: Processes that collate (and augment) ahead; 0 collates in the training process.
        device: "cpu", "cuda", "cuda:1", "mps" …; None lets Accelerate choose.
        output_dir: Folder for checkpoints; None keeps none.
        overwrite_output_dir: Delete the checkpoints of another run in `output_dir`.
        save_steps: Optimizer steps between checkpoints; None saves after each evaluation.
        save_total_limit: Checkpoints kept; the newest verified one is never deleted.
        prefix_cache: Compute what leaves the frozen lowest layers once for each distinct row, and reuse it in later
            epochs, evaluations and stages. Losses agree with those without it to 1e-5 in float32.
        prefix_cache_memory: Bytes that the caches of all processes may take in memory; what is larger goes to a file,
            in `output_dir` or the system's folder for temporary files, which is removed afterwards.
        skip_unread_tokens: Where the head reads the first token alone (BERT, RoBERTa, ELECTRA, DistilBERT and their
            kin), compute no other in the top block; not in compiled runs, nor with `gradient_checkpointing`. Losses
            agree with those of the whole block to 1e-5 in float32, but dropout draws fewer numbers.
        progress: Whether to show progress bars; None shows them in terminals and notebooks.

    Raises:
        ConfigError: A value outside its range, with the value and the range.

    >>> TrainingConfig(epochs=2, learning_rate=1e-4).batch_size
    16
    """

    epochs: float = 3
    max_steps: int | None = None
    max_minutes: float | None = None
    max_memory: int | None = None
    batch_size: int = 16
    eval_batch_size: int = 64
    tokens_per_batch: int | None = None
    gradient_accumulation_steps: int = 1
    learning_rate: float | None = None
    optim: Literal["adamw", "adamw_8bit"] = "adamw"
    weight_decay: float = 0.01
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    warmup_ratio: float = 0.1
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    max_grad_norm: float | None = 1.0
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    tf32: bool | None = None
    torch_compile: bool = False
    torch_compile_backend: str = "inductor"
    gradient_checkpointing: bool = False
    max_length: int | None = None
    group_by_length: bool = True
    label_smoothing: float = 0.0
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None
    eval_steps: int | None = None
    metric_for_best_model: str | None = None
    greater_is_better: bool | None = None
    early_stopping_patience: int | None = None
    early_stopping_threshold: float = 0.0
    load_best_model_at_end: bool = True
    restarts: int = 0
    on_nonfinite: Literal["raise", "skip"] = "raise"
    max_nonfinite_steps: int = 10
    on_bad_row: Literal["error", "drop"] = "error"
    seed: int = 42
    data_seed: int | None = None
    dataloader_num_workers: int = 0
    device: str | None = None
    output_dir: str | Path | None = None
    overwrite_output_dir: bool = False
    save_steps: int | None = None
    save_total_limit: int = 2
    prefix_cache: bool = True
    prefix_cache_memory: int = 2 * 1024**3
    skip_unread_tokens: bool = True
    progress: bool | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        for name, least in _LEAST.items():
            self._check(name, check_whole, least=least)
        for name, bounds in _BOUNDS.items():
            self._check(name, check_real, **bounds)
        for name, choices in _CHOICES.items():
            self._check(name, check_choice, choices=choices)
        for name in (
            "gradient_checkpointing",
            "group_by_length",
            "greater_is_better",
            "load_best_model_at_end",
            "overwrite_output_dir",
            "prefix_cache",
            "progress",
            "skip_unread_tokens",
            "tf32",
            "torch_compile",
        ):
            self._check(name, check_flag)
        for name in ("metric_for_best_model", "device", "torch_compile_backend"):
            self._check(name, check_text)
        if self.output_dir is not None and not isinstance(self.output_dir, str | os.PathLike):
            raise ConfigError(f"TrainingConfig.output_dir must be a folder; received {self.output_dir!r}")
        if isinstance(self.class_weights, str):
            self._check("class_weights", check_choice, choices=("balanced",))
        elif self.class_weights is not None:
            object.__setattr__(self, "class_weights", _weights(self.class_weights))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values.

        >>> TrainingConfig(seed=1).to_dict()["seed"]
        1
        """
        values = dataclasses.asdict(self)
        if self.output_dir is not None:
            values["output_dir"] = str(self.output_dir)
        if isinstance(self.class_weights, tuple):
            values["class_weights"] = list(self.class_weights)
        return values

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide what is computed: two runs that resume each other share them.

        >>> "output_dir" in TrainingConfig().identity()
        False
        """
        return {name: value for name, value in self.to_dict().items() if name not in _FREE_ON_RESUME}

    def _check(self, name: str, check: Callable[..., None], **rule: Any) -> None:
        """Check one setting; None passes where its type allows it."""
        value = getattr(self, name)
        if value is not None or name not in _MAY_BE_NONE:
            check(f"TrainingConfig.{name}", value, **rule)


_MAY_BE_NONE = frozenset(field.name for field in dataclasses.fields(TrainingConfig) if "None" in str(field.type))


def _weights(values: Any) -> tuple[float, ...]:
    if not hasattr(values, "__iter__"):
        raise ConfigError(
            f"TrainingConfig.class_weights must be None, 'balanced' or one weight a class; received {values!r}"
        )
    weights = tuple(value.item() if hasattr(value, "item") else value for value in values)  # of NumPy and torch
    for index, weight in enumerate(weights):
        check_real(f"TrainingConfig.class_weights[{index}]", weight, least=0)
    return tuple(float(weight) for weight in weights)
