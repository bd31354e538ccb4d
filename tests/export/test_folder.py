"""Exported folders: what is in them, who can read them, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lowft
from lowft.checkpoint import MANIFEST, verify_folder
from lowft.config import TrainingConfig
from lowft.errors import (
    CheckpointMismatchError,
    ConfigError,
    DataError,
)
from lowft.export import load
from lowft.trainer import Trainer
from tests.export.exports import FILES, TEXTS, names, trained
from tests.strategy_cases import tiny_rows
from tests.tiny import VOCABULARY, tiny_model, tiny_tokenizer

# --- what is there, and who reads it -----------------------------------------------------------------------------


def test_every_file_is_there(exported: Path) -> None:
    """Weights, configuration, tokenizer, what lowft needs besides, a card, and a manifest of all but the card."""
    assert names(exported) == sorted(FILES)
    assert verify_folder(exported) == []
    assert set(json.loads((exported / MANIFEST).read_text())["files"]) == set(FILES) - {MANIFEST, "README.md"}


def test_the_settings_say_how_the_model_came_about(exported: Path) -> None:
    """Recipe, labels, metrics, versions and limits stand in one JSON file."""
    settings = json.loads((exported / "lowft.json").read_text())
    assert settings["labels"]["classes"] == ["neg", "pos"]
    assert settings["max_length"] == 120
    assert settings["takes_pairs"] is False
    assert settings["model_class"] == "BertForSequenceClassification"
    assert [part["name"] for part in settings["recipe"]["strategies"]] == ["PartialFreeze"]
    assert settings["recipe"]["config"]["learning_rate"] == 5e-3
    assert 0 <= settings["metrics"]["test"]["metrics"]["accuracy"] <= 1
    assert settings["versions"]["torch"] == torch.__version__


def test_the_loaded_model_predicts_the_same_bits(trainer: Trainer, exported: Path) -> None:
    """`lowft.load` gives what the Trainer gives: logits, probabilities, labels, evaluation."""
    predictor = lowft.load(exported)
    own = trainer._predictor()
    assert np.array_equal(predictor.predict_logits(TEXTS), own.predict_logits(TEXTS))
    assert np.array_equal(predictor.predict_proba(TEXTS), trainer.predict_proba(TEXTS))
    assert predictor.predict(TEXTS) == trainer.predict(TEXTS)
    assert predictor.evaluate(tiny_rows(8, seed=1)).metrics == trainer.evaluate(tiny_rows(8, seed=1)).metrics
    assert not predictor.model.training


def test_plain_transformers_reads_the_folder(trainer: Trainer, exported: Path) -> None:
    """`from_pretrained` and `pipeline` load it without lowft, with the names of the classes and the same results."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    auto: Any = AutoModelForSequenceClassification
    model = auto.from_pretrained(exported).eval()
    inputs = AutoTokenizer.from_pretrained(exported)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits.numpy()
    assert np.allclose(logits, trainer._predictor().predict_logits(TEXTS), atol=1e-5)
    assert model.config.id2label == {0: "neg", 1: "pos"}
    classify: Any = pipeline("text-classification", model=str(exported))
    answers = classify(TEXTS)
    assert [answer["label"] for answer in answers] == trainer.predict(TEXTS)
    assert np.allclose([a["score"] for a in answers], trainer.predict_proba(TEXTS).max(axis=1), atol=1e-5)


def test_no_path_of_the_exporting_machine_is_in_any_file(tmp_path: Path) -> None:
    """A model that came from a folder is named by the folder's name alone, even where the folder has gone since."""
    home = tmp_path / "home of someone" / "start"
    tiny_model("bert").save_pretrained(home)
    tiny_tokenizer("bert").save_pretrained(home)
    settings = TrainingConfig(max_steps=1, device="cpu", output_dir=tmp_path / "home of someone" / "runs")
    trainer = Trainer(home, tiny_rows(), config=settings)
    trainer.fit()
    assert trainer.model.config.name_or_path == str(home)  # type: ignore[union-attr] # what must not be written
    kept = trainer.export(tmp_path / "kept", verify="here")
    shutil.rmtree(home)
    gone = trainer.export(tmp_path / "gone", verify="here")
    held = trained(tiny_model("bert", name_or_path=str(home))).export(tmp_path / "held", verify="here")
    for folder in (kept, gone, held):
        assert json.loads((folder / "lowft.json").read_text())["base_model"] == "start"
        for path in folder.iterdir():
            assert str(tmp_path).encode() not in path.read_bytes(), path
            assert b"home of someone" not in path.read_bytes(), path
    load(gone)


def test_an_edited_card_does_no_harm(folder: Path) -> None:
    """The card may be edited or deleted, and notes may be put beside it."""
    (folder / "README.md").write_text("my own words")
    (folder / "notes.txt").write_text("mine")
    assert load(folder).predict(TEXTS)
    (folder / "README.md").unlink()
    assert load(folder).predict(TEXTS)


# --- labels and tasks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [("bad", "good"), (0, 1), (5, 0, 7), (-1, 1), (False, True), ("1", "0")])
def test_labels_come_back_as_they_were_given(classes: tuple[Any, ...], tmp_path: Path) -> None:
    """Text, numbers with gaps, negative ones and truth values: predictions are the caller's own values and types."""
    trainer = trained(tiny_model("bert", num_labels=len(classes)), tiny_rows(classes=classes))
    predictor = load(trainer.export(tmp_path / "model", verify="here"))
    answers = predictor.predict(tiny_rows()["text"])
    assert answers == trainer.predict(tiny_rows()["text"])
    assert {(type(answer), answer) for answer in answers} <= {(type(value), value) for value in classes}
    assert predictor.labels == trainer.labels


def test_several_labels_a_row(tmp_path: Path) -> None:
    """Lists of labels come back as lists; each class has a probability of its own."""
    rows = tiny_rows(classes=(["fun"], ["sad", "slow"], []))
    trainer = trained(tiny_model("bert", num_labels=3), rows)
    predictor = load(trainer.export(tmp_path / "model", verify="here"))
    assert predictor.labels.task == "multi_label_classification"
    probabilities = predictor.predict_proba(TEXTS)
    assert np.array_equal(probabilities, trainer.predict_proba(TEXTS))
    expected = [
        [name for name, p in zip(("fun", "sad", "slow"), row, strict=True) if p >= 0.5] for row in probabilities
    ]
    assert predictor.predict(TEXTS) == expected
    assert predictor.model.config.problem_type == "multi_label_classification"  # type: ignore[union-attr]


def test_a_regression(tmp_path: Path) -> None:
    """Numbers come back as numbers, and there are no probabilities."""
    rows = tiny_rows()
    rows["label"] = [len(text) / 10 for text in rows["text"]]
    trainer = trained(tiny_model("bert", num_labels=1), rows)
    predictor = load(trainer.export(tmp_path / "model", verify="here"))
    # Its head has a bias of one element, behind which a file's tensors are not where torch would put them.
    assert np.array_equal(predictor.predict_logits(TEXTS), trainer._predictor().predict_logits(TEXTS))
    assert predictor.predict(TEXTS) == trainer.predict(TEXTS)
    assert all(isinstance(answer, float) for answer in predictor.predict(TEXTS))
    with pytest.raises(ConfigError, match="a regression predicts numbers and has no probabilities"):
        predictor.predict_proba(TEXTS)


def test_a_model_that_plain_transformers_loaded(tmp_path: Path) -> None:
    """What lies at odd addresses, as after transformers' own loading, trains and exports to the same bits."""
    from transformers import AutoModelForSequenceClassification

    tiny_model("bert", num_labels=1).save_pretrained(tmp_path / "start")
    auto: Any = AutoModelForSequenceClassification
    rows = tiny_rows()
    rows["label"] = [len(text) / 10 for text in rows["text"]]
    trainer = trained(auto.from_pretrained(tmp_path / "start"), rows)
    predictor = load(trainer.export(tmp_path / "model", verify="here"))
    for seed in range(5):
        texts = tiny_rows(seed=seed)["text"]
        assert np.array_equal(predictor.predict_logits(texts), trainer._predictor().predict_logits(texts))


def test_pairs_of_texts(tmp_path: Path) -> None:
    """A model of pairs takes pairs after loading, and says so where it gets single texts."""
    rows = tiny_rows()
    trainer = trained(rows={"text": rows["text"], "text_pair": rows["text"][::-1], "label": rows["label"]})
    predictor = load(trainer.export(tmp_path / "model", verify="here"))
    pairs = [("a dull film", "a warm film"), ("plot", "love")]
    assert np.array_equal(predictor.predict_logits(pairs), trainer._predictor().predict_logits(pairs))
    with pytest.raises(DataError, match="the model was trained on pairs of texts; received single texts"):
        predictor.predict(TEXTS)


def test_precision_and_batch_size_are_the_callers_choice(exported: Path) -> None:
    """Other sizes of batches give the same answers; an unknown precision is refused."""
    assert load(exported, batch_size=1).predict(TEXTS) == load(exported).predict(TEXTS)
    assert load(exported, precision="bfloat16").precision == "bfloat16"
    with pytest.raises(ConfigError, match="precision must be one of 'float32', 'bfloat16'; received 'float16'"):
        load(exported, precision="float16")


# --- a module of one's own ---------------------------------------------------------------------------------------


class Bag(nn.Module):
    """A user's own classifier: mean of embeddings, one layer; it returns an object with logits."""

    def __init__(self, width: int = 8, outputs: int = 2, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(len(VOCABULARY), width)
        self.hidden = nn.Linear(width, width)
        self.output = nn.Linear(width, outputs)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        """Return the logits, `[batch, outputs]`."""
        mask = attention_mask.unsqueeze(-1).float()
        mean = (self.embedding(input_ids) * mask).sum(1) / mask.sum(1)
        return SimpleNamespace(logits=self.output(torch.tanh(self.hidden(mean))))


def test_a_module_of_ones_own(tmp_path: Path) -> None:
    """It exports as its weights; `load` fills a fresh instance in place and gives the same bits."""
    trainer = trained(Bag())
    folder = trainer.export(tmp_path / "model", verify="here")
    fresh = Bag(seed=9)
    predictor = load(folder, model=fresh)
    assert predictor.model is fresh
    assert np.array_equal(predictor.predict_logits(TEXTS), trainer._predictor().predict_logits(TEXTS))
    assert "model=Bag(...)" in (folder / "README.md").read_text()
    assert "Plain transformers" not in (folder / "README.md").read_text()


def test_a_module_of_ones_own_must_be_given_and_fit(exported: Path, tmp_path: Path) -> None:
    """Without it, or with one of another shape, the message names what is needed; a transformers model needs none."""
    folder = trained(Bag()).export(tmp_path / "model", verify="here")
    with pytest.raises(ConfigError, match="holds the weights of your own module Bag: pass model=, an instance of it"):
        load(folder)
    with pytest.raises(
        CheckpointMismatchError, match=r"'embedding\.weight' of shape \[600, 8\]; in this model it is \["
    ):
        load(folder, model=Bag(width=4))
    larger = Bag()
    larger.extra = nn.Linear(1, 1)
    with pytest.raises(CheckpointMismatchError, match=r"lacks 'extra\.bias', 'extra\.weight' of this model"):
        load(folder, model=larger)
    with pytest.raises(ConfigError, match="holds a BertForSequenceClassification of transformers: leave model= out"):
        load(exported, model=Bag())


# --- where it is deployed ---------------------------------------------------------------------------------------------


def test_loading_needs_no_trainer(exported: Path) -> None:
    """A deployed process pays for the model alone: it does not import data set or training libraries."""
    script = (
        "import sys, lowft\n"
        f"lowft.load({str(exported)!r}).predict(['a film'])\n"
        "print([name for name in ('datasets', 'pandas', 'sklearn', 'matplotlib') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
