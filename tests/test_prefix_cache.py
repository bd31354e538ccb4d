"""The prefix cache: invisible in results, on every architecture, and off wherever it would not be."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from lowft.config import TrainingConfig
from lowft.data import read_rows
from lowft.data.batching import Batch, TokenizedRows, accepted_inputs
from lowft.errors import ModelError
from lowft.models import find_layers, freeze_
from lowft.models.prefix_cache import PrefixCache, frozen_blocks
from lowft.state import State
from lowft.strategies import LayerwiseUnfreeze, PartialFreeze, Unfreeze
from lowft.strategy import Contract, Strategy
from lowft.trainer import Trainer
from tests.strategy_cases import tiny_rows
from tests.tiny import ARCHITECTURES, tiny_model, tiny_tokenizer

ROWS = tiny_rows(30)
CACHED = [arch for arch in ARCHITECTURES if arch != "t5"]


def tokenized(model: torch.nn.Module, arch: str, side: str = "right") -> TokenizedRows:
    """Return the rows of this module with the tokens that a model takes."""
    tokenizer = tiny_tokenizer(arch)
    tokenizer.padding_side = side
    labels = np.zeros(len(ROWS["text"]), dtype=np.int64)
    return TokenizedRows(read_rows(ROWS), tokenizer, labels, 64, accepted_inputs(model, tokenizer))


def run(arch: str, strategies: Sequence[Strategy], *, cache: bool, **settings: Any) -> Trainer:
    """Return a Trainer that has trained a tiny model."""
    config: dict[str, Any] = {"epochs": 3, "batch_size": 4, "learning_rate": 1e-3, "device": "cpu", "seed": 1}
    trainer = Trainer(
        tiny_model(arch),
        ROWS,
        tiny_rows(12, seed=5),
        strategies=strategies,
        tokenizer=tiny_tokenizer(arch),
        config=TrainingConfig(**(config | settings), prefix_cache=cache),
    )
    trainer.fit()
    return trainer


def notes(trainer: Trainer) -> list[str]:
    """Return what the history says about caches."""
    return [record["message"] for record in trainer.history.filter("note")]


def assert_same_losses(one: Trainer, other: Trainer) -> None:
    """Compare two runs' training and validation losses, to 1e-5."""
    for event, key in (("train", "loss"), ("evaluate", "eval_loss")):
        left, right = ([record[key] for record in trainer.history.filter(event)] for trainer in (one, other))
        assert len(left) == len(right) > 0
        assert np.allclose(left, right, atol=1e-5)


@pytest.mark.parametrize("arch", CACHED)
@pytest.mark.parametrize("top", [0, 1])
def test_a_served_batch_gives_the_same_logits(arch: str, top: int) -> None:
    """Any batch of cached rows, in any order, gives the logits of the whole model; afterwards the model is itself."""
    model = tiny_model(arch)
    layers = find_layers(model)
    freeze_(model, top=top)
    blocks = frozen_blocks(model, layers)
    if blocks == 0:  # ALBERT's one shared block trains
        assert layers.shared
        return
    rows = tokenized(model, arch)
    cache = PrefixCache(model, layers, blocks, rows)
    for indices in ([4, 0, 17], [29, 3], [8]):
        inputs = rows.collate(indices).inputs
        with torch.no_grad():
            plain = model(**inputs).logits
            with cache.serving(indices):
                served = model(**inputs).logits
            again = model(**inputs).logits
        assert torch.allclose(plain, served, atol=1e-5)
        assert torch.equal(plain, again)
    assert not any("forward" in vars(module) for module in model.modules())


def test_the_comparison_can_fail() -> None:
    """Negative control: states of other rows of the same length give other logits."""
    model = tiny_model("bert")
    freeze_(model, top=0)
    rows = tokenized(model, "bert")
    cache = PrefixCache(model, find_layers(model), 3, rows)
    alike = [np.flatnonzero(rows.lengths == length).tolist() for length in set(rows.lengths.tolist())]
    first, second = next(indices[:2] for indices in alike if len(indices) > 1)
    inputs = rows.collate([first]).inputs
    with torch.no_grad():
        plain = model(**inputs).logits
        with cache.serving([second]):
            served = model(**inputs).logits
    assert not torch.allclose(plain, served, atol=1e-5)


@pytest.mark.parametrize("arch", CACHED)
def test_training_with_the_cache_is_the_same_training(arch: str) -> None:
    """With dropout on, every loss and the final model's logits agree with and without the cache.

    Weights are compared through logits: AdamW turns rounding into steps where a gradient is zero but for rounding, as
    that of an attention key's bias is, which no output depends on.
    """
    strategies = [PartialFreeze(top=0 if arch == "albert" else 1)]
    with_cache, without = run(arch, strategies, cache=True), run(arch, strategies, cache=False)
    assert "training rows cached" in notes(with_cache)[0]
    assert not notes(without)
    assert_same_losses(with_cache, without)
    assert np.allclose(with_cache.predict_proba(ROWS), without.predict_proba(ROWS), atol=1e-5)


def test_each_stage_has_its_own_cache() -> None:
    """Staged unfreezing caches what is frozen in each stage, and nothing where nothing is."""
    strategies = [LayerwiseUnfreeze((Unfreeze(top=0), Unfreeze(top=1), Unfreeze(top="all")))]
    with_cache, without = run("bert", strategies, cache=True), run("bert", strategies, cache=False)
    assert [note.split(":")[0] for note in notes(with_cache)] == ["3 frozen blocks", "2 frozen blocks"]
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


def test_a_large_cache_is_a_file_that_leaves_nothing_behind(tmp_path: Path) -> None:
    """Beyond the limit the states are mapped from a file, which has no name even while it is used."""
    model = tiny_model("bert")
    freeze_(model, top=1)
    rows = tokenized(model, "bert")
    in_memory = PrefixCache(model, find_layers(model), 2, rows)
    on_disk = PrefixCache(model, find_layers(model), 2, rows, memory_limit=0, folder=tmp_path)
    assert in_memory.in_memory
    assert not on_disk.in_memory
    assert on_disk.bytes == in_memory.bytes == int(rows.lengths.sum()) * 32 * 4
    assert not list(tmp_path.iterdir())
    inputs = rows.collate([2, 7]).inputs
    logits = []
    for cache in (in_memory, on_disk):
        with torch.no_grad(), cache.serving([2, 7]):
            logits.append(model(**inputs).logits)
    assert torch.equal(logits[0], logits[1])


def test_a_full_disk_means_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the disk has no room, training goes on without the cache, and the history says why."""

    def full(_descriptor: int, _offset: int, _length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    trainer = run("bert", [PartialFreeze(top=1)], cache=True, prefix_cache_memory=0, output_dir=tmp_path)
    assert notes(trainer) == ["frozen layers not cached: [Errno 28] No space left on device"]
    assert not [path for path in tmp_path.iterdir() if "prefix" in path.name]
    assert trainer.finished


def test_padding_on_the_left_is_refused() -> None:
    """On the left, positions depend on the batch, so states cannot be reused; the message says what to do."""
    model = tiny_model("llama")
    freeze_(model, top=0)
    with pytest.raises(ModelError, match="padding_side = 'right'"):
        PrefixCache(model, find_layers(model), 3, tokenized(model, "llama", side="left"))


def test_a_closed_cache_says_so() -> None:
    """A cache that was closed cannot serve."""
    model = tiny_model("bert")
    freeze_(model, top=0)
    cache = PrefixCache(model, find_layers(model), 3, tokenized(model, "bert"))
    cache.close()
    with pytest.raises(RuntimeError, match="closed"), cache.serving([0]):
        pass


def test_t5_trains_without_a_cache() -> None:
    """T5's blocks hand each other a position bias: the cache refuses, and the Trainer goes on without."""
    trainer = run("t5", [PartialFreeze(top=1)], cache=True)
    assert "more than hidden states" in notes(trainer)[0]
    assert trainer.finished
    model = tiny_model("t5")
    freeze_(model, top=1)
    with pytest.raises(ModelError, match="T5ForSequenceClassification"):
        PrefixCache(model, find_layers(model), 2, tokenized(model, "t5"))


@dataclass(frozen=True)
class _ChangesTokens(Strategy):
    def on_batch(self, batch: Batch, state: State) -> Batch:
        ids = batch.inputs["input_ids"].clone()
        ids[:, 1] = 7
        return Batch({**batch.inputs, "input_ids": ids}, batch.labels, batch.rows)


@dataclass(frozen=True)
class _LooksInside(Strategy):
    contract: ClassVar[Contract] = Contract(invalidates=frozenset({"prefix"}))


def test_rows_that_a_strategy_changes_are_not_served() -> None:
    """Where a strategy changes the training rows only the validation rows are cached, and the result is right."""
    strategies = [_ChangesTokens(), PartialFreeze(top=1)]
    with_cache, without = run("bert", strategies, cache=True), run("bert", strategies, cache=False)
    assert "training rows not cached, since _ChangesTokens changes them" in notes(with_cache)[0]
    assert_same_losses(with_cache, without)


def test_a_strategy_can_forbid_the_cache() -> None:
    """A contract that invalidates the prefix turns the cache off."""
    assert "_LooksInside needs them" in notes(run("bert", [_LooksInside(), PartialFreeze(top=1)], cache=True))[0]


@pytest.mark.parametrize("strategies", [[], [PartialFreeze(embeddings=False)], [PartialFreeze(biases_only=True)]])
def test_nothing_is_cached_where_no_block_is_frozen(strategies: list[Strategy]) -> None:
    """Without a frozen lowest block there is nothing to cache and nothing to say."""
    assert not notes(run("bert", strategies, cache=True))


def test_a_single_epoch_is_not_cached() -> None:
    """Rows that pass once gain nothing from a cache."""
    assert not notes(run("bert", [PartialFreeze(top=1)], cache=True, epochs=1))
