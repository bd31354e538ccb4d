"""What copies teach beyond their labels: consistency, weights of rows, banks; R-Drop."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from lowft.augment import Augmenter, RandomDeletion, RandomSwap
from lowft.augment.bank import VariantBank
from lowft.config import TrainingConfig
from lowft.consistency import consistency_loss
from lowft.data.batching import Batch, BatchRandom, Example
from lowft.data.rows import Rows
from lowft.errors import ConfigError, DataError
from lowft.registry import from_dict, to_dict
from lowft.stages import Stage
from lowft.state import State
from lowft.strategies import Augment, RDrop
from lowft.trainer import Trainer
from tests.runs import tiny_trainer
from tests.strategy_cases import tiny_rows
from tests.test_strategies_table import assert_same, final_weights, make_trainer
from tests.tiny import tiny_model, tiny_tokenizer

MADE: list[str] = []
LABELS = torch.tensor([0, 1, 0, 1])
# Two rows and a copy of each; the copy of the first is surely read as another class.
LOGITS = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 5.0], [0.0, 2.0]])
BATCH = Batch(
    {"input_ids": torch.zeros(4, 2)}, LABELS, (5, 6, 5, 6), (("a", None), ("b", None), ("A", None), ("B", None))
)


@dataclass(frozen=True)
class Counted(Augmenter):
    """Adds a number that is drawn, and remembers each text that it changed."""

    def vary(self, text: str, rng: random.Random) -> str:
        MADE.append(text)
        return f"{text} {rng.randrange(100)}"


def state() -> State:
    """Return a state half way through a stage."""
    return State(torch.nn.Linear(2, 2), Stage(), stage_step=5, stage_steps=11)


def test_the_loss_has_the_distance_between_copies_and_rows() -> None:
    """It is the mean over the rows of the distance, times the weight, of the right pairs."""
    augment = Augment([RandomSwap()], consistency=2.0, temperature=0.5)
    found = augment.on_loss(torch.tensor(1.0), LOGITS, BATCH, state())
    expected = 1 + 2 * consistency_loss(LOGITS[2:], LOGITS[:2], temperature=0.5)
    assert found.item() == pytest.approx(expected.item())
    twice = Augment([RandomSwap()], copies=2, consistency=2.0, temperature=0.5)
    assert twice.on_loss(torch.tensor(1.0), LOGITS, BATCH, state()).item() == pytest.approx((1 + expected.item()) / 2)


def test_without_a_copy_nothing_is_added() -> None:
    """A batch of rows alone keeps its loss; rows that stand there twice unchanged are no copies."""
    same = Batch(BATCH.inputs, LABELS, (5, 6, 5, 6), (("a", None), ("b", None)) * 2)
    for batch in (same, Batch(BATCH.inputs, LABELS, (5, 6, 7, 8), BATCH.texts)):
        assert Augment([RandomSwap()], consistency=2.0).on_loss(torch.tensor(1.0), LOGITS, batch, state()) == 1


@pytest.mark.parametrize(("weight", "expected"), [(0.0, [2, 2, 0, 0]), (0.5, [4 / 3, 4 / 3, 2 / 3, 2 / 3])])
def test_label_weight_is_that_of_a_copy(weight: float, expected: list[float]) -> None:
    """A copy counts as much as it says, in a weighted mean."""
    augment = Augment([RandomSwap()], consistency=1.0, label_weight=weight)
    assert augment.row_weights(torch.ones(4), LOGITS, BATCH, state()).tolist() == pytest.approx(expected)


def test_annealing_leaves_out_what_is_known_too_well_yet() -> None:
    """Half way the linear threshold is 0.75: rows whose label is likelier cost nothing."""
    weights = Augment([RandomSwap()], annealing="linear").row_weights(torch.ones(4), LOGITS, BATCH, state())
    assert weights.tolist() == [0, 1, 1, 0]


def test_copies_that_are_surely_misread_are_left_out_and_told_of() -> None:
    """Only a copy whose row is read rightly is left out; the note at the end of the stage counts them."""
    augment, where = Augment([RandomSwap()], drop_misread=0.9), state()
    assert augment.row_weights(torch.ones(4), LOGITS, BATCH, where).tolist() == [1, 1, 0, 1]
    wrong = LOGITS.clone()
    wrong[0] = torch.tensor([0.0, 3.0])  # now the model is wrong about the row itself
    assert augment.row_weights(torch.ones(4), wrong, BATCH, where).tolist() == [1, 1, 1, 1]
    where.stage_step = 10
    augment.before_step(where)
    (note,) = where.notes
    where.notes.clear()
    assert "1 of 4 copies (25.0%) were surely taken for another class" in note
    assert not where.notes


def test_the_history_tells_of_copies_each_epoch() -> None:
    """Each epoch has its note."""
    trainer = make_trainer(None, (Augment([RandomSwap(0.5)], drop_misread=0.5),))
    trainer.fit()
    assert sum("surely taken" in note["message"] for note in trainer.history.filter("note")) == 2


def test_rows_without_labels_teach() -> None:
    """With consistency they are allowed, and change what is learnt; without, they are refused."""
    config = TrainingConfig(max_steps=3, batch_size=4, device="cpu", learning_rate=5e-3)

    def train(augment: Augment, texts: list[str]) -> Trainer:
        trainer = Trainer(
            tiny_model("bert"), tiny_rows(6), tokenizer=tiny_tokenizer(), strategies=[augment], config=config,
            unlabeled_dataset=texts,
        )  # fmt: skip
        trainer.fit()
        return trainer

    texts = tiny_rows(6, seed=4)["text"]
    augment = Augment([RandomSwap(0.5)], consistency=5.0, confidence=0.5)
    with pytest.raises(AssertionError):
        assert_same(final_weights(train(augment, texts)), final_weights(train(augment, texts[::-1])))
    with pytest.raises(ConfigError, match="unlabeled_dataset is of no use to"):
        train(Augment([RandomSwap()]), texts)


@pytest.mark.parametrize(
    ("labels", "settings"),
    [([[0, 1], [1], [], [0]] * 3, {"confidence": 0.5}), ([0.5, 0.1, 0.9, 0.3] * 3, {})],
)
def test_several_labels_and_numbers_are_consistent_too(labels: list[Any], settings: dict[str, Any]) -> None:
    """The loss takes the form of the task."""
    trainer = Trainer(
        tiny_model("bert", num_labels=1 if isinstance(labels[0], float) else 2),
        (tiny_rows(12)["text"], labels),
        tokenizer=tiny_tokenizer(),
        task="regression" if isinstance(labels[0], float) else "multi_label_classification",
        strategies=[Augment([RandomSwap(0.5)], consistency=1.0, label_weight=0.5, **settings), RDrop()],
        config=TrainingConfig(max_steps=2, batch_size=4, device="cpu"),
    )
    assert all(step.loss > 0 for step in trainer.steps())


@pytest.mark.parametrize(
    "setting", [{"annealing": "exp"}, {"drop_misread": 0.9}, {"consistency": 1, "confidence": 0.5}]
)
def test_what_a_regression_has_no_use_for_is_refused(setting: dict[str, Any]) -> None:
    """It is said before training, with the setting."""
    with pytest.raises(ConfigError, match=list(setting)[-1]):
        Trainer(
            tiny_model("bert", num_labels=1), (tiny_rows(4)["text"], [0.5, 0.1, 0.9, 0.3]), tokenizer=tiny_tokenizer(),
            strategies=[Augment([RandomSwap()], **setting)], config=TrainingConfig(device="cpu"),
        )  # fmt: skip


def test_a_loss_of_the_whole_batch_cannot_be_weighed() -> None:
    """A loss function that returns one number is refused where rows are weighed, and fine where not."""

    def run(**settings: Any) -> None:
        trainer = Trainer(
            tiny_model("bert"), tiny_rows(8), tokenizer=tiny_tokenizer(), loss=torch.nn.functional.cross_entropy,
            strategies=[Augment([RandomSwap(0.5)], **settings)], config=TrainingConfig(max_steps=1, device="cpu"),
        )  # fmt: skip
        trainer.fit()

    run()
    with pytest.raises(ConfigError, match=r"let your loss return \[batch\]"):
        run(annealing="linear")


def test_r_drop_sends_rows_twice_and_compares() -> None:
    """Each row stands in the batch twice, and the loss grows by the mean distance."""
    rows = [Example(5, "a"), Example(6, "b")]
    assert RDrop().on_examples(rows, BatchRandom(1, position=(0,))) == [*rows, *rows]
    twice = Batch(BATCH.inputs, LABELS, (5, 6, 5, 6), (("a", None), ("b", None)) * 2)
    p, q = LOGITS[:2].softmax(1), LOGITS[2:].softmax(1)
    expected = 1 + 0.5 * ((p * (p / q).log()).sum(1) + (q * (q / p).log()).sum(1)).mean() / 2
    assert RDrop(0.5).on_loss(torch.tensor(1.0), LOGITS, twice, state()).item() == pytest.approx(expected.item())


def test_r_drop_needs_dropout() -> None:
    """A model that drops nothing is refused."""
    model = tiny_model("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    with pytest.raises(ConfigError, match=r"none of the \d+ dropout layers of this BertFor.* drops any"):
        RDrop().prepare_model(model)


@pytest.mark.parametrize("workers", [0, 2])
def test_r_drop_resumes(workers: int, tmp_path: Path) -> None:
    """A run that is resumed in mid-epoch ends with the same bits."""
    strategies = (RDrop(0.5), Augment([RandomSwap(0.3)], bank=2))
    whole = make_trainer(tmp_path / "whole", strategies, dataloader_num_workers=workers)
    whole.fit()
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    resumed = make_trainer(tmp_path / "resumed", strategies, dataloader_num_workers=workers)
    resumed.fit(resume_from_checkpoint=True)
    assert_same(final_weights(whole), final_weights(resumed))


def test_a_bank_makes_variants_once() -> None:
    """All variants are made before training; in training none is, and every copy is one of them."""
    MADE.clear()
    augment = Augment([Counted()], copies=2, bank=3)
    rows = Rows(("a", "b", "a"), labels=(0, 1, 0))
    augment.prepare_data(rows)
    assert sorted(MADE) == ["a"] * 3 + ["b"] * 3
    known = dict(zip("ab", augment.variants([("a", None), ("b", None)]), strict=True))
    examples = [Example(row, text) for row, text in enumerate(rows.texts)]
    seen = set()
    for epoch in range(20):
        copies = augment.on_examples(examples, BatchRandom(1, 0, epoch, position=(0,)))[3:]
        assert all((copy.text, copy.pair) in known[copy.text[0]] for copy in copies)
        seen |= {copy.text for copy in copies}
    assert len(MADE) == 6
    assert len(seen) == len(known["a"]) + len(known["b"])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_make_the_same_bank() -> None:
    """Variants are a function of the text alone, for any number of workers and any order of rows."""
    rows: list[tuple[str, str | None]] = [(f"row {number} of many words", "a b c") for number in range(600)]
    one, many = (
        VariantBank([RandomSwap(), RandomDeletion(0.3)], size=2, workers=workers, chained=True) for workers in (0, 4)
    )
    one.fill(rows)
    many.fill(rows[::-1])
    assert one.of(rows) == many.of(rows)


def test_a_folder_keeps_a_bank(tmp_path: Path) -> None:
    """A second run reads it, makes only what is new, and has the same variants; a broken file is said to be one."""
    MADE.clear()
    banks = [VariantBank([Counted()], size=2, folder=tmp_path) for _ in range(3)]
    banks[0].fill([("a", None), ("b", "c")])
    made = len(MADE)
    banks[1].fill([("b", "c"), ("new", None)])
    assert MADE[made:] == ["new", "new"]
    assert banks[1].of([("a", None), ("b", "c")]) == banks[0].of([("a", None), ("b", "c")])
    (file,) = tmp_path.iterdir()
    file.write_text(json.dumps([[["a"], []]]))
    with pytest.raises(DataError, match=r"variants-\w+\.json does not hold the variants"):
        banks[2].fill([("a", None)])


def test_a_recipe_leaves_out_where_a_bank_is(tmp_path: Path) -> None:
    """What only this machine knows is not recorded; the rest comes back equal."""
    augment = Augment([RandomSwap()], consistency=1.0, bank=4, bank_workers=2, bank_dir=tmp_path)
    recorded = augment.recorded()
    assert (recorded.bank, recorded.bank_workers, recorded.bank_dir) == (4, 0, None)
    assert from_dict(to_dict(recorded)) == recorded


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"consistency": -1}, r"consistency must be a finite number at least 0; received -1"),
        ({"temperature": 0.4}, r"temperature is a setting of the consistency loss, which is off; received 0\.4"),
        ({"confidence": 0.8}, r"confidence is a setting of the consistency loss"),
        ({"label_weight": 0.0}, r"leaves copies nothing to be learnt from: set consistency=1\.0 too"),
        ({"annealing": "exponential"}, r"annealing must be one of 'linear', 'log', 'exp'"),
        ({"drop_misread": 0.2}, r"drop_misread must be a finite number at least 0\.5 and at most 1; received 0\.2"),
        ({"bank": 1, "copies": 2}, r"bank must be at least the 2 copies of a row in a batch; received 1"),
        ({"bank_dir": "x"}, r"settings of the bank, which is off; received 0 and 'x'"),
        ({"bank": 2, "bank_dir": 3}, r"bank_dir must be a folder or None; received 3"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    """A setting that cannot work is refused with the rule and the value."""
    with pytest.raises(ConfigError, match=message):
        Augment([RandomSwap()], **settings)


def test_without_a_bank_nothing_is_known_in_advance() -> None:
    """Asking for the variants says so."""
    with pytest.raises(ConfigError, match="without bank= every copy is fresh"):
        Augment([RandomSwap()]).variants([("a", None)])


@pytest.mark.parametrize("place", ["a file", "below a file"])
def test_a_bank_that_cannot_be_kept_says_so(place: str, tmp_path: Path) -> None:
    """What stands in the way of the folder is named, with what to do, before any training."""
    (tmp_path / "file").write_text("mine")
    folder = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "bank"}[place]
    augment = Augment([RandomSwap()], bank=2, bank_dir=folder)
    with pytest.raises(DataError, match=r"cannot be kept in Augment\(bank_dir=.*leave bank_dir out"):
        tiny_trainer(strategies=[augment])
    assert (tmp_path / "file").read_text() == "mine"
