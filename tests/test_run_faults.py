"""What goes wrong while a run is on: numbers that are not finite, hooks that raise, steps that are broken off."""

from __future__ import annotations

import itertools
import math
import signal
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tqdm.auto import tqdm

from lowft.data.batching import Batch, BatchRandom, Example
from lowft.errors import ConfigError, NonFiniteError
from lowft.history import History
from lowft.stages import Stage
from lowft.state import State
from lowft.strategies import PartialFreeze
from lowft.strategy import Strategy
from tests.runs import NUMBERED, note_records, seven_is_nan, tiny_trainer, train_records, weights
from tests.test_strategies_table import assert_same
from tests.tiny import tiny_model


@dataclass(frozen=True)
class Poison(Strategy):
    """Make the loss, or only its gradient, not finite at some steps (counted from 0)."""

    steps: tuple[int, ...] = ()
    kind: str = "loss nan"

    def on_loss(self, loss: torch.Tensor, outputs: Any, batch: Batch, state: State) -> torch.Tensor:
        if state.step not in self.steps:
            return loss
        if self.kind == "loss nan":
            return loss * math.nan
        if self.kind == "loss inf":
            return loss * math.inf
        zero = (outputs.logits - outputs.logits.detach()).sum()  # 0, and so is the square root: the loss is as it was
        if self.kind == "gradient nan":
            zero = zero * 0
        return loss + torch.sqrt(zero)


KINDS = ("loss nan", "loss inf", "gradient nan", "gradient inf")


@pytest.mark.parametrize("clip", [1.0, None])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_is_not_finite_raises_and_changes_nothing(kind: str, clip: float | None) -> None:
    """The error names step and rows, comes before the optimizer, and is in the history."""
    trainer = tiny_trainer(strategies=[Poison((2,), kind)], max_grad_norm=clip, gradient_accumulation_steps=2)
    steps = trainer.steps()
    for _ in range(2):
        next(steps)
    before = weights(trainer)
    with pytest.raises(NonFiniteError, match=r"step 3 of stage 'training'.*rows \[[\d, ]+\].*on_nonfinite='skip'"):
        next(steps)
    assert_same(before, weights(trainer))
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    (note,) = trainer.history.filter("note")
    assert "step 3" in note["message"]
    assert len(trainer.history.filter("train")) == 2
    assert trainer.predict(["a dull film"])  # still usable


@pytest.mark.parametrize("kind", KINDS)
def test_such_steps_are_skipped_and_counted_when_asked(kind: str) -> None:
    """A skipped step changes no weight, counts as a step, and stands in the history with its figures."""
    trainer = tiny_trainer(
        strategies=[Poison((1, 3), kind)], on_nonfinite="skip", max_nonfinite_steps=2, eval_dataset=None
    )
    seen = [weights(trainer), *(weights(trainer) for _ in trainer.steps())]
    changed = [any(not torch.equal(one[name], other[name]) for name in one) for one, other in itertools.pairwise(seen)]
    assert changed == [True, False, True, False, True, True, True, True]
    figures = train_records(trainer, "loss" if kind.startswith("loss") else "grad_norm")
    assert [math.isfinite(value) for value in figures] == changed
    assert [note["message"].split(" of ")[0] for note in note_records(trainer)] == ["step 2", "step 4"]
    assert History.from_json(trainer.history.to_json()) == trainer.history
    assert all(value.isfinite().all() for value in weights(trainer).values())


def test_skipping_ends_at_the_limit() -> None:
    """One skipped step more than allowed is an error that says how many there were."""
    trainer = tiny_trainer(strategies=[Poison((0, 2, 3))], on_nonfinite="skip", max_nonfinite_steps=2)
    with pytest.raises(NonFiniteError, match=r"step 4 .* That is 3 skipped steps, more than max_nonfinite_steps=2"):
        trainer.fit()
    assert len(trainer.history.filter("note")) == 3


def _mean_seven_is_nan(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return seven_is_nan(logits, labels).mean()


def test_the_error_names_the_very_row() -> None:
    """A loss of one row that is not finite is traced to that row's number in the caller's own data."""
    texts, labels = NUMBERED["text"].copy(), NUMBERED["label"].copy()
    texts[2] = None  # dropped: the numbers of later rows must stay the caller's
    trainer = tiny_trainer(
        model=tiny_model("bert", num_labels=1),
        train_dataset=(texts, labels),
        eval_dataset=None,
        loss=seven_is_nan,
        on_bad_row="drop",
    )
    with pytest.raises(NonFiniteError, match=r"the loss of rows \[7\];"):
        trainer.fit()


def test_a_loss_that_is_a_mean_names_the_rows_of_its_batch() -> None:
    """Where only the mean is known, the rows of that micro-batch are named, and not those of the whole step."""
    trainer = tiny_trainer(
        model=tiny_model("bert", num_labels=1),
        train_dataset=NUMBERED,
        eval_dataset=None,
        loss=_mean_seven_is_nan,
        batch_size=2,
        gradient_accumulation_steps=3,
    )
    with pytest.raises(NonFiniteError, match=r"the loss of rows \[(7, \d+|\d+, 7)\];"):
        trainer.fit()


@dataclass(frozen=True)
class Raises(Strategy):
    """Raise in one hook."""

    hook: str = ""

    def _raise_in(self, hook: str, step: int = 2) -> None:
        if hook == self.hook and step == 2:
            raise ZeroDivisionError("as planned")

    def prepare_data(self, dataset: Any) -> Any:
        self._raise_in("prepare_data")
        return dataset

    def prepare_model(self, model: torch.nn.Module) -> torch.nn.Module:
        self._raise_in("prepare_model")
        return model

    def stages(self, stages: tuple[Stage, ...], model: torch.nn.Module) -> tuple[Stage, ...]:
        self._raise_in("stages")
        return stages

    def on_stage_start(self, state: State) -> None:
        self._raise_in("on_stage_start")

    def for_epoch(self, state: State) -> Strategy:
        self._raise_in("for_epoch")
        return self

    def on_examples(self, examples: list[Example], rng: BatchRandom) -> list[Example]:
        self._raise_in("on_examples")
        return examples

    def on_batch(self, batch: Batch, state: State) -> Batch:
        self._raise_in("on_batch", state.step)
        return batch

    def on_loss(self, loss: torch.Tensor, outputs: Any, batch: Batch, state: State) -> torch.Tensor:
        self._raise_in("on_loss", state.step)
        return loss

    def before_step(self, state: State) -> None:
        self._raise_in("before_step", state.step)

    def finish_model(self, model: torch.nn.Module) -> torch.nn.Module:
        self._raise_in("finish_model")
        return model


HOOKS = [name for name in vars(Strategy) if name in vars(Raises) and not name.startswith("_")]


def test_every_hook_is_among_those_that_raise() -> None:
    """The list of hooks below is the list of hooks there are."""
    assert len(HOOKS) == 10


@pytest.mark.parametrize(("hook", "workers"), [*((hook, 0) for hook in HOOKS), ("on_examples", 1)])
def test_a_hook_that_raises_is_named_and_cleaned_up_after(hook: str, workers: int) -> None:
    """The original error comes with the hook's name; handlers, bars and random streams are as before."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stream = torch.get_rng_state()
    model = tiny_model("bert")
    with pytest.raises(ZeroDivisionError, match="as planned") as caught:
        tiny_trainer(
            model=model, strategies=[Raises(hook), PartialFreeze(top=1)], progress=True, dataloader_num_workers=workers
        ).fit()
    if workers:  # an error of another process arrives as text
        assert "_raise_in" in str(caught.value)
        assert f"raised by Raises.{hook}" in str(caught.value)
    else:
        (note,) = caught.value.__notes__
        where = " in stage 'training', after step 2" if hook in {"on_batch", "on_loss", "before_step"} else ""
        assert note.startswith(f"raised by Raises.{hook}{where}")
        assert "_raise_in" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert not tqdm._instances
    assert torch.equal(torch.get_rng_state(), stream)
    tiny_trainer(model=model).fit()  # the caller's model is still whole


def test_a_step_that_was_broken_off_leaves_no_gradient_behind() -> None:
    """After an error in the middle of gradient accumulation, the same Trainer goes on as if nothing had been."""
    whole = tiny_trainer(batch_size=1, gradient_accumulation_steps=4, strategies=[PartialFreeze(top=1)])
    whole.fit()
    broken = tiny_trainer(batch_size=1, gradient_accumulation_steps=4, strategies=[PartialFreeze(top=1)])
    forward, calls = broken.model.forward, iter(range(1000))

    def failing(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and next(calls) == 6:  # the third micro-batch of the second step
            raise OSError("out of luck")
        return forward(*args, **kwargs)

    broken.model.forward = failing
    with pytest.raises(OSError, match="out of luck"):
        broken.fit()
    del broken.model.forward
    broken.fit()
    assert_same(weights(whole), weights(broken))


@pytest.mark.parametrize("value", [object(), print, {1: 2}, torch.ones(2)])
def test_a_strategy_that_cannot_be_saved_is_refused_at_construction(value: Any) -> None:
    """Settings that JSON cannot hold are found before training, with their name."""
    with pytest.raises(ConfigError, match=r"Unsavable\.thing.*cannot be saved.*state\.memory"):
        tiny_trainer(strategies=[Unsavable(value)])


@dataclass(frozen=True)
class Unsavable(Strategy):
    """Hold anything."""

    thing: Any = None


@dataclass(frozen=True)
class ForgetfulMemory(Strategy):
    """Keep something in memory that no file can hold."""

    def on_stage_start(self, state: State) -> None:
        state.memory_of(self.name)["now"] = object()


def test_a_memory_that_cannot_be_saved_says_where_it_is(tmp_path: Path) -> None:
    """The first checkpoint fails with the path of the value in the memory; no partial folder remains."""
    with pytest.raises(ConfigError, match=r"state\.memory\.ForgetfulMemory\.now is a object"):
        tiny_trainer(strategies=[ForgetfulMemory()], output_dir=tmp_path).fit()
    assert list(tmp_path.iterdir()) == []
