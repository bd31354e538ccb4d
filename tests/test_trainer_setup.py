"""What users hand to the Trainer: models, rows in any form, settings; what is refused, and what stays as it was."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lowft
from lowft.config import TrainingConfig
from lowft.errors import ConfigError, LabelError, ModelError
from lowft.strategies import LayerwiseUnfreeze, PartialFreeze, Unfreeze
from tests.runs import tiny_trainer, weights
from tests.strategy_cases import tiny_rows
from tests.test_strategies_table import assert_same
from tests.tiny import tiny_model, tiny_tokenizer

ROWS = tiny_rows()


@pytest.fixture
def saved_model(tmp_path: Path) -> Path:
    """Return a folder with a tiny model for three classes, and its tokenizer."""
    folder = tmp_path / "pre-trained"
    tiny_model("bert", num_labels=3).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_the_first_trained_model_takes_eight_lines(tmp_path: Path) -> None:
    """Texts in, a trained and exported model out, with nothing set that has a default."""
    tiny_model("bert").save_pretrained(tmp_path / "small-model")
    tiny_tokenizer().save_pretrained(tmp_path / "small-model")
    train, held_out = tiny_rows(40), tiny_rows(12, seed=1)

    trainer = lowft.Trainer(tmp_path / "small-model", train, held_out)
    trainer.fit()
    report = trainer.evaluate()
    trainer.export(tmp_path / "exported", verify="here")
    predictor = lowft.load(tmp_path / "exported")

    assert report.rows == 12
    assert predictor.predict(held_out["text"]) == trainer.predict(held_out["text"])
    assert set(predictor.predict(held_out["text"])) <= {"neg", "pos"}


def _as_frame(_: Path) -> Any:
    import pandas as pd

    return pd.DataFrame(ROWS)


def _as_dataset(_: Path) -> Any:
    import datasets

    return datasets.Dataset.from_dict(ROWS)


def _as_csv(folder: Path) -> Path:
    _as_frame(folder).to_csv(folder / "rows.csv", index=False)
    return folder / "rows.csv"


def _as_jsonl(folder: Path) -> Path:
    _as_frame(folder).to_json(folder / "rows.jsonl", orient="records", lines=True)
    return folder / "rows.jsonl"


FORMS: dict[str, Callable[[Path], Any]] = {
    "dict of columns": lambda _: ROWS,
    "texts and labels": lambda _: (ROWS["text"], ROWS["label"]),
    "list of pairs": lambda _: list(zip(ROWS["text"], ROWS["label"], strict=True)),
    "list of dicts": lambda _: [
        {"text": text, "label": label} for text, label in zip(ROWS["text"], ROWS["label"], strict=True)
    ],
    "Rows": lambda _: lowft.read_rows(ROWS),
    "DataFrame": _as_frame,
    "Dataset": _as_dataset,
    "CSV": _as_csv,
    "JSON lines": _as_jsonl,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_trains_the_same_model(form: str, tmp_path: Path) -> None:
    """Whatever holds the rows, the run is the same, and what held them is as it was."""
    data = FORMS[form](tmp_path)
    before = copy.deepcopy(data)
    trainer, plain = tiny_trainer(train_dataset=data, epochs=1), tiny_trainer(epochs=1)
    trainer.fit()
    plain.fit()
    assert_same(weights(plain), weights(trainer))
    assert repr(data) == repr(before)


def test_columns_of_other_names_are_mapped() -> None:
    """The caller's own column names serve for training, evaluation and tests alike."""
    mapping = {"review": "text", "stars": "label"}
    rows = {"review": ROWS["text"], "stars": ROWS["label"]}
    trainer = tiny_trainer(train_dataset=rows, eval_dataset=None, column_mapping=mapping, epochs=1)
    trainer.fit()
    assert trainer.evaluate(rows, column_mapping=mapping).rows == 14
    assert len(trainer.predict(rows, column_mapping=mapping)) == 14


def test_the_callers_module_stays_what_it_is() -> None:
    """The module is trained in place: same object, same type, same flags; in the end in eval mode."""
    model = tiny_model("bert")
    model.get_parameter("bert.pooler.dense.bias").requires_grad_(False)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    parameters, kind = list(model.parameters()), type(model)
    trainer = tiny_trainer(model=model, strategies=[LayerwiseUnfreeze((Unfreeze(top=0), Unfreeze(top=1)))])
    assert trainer.model is model
    trainer.fit()
    assert trainer.model is model
    assert type(model) is kind
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_that_is_handed_over_is_changed() -> None:
    """Rows, settings, strategies and mappings are afterwards what they were before."""
    train, held_out = copy.deepcopy(ROWS), tiny_rows(8, seed=1)
    config = TrainingConfig(max_steps=2, class_weights=(1.0, 2.0))  # without a learning rate: one is chosen
    strategies, mapping = [PartialFreeze(top=1)], {"text": "text"}
    tokenizer = tiny_tokenizer()
    before = copy.deepcopy((train, held_out, config, strategies, mapping, tokenizer("a film", padding=False)))
    trainer = lowft.Trainer(
        tiny_model("bert"),
        train,
        held_out,
        strategies=strategies,
        config=config,
        tokenizer=tokenizer,
        column_mapping=mapping,
    )
    trainer.fit()
    assert (train, held_out, config, strategies, mapping, tokenizer("a film", padding=False)) == before
    assert trainer.config.learning_rate == pytest.approx(5e-5 * 768 / 32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_half_precision_is_refused(dtype: torch.dtype) -> None:
    """Small updates would be lost in its weights: the message says what to do instead."""
    with pytest.raises(ModelError, match=rf"{dtype}.*dtype=torch.float32.*precision='bfloat16'"):
        tiny_trainer(model=torch.nn.Module.to(tiny_model("bert"), dtype))


def test_a_trainer_prints_what_it_will_do() -> None:
    """Task, classes, rows, strategies, layers and stages, before anything is trained."""
    schedule = LayerwiseUnfreeze((Unfreeze(top=0, max_steps=5), Unfreeze(top=1, learning_rate=1e-4)))
    printed = str(tiny_trainer(train_dataset=tiny_rows(13), strategies=[schedule]))
    for line in (
        "BertForSequenceClassification for single-label classification",
        "2 classes: neg 7, pos 6",
        "13 training rows, 8 validation rows, at most 120 tokens each",
        "strategies: LayerwiseUnfreeze",
        "bert.encoder.layer.2",
    ):
        assert line in printed
    stages = [line.split() for line in printed.splitlines()[-2:]]
    assert [(row[0], row[-2], row[-1]) for row in stages] == [("head", "5", "0.005"), ("top", "8", "0.0001")]
    assert "no validation rows" in str(tiny_trainer(eval_dataset=None))
    assert "none (full fine-tuning)" in str(tiny_trainer())


def test_a_model_is_loaded_from_a_folder(saved_model: Path) -> None:
    """A folder brings model and tokenizer, and the labels name its outputs."""
    rows = tiny_rows(15, classes=("a", "b", "c"))
    trainer = lowft.Trainer(str(saved_model), rows, config=TrainingConfig(max_steps=1))
    config: Any = trainer.model.config
    assert config.id2label == {0: "a", 1: "b", 2: "c"}
    assert trainer.tokenizer("a film")["input_ids"] == tiny_tokenizer()("a film")["input_ids"]
    trainer.fit()


def test_a_head_for_other_classes_is_replaced_only_when_asked(saved_model: Path) -> None:
    """Three outputs do not fit two classes: an error, or a new head on the trained body."""
    with pytest.raises((LabelError, ModelError), match="new_head=True"):
        lowft.Trainer(saved_model, ROWS)
    trainer = lowft.Trainer(saved_model, ROWS, new_head=True)
    old = weights(tiny_model("bert", num_labels=3))
    new = weights(trainer)
    assert new["classifier.weight"].shape == (2, 32)
    assert_same(
        {name: value for name, value in old.items() if name.startswith("bert.")},
        {name: value for name, value in new.items() if name.startswith("bert.")},
    )
    one, other = (lowft.Trainer(saved_model, ROWS, new_head=True, config=TrainingConfig(seed=seed)) for seed in (1, 2))
    assert not torch.equal(weights(one)["classifier.weight"], weights(other)["classifier.weight"])


def test_a_module_with_other_outputs_is_refused() -> None:
    """A module is not changed behind the caller's back: the message says how to load it."""
    with pytest.raises(LabelError, match=r"has 3 outputs, and the training labels need 2.*num_labels=2"):
        tiny_trainer(model=tiny_model("bert", num_labels=3))


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        ({"model": 3}, ConfigError, "model must be a hub id, a folder or a torch.nn.Module; received int: 3"),
        ({"model": "no/such/folder"}, ModelError, "'no/such/folder' is not a folder"),
        ({"tokenizer": None}, ConfigError, "tokenizer is missing.*Pass tokenizer="),
        ({"tokenizer": 3}, ConfigError, "tokenizer must be a transformers tokenizer, a hub id or a folder; received 3"),
        ({"config": {"epochs": 2}}, ConfigError, "config must be a lowft.TrainingConfig; received"),
        ({"strategies": [PartialFreeze]}, ConfigError, r"write PartialFreeze\(\.\.\.\)"),
        ({"strategies": ["freeze"]}, ConfigError, "must be lowft.Strategy objects; received 'freeze'"),
        ({"strategies": "PartialFreeze"}, ConfigError, "strategies must be a list of strategies; received 'Partial"),
        (
            {"strategies": PartialFreeze(top=1)},
            ConfigError,
            "strategies must be a list of strategies; received Partial",
        ),
        ({"loss": "cross entropy"}, ConfigError, "loss 'cross entropy' does not suit"),
        ({"loss": 3}, ConfigError, "loss must be a name, a function"),
        ({"task": "classification"}, ConfigError, "task"),
        ({"device": "cuda:99"}, ConfigError, "device='cuda:99' cannot be used here"),
        ({"device": "toaster"}, ConfigError, "device='toaster' cannot be used here"),
        ({"max_length": 1000}, ConfigError, "max_length must be at most 120, the limit of this model; received 1000"),
        ({"class_weights": (1.0, 2.0, 3.0)}, ConfigError, "one weight for each of the 2 classes.*received 3"),
        (
            {"class_weights": (1.0, -2.0)},
            ConfigError,
            r"class_weights\[1\] must be a finite number at least 0; received -2.0",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_the_model_is_touched(
    values: dict[str, Any], error: type[Exception], text: str
) -> None:
    """Each message names the setting, the rule and the value received."""
    model = tiny_model("bert")
    settings = json.dumps(model.config.to_dict(), default=str)
    with pytest.raises(error, match=text):
        tiny_trainer(**({"model": model} | values))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert json.dumps(model.config.to_dict(), default=str) == settings
