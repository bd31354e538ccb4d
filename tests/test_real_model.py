"""The whole way on a real pre-trained encoder and real reviews, a second process included."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from lowft.checkpoint import read_tensors
from lowft.config import TrainingConfig
from lowft.strategies import LayerwiseUnfreeze, Unfreeze
from lowft.trainer import Trainer
from tests.test_strategies_table import assert_same, contents

ROOT = Path(__file__).parents[1]
TRAIN, HELD_OUT = 48, 16
Rows = tuple[list[str], list[int]]


def real_trainer(model: Path, sentences: list[str], labels: list[int], output_dir: Path) -> Trainer:
    """Return a run of two stages of three steps over real sentences, dropout on."""
    return Trainer(
        model,
        (sentences[:TRAIN], labels[:TRAIN]),
        (sentences[TRAIN:], labels[TRAIN:]),
        strategies=[LayerwiseUnfreeze((Unfreeze(top=1, max_steps=3), Unfreeze(top=3, max_steps=3)))],
        config=TrainingConfig(
            batch_size=8,
            gradient_accumulation_steps=2,
            save_steps=2,
            load_best_model_at_end=False,
            max_length=32,
            device="cpu",
            output_dir=output_dir,
        ),
    )


_ELSEWHERE = """
import json, sys
from pathlib import Path
import torch
import lowft
from lowft.checkpoint import model_tensors, write_tensors
from tests.test_real_model import TRAIN, real_trainer

torch.set_num_threads(1)
folder, model = map(Path, sys.argv[1:])
sentences, labels = json.loads((folder / "rows.json").read_text())
trainer = real_trainer(model, sentences, labels, folder / "resumed")
trainer.fit(resume_from_checkpoint=True)
write_tensors(folder / "resumed.safetensors", model_tensors(trainer.model))
predictor = lowft.load(folder / "exported")
(folder / "logits.json").write_text(json.dumps(predictor.predict_logits(sentences[TRAIN:]).tolist()))
"""


@pytest.fixture(scope="module")
def ended(
    tmp_path_factory: pytest.TempPathFactory, minilm_path: Path, rotten_tomatoes: Rows
) -> Iterator[tuple[Path, Trainer]]:
    """Train here; then resume a copy of the run's fourth checkpoint, and load its export, in another process."""
    folder = tmp_path_factory.mktemp("real")
    texts, classes = rotten_tomatoes
    sentences, labels = texts[: TRAIN + HELD_OUT], classes[: TRAIN + HELD_OUT]
    (folder / "rows.json").write_text(json.dumps([sentences, labels]))
    trainer = real_trainer(minilm_path, sentences, labels, folder / "whole")
    trainer.fit()
    trainer.export(folder / "exported")
    shutil.copytree(folder / "whole" / "checkpoint-4", folder / "resumed" / "checkpoint-4")
    subprocess.run([sys.executable, "-c", _ELSEWHERE, str(folder), str(minilm_path)], cwd=ROOT, check=True, timeout=300)
    yield folder, trainer
    shutil.rmtree(folder)  # several hundred megabytes, of which pytest would keep the last three


def test_a_real_model_resumes_bit_identically_in_another_process(ended: tuple[Path, Trainer]) -> None:
    """Weights, moments and history are those of the run that was never stopped."""
    folder, trainer = ended
    assert_same(contents(folder / "whole" / "checkpoint-6"), contents(folder / "resumed" / "checkpoint-6"))
    resumed = read_tensors(folder / "resumed.safetensors")
    assert_same({name: parameter.detach() for name, parameter in trainer.model.named_parameters()}, resumed)


def test_only_what_was_to_train_has_moved(ended: tuple[Path, Trainer], minilm_path: Path) -> None:
    """The lower three blocks and the embeddings are those of the checkpoint, to the bit; the upper ones are not."""
    _, trainer = ended
    original = read_tensors(minilm_path / "model.safetensors")
    compared = {True: 0, False: 0}
    for name, parameter in trainer.model.named_parameters():
        bare = name.removeprefix("bert.")
        if bare not in original or "pooler" in bare:
            continue
        frozen = bare.startswith("embeddings") or any(f"layer.{block}." in bare for block in range(3))
        assert torch.equal(parameter, original[bare]) == frozen, name
        compared[frozen] += 1
    assert min(compared.values()) > 40


def test_a_real_model_loads_with_the_same_logits_in_another_process(ended: tuple[Path, Trainer]) -> None:
    """What was exported gives in a fresh process the very numbers that the Trainer gives here."""
    folder, trainer = ended
    sentences, labels = json.loads((folder / "rows.json").read_text())
    logits = np.array(json.loads((folder / "logits.json").read_text()), dtype=np.float32)
    assert np.array_equal(logits, trainer._predictor().predict_logits(sentences[TRAIN:]))
    assert trainer.predict(sentences[TRAIN:]) == logits.argmax(axis=1).tolist()
    assert trainer.evaluate().metrics["accuracy"] == np.mean(logits.argmax(axis=1) == labels[TRAIN:])
