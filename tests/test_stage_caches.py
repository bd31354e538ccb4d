"""What the stages of a run cache: for which rows, for how long, and when not."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from lowft.augment import RandomSwap
from lowft.data.batching import Batch
from lowft.data.rows import Rows
from lowft.models import find_layers, prefix_cache
from lowft.stages import Stage
from lowft.state import State
from lowft.strategies import Augment, LayerwiseUnfreeze, PartialFreeze, Unfreeze
from lowft.strategy import Contract, Strategy
from lowft.trainer import Trainer
from tests.strategy_cases import tiny_rows
from tests.test_prefix_cache import ROWS, assert_same_losses, notes, run
from tests.tiny import tiny_model, tiny_tokenizer


def test_each_stage_has_its_own_cache() -> None:
    """Staged unfreezing caches what is frozen in each stage, and nothing where nothing is."""
    strategies = [LayerwiseUnfreeze((Unfreeze(top=0), Unfreeze(top=1), Unfreeze(top="all")))]
    with_cache, without = run("bert", strategies, cache=True), run("bert", strategies, cache=False)
    first, _, second, _ = notes(with_cache)
    assert first.startswith("3 frozen blocks: 5.38 kB of 42 distinct rows cached")
    assert second.startswith("2 frozen blocks: ")
    assert "distinct rows kept from an earlier stage" in second
    assert [r["decision"] for r in with_cache.history.filter("stage")] == ["continue", "continue", "end"]
    assert_same_losses(with_cache, without)


def test_a_resumed_run_serves_the_same_bits(tmp_path: Path) -> None:
    """A run that is resumed in mid-epoch fills its cache again and ends bit-identical."""
    whole = run("bert", [PartialFreeze(top=1)], cache=True, output_dir=tmp_path, save_steps=5, save_total_limit=9)
    tokenizer = tiny_tokenizer("bert")
    again = Trainer(
        tiny_model("bert"),
        ROWS,
        tiny_rows(12, seed=5),
        strategies=[PartialFreeze(top=1)],
        tokenizer=tokenizer,
        config=whole.config,
    )
    again.fit(resume_from_checkpoint=tmp_path / "checkpoint-10")
    for (name, one), other in zip(whole.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_stages_that_follow_share_one_pass() -> None:
    """What later stages need is kept while the first one's cache is filled, also for stages of a single epoch."""
    strategies = [Stages((0, 1, 1, 2))]
    trainer = run("bert", strategies, cache=True, epochs=1)
    filled = [record for record in trainer.history.filter("note") if "cached_bytes" in record]
    assert [record["message"].partition(":")[0] for record in filled] == [
        "3 frozen blocks", "2 frozen blocks", "2 frozen blocks", "1 frozen blocks",
    ]  # fmt: skip
    assert all("kept from an earlier stage" in record["message"] for record in filled[1:])
    assert_same_losses(trainer, run("bert", strategies, cache=False, epochs=1))


def test_weights_that_moved_are_not_served() -> None:
    """A later stage with more frozen blocks than an earlier one gets a cache of the weights as they are then."""
    stages = Stages((0, 2, 0))
    with_cache, without = (run("bert", [stages], cache=cache, epochs=2) for cache in (True, False))
    filled = [record["message"] for record in with_cache.history.filter("note") if "cached_bytes" in record]
    assert [message.partition(":")[0] for message in filled] == [
        "3 frozen blocks", "1 frozen blocks", "3 frozen blocks",
    ]  # fmt: skip
    assert "kept" in filled[1]
    assert "kept" not in filled[2]
    assert_same_losses(with_cache, without)


@pytest.mark.parametrize("step", [3, 9, 20])
def test_a_resumed_stage_serves_the_same_bits(step: int, tmp_path: Path) -> None:
    """Also where the run that was stopped had filled the stage's cache in an earlier stage's pass."""
    strategies = [LayerwiseUnfreeze((Unfreeze(top=0), Unfreeze(top=1), Unfreeze(top=2)))]
    settings: dict[str, Any] = {"cache": True, "epochs": 1, "output_dir": tmp_path}
    whole = run("bert", strategies, save_steps=1, save_total_limit=99, **settings)
    config = dataclasses.replace(whole.config, save_steps=99)
    rows, tokenizer = tiny_rows(12, seed=5), tiny_tokenizer("bert")
    again = Trainer(tiny_model("bert"), ROWS, rows, strategies=strategies, tokenizer=tokenizer, config=config)
    again.fit(resume_from_checkpoint=tmp_path / f"checkpoint-{step}")
    for (name, one), other in zip(whole.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert notes(again)[-1] == notes(whole)[-1]


def test_copies_are_computed_and_their_rows_served() -> None:
    """Under augmentation half of a batch is known, and the losses are those without a cache."""
    strategies = [Augment([RandomSwap()]), PartialFreeze(top=1)]
    with_cache, without = (run("bert", strategies, cache=cache, epochs=2) for cache in (True, False))
    assert "rows that Augment makes anew are computed" in notes(with_cache)[0]
    rate = with_cache.history.filter("note")[1]["hit_rate"]
    assert 0.5 < rate < 0.9  # all of the validation rows, about half of a training batch
    assert_same_losses(with_cache, without)


@dataclass(frozen=True)
class Stages(Strategy):
    """Stages that train the head and so many of the highest blocks, in any order."""

    tops: tuple[int, ...] = ()

    def stages(self, stages: tuple[Stage, ...], model: torch.nn.Module) -> tuple[Stage, ...]:
        depths = find_layers(model).depths
        return tuple(
            Stage(name=str(index), trainable=frozenset(name for name, depth in depths.items() if depth > 3 - top))
            for index, top in enumerate(self.tops)
        )


@dataclass(frozen=True)
class _ChangesTokens(Strategy):
    def on_batch(self, batch: Batch, state: State) -> Batch:
        ids = batch.inputs["input_ids"].clone()
        ids[:, 1] = 7
        return Batch({**batch.inputs, "input_ids": ids}, batch.labels, batch.rows)


@dataclass(frozen=True)
class _WritesTokens(Strategy):
    """Writes into the tensors that it is given, and says that the rows stay the same."""

    def recurring(self, dataset: Rows) -> Rows | None:
        return dataset

    def on_batch(self, batch: Batch, state: State) -> Batch:
        batch.inputs["input_ids"][:, 1] = 7
        return batch


@dataclass(frozen=True)
class _LooksInside(Strategy):
    contract: ClassVar[Contract] = Contract(invalidates=frozenset({"prefix"}))


def test_rows_that_a_strategy_changes_are_not_served() -> None:
    """Where a strategy changes all training rows only the validation rows are cached, and the result is right."""
    strategies = [_ChangesTokens(), PartialFreeze(top=1)]
    with_cache, without = run("bert", strategies, cache=True), run("bert", strategies, cache=False)
    assert "training rows not cached, since _ChangesTokens changes them" in notes(with_cache)[0]
    assert_same_losses(with_cache, without)


@pytest.mark.parametrize(("strategy", "needed"), [(None, False), (_ChangesTokens(), True), (_WritesTokens(), True)])
def test_a_device_is_read_only_where_a_strategy_changed_its_tensors(
    strategy: Strategy | None, needed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are known by what was collated on the CPU; what a strategy wrote on the device is not missed."""
    on_device: list[int] = []
    read: list[bool] = []
    row_keys = prefix_cache.row_keys

    def moved(batch: Batch, _device: torch.device) -> Batch:
        inputs = {name: tensor.clone() for name, tensor in batch.inputs.items()}
        on_device.extend(map(id, inputs.values()))
        kept.append(inputs)  # else another tensor may get the number of one that is gone
        return dataclasses.replace(batch, inputs=inputs)

    def keys(inputs: dict[str, Any], names: tuple[str, ...]) -> list[bytes]:
        read.append(any(id(tensor) in on_device for tensor in inputs.values()))
        return row_keys(inputs, names)

    kept: list[dict[str, Any]] = []
    strategies = [*filter(None, [strategy]), PartialFreeze(top=1)]
    without = run("bert", strategies, cache=False)
    monkeypatch.setattr(Batch, "to", moved)
    monkeypatch.setattr(prefix_cache, "row_keys", keys)
    with_cache = run("bert", strategies, cache=True)
    assert len(read) > 10
    assert any(read) == needed
    assert_same_losses(with_cache, without)


def test_a_strategy_can_forbid_the_cache() -> None:
    """A contract that invalidates the prefix turns the cache off."""
    assert "_LooksInside needs them" in notes(run("bert", [_LooksInside(), PartialFreeze(top=1)], cache=True))[0]


@pytest.mark.parametrize("strategies", [[], [PartialFreeze(biases_only=True)]])
def test_nothing_is_cached_where_nothing_below_is_frozen(strategies: list[Strategy]) -> None:
    """Without frozen embeddings there is nothing to cache and nothing to say."""
    assert not notes(run("bert", strategies, cache=True))


def test_a_single_epoch_is_not_cached() -> None:
    """Rows that pass once gain nothing from a cache."""
    assert not notes(run("bert", [PartialFreeze(top=1)], cache=True, epochs=1))
