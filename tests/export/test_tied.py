"""Tied weights: one weight under two names stays one, through freezing, saving, resuming, exporting and loading."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lowft.checkpoint import read_tensors
from lowft.config import TrainingConfig
from lowft.errors import CheckpointMismatchError, ModelError
from lowft.export import load
from lowft.strategies import PartialFreeze
from lowft.strategy import Strategy
from lowft.trainer import Trainer
from tests.strategy_cases import tiny_rows
from tests.test_strategies_table import assert_same, contents, final_weights
from tests.tiny import VOCABULARY, tiny_model, tiny_tokenizer

TEXTS = ["a dull and lazy film", "a warm , funny story about love", "plot"]
WORDS = (VOCABULARY.index("bad"), VOCABULARY.index("good"))


class Block(nn.Module):
    """A residual layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return `[batch, 8]`."""
        return hidden + torch.tanh(self.inner(hidden))


class Prompted(nn.Module):
    """A classifier in the way of a language model: its logits are those of two words, by the tied output layer."""

    def __init__(self, seed: int = 0, *, tied: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embeddings = nn.Embedding(len(VOCABULARY), 8)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.lm_head = nn.Linear(8, len(VOCABULARY), bias=False)
        if tied:
            self.lm_head.weight = self.embeddings.weight

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        """Return the logits of the two words, `[batch, 2]`."""
        mask = attention_mask.unsqueeze(-1).float()
        hidden = (self.embeddings(input_ids) * mask).sum(1) / mask.sum(1)
        for block in self.blocks:
            hidden = block(hidden)
        return SimpleNamespace(logits=self.lm_head(hidden)[:, WORDS])


def make(model: nn.Module, folder: Path | None, *strategies: Strategy, arch: str = "bert") -> Trainer:
    """Return a Trainer that saves at each of four steps."""
    config = TrainingConfig(
        max_steps=4, batch_size=4, learning_rate=5e-3, save_steps=1, save_total_limit=9, device="cpu", output_dir=folder
    )
    return Trainer(model, tiny_rows(), strategies=strategies, tokenizer=tiny_tokenizer(arch), config=config)


ONE_SIDE: tuple[dict[str, Any], ...] = (
    {"freeze": ("lm_head",)},
    {"freeze": ("embeddings",)},
    {"embeddings": False},
    {"top": 1},
    {"head": False},
)


@pytest.mark.parametrize("settings", ONE_SIDE)
def test_one_side_of_a_tied_weight_cannot_be_frozen(settings: dict[str, Any]) -> None:
    """To train a weight in one place and freeze it in the other is refused with both names and the ways out."""
    message = (
        r"are one tied weight, but the selection freezes the first and trains the second\. Train both .* or freeze"
    )
    with pytest.raises(ModelError, match=message) as caught:
        make(Prompted(), None, PartialFreeze(**settings))
    assert "embeddings.weight" in str(caught.value)
    assert "lm_head.weight" in str(caught.value)


@pytest.mark.parametrize(
    ("strategy", "moves"),
    [
        (PartialFreeze(top=1, train=("embeddings",)), True),
        (PartialFreeze(freeze=("embeddings", "lm_head")), False),
    ],
)
def test_both_sides_may_train_or_rest_together(strategy: Strategy, moves: bool, tmp_path: Path) -> None:
    """Train both or freeze both: the weight stays tied and is saved once, resumes and reloads to the same bits."""
    trainer = make(Prompted(), tmp_path / "whole", strategy)
    trainer.fit()
    model: Any = trainer.model
    assert model.lm_head.weight is model.embeddings.weight
    assert torch.equal(model.embeddings.weight, Prompted().embeddings.weight) is not moves
    assert "lm_head.weight" not in read_tensors(tmp_path / "whole" / "checkpoint-2" / "model.safetensors")

    resumed = make(Prompted(), tmp_path / "resumed", strategy)
    resumed.fit(resume_from_checkpoint=tmp_path / "whole" / "checkpoint-2")
    assert_same(final_weights(trainer), final_weights(resumed))
    assert_same(contents(tmp_path / "whole" / "checkpoint-4"), contents(tmp_path / "resumed" / "checkpoint-4"))

    fresh = Prompted(seed=9)
    predictor = load(trainer.export(tmp_path / "model", verify="here"), model=fresh)
    assert fresh.lm_head.weight is fresh.embeddings.weight
    assert np.array_equal(predictor.predict_logits(TEXTS), trainer._predictor().predict_logits(TEXTS))


def test_a_tied_export_needs_a_tied_model(tmp_path: Path) -> None:
    """Loaded into a module that is not tied, half of it would stay random: an error, as is the other way round."""
    tied = make(Prompted(), None)
    tied.fit()
    with pytest.raises(
        CheckpointMismatchError, match=r"lacks 'lm_head\.weight' of this model: .*which weights are tied"
    ):
        load(tied.export(tmp_path / "tied", verify="here"), model=Prompted(tied=False))
    loose = make(Prompted(tied=False), None)
    loose.fit()
    with pytest.raises(CheckpointMismatchError, match=r"holds 'lm_head\.weight', which this model does not have"):
        load(loose.export(tmp_path / "loose", verify="here"), model=Prompted())


def test_a_tied_checkpoint_needs_a_tied_model(tmp_path: Path) -> None:
    """The same for a run that is resumed."""
    make(Prompted(), tmp_path).fit()
    with pytest.raises(CheckpointMismatchError, match=r"lacks 'lm_head\.weight' of this model"):
        make(Prompted(tied=False), tmp_path).fit(resume_from_checkpoint=True)


def shared(model: Any) -> list[torch.Tensor]:
    """Return the places of a T5 model's one embedding."""
    body = model.transformer
    return [body.shared.weight, body.encoder.embed_tokens.weight, body.decoder.embed_tokens.weight]


@pytest.mark.parametrize("train_embeddings", [True, False])
def test_t5_shares_its_embedding_throughout(train_embeddings: bool, tmp_path: Path) -> None:
    """Encoder and decoder of T5 look up one weight; it is still one after training, resuming and loading."""
    strategy = PartialFreeze(embeddings=train_embeddings)
    trainer = make(tiny_model("t5"), tmp_path / "whole", strategy, arch="t5")
    trainer.fit()
    resumed = make(tiny_model("t5"), tmp_path / "resumed", strategy, arch="t5")
    resumed.fit(resume_from_checkpoint=tmp_path / "whole" / "checkpoint-2")
    assert_same(final_weights(trainer), final_weights(resumed))
    predictor = load(trainer.export(tmp_path / "model", verify="here"))
    assert np.array_equal(predictor.predict_logits(TEXTS), trainer._predictor().predict_logits(TEXTS))
    for model in (trainer.model, resumed.model, predictor.model):
        first, *others = shared(model)
        assert all(other is first for other in others)
        assert torch.equal(first, shared(tiny_model("t5"))[0]) is not train_embeddings


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_one_side_of_t5s_embedding_is_both_sides(side: str) -> None:
    """A pattern that names one place of the shared weight freezes the weight, never half of it."""
    trainer = make(tiny_model("t5"), None, PartialFreeze(freeze=(f"transformer.{side}.embed_tokens",)), arch="t5")
    trainer.fit()
    assert all(torch.equal(weight, shared(tiny_model("t5"))[0]) for weight in shared(trainer.model))


def test_a_decoder_reloads_with_its_ties(tmp_path: Path) -> None:
    """GPT-2 says that it ties its words; its classifier has no such layer, and exports and reloads to the same bits."""
    model = tiny_model("gpt2", tie_word_embeddings=True)
    trainer = make(model, None, PartialFreeze(embeddings=False), arch="gpt2")
    trainer.fit()
    predictor = load(trainer.export(tmp_path / "model", verify="here"))
    assert np.array_equal(predictor.predict_logits(TEXTS), trainer._predictor().predict_logits(TEXTS))
    own, start = final_weights(trainer), tiny_model("gpt2").state_dict()
    assert torch.equal(own["transformer.wte.weight"], start["transformer.wte.weight"])
