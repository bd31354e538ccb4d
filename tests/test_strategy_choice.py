"""Strategies chosen by default: from which facts, with which reasons, and in a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from lowft.errors import CheckpointMismatchError, ConfigError, DataError
from lowft.models.pooling import pooled_head_
from lowft.strategies import Augment, ClassNames, Contrastive, LayerwiseUnfreeze, PooledHead, Probe, SelfTraining
from lowft.strategy_choice import Suggestion, suggest_strategies
from tests.runs import NUMBERED, tiny_trainer
from tests.strategy_cases import tiny_rows
from tests.tiny import tiny_model, tiny_tokenizer

SEVERAL = {"text": tiny_rows(6)["text"], "label": [["a"], ["b"], ["a", "b"], [], ["a"], ["b"]]}
BARE = tiny_rows(40, seed=7)["text"]


def names(suggestion: Suggestion) -> list[str]:
    """Return the names of the strategies."""
    return [strategy.name for strategy in suggestion.strategies]


@pytest.mark.parametrize(
    ("each", "blocks", "chosen"),
    [
        (1, 6, ["ClassNames", "PooledHead", "Contrastive", "Probe"]),
        (63, 6, ["ClassNames", "PooledHead", "Contrastive", "Probe"]),
        (64, 6, ["PooledHead", "Contrastive", "Probe"]),
        (127, 2, ["PooledHead", "Contrastive", "Probe"]),
        (128, 6, ["LayerwiseUnfreeze"]),
        (128, 3, []),
        (999, 4, ["LayerwiseUnfreeze"]),
        (1000, 4, []),
    ],
)
def test_labels_and_depth_decide(each: int, blocks: int, chosen: list[str]) -> None:
    """Few labels a class, more, and many; a shallow model is trained as a whole. Every choice has its reason."""
    found = suggest_strategies(tiny_model("bert", num_layers=blocks), tiny_rows(2 * each))
    assert names(found) == chosen
    assert len(found.reasons) == max(1, len(chosen))
    for name, reason in zip(chosen, found.reasons, strict=False):
        assert reason.startswith(f"{name}: ")
    if not chosen:
        assert found.reasons[0].startswith("full fine-tuning: ")
    assert str(found).splitlines() == list(found.reasons)


def test_labels_are_counted_a_class() -> None:
    """300 rows of three classes are few, of two they are not; and a contrastive batch holds some rows of each class."""
    rows = tiny_rows(300, classes=("a", "b", "c"))
    assert names(suggest_strategies(tiny_model("bert", 3, num_layers=6), rows))[0] == "PooledHead"
    assert names(suggest_strategies(tiny_model("bert", num_layers=6), tiny_rows(300))) == ["LayerwiseUnfreeze"]
    many = {"text": tiny_rows(40)["text"], "label": [f"class {row % 20}" for row in range(40)]}
    for data, size in ((rows, 32), (many, 80)):
        contrastive = suggest_strategies(tiny_model("bert", 3), data).strategies[-2]
        assert isinstance(contrastive, Contrastive)
        assert contrastive.batch_size == size


def test_classes_are_named_where_the_data_says_how() -> None:
    """Codes and pairs are left as they are, and one row of each is then nothing to compare; `ClassLabel` has names."""
    model = tiny_model("bert", num_layers=6)
    numbers = {"text": ["a film", "a plot"], "label": [0, 1]}
    assert names(suggest_strategies(model, numbers)) == ["PooledHead", "Probe"]
    assert names(suggest_strategies(model, tiny_rows(20, classes=(0, 1)))) == ["PooledHead", "Contrastive", "Probe"]
    pairs = tiny_rows(20) | {"text_pair": ["what"] * 20}
    assert names(suggest_strategies(model, pairs)) == ["PooledHead", "Contrastive", "Probe"]
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "very_good"])})
    found = suggest_strategies(model, Dataset.from_dict(numbers, features=features))
    assert found.strategies[0] == ClassNames()
    assert found.reasons[0] == (
        "ClassNames: 1 labelled row a class, fewer than 64, so 8 more of each say what it is called, as "
        "'This sentence is bad'"
    )


@pytest.mark.parametrize(("data", "outputs"), [(NUMBERED, 1), (SEVERAL, 2)])
def test_other_tasks(data: Any, outputs: int) -> None:
    """Numbers and several classes a row are not compared by their class; the head is fitted alone."""
    found = suggest_strategies(tiny_model("bert", outputs, num_layers=6), data)
    assert found.strategies == (PooledHead("mean"), Probe(fine_tune=False))


def test_rows_without_labels_teach_where_they_are_many() -> None:
    """At least as many as labelled ones: then the head comes first and they teach; else they are left out, and said."""
    model = tiny_model("bert", num_layers=6)
    found = suggest_strategies(model, tiny_rows(20), BARE)
    assert found.strategies == (ClassNames(), PooledHead("mean"), Contrastive(), Probe(), SelfTraining(0.0, start=0))
    assert found.uses_unlabeled
    assert "40 rows without labels" in found.reasons[-1]
    fewer = suggest_strategies(model, tiny_rows(42), BARE)
    assert names(fewer) == ["ClassNames", "PooledHead", "Contrastive", "Probe"]
    assert not fewer.uses_unlabeled
    assert fewer.reasons[-1].startswith("the 40 rows without labels are left out")
    numbers = suggest_strategies(tiny_model("bert", 1), NUMBERED, BARE).strategies[-1]
    assert isinstance(numbers, Augment)
    assert numbers.consistency == 1
    more = suggest_strategies(model, tiny_rows(300), BARE * 8)
    assert more.strategies == (LayerwiseUnfreeze(), SelfTraining())


@pytest.mark.parametrize(
    ("arch", "pooling"), [("llama", "last"), ("gpt2", "last"), ("t5", "mean"), ("roberta", "mean")]
)
def test_a_head_reads_what_the_architecture_gives(arch: str, pooling: str) -> None:
    """The last state of a decoder, the mean of an encoder, and whatever a model with a pooled head has already."""
    model = tiny_model(arch)
    assert suggest_strategies(model, tiny_rows()).strategies[1] == PooledHead(pooling)  # type: ignore[arg-type]
    pooled_head_(model, "cls")
    assert suggest_strategies(model, tiny_rows()).strategies[1] == PooledHead("cls")


def test_a_folder_is_not_loaded(tmp_path: Path) -> None:
    """Of a folder the config is read alone: without any weights, the choice is that of the model in it."""
    for arch, chosen in (("bert", ["LayerwiseUnfreeze"]), ("albert", [])):
        tiny_model(arch, num_layers=6).config.save_pretrained(tmp_path / arch)
        assert names(suggest_strategies(tmp_path / arch, tiny_rows(400))) == chosen
        assert names(suggest_strategies(tiny_model(arch, num_layers=6), tiny_rows(400))) == chosen


def test_a_model_that_cannot_have_a_pooled_head() -> None:
    """A module of one's own is unfrozen layer by layer where it has layers, and trained as a whole where not."""
    deep = torch.nn.Sequential(torch.nn.Embedding(9, 4), *(torch.nn.Linear(4, 4) for _ in range(5)))
    found = suggest_strategies(deep, tiny_rows())
    assert found.strategies == (LayerwiseUnfreeze(),)
    assert "cannot have a pooled head" in found.reasons[0]
    found = suggest_strategies(torch.nn.Linear(4, 2), tiny_rows())
    assert found.strategies == ()
    assert "cannot be told apart" in found.reasons[0]


@pytest.mark.parametrize("unlabeled", [None, BARE, BARE[:3]])
def test_a_trainer_takes_the_suggestion(unlabeled: Any, tmp_path: Path) -> None:
    """The run has the strategies, shows them, says why first, once, and writes them into recipe and export."""
    values: dict[str, Any] = {"epochs": 1, "unlabeled_dataset": unlabeled}
    trainer = tiny_trainer(strategies="auto", **values)
    found = suggest_strategies(tiny_model("bert"), tiny_rows(), unlabeled)
    assert f"strategies: {', '.join(names(found))}" in str(trainer)
    trainer.fit()
    notes = [note["message"] for note in trainer.history.filter("note")]
    said = [note.removeprefix("auto: ") for note in notes if note.startswith("auto: ")]
    assert said == list(found.reasons)
    trainer.export(tmp_path / "model", verify="here")
    settings = json.loads((tmp_path / "model" / "lowft.json").read_text())
    assert [part["name"] for part in settings["recipe"]["strategies"]] == names(found)


def test_a_resumed_run_says_why_once_and_needs_the_same_strategies(tmp_path: Path) -> None:
    """The reasons are in the history once after a resume; a run with other strategies is another run."""

    def trainer(strategies: Any) -> Any:
        return tiny_trainer(strategies=strategies, output_dir=tmp_path, save_steps=1)

    first = trainer("auto")
    for result in first.steps():
        if result.step == 2:
            break
    with pytest.raises(CheckpointMismatchError, match="strategies"):
        trainer([PooledHead(), Probe()]).fit(resume_from_checkpoint=True)
    resumed = trainer("auto")
    resumed.fit(resume_from_checkpoint=True)
    notes = [note["message"] for note in resumed.history.filter("note")]
    assert sum(note.startswith("auto: ") for note in notes) == 4
    assert resumed.history[0]["message"].startswith("auto: ClassNames: 7 labelled rows a class")


def test_bad_rows_are_dropped_once() -> None:
    """Rows are read once: those dropped are counted, and columns may have any name."""
    rows = {"review": ["a film", "", *tiny_rows(6)["text"]], "stars": ["neg", "pos", *tiny_rows(6)["label"]]}
    trainer = tiny_trainer(
        train_dataset=rows, eval_dataset=None, strategies="auto", on_bad_row="drop",
        column_mapping={"review": "text", "stars": "label"}, unlabeled_dataset=BARE[:20],
    )  # fmt: skip
    assert "(1 bad dropped)" in str(trainer)


def test_what_cannot_be_used_is_said() -> None:
    """Another word, bad rows and a model that is none end in the errors of a Trainer with a list."""
    with pytest.raises(ConfigError, match=r"strategies must be a list of strategies; received 'best'.*'auto'"):
        tiny_trainer(strategies="best")
    with pytest.raises(DataError, match="train_dataset"):
        tiny_trainer(strategies="auto", train_dataset=[])
    with pytest.raises(ConfigError, match=r"model must be a hub id, a folder or .*; received int: 3"):
        tiny_trainer(strategies="auto", model=3, tokenizer=tiny_tokenizer())


def test_a_suggestion_is_json() -> None:
    """It can be written down with its settings."""
    found = json.loads(json.dumps(suggest_strategies(tiny_model("bert"), tiny_rows(), BARE).to_dict()))
    assert [part["name"] for part in found["strategies"]] == [
        "ClassNames", "PooledHead", "Contrastive", "Probe", "SelfTraining",
    ]  # fmt: skip
    assert len(found["reasons"]) == 5
    assert found["uses_unlabeled"] is True
