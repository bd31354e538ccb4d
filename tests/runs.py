"""Short runs over tiny models, for every test of the Trainer: equal arguments make equal runs."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lowft.config import TrainingConfig
from lowft.trainer import Trainer
from tests.strategy_cases import tiny_rows
from tests.tiny import tiny_model, tiny_tokenizer

__all__ = [
    "NO_DROPOUT",
    "NUMBERED",
    "note_records",
    "resumed_at",
    "seven_is_nan",
    "tiny_trainer",
    "train_records",
    "weights",
]

NO_DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

NUMBERED: dict[str, Any] = {"text": tiny_rows(12)["text"], "label": [row / 10 for row in range(12)]}

_SETTINGS = frozenset(field.name for field in dataclasses.fields(TrainingConfig))


def tiny_trainer(**values: Any) -> Trainer:
    """Return a Trainer over a tiny BERT, 14 training and 8 validation rows; `values` are its arguments and settings."""
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 4, "learning_rate": 5e-3, "seed": 3, "device": "cpu"}
    settings |= {name: value for name, value in values.items() if name in _SETTINGS}
    arguments: dict[str, Any] = {
        "train_dataset": tiny_rows(),
        "eval_dataset": tiny_rows(8, seed=1),
        "tokenizer": tiny_tokenizer(),
        "config": TrainingConfig(**settings),
    }
    arguments |= {name: value for name, value in values.items() if name not in _SETTINGS}
    return Trainer(arguments.pop("model", None) or tiny_model("bert"), **arguments)


def weights(source: Trainer | torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of all weights as they are now."""
    model = source.model if isinstance(source, Trainer) else source
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def train_records(trainer: Trainer, name: str) -> list[Any]:
    """Return one value of every optimizer step in the history."""
    return [record[name] for record in trainer.history.filter("train")]


def note_records(trainer: Trainer) -> list[dict[str, Any]]:
    """Return the notes of the history, but not that a tiny model has learnt nothing in so few steps."""
    return [note for note in trainer.history.filter("note") if "has collapsed" not in note["message"]]


def seven_is_nan(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return squared errors, `[batch]`, with that of row 7 of `NUMBERED` not a number."""
    return (logits[:, 0] - labels).square() * torch.where((labels - 0.7).abs() < 1e-4, torch.nan, 1.0)


def resumed_at(step: int, whole: Path, make: Callable[[Path], Trainer]) -> Trainer:
    """Return a Trainer that went on from one checkpoint of a run, in a folder of its own beside it, to the end."""
    folder = whole.with_name(f"resumed-{step}")
    shutil.copytree(whole / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    resumed = make(folder)
    resumed.fit(resume_from_checkpoint=True)
    return resumed
