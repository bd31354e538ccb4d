"""Blocks drawn anew before a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lowft.attach import attach
from lowft.errors import ConfigError, ModelError, StrategyConflictError
from lowft.registry import from_dict, to_dict
from lowft.strategies import LayerwiseUnfreeze, PartialFreeze, PooledHead, Prune, Quantize, Reinitialize, Unfreeze
from lowft.strategy import Strategy
from tests.runs import tiny_trainer, weights
from tests.tiny import tiny_model, tiny_tokenizer

TOP = "bert.encoder.layer.2.output.dense.weight"
BELOW = "bert.encoder.layer.1.output.dense.weight"


def test_the_top_is_drawn_by_the_seed_of_the_run() -> None:
    """Before the first step the top block and the pooler are new, those below are not; the seed decides."""
    before = weights(tiny_model("bert"))
    one, same, other = (weights(tiny_trainer(strategies=[Reinitialize()], seed=seed)) for seed in (3, 3, 4))
    for name in (TOP, "bert.pooler.dense.weight"):
        assert not torch.equal(one[name], before[name])
        assert torch.equal(one[name], same[name])
        assert not torch.equal(one[name], other[name])
    assert torch.equal(one[BELOW], before[BELOW])
    assert torch.equal(one["classifier.weight"], before["classifier.weight"])


def test_a_resumed_run_keeps_what_was_trained(tmp_path: Path) -> None:
    """The blocks are drawn once: a resumed run goes on with what the first one had made of them."""

    def trainer(folder: str) -> Any:
        return tiny_trainer(strategies=[Reinitialize(2)], max_steps=4, save_steps=1, output_dir=tmp_path / folder)

    whole, broken = trainer("whole"), trainer("broken")
    whole.fit()
    for result in broken.steps():
        if result.step == 2:
            break
    resumed = trainer("broken")
    resumed.fit(resume_from_checkpoint=True)
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())


def test_blocks_that_never_train_are_refused() -> None:
    """A block drawn anew and frozen in every stage is an error at the start, whichever strategy stands first."""
    freeze: Strategy = PartialFreeze(top=1)
    for strategies in ([freeze, Reinitialize(2)], [Reinitialize(2), freeze]):
        trainer = tiny_trainer(strategies=strategies)
        with pytest.raises(StrategyConflictError, match=r"Reinitialize\(top=2\) has drawn 'bert.encoder.layer.1' anew"):
            trainer.fit()
    stages = LayerwiseUnfreeze((Unfreeze(top=0, max_steps=1), Unfreeze(top=2, max_steps=1)))
    tiny_trainer(strategies=[stages, Reinitialize(2)]).fit()  # the second stage trains them
    attach(tiny_model("bert"), [freeze, Reinitialize()]).start_stage(0)


def test_orders_that_cannot_work_are_refused() -> None:
    """What is cut, rounded or taken away after it was drawn must come after; the message has the order that works."""
    for first in (Prune(0.5), Quantize()):
        with pytest.raises(StrategyConflictError, match=rf"order that works: \[Reinitialize, {first.name}\]"):
            attach(tiny_model("bert"), [first, Reinitialize()])
    with pytest.raises(StrategyConflictError, match=r"order that works: \[PooledHead, Reinitialize\]"):
        attach(tiny_model("t5"), [Reinitialize(), PooledHead()])


def test_with_a_pooled_head_the_encoder_is_drawn() -> None:
    """Of an encoder-decoder whose decoder went with its head, the encoder's top is drawn anew."""
    strategies: list[Strategy] = [PooledHead(), Reinitialize()]
    plain, drawn = (
        weights(tiny_trainer(model=tiny_model("t5"), tokenizer=tiny_tokenizer("t5"), strategies=parts))
        for parts in (strategies[:1], strategies)
    )
    changed = {name for name, value in drawn.items() if not torch.equal(value, plain[name])}
    assert changed
    assert all(name.startswith("transformer.encoder.block.2.") for name in changed)


def test_what_a_model_cannot_have_is_said() -> None:
    """More blocks than there are and shared blocks are refused when the Trainer is built; a bad number before."""
    with pytest.raises(ConfigError, match=r"from 1 to 3.*received 4"):
        tiny_trainer(strategies=[Reinitialize(4)])
    with pytest.raises(ModelError, match="share their weights"):
        tiny_trainer(model=tiny_model("albert"), strategies=[Reinitialize()])
    with pytest.raises(ConfigError, match=r"Reinitialize.top.*received 0"):
        Reinitialize(0)
    assert from_dict(to_dict(Reinitialize(2))) == Reinitialize(2)
