"""Rows without labels get those that the model is sure of, one epoch later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lowft.augment import RandomSwap
from lowft.config import TrainingConfig
from lowft.data.batching import Batch
from lowft.errors import ConfigError, TrainingError
from lowft.stages import Stage
from lowft.state import State
from lowft.strategies import Augment, Contrastive, PooledHead, Probe, SelfTraining
from lowft.trainer import Trainer
from tests.runs import note_records, resumed_at
from tests.strategy_cases import tiny_rows
from tests.test_strategies_table import assert_same, final_weights
from tests.tiny import tiny_model, tiny_tokenizer

LOGITS = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.2, 0.0], [0.0, 4.0]])


def batch(labels: torch.Tensor) -> Batch:
    """Return a batch of four rows, of which the last three have no label."""
    return Batch({"input_ids": torch.zeros(4, 2)}, labels, (0, 7, 8, 9))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (torch.tensor([1, -100, -100, -100]), [0.006715, 0.018150]),
        # Of each of these rows one class is undecided, so there is no label.
        (torch.tensor([[0.0, 1.0]] + [[torch.nan] * 2] * 3), []),
    ],
)
def test_sure_answers_are_labels_in_the_next_epoch(labels: torch.Tensor, expected: list[float]) -> None:
    """In the first epoch nothing is added; in the next the cross-entropy of the sure rows, over all without label."""
    strategy, state = SelfTraining(0.9, weight=2.0), State(torch.nn.Linear(2, 2), Stage(), stage_steps=9)
    assert strategy.on_loss(torch.tensor(1.0), LOGITS, batch(labels), state) == 1
    strategy.before_step(state)
    state.epoch = 1
    found = strategy.on_loss(torch.tensor(1.0), LOGITS, batch(labels), state)
    assert found.item() == pytest.approx(1 + 2 * sum(expected) / 3, abs=1e-4)
    (note,) = state.notes
    assert f"0 rows were trained on labels of the model's own; it is now sure of {len(expected)} of 3 rows" in note


def test_several_labels_are_given_together() -> None:
    """A row whose classes are all decided gets all of them."""
    strategy, state = SelfTraining(0.9), State(torch.nn.Linear(2, 2), Stage(), stage_steps=9)
    labels, logits = torch.full((4, 2), torch.nan), torch.full((4, 2), 5.0)
    strategy.on_loss(torch.tensor(0.0), logits, batch(labels), state)
    strategy.before_step(state)
    state.epoch = 1
    expected = torch.nn.functional.softplus(torch.tensor(-5.0)).item()
    found = strategy.on_loss(torch.tensor(0.0), logits, batch(labels), state).item()
    assert found == pytest.approx(expected, abs=1e-5)


def test_it_starts_when_it_is_told_to() -> None:
    """Before `start` there are no labels."""
    strategy, state = SelfTraining(0.9, start=2), State(torch.nn.Linear(2, 2), Stage(), stage_steps=9)
    labels, added = torch.tensor([1, -100, -100, -100]), []
    for state.epoch in range(3):
        added.append(strategy.on_loss(torch.tensor(0.0), LOGITS, batch(labels), state).item())
        strategy.before_step(state)
    assert added[:2] == [0, 0]
    assert added[2] > 0


def make(folder: Path | None, strategies: tuple[Any, ...]) -> Trainer:
    """Return a Trainer over rows of which half have no label."""
    config = TrainingConfig(
        epochs=3, batch_size=4, device="cpu", learning_rate=5e-3, save_steps=1, save_total_limit=100, output_dir=folder
    )
    return Trainer(
        tiny_model("bert"), tiny_rows(6), tokenizer=tiny_tokenizer(), strategies=strategies, config=config,
        unlabeled_dataset=tiny_rows(6, seed=4)["text"],
    )  # fmt: skip


def test_labels_from_the_first_epoch_on() -> None:
    """With `start=0` the model reads the rows before it trains; they are trained on as if those were their labels."""
    rows, bare = tiny_rows(6), tiny_rows(6, seed=4)["text"]
    tokens = tiny_tokenizer()(bare, padding=True, return_tensors="pt")
    reader = tiny_model("bert")
    reader.train(mode=False)
    numbers = reader(**tokens).logits.argmax(1).tolist()
    answers = [sorted(set(rows["label"]))[number] for number in numbers]

    def first_loss(train_dataset: Any, **settings: Any) -> float:
        trainer = Trainer(
            tiny_model("bert"), train_dataset, tokenizer=tiny_tokenizer(),
            config=TrainingConfig(epochs=1, batch_size=12, device="cpu", seed=3), **settings,
        )  # fmt: skip
        return next(trainer.steps()).loss

    found = first_loss(rows, unlabeled_dataset=bare, strategies=[SelfTraining(0.0, start=0)])
    labelled = {"text": [*rows["text"], *bare], "label": [*rows["label"], *answers]}
    # The six labelled rows and the six others are a mean each; where all have labels, there is one mean over twelve.
    assert found / 2 == pytest.approx(first_loss(labelled), rel=1e-5)


def test_it_labels_after_the_probe_and_not_in_stages_before(tmp_path: Path) -> None:
    """Contrastive compares labelled rows alone; then the head is set, then all rows are labelled; resumed, the same."""
    strategies = (PooledHead(), Contrastive(max_steps=2, stop_below=0.0), Probe(), SelfTraining(0.0, start=0))
    whole = make(tmp_path / "whole", strategies)
    whole.fit()
    notes = [note["message"] for note in whole.history.filter("note")]
    (probed,) = (at for at, note in enumerate(notes) if note.startswith("output layer fitted on 6 rows"))
    (labelled,) = (at for at, note in enumerate(notes) if "sure of 6 of 6 (100.0%)" in note)
    assert labelled == probed + 1
    assert "6 rows were trained on labels of the model's own" in notes[labelled + 1]
    stages = [(record["stage_name"], record["epoch"]) for record in whole.history.filter("stage")]
    assert stages == [("contrastive", 2.0), ("training", 3.0)], "32 rows a step: the six labelled ones are an epoch"
    for step in (1, 2, 4):
        resumed = resumed_at(step, tmp_path / "whole", lambda folder: make(folder, strategies))
        assert_same(final_weights(whole), final_weights(resumed))


def test_a_loop_of_ones_own_has_no_rows_to_label() -> None:
    """That is said, with what to do."""
    state = State(torch.nn.Linear(2, 2), Stage())
    with pytest.raises(TrainingError, match="set start=1, and labels begin with the second epoch"):
        SelfTraining(start=0).on_stage_start(state)
    SelfTraining(start=0).on_stage_start(State(torch.nn.Linear(2, 2), Stage(prepares=True)))


def test_it_resumes(tmp_path: Path) -> None:
    """Stopped in mid-epoch and resumed, it ends with the same bits and history; the labels matter."""
    strategies = (Augment([RandomSwap(0.5)]), SelfTraining(0.5))
    whole = make(tmp_path / "whole", strategies)
    whole.fit()
    notes = [note["message"] for note in whole.history.filter("note") if "SelfTraining" in note["message"]]
    assert len(notes) == 3
    assert "6 rows were trained on labels of the model's own" in notes[1]
    for step in (2, 4, 5):
        resumed = resumed_at(step, tmp_path / "whole", lambda folder: make(folder, strategies))
        assert_same(final_weights(whole), final_weights(resumed))
        assert [note["message"] for note in note_records(resumed)][-3:] == notes
    other = make(None, (Augment([RandomSwap(0.5)]), SelfTraining(0.5, weight=0.1)))
    other.fit()
    with pytest.raises(AssertionError):
        assert_same(final_weights(whole), final_weights(other))


def test_a_regression_is_refused() -> None:
    """No answer is sure there."""
    with pytest.raises(ConfigError, match="a regression says nothing of how sure it is"):
        Trainer(
            tiny_model("bert", num_labels=1), (["a", "b"], [0.5, 1.5]), tokenizer=tiny_tokenizer(),
            strategies=[SelfTraining()], config=TrainingConfig(device="cpu"),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": -0.1}, r"threshold must be a finite number at least 0 and below 1; received -0\.1"),
        ({"threshold": 1}, r"threshold must be a finite number at least 0 and below 1; received 1"),
        ({"weight": 0}, r"weight must be a finite number above 0"),
        ({"start": -1}, r"start must be a whole number of at least 0"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    """A setting outside its range is refused with the rule and the value."""
    with pytest.raises(ConfigError, match=message):
        SelfTraining(**settings)
