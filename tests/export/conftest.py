"""A trained model and its exported folder, for the modules of tests that have none of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lowft.strategies import PartialFreeze
from lowft.trainer import Trainer
from tests.export.exports import trained
from tests.strategy_cases import tiny_rows


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    """Return a Trainer that has trained and evaluated."""
    trainer = trained(strategies=(PartialFreeze(top=2),))
    trainer.evaluate(tiny_rows(8, seed=1), name="test")
    return trainer


@pytest.fixture(scope="module")
def exported(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that it exported; tests copy it before they change it."""
    return trainer.export(tmp_path_factory.mktemp("exports") / "sentiment")


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """Return a copy of the exported folder."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))
