"""The model card: what a person reads who finds an exported folder."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from lowft.evaluation import EvaluationReport, evaluation_report
from lowft.export.card import model_card
from lowft.history import History

SETTINGS: dict[str, Any] = {
    "model_class": "BertForSequenceClassification",
    "is_transformers": True,
    "base_model": "acme/small-encoder",
    "revision": None,
    "labels": {"task": "single_label_classification", "names": ["neg", "pos"]},
    "takes_pairs": False,
    "max_length": 128,
    "runtime": "safetensors",
    "weights": "float32",
    "structure": [],
    "recipe": {"strategies": [{"name": "PartialFreeze", "settings": {"top": 2}}], "config": {"seed": 3}},
    "versions": {"lowft": "0.1.0", "torch": "2.13.0"},
}


def card(reports: dict[str, EvaluationReport] | None = None, records: Any = (), **changes: Any) -> str:
    """Return the card of the settings above with some of them changed."""
    return model_card(SETTINGS | changes, reports or {}, History(list(records)))


def report() -> EvaluationReport:
    """Return an evaluation of four rows, three of them right."""
    logits = np.array([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    return evaluation_report("single_label_classification", logits, np.array([0, 0, 1, 1]), ["neg", "pos"])


def test_the_head_is_what_hubs_read() -> None:
    """A YAML block at the very beginning gives library, task, tag and base model."""
    head = card().split("---\n")[1]
    assert card().startswith("---\n")
    assert head.splitlines() == [
        "library_name: transformers",
        "pipeline_tag: text-classification",
        "tags:",
        "- lowft",
        'base_model: "acme/small-encoder"',
    ]


@pytest.mark.parametrize("base", [None, "folder"])
def test_only_a_hub_id_is_named_as_base_model(base: str | None) -> None:
    """A folder's name means nothing on a hub, so the head leaves it out."""
    assert "base_model:" not in card(base_model=base)
    assert f"fine-tuned from `{base or 'BertForSequenceClassification'}`" in card(base_model=base)


def test_a_name_cannot_break_out_of_the_head() -> None:
    """Whatever the base model is called, the head stays a block of plain keys."""
    text = card(base_model='a/b"\nlicense: evil')
    assert "\nlicense: evil" not in text.split("---\n")[1]


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("single_label_classification", "gives each text one of these classes: `neg`, `pos`."),
        ("multi_label_classification", "gives each text any number of these classes: `neg`, `pos`."),
        ("regression", "gives each text a number."),
    ],
)
def test_the_card_says_what_the_model_does(task: str, says: str) -> None:
    """Task and classes stand in one sentence."""
    assert f"This model {says}" in card(labels={"task": task, "names": ["neg", "pos"]})


def test_the_limits_are_said() -> None:
    """How long a text may be, the revision that it started from, and that figures do not travel."""
    text = card(revision="abc123")
    assert "fine-tuned from `acme/small-encoder` at revision `abc123`; texts are cut after 128 tokens." in text
    assert "Measure it on your own" in text


@pytest.mark.parametrize(
    ("changes", "lines", "absent"),
    [
        ({}, ['predictor = lowft.load("this folder")', 'predictor.predict(["a text"])'], "model="),
        ({"takes_pairs": True}, ['predictor.predict([("a text", "a second text")])'], '["a text"]'),
        (
            {"is_transformers": False, "model_class": "Bag"},
            ['predictor = lowft.load("this folder", model=Bag(...))'],
            "Plain transformers",
        ),
    ],
)
def test_the_usage_fits_the_model(changes: dict[str, Any], lines: list[str], absent: str) -> None:
    """The code to copy is that for pairs, and for a module of one's own, where it is one."""
    text = card(**changes)
    code = text.split("```python\n")[1].split("```")[0]
    assert all(line in code for line in lines)
    assert absent not in text


def test_plain_transformers_is_mentioned_where_it_works() -> None:
    """The card of a transformers model says that lowft is not needed."""
    assert "Plain transformers reads the folder too, with `AutoModelForSequenceClassification`." in card()


def test_results_are_a_table_with_an_interval() -> None:
    """Each evaluation is a row, with its number of rows, and the accuracy carries its uncertainty."""
    text = card({"validation": report(), "test": report()})
    header = next(line for line in text.splitlines() if line.startswith("| rows | count |"))
    rows = [line for line in text.splitlines() if line.startswith(("| validation |", "| test |"))]
    assert len(rows) == 2
    assert {line.count("|") for line in (header, *rows)} == {header.count("|")}
    assert " 0.7500 " in rows[0]
    low, high = report().accuracy_interval or (0.0, 0.0)
    assert f"95 % interval of the accuracy on test: {low:.4f} to {high:.4f}." in text


def test_without_an_evaluation_the_card_says_so() -> None:
    """No figures are made up."""
    assert "It was not evaluated." in card()


def test_the_training_is_told() -> None:
    """Strategies by name, each stage with its steps and decision, and the recipe as JSON that can be read back."""
    stage = {
        "event": "stage", "step": 1200, "stage": 0, "stage_name": "head", "seconds": 61.4, "epoch": 1.0,
        "trainable_parameters": 770, "decision": "continue", "reason": "accuracy 0.8 is below 0.9",
    }  # fmt: skip
    text = card(records=[stage])
    assert "Strategies: PartialFreeze." in text
    assert "| head | 1,200 | 770 | 61 | continue (accuracy 0.8 is below 0.9) |" in text
    recipe = text.split("```json\n")[1].split("```")[0]
    assert json.loads(recipe) == SETTINGS["recipe"]


def test_full_fine_tuning_is_called_so() -> None:
    """Without strategies the card still names what was done."""
    assert "Strategies: full fine-tuning." in card(recipe={"strategies": [], "config": {}})


def test_versions_are_named() -> None:
    """The card ends with the versions that the model was made with."""
    assert card().rstrip().endswith("lowft 0.1.0, torch 2.13.0")
