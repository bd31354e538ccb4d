from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lowft.augment._wordnet as wordnet
from lowft.augment import Augmenter, RandomDeletion, RandomMasking, RandomSwap, SynonymReplacement
from lowft.config import TrainingConfig
from lowft.data.batching import Batch, BatchRandom, Example
from lowft.data.rows import Rows
from lowft.errors import ConfigError, MissingExtraError
from lowft.registry import from_dict, to_dict
from lowft.state import State
from lowft.strategies import Augment, PartialFreeze
from lowft.strategy import Strategy
from lowft.trainer import Trainer
from tests.runs import note_records
from tests.strategy_cases import tiny_rows
from tests.test_strategies_table import assert_same, contents, final_weights, make_trainer
from tests.tiny import tiny_model, tiny_tokenizer

SEEN: list[str] = []
SIZES: list[tuple[int, int]] = []


@dataclass(frozen=True)
class AddNumber(Augmenter):
    """Adds a number that is drawn, and remembers what it was prepared with."""

    mark: str = "+"

    def vary(self, text: str, rng: random.Random) -> str:
        return f"{text} {self.mark}{rng.random():.6f}"

    def prepare(self, texts: Sequence[str]) -> None:
        SEEN.extend(f"{self.mark}{text}" for text in texts)


@dataclass(frozen=True)
class FixedAnswers(Augmenter):
    """Returns a text of one's own for each text, or the text itself."""

    answers: dict[str, str]

    def vary(self, text: str, rng: random.Random) -> str:
        return self.answers.get(text, text)


@dataclass(frozen=True)
class BatchSizes(Strategy):
    """Notes the size of each batch, and how many rows of the caller's data are in it."""

    def on_batch(self, batch: Batch, state: State) -> Batch:
        SIZES.append((len(batch), len(set(batch.rows))))
        return batch


def rows(*texts: str) -> list[Example]:
    """Return unpaired rows numbered from 10, with vectors as labels."""
    return [Example(10 + index, text, None, np.array([index])) for index, text in enumerate(texts)]


def batch_rng(step: int = 0, seed: int = 1, stage: int = 0, epoch: int = 0) -> BatchRandom:
    """Return the source of a batch."""
    return BatchRandom(seed, stage, epoch, position=(step, 0))


def test_originals_and_copies_share_the_batch() -> None:
    """The rows come first, as they were; copies follow, with the row and the label of their original."""
    examples = rows("a", "b")
    found = Augment([AddNumber()], copies=2).on_examples(examples, batch_rng())
    assert found[:2] == examples
    assert [example.row for example in found] == [10, 11, 10, 10, 11, 11]
    assert all(copy.label is examples[copy.row - 10].label for copy in found)
    assert len({example.text for example in found}) == 6


@given(
    order=st.permutations(range(6)),
    cut=st.integers(1, 5),
    copies=st.integers(1, 3),
    probability=st.floats(0.1, 1),
    mix=st.sampled_from(["draw", "chain"]),
)
def test_a_copy_depends_on_its_row_alone(order: list[int], cut: int, copies: int, probability: float, mix: Any) -> None:
    """However rows are batched, each has the same copies."""
    augment = Augment([RandomSwap(0.3), AddNumber("+"), AddNumber("*")], copies, probability, mix)
    examples = rows(*(f"text {index} of some words" for index in range(6)))
    whole = augment.on_examples(examples, batch_rng(step=0))[6:]
    shuffled = [examples[index] for index in order]
    parts = [shuffled[:cut], shuffled[cut:]]
    apart = [
        copy for step, part in enumerate(parts) for copy in augment.on_examples(part, batch_rng(step))[len(part) :]
    ]
    assert sorted((copy.row, copy.text) for copy in whole) == sorted((copy.row, copy.text) for copy in apart)


def test_copies_are_fresh_in_every_epoch_and_stage() -> None:
    """Another seed, stage or epoch makes other copies."""
    augment = Augment([AddNumber()])
    sources = [batch_rng(), batch_rng(seed=2), batch_rng(stage=1), batch_rng(epoch=1)]
    assert len({augment.on_examples(rows("a"), rng)[1].text for rng in sources}) == 4


def test_each_copy_draws_one_augmenter() -> None:
    """With several augmenters each copy is changed by one of them, and all have their turn."""
    found = Augment([AddNumber("+"), AddNumber("*")], copies=40).on_examples(rows("a"), batch_rng())[1:]
    assert {copy.text[2] for copy in found} == {"+", "*"}
    assert all(copy.text.count(" ") == 1 for copy in found)


def test_a_chain_goes_through_all() -> None:
    """In a chain each copy is changed by all augmenters, in their order."""
    found = Augment([AddNumber("+"), AddNumber("*")], mix="chain").on_examples(rows("a", "b"), batch_rng())[2:]
    assert [[part[0] for part in copy.text.split()] for copy in found] == [["a", "+", "*"], ["b", "+", "*"]]


def test_probability_decides_how_many_copies_there_are() -> None:
    """About that share of the copies is made."""
    examples = rows(*(f"text {index}" for index in range(1000)))
    added = len(Augment([AddNumber()], copies=2, probability=0.3).on_examples(examples, batch_rng())) - 1000
    assert 500 < added < 700


def test_copies_that_add_nothing_are_left_out() -> None:
    """Unchanged, empty and repeated copies are dropped, and so the batch may stay as it was."""
    examples = rows("same", "gone", "good")
    augment = Augment([FixedAnswers({"gone": " ", "good": "better"})], copies=3)
    assert [copy.text for copy in augment.on_examples(examples, batch_rng())] == ["same", "gone", "good", "better"]


def test_the_text_of_another_row_is_no_repetition() -> None:
    """A copy that equals another row is kept: it has its own label."""
    found = Augment([FixedAnswers({"a": "b"})]).on_examples(rows("a", "b"), batch_rng())
    assert [(copy.row, copy.text) for copy in found] == [(10, "a"), (11, "b"), (10, "b")]


def test_both_texts_of_a_pair_are_changed() -> None:
    """A copy of a pair has both texts changed; it is left out where one comes back empty, or neither is changed."""
    examples = [Example(0, "a", "b", 1), Example(1, "a", "gone"), Example(2, "same", "same"), Example(3, "same", "b")]
    found = Augment([FixedAnswers({"a": "A", "b": "B", "gone": ""})]).on_examples(examples, batch_rng())
    assert found == [*examples, Example(0, "A", "B", 1), Example(3, "same", "B")]
    drawn = Augment([AddNumber()]).on_examples(examples[:1], batch_rng())[1]
    assert drawn.pair is not None
    assert drawn.text.split()[1] != drawn.pair.split()[1]


def test_the_rows_handed_over_stay() -> None:
    """Neither the list nor its examples are changed."""
    examples = rows("a b c", "d e f")
    before = list(examples)
    Augment([AddNumber(), RandomMasking()], copies=2).on_examples(examples, batch_rng())
    assert examples == before


def test_augmenters_are_prepared_with_all_texts() -> None:
    """Before training, each augmenter sees all texts, those of pairs too; in a chain the later ones see just one."""
    dataset = Rows(("a", "b"), pairs=("c", "d"), labels=(0, 1))
    SEEN.clear()
    assert Augment([AddNumber("+"), AddNumber("*")]).prepare_data(dataset) is dataset
    assert SEEN == ["+a", "+b", "+c", "+d", "*a", "*b", "*c", "*d"]
    SEEN.clear()
    Augment([AddNumber("+"), AddNumber("*")], mix="chain").prepare_data(dataset)
    assert SEEN == ["+a", "+b", "+c", "+d", "*a"]


def test_what_an_augmenter_lacks_is_found_when_the_trainer_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing WordNet is an error before training."""
    monkeypatch.delenv("LOWFT_WORDNET", raising=False)
    monkeypatch.setattr(wordnet, "_places", list)
    wordnet.read_synonyms.cache_clear()
    with pytest.raises(MissingExtraError, match="apt-get install wordnet-base"):
        make_trainer(None, (Augment([SynonymReplacement()]),))


def test_a_recipe_brings_it_back() -> None:
    """It is saved with its augmenters, and read back equal."""
    augment = Augment([SynonymReplacement({"film": ["movie"]}), RandomDeletion(0.2)], copies=2, mix="chain")
    assert from_dict(to_dict(augment)) == augment


@pytest.mark.parametrize("mix", ["draw", "chain"])
def test_workers_and_resume_make_the_same_run(mix: Any, tmp_path: Path) -> None:
    """With two workers, and resumed in mid-epoch with none, the run ends with the same bits as without workers."""
    strategies = (Augment([RandomSwap(0.3), RandomDeletion(0.3)], copies=2, mix=mix), PartialFreeze(top=2))
    whole = make_trainer(tmp_path / "whole", strategies)
    whole.fit()
    shared = make_trainer(tmp_path / "shared", strategies, dataloader_num_workers=2)
    shared.fit()
    last = max((tmp_path / "whole").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])).name
    assert_same(contents(tmp_path / "whole" / last), contents(tmp_path / "shared" / last))
    shutil.copytree(tmp_path / "shared" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    resumed = make_trainer(tmp_path / "resumed", strategies, dataloader_num_workers=2)
    resumed.fit(resume_from_checkpoint=True)
    assert_same(final_weights(whole), final_weights(resumed))
    plain = make_trainer(None, strategies[1:])
    plain.fit()
    with pytest.raises(AssertionError):
        assert_same(final_weights(whole), final_weights(plain))


def test_the_model_sees_them_together() -> None:
    """A training batch holds originals and copies; a validation batch only originals."""
    SIZES.clear()
    trainer = make_trainer(
        None, (Augment([AddNumber()], copies=2), BatchSizes()), epochs=1, gradient_accumulation_steps=1
    )
    trainer.fit()
    assert SIZES == [(6, 2)] * 7


def test_the_loss_is_the_mean_over_originals_and_copies() -> None:
    """A copy weighs as much as a row, and a row without a copy as much as one with."""
    texts = ["a dull film", "love"]
    data = {"text": texts, "label": ["neg", "pos"]}
    # The model's own dropout would draw other masks for a batch of another size.
    model = tiny_model("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    trainer = Trainer(
        model,
        data,
        tokenizer=tiny_tokenizer(),
        strategies=[Augment([FixedAnswers({"a dull film": "a lazy film"})])],
        config=TrainingConfig(max_steps=1, batch_size=2, device="cpu", learning_rate=1e-9),
    )
    inputs = tiny_tokenizer()([*texts, "a lazy film"], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0])).item()
    (result,) = trainer.steps()
    assert result.loss == pytest.approx(expected, abs=1e-5)


def test_pairs_train() -> None:
    """Rows of two texts go through a Trainer with their copies."""
    texts = tiny_rows(8)
    data = {"premise": texts["text"], "hypothesis": texts["text"][::-1], "label": texts["label"]}
    trainer = Trainer(
        tiny_model("bert"),
        data,
        tokenizer=tiny_tokenizer(),
        strategies=[Augment([RandomSwap(), RandomMasking()], copies=2)],
        config=TrainingConfig(max_steps=2, batch_size=4, device="cpu"),
    )
    assert len(list(trainer.steps())) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augmenters": ()}, r"augmenters must be a list of at least one augmenter, such as \[lowft\.RandomSwap\(\)\]"),
        ({"augmenters": RandomSwap()}, r"augmenters must be a list of at least one augmenter"),
        (
            {"augmenters": [RandomSwap]},
            r"augmenters must hold augmenters, such as lowft\.RandomSwap\(\); received <class",
        ),
        ({"augmenters": [str.upper]}, r"A class of your own derives from lowft\.Augmenter"),
        ({"copies": 0}, r"copies must be a whole number of at least 1"),
        ({"probability": 0}, r"probability must be a finite number above 0 and at most 1"),
        ({"mix": "chian"}, r"mix must be one of 'draw', 'chain'; received 'chian'\. Did you mean 'chain'\?"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    """A setting that cannot work is refused with the rule and the value."""
    with pytest.raises(ConfigError, match=message):
        Augment(**({"augmenters": [RandomSwap()]} | settings))


def test_fresh_copies_are_computed_and_rows_are_cached() -> None:
    """Under frozen layers the rows are computed once, and only their copies, of which none comes twice, are run."""
    trainer = make_trainer(None, (Augment([RandomSwap()]), PartialFreeze(top=1)))
    trainer.fit()
    filled, brought = note_records(trainer)
    assert "rows that Augment makes anew are computed" in filled["message"]
    assert 0.5 <= brought["hit_rate"] < 1
