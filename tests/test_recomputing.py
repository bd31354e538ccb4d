"""Activations that are computed again: the same losses and weights, on every architecture and beside every hook."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lowft.errors import ConfigError
from lowft.strategies import Distill, PartialFreeze, Prune, Quantize
from lowft.trainer import Trainer
from tests.runs import tiny_trainer, train_records
from tests.strategy_cases import tiny_teacher
from tests.test_strategies_table import assert_same, final_weights, make_trainer
from tests.tiny import ARCHITECTURES

DECODERS = ("gpt2", "llama", "t5")
UNABLE = ("albert", "mpnet")


def run(*, recompute: bool, arch: str = "bert", strategies: tuple[Any, ...] = (), **settings: Any) -> Trainer:
    """Return a run that has ended; dropout is on."""
    settings |= {"save_steps": None, "skip_unread_tokens": False}  # blocks that run again are run whole
    trainer = make_trainer(None, strategies, arch, gradient_checkpointing=recompute, **settings)
    trainer.fit()
    return trainer


def compare(**values: Any) -> None:
    """Compare a run that computes activations again with one that keeps them."""
    kept, recomputed = (run(recompute=recompute, **values) for recompute in (False, True))
    assert train_records(kept, "loss") == train_records(recomputed, "loss")
    assert_same(final_weights(kept), final_weights(recomputed))


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch not in {*UNABLE, *DECODERS}])
@pytest.mark.parametrize("top", [None, 1])
def test_encoders_train_the_same(arch: str, top: int | None) -> None:
    """Bit for bit, dropout included, with frozen and cached layers and without."""
    compare(arch=arch, strategies=() if top is None else (PartialFreeze(top=top),))


@pytest.mark.parametrize("arch", DECODERS)
@pytest.mark.parametrize("top", [None, 1])
def test_decoders_train_alike(arch: str, top: int | None) -> None:
    """They take another path through attention without a cache of keys: losses agree to float32's precision."""
    strategies = () if top is None else (PartialFreeze(top=top),)
    kept, recomputed = (
        run(recompute=recompute, arch=arch, strategies=strategies, learning_rate=1e-5) for recompute in (False, True)
    )
    assert train_records(kept, "loss") == pytest.approx(train_records(recomputed, "loss"), abs=1e-5)


@pytest.mark.parametrize(
    "strategy",
    [Distill(tiny_teacher(), hidden=0.5, relations=1.0), Prune(0.5, multiple_of=4), Quantize("int8", when="start")],
)
def test_strategies_with_hooks_train_the_same(strategy: Any) -> None:
    """What a strategy sees of a forward pass is seen once."""
    compare(strategies=(strategy,))


def test_blocks_run_again() -> None:
    """While it trains, each block runs twice a step; at the end the model is as it was."""
    trainer = tiny_trainer(gradient_checkpointing=True, max_steps=1, eval_dataset=None)
    calls: list[bool] = []
    block: torch.nn.Module = trainer.model.get_submodule("bert.encoder.layer.0.attention")
    block.register_forward_pre_hook(lambda module, _: calls.append(module.training))
    trainer.fit()
    assert [training for training in calls if training] == [True, True]
    assert not trainer.model.is_activation_checkpointing


@pytest.mark.parametrize("arch", UNABLE)
def test_a_model_that_cannot_is_refused(arch: str) -> None:
    """The message names the setting and the model, and what to do instead."""
    with pytest.raises(ConfigError, match=r"gradient_checkpointing=True needs .*For.* does not: .*batch_size"):
        make_trainer(None, (), arch, gradient_checkpointing=True)
