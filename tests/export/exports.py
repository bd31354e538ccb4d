"""What tests of exported folders share: texts, the files of a folder, and a model that was trained for a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from lowft.checkpoint import MANIFEST
from lowft.config import TrainingConfig
from lowft.trainer import Trainer
from tests.strategy_cases import tiny_rows
from tests.tiny import tiny_model, tiny_tokenizer

__all__ = ["FILES", "TEXTS", "names", "trained"]

TEXTS = ["a dull and lazy film", "a warm , funny story about love", "plot"]
FILES = [
    "README.md",
    "config.json",
    MANIFEST,
    "lowft.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]


def trained(model: nn.Module | None = None, rows: Any = None, **how: Any) -> Trainer:
    """Return a Trainer that has made two steps on a model."""
    settings = TrainingConfig(max_steps=2, batch_size=4, learning_rate=5e-3, device="cpu", seed=1)
    given: dict[str, Any] = {"tokenizer": tiny_tokenizer("bert"), "config": settings}
    trainer = Trainer(model or tiny_model("bert"), rows or tiny_rows(), **(given | how))
    trainer.fit()
    return trainer


def names(folder: Path) -> list[str]:
    """Return the names in a folder, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())
