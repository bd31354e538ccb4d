"""The sides that `speed.py` compares: the same rows, head, rates and passes, trained by three libraries.

Each side runs in a process of its own, so that the highest memory is its own as well.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from _common import LABELS, minilm

import lowft

__all__ = ["SIDES", "Outcome", "Work", "run_side"]

BATCH, WARMUP, DECAY = 16, 0.1, 0.01


@dataclass(frozen=True)
class Work:
    """What a side has to do.

    Attributes:
        top: How many of the highest blocks train with the head; None trains everything.
        epochs: Passes over the training rows.
        rate: Peak learning rate.
        seed: Of the new head, the order of rows and dropout.
        tokens: After which texts are cut.
        bfloat16: Whether to compute in it.
        grouped: Whether rows of like length form a batch.
    """

    top: int | None
    epochs: int
    rate: float
    seed: int
    tokens: int
    bfloat16: bool = False
    grouped: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a side brought: seconds of training, share of test rows that are right, most bytes in memory, notes."""

    seconds: float
    accuracy: float
    peak_bytes: int
    notes: tuple[str, ...] = ()


def run_side(name: str, work: Work, sides: lowft.Splits) -> dict[str, Any]:
    """Let a side do its work, and return its outcome for JSON."""
    seconds, accuracy, notes = SIDES[name](work, sides)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    return asdict(Outcome(seconds, accuracy, peak, notes))


_Found = tuple[float, float, tuple[str, ...]]


def by_lowft(work: Work, sides: lowft.Splits) -> _Found:
    """Train with lowft's Trainer."""
    strategies = [] if work.top is None else [lowft.PartialFreeze(top=work.top)]
    return _by_trainer(work, sides, strategies)


def by_lowft_staged(work: Work, sides: lowft.Splits) -> _Found:
    """Train in lowft's default stages."""
    return _by_trainer(work, sides, [lowft.LayerwiseUnfreeze()])


def _by_trainer(work: Work, sides: lowft.Splits, strategies: Sequence[lowft.Strategy]) -> _Found:
    config = lowft.TrainingConfig(
        epochs=work.epochs, batch_size=BATCH, learning_rate=work.rate, warmup_ratio=WARMUP, weight_decay=DECAY,
        seed=work.seed, precision="bfloat16" if work.bfloat16 else "float32", group_by_length=work.grouped,
        max_length=work.tokens, load_best_model_at_end=False, device="cpu", progress=False,
    )  # fmt: skip
    validation = sides.validation if any(isinstance(it, lowft.LayerwiseUnfreeze) for it in strategies) else None
    trainer = lowft.Trainer(minilm(), sides.train, validation, strategies=strategies, config=config)
    started = time.perf_counter()
    trainer.fit()
    seconds = time.perf_counter() - started
    notes = tuple(
        note["message"] + (f" in {note['filling_seconds']:.1f} s" if "filling_seconds" in note else "")
        for note in trainer.history.filter("note")
    )
    return seconds, trainer.evaluate(sides.test)["accuracy"], notes


def _model_and_rows(work: Work, sides: lowft.Splits) -> tuple[Any, Any, dict[str, list[dict[str, Any]]]]:
    """Return the model with the same new head that lowft makes, the tokenizer, and the rows as tokens."""
    labels = lowft.Labels.infer(sides.train.labels or (), names=LABELS)
    model: Any = lowft.load_model(minilm(), labels=labels, seed=work.seed)
    tokenizer: Any = lowft.load_tokenizer(minilm())
    if work.top is not None:
        lowft.freeze_(model, top=work.top)

    def encoded(rows: lowft.Rows) -> list[dict[str, Any]]:
        tokens = tokenizer(list(rows.texts), truncation=True, max_length=work.tokens)
        ids = labels.encode(rows.labels or ())
        return [
            {**{name: tokens[name][index] for name in ("input_ids", "attention_mask")}, "labels": int(ids[index])}
            for index in range(len(rows))
        ]

    named = {"train": sides.train, "validation": sides.validation, "test": sides.test}
    return model, tokenizer, {name: encoded(rows) for name, rows in named.items() if rows is not None}


def by_transformers(work: Work, sides: lowft.Splits) -> _Found:
    """Train with transformers' Trainer: at its defaults, or with bfloat16 and batches grouped by length."""
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments
    from transformers.utils import logging

    quiet: Any = logging  # untyped in transformers
    quiet.set_verbosity_error()
    model, tokenizer, rows = _model_and_rows(work, sides)
    # Its Trainer has no warmup_ratio any more: a number below 1 is a share of the steps.
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(), num_train_epochs=work.epochs, per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=64, learning_rate=work.rate, warmup_steps=WARMUP, weight_decay=DECAY,
        seed=work.seed, bf16=work.bfloat16, train_sampling_strategy="group_by_length" if work.grouped else "random",
        save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    collator: Any = DataCollatorWithPadding(tokenizer)
    trainer: Any = Trainer(model, arguments, train_dataset=rows["train"], data_collator=collator)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    answer = trainer.predict(rows["test"])
    return seconds, float((answer.predictions.argmax(axis=1) == answer.label_ids).mean()), ()


def by_lightning(work: Work, sides: lowft.Splits) -> _Found:
    """Train in lowft's default stages (those for 1,000 rows or more) with Lightning and finetuning-scheduler."""
    try:
        import lightning.pytorch as pl  # not among the packages that lowft needs
        from finetuning_scheduler import FinetuningScheduler
    except ImportError as error:
        message = (
            f"this side needs Lightning and finetuning-scheduler ({error}): pip install lightning finetuning-scheduler "
            f"in an environment of its own, or leave the side out with --without lightning"
        )
        raise SystemExit(message) from error
    from transformers import DataCollatorWithPadding

    model, tokenizer, rows = _model_and_rows(work, sides)
    model.train()  # Lightning leaves modules in the mode that they come in
    stages = lowft.attach(lowft.load_model(minilm()), [lowft.LayerwiseUnfreeze()]).stages
    schedule: dict[int, dict[str, Any]] = {}
    thawed: set[str] = set()
    for number, stage in enumerate(stages):
        new = sorted(set(stage.trainable or ()) - thawed)
        schedule[number] = {"params": [f"model.{name}" for name in new], "lr": work.rate}
        schedule[number]["max_transition_epoch"] = work.epochs * (number + 1)
        thawed.update(new)
    loaders: dict[str, Any] = {
        name: torch.utils.data.DataLoader(
            part,  # type: ignore[arg-type] # a list serves as a data set
            batch_size=BATCH if name == "train" else 64,
            shuffle=name == "train",
            collate_fn=DataCollatorWithPadding(tokenizer),
        )
        for name, part in rows.items()
    }
    module = _lightning_module(pl, model, work)
    pl.seed_everything(work.seed, verbose=False)
    scheduler = FinetuningScheduler(ft_schedule=schedule, epoch_transitions_only=True, restore_best=False)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=work.epochs * len(stages), callbacks=[scheduler], logger=False,
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0,
        default_root_dir=tempfile.mkdtemp(), precision="bf16-mixed" if work.bfloat16 else "32-true",
    )  # fmt: skip
    started = time.perf_counter()
    trainer.fit(module, loaders["train"], loaders["validation"])
    seconds = time.perf_counter() - started
    model.eval()
    right = 0
    with torch.no_grad():
        for batch in loaders["test"]:
            labels = batch.pop("labels")
            right += int((model(**batch).logits.argmax(dim=-1) == labels).sum())
    return seconds, right / len(rows["test"]), ()


def _lightning_module(pl: Any, model: Any, work: Work) -> Any:
    class Module(pl.LightningModule):  # type: ignore[misc] # a class known at run time only
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, _index: int) -> Any:
            return self.model(**batch).loss

        def validation_step(self, batch: Any, _index: int) -> None:
            self.log("val_loss", self.model(**batch).loss, batch_size=len(batch["labels"]))

        def configure_optimizers(self) -> Any:
            chosen = [parameter for parameter in self.parameters() if parameter.requires_grad]
            return torch.optim.AdamW(chosen, lr=work.rate, weight_decay=DECAY)

    return Module()


SIDES: Mapping[str, Callable[[Work, lowft.Splits], _Found]] = {
    "lowft": by_lowft,
    "lowft-staged": by_lowft_staged,
    "transformers": by_transformers,
    "lightning": by_lightning,
}
