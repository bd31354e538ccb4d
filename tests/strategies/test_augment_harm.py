"""Augmenters that cost labels are switched off in a run: once an epoch begins, for good, and the same on resume."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowft.augment import Augmenter, harm
from lowft.data.batching import BatchRandom, Example
from lowft.errors import ConfigError
from lowft.registry import from_dict, to_dict
from lowft.strategies import Augment, LayerwiseUnfreeze, Unfreeze
from lowft.trainer import Trainer
from tests.runs import tiny_trainer
from tests.strategy_cases import tiny_rows
from tests.test_strategies_table import assert_same, contents, final_weights, make_trainer
from tests.tiny import tiny_model, tiny_tokenizer

SEEN: list[str] = []


@dataclass(frozen=True)
class Kept(Augmenter):
    """Adds a word that costs no label."""

    def vary(self, text: str, rng: random.Random) -> str:
        SEEN.append("kept")
        return f"{text} film{rng.randrange(3)}"


@dataclass(frozen=True)
class Broken(Augmenter):
    """Adds a word that costs the label."""

    def vary(self, text: str, rng: random.Random) -> str:
        SEEN.append("broken")
        return f"{text} unfunny{rng.randrange(3)}"


@pytest.fixture(autouse=True)
def _read_as_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let validation rows be read rightly and surely, but for those with "unfunny": a tiny model learns less."""
    SEEN.clear()

    def read(model: Any, like: Any, texts: Any, *_settings: Any) -> Any:
        own = dict(zip(like.rows.texts, like.labels, strict=True))
        labels = [own[max((known for known in own if text.startswith(known)), key=len)] for text, _ in texts]
        wrong = ["unfunny" in text for text, _ in texts]
        return np.eye(2)[[1 - label if bad else label for label, bad in zip(labels, wrong, strict=True)]]

    monkeypatch.setattr(harm, "_probabilities", read)


def notes(trainer: Trainer) -> list[tuple[int, str]]:
    """Return the steps and the messages of what was found."""
    found = trainer.history.filter("note")
    return [(note["step"], note["message"]) for note in found if "read rightly and surely" in note["message"]]


def test_an_augmenter_is_switched_off_as_an_epoch_begins() -> None:
    """After the first epoch it makes no copy any more; the other does, and the history has the figures."""
    trainer = tiny_trainer(strategies=[Augment([Kept(), Broken()], copies=2, drop_harmful=0.1)], epochs=5)
    steps = trainer.steps()
    for _ in range(4):
        next(steps)
    assert {"kept", "broken"} == set(SEEN)
    SEEN.clear()
    next(steps)
    # The validation rows are changed by both in the test, and the batch by one.
    assert SEEN[:16] == ["kept"] * 8 + ["broken"] * 8
    assert set(SEEN[16:]) == {"kept"}
    for _ in steps:
        pass
    found = notes(trainer)
    assert [step for step, _ in found] == [4, 8, 16]  # as epochs 2, 3 and 5 begin
    assert "Kept 0 of 8 (0.0%); Broken 8 of 8 (100.0%), beyond drop_harmful=0.1 and chance: switched off" in found[0][1]
    assert all("Broken" not in message for _, message in found[1:])
    assert trainer._loop.attached.state.memory["Augment"]["off"] == [1]


@pytest.mark.parametrize("mix", ["draw", "chain"])
def test_without_an_augmenter_rows_train_alone(mix: Any) -> None:
    """When all are off the training goes on, and no more tests are made."""
    augment = Augment([Broken()], mix=mix, consistency=1.0, drop_misread=0.9, drop_harmful=0.1)
    trainer = tiny_trainer(strategies=[augment], epochs=4)
    steps = trainer.steps()
    for _ in range(5):
        next(steps)
    SEEN.clear()
    assert sum(1 for _ in steps) == 11
    assert SEEN == []
    ((_, message),) = notes(trainer)
    assert message.endswith("no augmenter is left, and rows are trained on alone")


def test_a_chain_goes_on_without_its_broken_link() -> None:
    """Of augmenters that act in turn, those that are left act."""
    trainer = tiny_trainer(strategies=[Augment([Kept(), Broken()], mix="chain", drop_harmful=0.1)], epochs=2)
    steps = trainer.steps()
    for _ in range(5):
        next(steps)
    SEEN.clear()
    list(steps)
    assert set(SEEN) == {"kept"}


def test_nothing_is_asked_where_nothing_is_to_be_switched_off() -> None:
    """Without the setting no test is made, and an epoch's strategy is the strategy."""
    trainer = tiny_trainer(strategies=[Augment([Broken()])], epochs=2)
    trainer.fit()
    assert notes(trainer) == []
    augment = Augment([Broken()])
    assert augment.for_epoch(trainer._loop.attached.state) is augment


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_resumed_at_any_step_it_ends_with_the_same_bits(workers: int, tmp_path: Path) -> None:
    """Before, at and after the decision, in two stages, and within an epoch: the same decision, notes and weights."""
    strategies = (
        LayerwiseUnfreeze((Unfreeze(top=1, epochs=2), Unfreeze(top="all", epochs=2))),
        Augment([Kept(), Broken()], drop_harmful=0.1, drop_misread=0.9),
    )

    def run(folder: Path) -> Trainer:
        return make_trainer(folder, strategies, dataloader_num_workers=workers, load_best_model_at_end=False)

    whole = run(tmp_path / "whole")
    whole.fit()
    assert [step for step, _ in notes(whole)] == [4, 8, 12]
    for step in range(1, 16, 1 if workers == 0 else 5):
        folder = tmp_path / f"from-{step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        resumed = run(folder)
        resumed.fit(resume_from_checkpoint=True)
        assert_same(final_weights(whole), final_weights(resumed), f"from {step}")
        assert_same(contents(tmp_path / "whole" / "checkpoint-16"), contents(folder / "checkpoint-16"), f"from {step}")


def test_workers_make_the_same_copies() -> None:
    """What is off is off in worker processes too."""
    found = []
    for workers in (0, 2):
        augment = Augment([Kept(), Broken()], copies=2, drop_harmful=0.1)
        trainer = tiny_trainer(strategies=[augment], epochs=3, dataloader_num_workers=workers)
        trainer.fit()
        found.append(final_weights(trainer))
    assert_same(found[0], found[1])


def test_one_that_is_off_makes_no_copy() -> None:
    """The draw is among those that are left, and the recipe says nothing of it."""
    augment = Augment([Kept(), Broken()], copies=3, drop_harmful=0.1)
    object.__setattr__(augment, "_off", frozenset({0}))
    made = augment.on_examples([Example(0, "a")], BatchRandom(1, position=(0,)))[1:]
    assert made
    assert all("unfunny" in copy.text for copy in made)
    assert from_dict(to_dict(augment)) == augment
    assert "_off" not in to_dict(augment)["settings"]


def test_without_validation_rows_it_is_refused() -> None:
    """There is nothing to see harm in; and a task without one class a row has no class that could change."""
    with pytest.raises(ConfigError, match=r"drop_harmful=0\.1 looks at validation rows, and there are none"):
        tiny_trainer(strategies=[Augment([Kept()], drop_harmful=0.1)], eval_dataset=None).fit()
    with pytest.raises(ConfigError, match=r"Augment\.drop_harmful asks how likely the one right class is"):
        Trainer(
            tiny_model("bert", num_labels=1), (tiny_rows(4)["text"], [0.5, 0.1, 0.9, 0.3]), tokenizer=tiny_tokenizer(),
            strategies=[Augment([Kept()], drop_harmful=0.1)],
        )  # fmt: skip


@pytest.mark.parametrize("value", [0, 1, -0.1, "much", True])
def test_the_share_is_checked(value: Any) -> None:
    """It lies between 0 and 1; a bank, which is made before the run, excludes it."""
    with pytest.raises(ConfigError, match=r"Augment\.drop_harmful must be a finite number above 0 and below 1"):
        Augment([Kept()], drop_harmful=value)
    with pytest.raises(ConfigError, match=r"drop_harmful=0\.1 switches augmenters off .* bank=2 are made before it"):
        Augment([Kept()], drop_harmful=0.1, bank=2)


def test_a_real_reading_decides(monkeypatch: pytest.MonkeyPatch, rotten_tomatoes: tuple[list[str], list[int]]) -> None:
    """With a model that has learnt something, a change of the words that carry the label is found, and no other."""
    monkeypatch.undo()
    words = {0: "terrible awful", 1: "wonderful superb"}
    rows = [(f"{text[:20]} {words[label]}", label) for text, label in zip(*rotten_tomatoes, strict=True)][:120]

    @dataclass(frozen=True)
    class Opposite(Augmenter):
        def vary(self, text: str, rng: random.Random) -> str:
            return text.replace("terrible awful", "wonderful superb") if "awful" in text else f"{text[:20]} {words[0]}"

    @dataclass(frozen=True)
    class Longer(Augmenter):
        def vary(self, text: str, rng: random.Random) -> str:
            return f"the film {text}"

    trainer = tiny_trainer(
        train_dataset=rows[:64],
        eval_dataset=rows[64:],
        strategies=[Augment([Longer(), Opposite()], label_weight=0.01, consistency=0.01, drop_harmful=0.1)],
        epochs=5,
        batch_size=8,
    )
    trainer.fit()
    assert trainer._loop.attached.state.memory["Augment"]["off"] == [1]
    assert any("Opposite" in message and "switched off" in message for _, message in notes(trainer))
