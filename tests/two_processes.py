"""What every process of a run does in test_processes.py: many short runs, each with what it brought written down.

Started as a module, once alone and once in two processes; not a test itself.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lowft.augment import Augmenter, RandomDeletion, RandomSwap, harm
from lowft.checkpoint import write_json, write_tensors
from lowft.data.batching import Batch
from lowft.state import State
from lowft.strategies import Augment, Contrastive, Distill, LayerwiseUnfreeze, PooledHead, SelfTraining, Unfreeze
from lowft.strategy import Strategy
from lowft.trainer import Trainer
from tests.runs import NO_DROPOUT, NUMBERED, seven_is_nan, tiny_trainer, weights
from tests.strategy_cases import tiny_rows, tiny_teacher
from tests.tiny import tiny_model

RANK = int(os.environ.get("RANK", "0"))
PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))

TEACHER = tiny_teacher()  # before the processes form a group, in which transformers saves on the first alone

# Large, since AdamW would otherwise blow the rounding errors of gradients near zero up to whole steps.
STEADY: dict[str, Any] = {"adam_epsilon": 1e-3, "learning_rate": 5e-3, "gradient_accumulation_steps": 2}


TEXTS: list[str] = []


@dataclass(frozen=True)
class KeepTexts(Strategy):
    """Note every text that the model reads in training."""

    def on_batch(self, batch: Batch, state: State) -> Batch:
        """Note those of a batch, with the step."""
        TEXTS.extend(f"{state.stage.name} {state.stage_step} {text}" for text, _ in batch.texts)
        return batch


@dataclass(frozen=True)
class Stick(Strategy):
    """Let nothing be learnt."""

    def before_step(self, state: State) -> None:
        """Throw the gradients away."""
        state.model.zero_grad(set_to_none=True)


@dataclass
class Found:
    """Where this process writes what each run brought."""

    folder: Path

    def keep(self, name: str, trainer: Trainer, **values: Any) -> None:
        """Write a run's weights, records and further values."""
        write_tensors(self.folder / f"{name}-{RANK}.safetensors", weights(trainer))
        records = [
            {key: value for key, value in record.items() if key != "peak_memory_bytes" and not key.endswith("seconds")}
            for record in trainer.history
        ]
        write_json(self.folder / f"{name}-{RANK}.json", {"records": records, **values})


def plain(found: Found, folder: Path) -> None:
    """Train all layers on 13 rows with everything that weighs rows; the last step has too few for all micro-batches."""
    trainer = tiny_trainer(
        model=tiny_model("bert", **NO_DROPOUT),
        train_dataset=tiny_rows(13),
        eval_dataset=tiny_rows(7, seed=1),
        eval_batch_size=2,
        batch_size=4 // PROCESSES,
        class_weights=(0.5, 2.0),
        label_smoothing=0.1,
        load_best_model_at_end=False,
        **STEADY,
    )
    trainer.fit()
    trainer.export(folder / "exported")
    found.keep("plain", trainer, metrics=dict(trainer.evaluate().metrics))


def limited(found: Found, folder: Path) -> None:
    """Train with few tokens at a time, so that processes make different numbers of micro-batches, and compiled."""
    trainer = tiny_trainer(
        model=tiny_model("bert", **NO_DROPOUT),
        train_dataset=tiny_rows(13),
        eval_dataset=tiny_rows(7, seed=1),
        batch_size=4 // PROCESSES,
        tokens_per_batch=12,
        torch_compile=True,
        torch_compile_backend="eager",
        load_best_model_at_end=False,
        **STEADY,
    )
    trainer.fit()
    found.keep("limited", trainer)


def staged(found: Found, folder: Path) -> None:
    """Unfreeze in three stages of their own batch sizes; with 9 rows, a step leaves a process without any row."""
    schedule = (
        Unfreeze(top=0, max_steps=3),
        Unfreeze(top=1, batch_size=2 // PROCESSES, epochs=1),
        Unfreeze(top="all", epochs=1, layer_decay=0.8),
    )
    trainer = tiny_trainer(
        model=tiny_model("bert", **NO_DROPOUT),
        train_dataset=tiny_rows(9),
        batch_size=4 // PROCESSES,
        strategies=[LayerwiseUnfreeze(schedule, min_improvement=-1.0)],
        load_best_model_at_end=False,
        **STEADY,
    )
    trainer.fit()
    found.keep("staged", trainer)


def taught(found: Found, folder: Path) -> None:
    """Learn from a teacher's answers and hidden states, a third of the rows without labels, ragged in the last step."""
    trainer = tiny_trainer(
        model=tiny_model("bert", **NO_DROPOUT),
        train_dataset=tiny_rows(13),
        unlabeled_dataset=tiny_rows(7, seed=5)["text"],
        batch_size=4 // PROCESSES,
        strategies=[Distill(TEACHER, hidden=0.5, relations=0.5)],
        load_best_model_at_end=False,
        **STEADY,
    )
    trainer.fit()
    found.keep("taught", trainer)


def compared(found: Found, folder: Path) -> None:
    """Compare rows and fresh copies of them in a stage of its own, then train on both; ragged in each epoch's end."""
    trainer = tiny_trainer(
        model=tiny_model("bert", **NO_DROPOUT),
        train_dataset=tiny_rows(13),
        batch_size=4,
        max_steps=3,
        strategies=[
            PooledHead(),
            Contrastive(max_steps=4, learning_rate=5e-3, batch_size=4, stop_below=0),
            Augment([RandomSwap(0.5), RandomDeletion(0.3)], copies=2),
            KeepTexts(),
        ],
        load_best_model_at_end=False,
        **(STEADY | {"gradient_accumulation_steps": 2 // PROCESSES}),
    )
    trainer.fit()
    everywhere = sorted(text for texts in trainer._placement.gather(TEXTS) for text in texts)
    found.keep("compared", trainer, texts=everywhere)


def self_taught(found: Found, folder: Path) -> None:
    """Learn from answers of the epoch before, to rows that another process then read, and leave misread copies out."""
    trainer = tiny_trainer(
        model=tiny_model("bert", **NO_DROPOUT),
        train_dataset=tiny_rows(13),
        unlabeled_dataset=tiny_rows(7, seed=5)["text"],
        batch_size=4 // PROCESSES,
        strategies=[Augment([RandomSwap(0.5)], drop_misread=0.5), SelfTraining(0.0)],
        load_best_model_at_end=False,
        **STEADY,
    )
    trainer.fit()
    found.keep("self-taught", trainer)


def begun_again(found: Found, folder: Path) -> None:
    """Collapse in every attempt, since nothing is learnt."""
    model: Any = tiny_model("bert")
    torch.nn.init.zeros_(model.classifier.weight)
    trainer = tiny_trainer(model=model, strategies=[Stick()], epochs=1, restarts=1, eval_dataset=None)
    trainer.fit()
    found.keep("again", trainer)


@dataclass(frozen=True)
class Turned(Augmenter):
    """Turns the order of words around."""

    def vary(self, text: str, rng: random.Random) -> str:
        return " ".join(reversed(text.split()))


@dataclass(frozen=True)
class Spoilt(Augmenter):
    """Adds a word that the model in `augmented` is made to read as the other class."""

    def vary(self, text: str, rng: random.Random) -> str:
        return f"{text} wonderful"


def augmented(found: Found, folder: Path) -> None:
    """Train on rows and copies, of which every row has one; an augmenter is switched off after the first epoch."""
    sure, harm._SURE = harm._SURE, 0.0
    read = harm._probabilities

    def spoilt(model: Any, like: Any, texts: Any, precision: str, most_tokens: int | None) -> Any:
        likely = read(model, like, texts, precision, most_tokens)
        own = dict(zip(zip(like.rows.texts, [None] * len(like), strict=True), like.labels, strict=True))
        for row, pair in enumerate(texts):  # the rows themselves are read rightly, and spoilt ones wrongly
            if pair in own:
                likely[row] = np.eye(2)[own[pair]]
            elif "wonderful" in pair[0]:
                likely[row] = np.eye(2)[1 - own[pair[0].removesuffix(" wonderful"), None]]
            else:
                likely[row] = np.eye(2)[own[" ".join(reversed(pair[0].split())), None]]
        return likely

    harm._probabilities = spoilt
    trainer = tiny_trainer(
        model=tiny_model("bert", **NO_DROPOUT),
        train_dataset=tiny_rows(13),
        batch_size=4 // PROCESSES,
        strategies=[Augment([Turned(), Spoilt()], drop_harmful=0.1)],
        load_best_model_at_end=False,
        **STEADY,
    )
    trainer.fit()
    harm._SURE, harm._probabilities = sure, read
    found.keep("augmented", trainer, off=trainer._loop.attached.state.memory["Augment"]["off"])


def stopped_and_resumed(found: Found, folder: Path) -> None:
    """Resume in the middle of the second stage, dropout on."""

    def run(place: Path) -> Trainer:
        strategies: list[Strategy] = [LayerwiseUnfreeze((Unfreeze(top=1, epochs=1), Unfreeze(top="all", epochs=1)))]
        return tiny_trainer(strategies=strategies, batch_size=2, save_steps=1, save_total_limit=9, output_dir=place)

    whole = run(folder / "whole")
    whole.fit()
    found.keep("whole", whole)
    if RANK == 0:
        shutil.copytree(folder / "whole" / "checkpoint-6", folder / "resumed" / "checkpoint-6")
    whole._placement.gather(None)
    resumed = run(folder / "resumed")
    resumed.fit(resume_from_checkpoint=True)
    found.keep("resumed", resumed)


def one_is_told_to_stop(found: Found, folder: Path) -> None:
    """The last process alone gets a SIGTERM in the middle of its third step."""
    trainer = tiny_trainer(batch_size=2, gradient_accumulation_steps=2, output_dir=folder / "told")
    calls = iter(range(1000))

    def interrupt(*_: Any) -> None:
        if torch.is_grad_enabled() and next(calls) == 4 and RANK == PROCESSES - 1:
            signal.raise_signal(signal.SIGTERM)

    trainer.model.register_forward_pre_hook(interrupt)
    found.keep("told", trainer, failure=_failure(trainer.fit))


def a_save_fails(found: Found, folder: Path) -> None:
    """Saving fails in the main process alone, as on a full disk there."""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    trainer = tiny_trainer(output_dir=folder / "full", save_steps=2)
    if RANK == 0:
        trainer._loop.attached.state_dict = full  # type: ignore[assignment, method-assign]
    found.keep("save", trainer, failure=_failure(trainer.fit))


def an_export_fails(found: Found, folder: Path) -> None:
    """Exporting fails in the main process alone: the folder is taken, or cannot be written."""
    trainer = tiny_trainer(epochs=1)
    trainer.fit()
    taken = folder / "taken"
    taken.mkdir(exist_ok=True)
    (taken / "thesis.tex").touch()
    file = folder / "file"
    file.touch()
    found.keep(
        "export",
        trainer,
        taken=_failure(lambda: trainer.export(taken)),
        unwritable=_failure(lambda: trainer.export(file / "below")),
    )


def one_row_is_bad(found: Found, folder: Path) -> None:
    """A row's loss is NaN, in whichever process it is: first an error, then skipped."""

    def run(**settings: Any) -> Trainer:
        model = tiny_model("bert", num_labels=1)
        return tiny_trainer(
            model=model, train_dataset=NUMBERED, eval_dataset=None, loss=seven_is_nan, batch_size=2, **settings
        )

    failure = _failure(run().fit)
    trainer = run(on_nonfinite="skip")
    trainer.fit()
    found.keep("bad", trainer, failure=failure)


def _failure(act: Callable[[], object]) -> list[str]:
    """Return the kind and the text of what an act raises."""
    try:
        act()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - written down, and compared by the test
        return [type(error).__name__, str(error)]
    return ["nothing", ""]


def main() -> None:
    """Do all of it."""
    torch.set_num_threads(1)
    found = Found(Path(sys.argv[1]))
    folder = found.folder / "work"
    folder.mkdir(exist_ok=True)
    plain(found, folder)
    limited(found, folder)
    staged(found, folder)
    taught(found, folder)
    compared(found, folder)
    augmented(found, folder)
    self_taught(found, folder)
    if PROCESSES > 1:
        begun_again(found, folder)
        stopped_and_resumed(found, folder)
        one_is_told_to_stop(found, folder)
        a_save_fails(found, folder)
        an_export_fails(found, folder)
        one_row_is_bad(found, folder)
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
