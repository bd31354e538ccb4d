"""The prefix cache: invisible in results, on every architecture, and off wherever it would not be."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lowft.config import TrainingConfig
from lowft.data import read_rows
from lowft.data.batching import TokenizedRows, accepted_inputs
from lowft.errors import ModelError
from lowft.models import find_layers, freeze_
from lowft.models.prefix_cache import PrefixCache, prefix_digest
from lowft.models.prefix_filling import Filling, cache_prefix
from lowft.strategies import PartialFreeze
from lowft.strategy import Strategy
from lowft.trainer import Trainer
from tests.runs import note_records
from tests.strategy_cases import tiny_rows
from tests.tiny import ARCHITECTURES, tiny_model, tiny_tokenizer

ROWS = tiny_rows(30)


def tokenized(
    model: torch.nn.Module, arch: str, side: str = "right", texts: Sequence[str] = ROWS["text"]
) -> TokenizedRows:
    """Return rows, those of this module if none are given, with the tokens that a model takes."""
    tokenizer = tiny_tokenizer(arch)
    tokenizer.padding_side = side
    return TokenizedRows(read_rows(list(texts)), tokenizer, None, 64, accepted_inputs(model, tokenizer))


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
    return [record["message"] for record in note_records(trainer)]


def assert_same_losses(one: Trainer, other: Trainer) -> None:
    """Compare two runs' training and validation losses, to 1e-5."""
    for event, key in (("train", "loss"), ("evaluate", "eval_loss")):
        left, right = ([record[key] for record in trainer.history.filter(event)] for trainer in (one, other))
        assert len(left) == len(right) > 0
        assert np.allclose(left, right, atol=1e-5)


def logits(model: Any, inputs: dict[str, Tensor], cache: PrefixCache | None = None) -> Tensor:
    """Return a model's logits, with what is cached or without."""
    with torch.no_grad(), contextlib.nullcontext() if cache is None else cache.serving(inputs):
        return model(**inputs).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_served_batch_gives_the_same_logits(arch: str) -> None:
    """At every depth, filled in one pass, batches in any order give the whole model's logits, and leave it itself."""
    model = tiny_model(arch)
    layers = find_layers(model)
    depths = range(layers.num_blocks, -1, -1)
    assert len(depths) == {"albert": 2, "t5": 7}.get(arch, 4)
    rows = tokenized(model, arch)
    caches = cache_prefix(model, layers, depths, [rows])
    assert list(caches) == list(depths)
    for depth, cache in caches.items():
        for indices in ([4, 0, 17], [29, 3], [8]):
            inputs = rows.collate(indices).inputs
            plain = logits(model, inputs)
            assert torch.allclose(plain, logits(model, inputs, cache), atol=1e-5), depth
            assert torch.equal(plain, logits(model, inputs))
            with cache.serving(inputs) as served:
                assert served == len(indices)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_head_alone_needs_one_token_of_a_row(arch: str) -> None:
    """Above the last block these heads read one token, so no more is kept, and no lower layer runs."""
    model = tiny_model(arch)
    layers = find_layers(model)
    rows = tokenized(model, arch)
    cache = cache_prefix(model, layers, [layers.num_blocks], [rows])[layers.num_blocks]
    assert cache.bytes == len(rows) * 32 * 4
    ran: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{block}.") for block in layers.blocks):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    logits(model, rows.collate([1, 2]).inputs, cache)
    assert not ran
    logits(model, rows.collate([1, 2]).inputs)
    assert ran


def test_all_tokens_are_kept_for_a_head_that_reads_them() -> None:
    """A head that takes the mean of all tokens gets all of them."""
    model = tiny_model("distilbert")
    rows = tokenized(model, "distilbert")

    class Mean(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body: Any = model.distilbert
            self.head = torch.nn.Linear(32, 2)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            states = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1).float()
            return self.head((states * mask).sum(dim=1) / mask.sum(dim=1))  # type: ignore[no-any-return]

    pooled = Mean().eval()
    cache = cache_prefix(pooled, find_layers(pooled), [3], [rows])[3]
    assert cache.bytes == int(rows.lengths.sum()) * 32 * 4
    inputs = rows.collate([4, 0, 17]).inputs
    with torch.no_grad(), cache.serving(inputs):
        served = pooled(**inputs)
    assert torch.allclose(served, pooled(**inputs), atol=1e-5)


def test_rows_that_are_not_known_are_computed() -> None:
    """Known rows and others in one batch, changed ones among them, give the whole model's logits."""
    model = tiny_model("t5")
    layers = find_layers(model)
    rows = tokenized(model, "t5")
    for depth, cache in cache_prefix(model, layers, [6, 4, 2], [rows]).items():
        inputs = rows.collate([4, 0, 17, 5]).inputs
        ids = inputs["input_ids"].clone()
        ids[1:3, 1] = 9
        inputs["input_ids"] = ids
        assert torch.allclose(logits(model, inputs), logits(model, inputs, cache), atol=1e-5), depth
        with cache.serving(inputs) as served:
            assert served == 2


def test_rows_with_the_same_tokens_share_an_entry() -> None:
    """Each distinct input is computed and kept once, whichever rows it stands in."""
    model = tiny_model("bert")
    rows = tokenized(model, "bert")
    twice = tokenized(model, "bert", texts=[*ROWS["text"], *ROWS["text"][:7]])
    layers = find_layers(model)
    one, other = (cache_prefix(model, layers, [2], tables)[2] for tables in ([rows], [twice, rows]))
    assert len(one) == len(other) == len(set(ROWS["text"]))
    assert one.bytes == other.bytes


def test_a_digest_tells_weights_apart() -> None:
    """It changes with any weight of the prefix, and with none above."""
    model = tiny_model("bert")
    layers = find_layers(model)
    before = prefix_digest(model, layers, 2)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            kept = parameter.clone()
            parameter.view(-1)[-1] += 1e-3
            assert (prefix_digest(model, layers, 2) == before) == (layers.depths[name] > 2), name
            parameter.copy_(kept)
    assert prefix_digest(model, layers, 2) == before
    model.get_submodule("classifier").register_buffer("seen", torch.ones(1))  # a strategy's, made on the way
    assert prefix_digest(model, layers, 2) == before


def test_a_deeper_cache_starts_from_a_shallower_one() -> None:
    """What is known at a lower depth is not run again, and the bits are the same."""
    model = tiny_model("bert")
    layers = find_layers(model)
    rows = tokenized(model, "bert")
    base = cache_prefix(model, layers, [1], [rows])[1]
    plain = cache_prefix(model, layers, [2], [rows])[2]
    ran: list[int] = []
    model.get_submodule(f"{layers.blocks[0]}.attention").register_forward_hook(lambda *_: ran.append(0))
    cache = cache_prefix(model, layers, [2], [rows], base=base)[2]
    examined = 2  # on a few rows, with and without what is caught
    assert len(ran) == examined + 1
    inputs = rows.collate([4, 0, 17]).inputs
    assert torch.equal(logits(model, inputs, cache), logits(model, inputs, plain))


def test_the_comparison_can_fail() -> None:
    """Negative control: states of other rows of the same length give other logits."""
    model = tiny_model("bert")
    freeze_(model, top=0)
    rows = tokenized(model, "bert")
    cache = cache_prefix(model, find_layers(model), [3], [rows])[3]
    alike = [np.flatnonzero(rows.lengths == length).tolist() for length in set(rows.lengths.tolist())]
    first, second = next(indices[:2] for indices in alike if len(indices) > 1)
    inputs = rows.collate([first]).inputs
    with torch.no_grad(), cache.serving(rows.collate([second]).inputs):
        served = model(**inputs).logits
    assert not torch.allclose(logits(model, inputs), served, atol=1e-5)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("top", [0, 1])
def test_training_with_the_cache_is_the_same_training(arch: str, top: int) -> None:
    """With dropout on, every loss and the final model's logits agree with and without the cache.

    Weights are compared through logits: AdamW turns rounding into steps where a gradient is zero but for rounding, as
    that of an attention key's bias is, which no output depends on.
    """
    strategies = [PartialFreeze(embeddings=False) if (arch, top) == ("albert", 1) else PartialFreeze(top=top)]
    with_cache, without = (run(arch, strategies, cache=cache, epochs=2) for cache in (True, False))
    assert "distinct rows cached" in notes(with_cache)[0]
    assert notes(with_cache)[1].startswith("100.0% of the rows came from the cache")
    assert not notes(without)
    assert_same_losses(with_cache, without)
    assert np.allclose(with_cache.predict_proba(ROWS), without.predict_proba(ROWS), atol=1e-5)


def test_a_large_cache_is_a_file_that_leaves_nothing_behind(tmp_path: Path) -> None:
    """Beyond the limit the states are mapped from a file, which has no name even while it is used."""
    model = tiny_model("bert")
    layers = find_layers(model)
    rows = tokenized(model, "bert")
    in_memory = cache_prefix(model, layers, [2], [rows])[2]
    on_disk = cache_prefix(model, layers, [2], [rows], Filling(memory_limit=0, folder=tmp_path))[2]
    assert in_memory.in_memory
    assert not on_disk.in_memory
    assert on_disk.bytes == in_memory.bytes == int(rows.lengths.sum()) * 32 * 4
    assert not list(tmp_path.iterdir())
    inputs = rows.collate([2, 7]).inputs
    assert torch.equal(logits(model, inputs, in_memory), logits(model, inputs, on_disk))


def test_space_is_written_where_it_cannot_be_reserved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without posix_fallocate, as on macOS, the file is filled before it is mapped."""
    monkeypatch.delattr(os, "posix_fallocate")
    model = tiny_model("bert")
    rows = tokenized(model, "bert")
    cache = cache_prefix(model, find_layers(model), [2], [rows], Filling(memory_limit=0, folder=tmp_path))[2]
    inputs = rows.collate([2, 7]).inputs
    assert torch.allclose(logits(model, inputs), logits(model, inputs, cache), atol=1e-5)


def test_a_full_disk_means_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the disk has no room, training goes on without the cache, and the history says why."""

    def full(_descriptor: int, _offset: int, _length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    trainer = run("bert", [PartialFreeze(top=1)], cache=True, prefix_cache_memory=0, output_dir=tmp_path)
    assert notes(trainer) == ["frozen layers not cached: [Errno 28] No space left on device"]
    assert not [path for path in tmp_path.iterdir() if "prefix" in path.name]
    assert trainer.finished


def test_a_disk_that_fills_holds_what_it_can(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where there is room for a part of the rows, these are served, the others computed, and the history says so."""
    room = os.posix_fallocate

    def nearly_full(descriptor: int, offset: int, length: int) -> None:
        if length > 30_000:
            raise OSError(28, "No space left on device")
        room(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", nearly_full)
    settings: dict[str, Any] = {"prefix_cache_memory": 0, "output_dir": tmp_path, "epochs": 2}
    trainer = run("bert", [PartialFreeze(top=1)], cache=True, **settings)
    filled, brought = note_records(trainer)
    assert "the disk has no room for the other" in filled["message"]
    assert 10_000 < filled["cached_bytes"] <= 30_000
    assert 0.3 < brought["hit_rate"] < 0.9
    assert not [path for path in tmp_path.iterdir() if "prefix" in path.name]
    assert_same_losses(trainer, run("bert", [PartialFreeze(top=1)], cache=False, epochs=2))


def test_no_more_than_half_of_the_disk_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The rest is for checkpoints."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=20_000))
    model = tiny_model("bert")
    rows = tokenized(model, "bert")
    cache = cache_prefix(model, find_layers(model), [2], [rows], Filling(memory_limit=0, folder=tmp_path))[2]
    assert 9_000 < cache.bytes <= 10_000
    assert 0 < len(cache) < len(rows)


def test_embeddings_are_cached_in_memory_or_not_at_all() -> None:
    """They are looked up faster than a disk is read."""
    note = notes(run("bert", [PartialFreeze(embeddings=False)], cache=True, epochs=2))[0]
    assert note == "frozen embeddings: 44.3 kB of 42 distinct rows cached"
    strategies = [PartialFreeze(embeddings=False)]
    (note,) = notes(run("bert", strategies, cache=True, epochs=2, prefix_cache_memory=1000))
    assert note.startswith("frozen layers not cached: the embeddings take more than prefix_cache_memory")


def test_padding_on_the_left_is_refused() -> None:
    """On the left, positions depend on the batch, so states cannot be reused; the message says what to do."""
    model = tiny_model("llama")
    with pytest.raises(ModelError, match="padding_side = 'right'"):
        cache_prefix(model, find_layers(model), [3], [tokenized(model, "llama", side="left")])


def test_a_closed_cache_says_so() -> None:
    """A cache that was closed cannot serve."""
    model = tiny_model("bert")
    rows = tokenized(model, "bert")
    cache = cache_prefix(model, find_layers(model), [3], [rows])[3]
    cache.close()
    with pytest.raises(RuntimeError, match="closed"), cache.serving(rows.collate([0]).inputs):
        pass
