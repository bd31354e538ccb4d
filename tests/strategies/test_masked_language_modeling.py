"""Hidden words are predicted: which are hidden, by which head, in which stage; and the run resumes."""

from __future__ import annotations

import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from lowft.attach import attach
from lowft.config import TrainingConfig
from lowft.errors import ConfigError, ModelError, StrategyConflictError
from lowft.masking import continuations, mask_tokens, masked_token_loss
from lowft.models.masked_head import make_masked_head
from lowft.strategies import (
    Contrastive,
    LayerwiseUnfreeze,
    MaskedLanguageModeling,
    PartialFreeze,
    PooledHead,
    Probe,
    Unfreeze,
)
from lowft.trainer import Trainer
from tests.runs import resumed_at, tiny_trainer
from tests.strategy_cases import tiny_rows
from tests.test_strategies_table import assert_same, final_weights, make_trainer
from tests.tiny import MASK, tiny_model, tiny_tokenizer


@given(st.integers(0, 500), st.floats(0.05, 1), st.integers(1, 4))
def test_only_what_may_be_hidden_is(seed: int, share: float, span: int) -> None:
    """Labels are the tokens of hidden places; everything else stays, and about the share of the words is hidden."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 50, (3, 12), generator=draw)
    free = torch.rand(3, 12, generator=draw) < 0.7
    hidden, labels = mask_tokens(
        ids, free, mask_id=4, vocabulary=50, share=share, longest_span=span, rng=random.Random(seed)
    )
    chosen = labels != -100
    assert not (chosen & ~free).any()
    assert torch.equal(hidden[~chosen], ids[~chosen])
    assert torch.equal(labels[chosen], ids[chosen])
    for row in range(3):
        count = int(free[row].sum())
        assert int(chosen[row].sum()) == min(max(1, round(share * count)), count)


def test_eighty_ten_ten() -> None:
    """Of the hidden tokens about 80 % become the mask, 10 % another token, 10 % stay."""
    ids = torch.full((1, 20_000), 7)
    hidden, labels = mask_tokens(
        ids, torch.ones_like(ids, dtype=torch.bool), mask_id=4, vocabulary=1000, share=0.5, rng=random.Random(0)
    )
    now = hidden[labels != -100]
    assert 0.78 < (now == 4).float().mean().item() < 0.82
    assert 0.08 < (now == 7).float().mean().item() < 0.12


def test_words_are_hidden_whole() -> None:
    """The pieces of a word are all hidden or none; a padded or special place ends a word."""
    tokenizer = tiny_tokenizer()
    pieces = continuations(tokenizer)
    assert pieces[tokenizer.convert_tokens_to_ids("##a")]
    assert not pieces[tokenizer.convert_tokens_to_ids("film")]
    encoded = tokenizer(["film zqxv film zqxv film zqxv"], return_tensors="pt")["input_ids"]
    free = encoded > MASK
    for seed in range(20):
        _, labels = mask_tokens(
            encoded, free, mask_id=MASK, vocabulary=100, continues=pieces, share=0.4, rng=random.Random(seed)
        )
        chosen = (labels != -100)[0].tolist()
        within = pieces[encoded[0]].tolist()
        assert all(chosen[place] == chosen[place - 1] for place in range(1, len(chosen)) if within[place])
        assert any(chosen)


def test_rows_count_alike() -> None:
    """The loss is the mean over rows of each row's mean; without anything hidden it is 0."""
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 2, 3], [-100, 5, -100], [-100, -100, -100]])
    each = torch.nn.functional.cross_entropy(logits, torch.tensor([1, 2, 3, 5]), reduction="none")
    assert masked_token_loss(logits, labels).item() == pytest.approx((each[:3].mean() + each[3]).item() / 3)
    assert masked_token_loss(logits[:0], labels[2:]) == 0


SMALL: dict[str, Any] = {
    "vocab_size": 600,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


@pytest.mark.parametrize(
    ("config", "kind"),
    [(BertConfig(**SMALL), BertForMaskedLM), (RobertaConfig(**SMALL, pad_token_id=0), RobertaForMaskedLM)],
)
def test_the_checkpoints_own_head_gives_its_logits(config: Any, kind: Any, tmp_path: Path) -> None:
    """A classifier loaded from a masked language model predicts hidden words as that did."""
    original = kind(config).eval()
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.normal_(0, 0.3)
    original.save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    head = make_masked_head(model)
    assert head.own
    ids = torch.randint(5, 600, (2, 7))
    with torch.no_grad():
        found = head(model.base_model(input_ids=ids)[0], model.get_input_embeddings().weight)
        torch.testing.assert_close(found, original(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "arch", ["bert", "albert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta"]
)
@pytest.mark.parametrize("when", ["beside", "before"])
def test_every_encoder_learns_hidden_words(arch: str, when: Any) -> None:
    """Both ways run on each architecture, with a new head, which is gone in the end."""
    trainer = make_trainer(None, (MaskedLanguageModeling(when=when, longest_span=2, max_steps=2),), arch, max_steps=2)
    trainer.fit()
    assert not any("masked_head" in name for name in trainer.model.state_dict())
    assert any("a new head on the embeddings" in note["message"] for note in trainer.history.filter("note"))


def test_the_model_gets_better_at_hidden_words() -> None:
    """In the stage before, the loss falls, and the head of the task is not touched."""
    trainer = Trainer(
        tiny_model("bert"), tiny_rows(16), tokenizer=tiny_tokenizer(),
        strategies=[MaskedLanguageModeling(when="before", max_steps=60, learning_rate=5e-3, share=0.3)],
        config=TrainingConfig(max_steps=1, batch_size=16, device="cpu", seed=1),
    )  # fmt: skip
    before = trainer.model.state_dict()["classifier.weight"].clone()
    losses = []
    for step in trainer.steps():
        if step.stage == "masked words":
            losses.append(step.loss)
            assert torch.equal(trainer.model.state_dict()["classifier.weight"], before)
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert not torch.equal(trainer.model.state_dict()["classifier.weight"], before)


def test_rows_without_labels_teach() -> None:
    """They are read in both ways: other texts give other weights."""

    def train(texts: list[str]) -> dict[str, torch.Tensor]:
        trainer = Trainer(
            tiny_model("bert"), tiny_rows(6), tokenizer=tiny_tokenizer(), unlabeled_dataset=texts,
            strategies=[MaskedLanguageModeling(1.0)],
            config=TrainingConfig(max_steps=3, batch_size=4, device="cpu", learning_rate=5e-3),
        )  # fmt: skip
        trainer.fit()
        return final_weights(trainer)

    texts = tiny_rows(6, seed=4)["text"]
    with pytest.raises(AssertionError):
        assert_same(train(texts), train(texts[::-1]))


def test_rows_without_labels_teach_before_a_stage_that_leaves_them_out() -> None:
    """In front of the contrastive stage, which takes labelled rows alone, one pass is still one over all rows.

    It goes at the run's own pace, not at that of the stage behind it.
    """
    few = [PooledHead(), Contrastive(max_steps=1, batch_size=4, layer_decay=0.9), Probe(strengths=(1.0,))]
    trainer = tiny_trainer(
        strategies=[*few, MaskedLanguageModeling(when="before")], batch_size=2, max_steps=1,
        unlabeled_dataset=tiny_rows(20, seed=5)["text"],
    )  # fmt: skip
    trainer.fit()
    stages = [record["stage_name"] for record in trainer.history.filter("train")]
    rows = len(tiny_rows()["text"]) + 20
    assert stages == ["masked words"] * math.ceil(rows / 2) + ["contrastive", "training"]
    masked, contrastive, training = trainer._loop.attached.stages
    assert contrastive.learning_rate == 1e-4
    assert masked.learning_rate is training.learning_rate is None
    assert (masked.layer_decay, contrastive.layer_decay) == (training.layer_decay, 0.9)


def test_the_stage_before_ends_with_its_last_weights() -> None:
    """Validation results of a task that is not learnt yet choose no weights: it ends where its last step was."""
    trainer = make_trainer(None, (MaskedLanguageModeling(when="before"),), load_best_model_at_end=True)
    last: dict[str, torch.Tensor] = {}
    for step in trainer.steps():
        if step.stage == "masked words":
            last = {name: tensor.clone() for name, tensor in trainer.model.named_parameters()}
            continue
        break
    assert last
    stages = [record for record in trainer.history.filter("stage") if record["stage_name"] == "masked words"]
    assert stages[0]["decision"] == "continue"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_hidden_words_are_scored_in_the_runs_precision_and_no_others(precision: str, tmp_path: Path) -> None:
    """The pass and its scores are made as the task's are, of hidden places alone; a run resumes with the same bits."""

    def run(folder: Path) -> Trainer:
        return make_trainer(folder, (MaskedLanguageModeling(0.5),), precision=precision)

    whole = run(tmp_path / "whole")
    seen: list[tuple[torch.dtype, torch.dtype, int]] = []
    head: Any = whole.model.lowft_masked_head
    head.register_forward_hook(lambda _, given, scores: seen.append((given[0].dtype, scores.dtype, given[0].ndim)))
    whole.fit()
    wanted = getattr(torch, precision)
    # The last layer's norm gives float32 in autocast too; the product with the embeddings does not.
    assert {(scores, dimensions) for _, scores, dimensions in seen} == {(wanted, 2)}
    folder = tmp_path / "resumed"
    shutil.copytree(tmp_path / "whole" / "checkpoint-5", folder / "checkpoint-5")
    resumed = run(folder)
    resumed.fit(resume_from_checkpoint=True)
    assert_same(final_weights(whole), final_weights(resumed))


@pytest.mark.parametrize(
    "strategies",
    [
        (MaskedLanguageModeling(0.5),),
        (
            LayerwiseUnfreeze((Unfreeze(top=1, epochs=1), Unfreeze(top="all", epochs=1))),
            MaskedLanguageModeling(when="before"),
        ),
        (MaskedLanguageModeling(0.5), PartialFreeze(top=1)),
        (PartialFreeze(top=1), MaskedLanguageModeling(0.5)),
    ],
)
def test_it_resumes(strategies: Any, tmp_path: Path) -> None:
    """Stopped in mid-epoch and resumed, the run ends with the same bits, with others beside it too."""
    whole = make_trainer(tmp_path / "whole", strategies)
    whole.fit()
    for step in (2, 5):
        resumed = resumed_at(step, tmp_path / "whole", lambda folder: make_trainer(folder, strategies))
        assert_same(final_weights(whole), final_weights(resumed))


def test_pairs_are_hidden_in_both_texts() -> None:
    """Rows of two texts train."""
    texts = tiny_rows(8)
    trainer = Trainer(
        tiny_model("bert"), {"premise": texts["text"], "hypothesis": texts["text"][::-1], "label": texts["label"]},
        tokenizer=tiny_tokenizer(), strategies=[MaskedLanguageModeling()],
        config=TrainingConfig(max_steps=2, batch_size=4, device="cpu"),
    )  # fmt: skip
    assert len(list(trainer.steps())) == 2


@pytest.mark.parametrize("arch", ["gpt2", "llama", "t5"])
def test_models_that_read_one_way_are_refused(arch: str) -> None:
    """It is said when the Trainer is built, with the model's class."""
    with pytest.raises(
        ModelError, match=r"MaskedLanguageModeling asks a model what stands behind a mask.*is no encoder"
    ):
        make_trainer(None, (MaskedLanguageModeling(),), arch)


def test_what_is_missing_is_said() -> None:
    """No tokenizer, one without a mask, or nothing to train below the head."""
    run = attach(tiny_model("bert"), [MaskedLanguageModeling()])
    with pytest.raises(ConfigError, match=r"set run\.state\.tokenizer"):
        next(iter(run))
    run.state.tokenizer = tiny_tokenizer()
    run.state.tokenizer.mask_token = None
    with pytest.raises(ConfigError, match="needs a mask token"):
        next(iter(run))
    with pytest.raises(StrategyConflictError, match="trains none of them"):
        attach(tiny_model("bert"), [PartialFreeze(top=0), MaskedLanguageModeling(when="before")])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": 0}, r"weight must be a finite number above 0; received 0"),
        ({"when": "after"}, r"when must be one of 'beside', 'before'; received 'after'"),
        ({"share": 2}, r"share must be a finite number above 0 and at most 1"),
        ({"whole_words": 1}, r"whole_words must be True or False"),
        ({"longest_span": 0}, r"longest_span must be a whole number of at least 1"),
        ({"epochs": 0}, r"epochs must be a finite number above 0"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    """A setting outside its range is refused with the rule and the value."""
    with pytest.raises(ConfigError, match=message):
        MaskedLanguageModeling(**settings)
