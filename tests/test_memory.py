"""Memory that runs out: the same rows again, fewer at a time, and the same weights in the end."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowft.augment import RandomSwap
from lowft.data.batching import Batch
from lowft.data.epochs import MicroBatch, halved
from lowft.errors import TrainingError
from lowft.strategies import Augment, PartialFreeze
from lowft.trainer import Trainer
from tests.runs import NO_DROPOUT, note_records, tiny_trainer
from tests.strategy_cases import tiny_rows
from tests.test_strategies_table import assert_same, final_weights, make_trainer
from tests.tiny import tiny_model

MESSAGES = (
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate",
    "CUDA out of memory. Tried to allocate 2.00 GiB",
)
SETTINGS: dict[str, Any] = {"batch_size": 6, "gradient_accumulation_steps": 1, "save_steps": None}


def without_dropout(**values: Any) -> Trainer:
    """Return a run without dropout, which draws other numbers for other shapes of batches.

    Adam's first steps are the signs of the gradients, and those of a key's bias are rounding errors: a large
    epsilon lets them be as small as they are.
    """
    model = tiny_model("bert", **NO_DROPOUT)
    return tiny_trainer(model=model, batch_size=6, adam_epsilon=0.01, learning_rate=0.05, **values)


def fail_above(trainer: Trainer, rows: int, where: str, error: Callable[[], BaseException]) -> list[int]:
    """Let the model run out of memory with more than so many rows; return where the sizes tried are noted."""
    tried: list[int] = []

    def forward(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        tried.append(len(kwargs["input_ids"]))
        if where == "forward" and module.training and tried[-1] > rows:
            raise error()
        if where == "evaluation" and not module.training and tried[-1] > rows:
            raise error()

    def backward(gradient: torch.Tensor) -> None:
        if tried[-1] > rows:
            raise error()

    def after(module: torch.nn.Module, args: Any, outputs: Any) -> None:
        if outputs.logits.requires_grad and where == "backward":
            outputs.logits.register_hook(backward)

    trainer.model.register_forward_pre_hook(forward, with_kwargs=True)
    trainer.model.register_forward_hook(after)
    return tried


def reference() -> dict[str, torch.Tensor]:
    """Return the weights of a run that never ran out."""
    trainer = without_dropout()
    trainer.fit()
    return final_weights(trainer)


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize(
    "error", [*(lambda text=text: RuntimeError(text) for text in MESSAGES), MemoryError], ids=range(3)
)
def test_a_step_goes_through_in_halves(where: str, error: Callable[[], BaseException]) -> None:
    """Six rows do not fit, nor do three: pairs do, and the weights are those of whole batches."""
    trainer = without_dropout()
    tried = fail_above(trainer, 2, where, error)
    trainer.fit()
    assert tried[:3] == [6, 3, 2]
    notes = [record["message"] for record in note_records(trainer)]
    assert [note.split("; ")[0].rsplit("with ", 1)[1] for note in notes] == ["6 rows at a time", "3 rows at a time"]
    for name, tensor in reference().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], tensor, rtol=0, atol=2e-5)


def test_the_comparison_can_fail() -> None:
    """Negative control: training moves the weights by far more than the tolerance."""
    before, after = tiny_model("bert").state_dict(), reference()
    assert max((after[name] - before[name]).abs().max() for name in after if "weight" in name) > 1e-2


def test_the_optimizer_may_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step of the optimizer lacked, smaller micro-batches leave: the step is made once."""
    trainer = without_dropout()
    step = torch.optim.AdamW.step
    failed: list[bool] = []

    def once(self: Any, *args: Any) -> Any:
        if not failed:
            failed.append(True)
            raise MemoryError
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", once)
    trainer.fit()
    for name, tensor in reference().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], tensor, rtol=0, atol=2e-5)


def test_an_evaluation_goes_on_with_fewer_rows() -> None:
    """Logits do not depend on how many rows fit, and come in the caller's order."""
    rows = {"text": ["a film", "a warm story about love", "plot", "dull", "a dull and lazy film"]}
    trainer = make_trainer(None, (), eval_batch_size=5)
    whole = trainer._predictor().predict_logits(rows)
    tried = fail_above(trainer, 2, "evaluation", lambda: RuntimeError(MESSAGES[0]))
    assert np.allclose(trainer._predictor().predict_logits(rows), whole, atol=1e-6)
    assert tried == [5, 3, 2, 2, 1]


def test_copies_stay_with_their_rows() -> None:
    """What compares a row with its copies does so in halves too, and each label counts as much as in the whole."""

    def run(consistency: float, rows: int) -> dict[str, torch.Tensor]:
        augment = Augment([RandomSwap(0.9)], copies=2, probability=0.6, consistency=consistency, drop_misread=0.5)
        trainer = without_dropout(strategies=[augment])
        fail_above(trainer, rows, "forward", MemoryError)
        trainer.fit()
        assert trainer._loop.kept.halvings == (0 if rows == 99 else 2)
        return final_weights(trainer)

    whole, halves, without = run(5.0, 99), run(5.0, 6), run(0.0, 99)
    for name, tensor in whole.items():
        torch.testing.assert_close(halves[name], tensor, rtol=0, atol=2e-5)
    assert max((whole[name] - without[name]).abs().max() for name in whole) > 1e-2


def test_a_step_that_is_broken_off_counts_nothing() -> None:
    """Copies that were read in a step which found no memory are counted when it is made."""

    def counted(rows: int) -> list[str]:
        trainer = without_dropout(strategies=[Augment([RandomSwap(0.9)], drop_misread=0.5)])
        fail_above(trainer, rows, "backward", MemoryError)
        trainer.fit()
        return [note["message"] for note in note_records(trainer) if "surely taken" in note["message"]]

    whole = counted(99)
    assert whole
    assert counted(4) == whole


@pytest.mark.parametrize("cached", [True, False])
def test_the_prefix_cache_serves_the_halves(cached: bool) -> None:
    """The frozen layers' output of each half is that of its own rows."""
    trainer = without_dropout(strategies=[PartialFreeze(top=1)], prefix_cache=cached)
    fail_above(trainer, 3, "backward", MemoryError)
    trainer.fit()
    other = without_dropout(strategies=[PartialFreeze(top=1)], prefix_cache=False)
    other.fit()
    assert trainer._loop.kept.halvings == 1
    for name, tensor in final_weights(other).items():
        torch.testing.assert_close(trainer.model.state_dict()[name], tensor, rtol=0, atol=2e-5)


def test_the_prefix_cache_is_filled_in_halves() -> None:
    """Rows of many lengths that find no room together are computed in parts, and all of them are cached."""
    rows = tiny_rows(20)
    rows["text"] = [text + " film" * (row % 5) for row, text in enumerate(rows["text"])]
    trainer = without_dropout(strategies=[PartialFreeze(top=1)], train_dataset=rows)
    tried = fail_above(trainer, 4, "evaluation", MemoryError)
    trainer.fit()
    assert {20, 10, 5} < set(tried)
    assert note_records(trainer)[-1]["hit_rate"] == 1
    other = without_dropout(strategies=[PartialFreeze(top=1)], train_dataset=rows, prefix_cache=False)
    other.fit()
    for name, tensor in final_weights(other).items():
        torch.testing.assert_close(trainer.model.state_dict()[name], tensor, rtol=0, atol=2e-5)


def test_one_row_that_does_not_fit_ends_the_run() -> None:
    """With one row at a time there is nothing left to halve, and the error says what else would help."""
    trainer = make_trainer(None, (), **SETTINGS)
    tried = fail_above(trainer, 0, "forward", MemoryError)
    with pytest.raises(TrainingError, match=r"step 1 of stage 'training': out of memory with 1 rows.*max_length"):
        trainer.fit()
    assert tried == [6, 3, 2, 1]


def test_one_row_that_does_not_fit_says_so_outside_of_steps() -> None:
    """Nor is there in evaluations and in frozen layers' caches, which name what they did and how long the row is."""
    row = {"text": ["a warm film"]}
    trainer = without_dropout(strategies=[PartialFreeze(top=1)])
    fail_above(trainer, 0, "evaluation", MemoryError)
    with pytest.raises(TrainingError, match=r"predicting: out of memory with a single row of 5 tokens.*max_length"):
        trainer._predictor().predict_logits(row)

    def forward(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        if len(kwargs["input_ids"]) != 4:  # as many are tried before
            raise MemoryError

    trainer = without_dropout(strategies=[PartialFreeze(top=1)], train_dataset=tiny_rows(20))
    trainer.model.register_forward_pre_hook(forward, with_kwargs=True)
    with pytest.raises(TrainingError, match=r"caching frozen layers: out of memory with a single row of \d+ tokens"):
        trainer.fit()


def test_another_error_is_not_mistaken() -> None:
    """An ordinary mistake in the model is raised as it is, at once."""
    trainer = make_trainer(None, (), **SETTINGS)
    tried = fail_above(trainer, 0, "forward", lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        trainer.fit()
    assert tried == [6]


def test_a_resumed_run_begins_with_the_halves(tmp_path: Path) -> None:
    """What was learnt about the memory is saved: the resumed run ends bit-identical, dropout and all."""
    settings: dict[str, Any] = {**SETTINGS, "save_steps": 1}
    whole = make_trainer(tmp_path / "whole", (), **settings)
    fail_above(whole, 3, "forward", MemoryError)
    whole.fit()
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "again" / "checkpoint-2")
    again = make_trainer(tmp_path / "again", (), **settings)
    tried = fail_above(again, 3, "forward", MemoryError)
    again.fit(resume_from_checkpoint=True)
    assert 6 not in tried
    assert_same(final_weights(whole), final_weights(again))


@given(st.integers(1, 9), st.integers(1, 3), st.integers(0, 5))
def test_halves_hold_every_row_once(rows: int, copies: int, times: int) -> None:
    """Pieces follow the order of the rows, which keep their copies, and share the batch's part of the step."""
    numbers = torch.arange(rows * copies)
    texts = tuple((str(number), None) for number in numbers.tolist())
    batch = Batch({"input_ids": numbers[:, None]}, numbers, tuple(range(rows)) * copies, texts)
    pieces = halved(MicroBatch(tuple(range(7, 7 + rows)), 0.25), batch, times)
    assert len(pieces) == min(2**times, rows)
    assert [index for part, _ in pieces for index in part.indices] == list(range(7, 7 + rows))
    for part, piece in pieces:
        own = [index - 7 for index in part.indices]
        assert list(piece.rows) == own * copies
        assert part.share == pytest.approx(0.25 * len(own) / rows)
        found = piece.inputs["input_ids"].flatten().tolist()
        assert found == [copy * rows + row for copy in range(copies) for row in own]
        assert piece.labels is not None
        assert piece.labels.tolist() == found
        assert [int(text) for text, _ in piece.texts] == found


def test_a_run_that_nobody_holds_is_gone_at_once() -> None:
    """Weights and copies of them do not wait for Python to look for circles of references."""
    trainer = tiny_trainer(strategies=[PartialFreeze(top=1)])
    trainer.fit()
    seen: list[weakref.ref[Any]] = [weakref.ref(found) for found in (trainer, trainer._loop, trainer._loop.attached)]
    gc.collect()
    gc.disable()
    try:
        del trainer
        assert [reference() for reference in seen] == [None, None, None]
    finally:
        gc.enable()
