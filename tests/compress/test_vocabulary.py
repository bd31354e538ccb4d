"""Pruned vocabularies: the same answers where the tokens stayed, any text still spelled, and what is refused."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

import lowft
from lowft.compress.vocabulary import VocabularyReport, prune_vocabulary
from lowft.errors import ConfigError, DataError, ModelError
from tests.compress.vocabularies import ARCHITECTURES, OTHERS, TEXTS, tiny_pair

KINDS = ("bert", "roberta", "llama", "t5")  # one of each kind of tokenizer


@functools.cache
def pruned(arch: str) -> tuple[Any, Any, Any, Any, VocabularyReport]:
    """Return a model and a tokenizer, both pruned for `TEXTS`, and the report."""
    model, tokenizer = tiny_pair(arch)
    return model, tokenizer, *prune_vocabulary(model, tokenizer, TEXTS)


def logits(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Return the logits of a padded batch."""
    with torch.no_grad():
        found: torch.Tensor = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    return found


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_texts_whose_tokens_stay_have_the_same_logits(arch: str) -> None:
    """The texts have the same tokens and the same logits to the bit, from far fewer rows."""
    model, tokenizer, smaller, shorter, report = pruned(arch)
    assert [shorter.tokenize(text) for text in TEXTS] == [tokenizer.tokenize(text) for text in TEXTS]
    assert torch.equal(logits(smaller, shorter, TEXTS), logits(model, tokenizer, TEXTS))
    assert report.lost_tokens == 0
    assert report.rows_after == smaller.config.vocab_size == smaller.get_input_embeddings().num_embeddings
    assert report.rows_after == len(shorter) < 0.7 * report.rows_before
    assert report.used + report.others == report.rows_after
    for part in (smaller.config, shorter):  # special tokens are the same words on both sides
        for name in ("pad", "eos", "bos", "cls", "sep"):
            number = getattr(part, f"{name}_token_id", None)
            assert number is None or 0 <= number < report.rows_after
    assert shorter.all_special_tokens == tokenizer.all_special_tokens
    assert smaller.config.pad_token_id == shorter.pad_token_id


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_other_texts_are_spelled_with_more_tokens(arch: str) -> None:
    """Texts that use dropped tokens are cut into more pieces, nothing turns unknown, and they read as before."""
    _, tokenizer, _, shorter, _ = pruned(arch)
    longer = 0
    for text in OTHERS:
        before, now = tokenizer(text)["input_ids"], shorter(text)["input_ids"]
        assert shorter.decode(now) == tokenizer.decode(before)
        assert now.count(shorter.unk_token_id) == before.count(tokenizer.unk_token_id)
        longer += len(now) > len(before)
    assert longer > len(OTHERS) / 2


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_plain_transformers_loads_what_is_saved(arch: str, tmp_path: Path) -> None:
    """What save_pretrained writes, the Auto classes read back: the same logits, the size in the config."""
    _, _, smaller, shorter, report = pruned(arch)
    smaller.save_pretrained(tmp_path)
    shorter.save_pretrained(tmp_path)
    auto: Any = AutoTokenizer
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(tmp_path), auto.from_pretrained(tmp_path)
    assert model.config.vocab_size == len(tokenizer) == report.rows_after
    texts = [*TEXTS, *OTHERS]
    assert tokenizer(texts)["input_ids"] == shorter(texts)["input_ids"]
    assert torch.allclose(logits(model, tokenizer, texts), logits(smaller, shorter, texts), atol=1e-6)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_given_objects_are_left_alone(arch: str) -> None:
    """Neither model nor tokenizer changes, and the copy shares no weights with the model."""
    model, tokenizer = tiny_pair(arch)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = (model.config.to_dict(), tokenizer.backend_tokenizer.to_str())
    model.train()
    smaller, _, _ = prune_vocabulary(model, tokenizer, TEXTS[:3])
    assert (model.config.to_dict(), tokenizer.backend_tokenizer.to_str()) == before
    assert smaller.training
    with torch.no_grad():
        for parameter in smaller.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("arch", KINDS)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_still_has_tokens(arch: str, text: str) -> None:
    """No text is an error; one whose tokens all stayed has the same ones; bytes spell everything as before."""
    _, tokenizer, _, shorter, _ = pruned(arch)
    before, now = tokenizer.tokenize(text), shorter.tokenize(text)
    if set(before) <= shorter.get_vocab().keys():
        assert now == before
    ids = shorter(text)["input_ids"]
    assert all(0 <= number < len(shorter) for number in ids)
    if arch in ("roberta", "llama"):
        assert shorter.decode(ids) == tokenizer.decode(tokenizer(text)["input_ids"])


@pytest.mark.parametrize(
    ("arch", "auto"),
    [("bert", AutoModelForMaskedLM), ("gpt2", AutoModelForCausalLM), ("roberta", AutoModelForMaskedLM),
     ("t5", AutoModelForSeq2SeqLM)],
)  # fmt: skip
def test_output_layers_are_cut_and_stay_tied(arch: str, auto: Any, tmp_path: Path) -> None:
    """A language model's logits are those of the tokens that stayed; tied weights stay one tensor, reloaded too."""
    model, tokenizer = tiny_pair(arch, auto)
    smaller, shorter, report = prune_vocabulary(model, tokenizer, TEXTS)
    made: Any
    original: Any = model
    tied = original.get_input_embeddings().weight is original.get_output_embeddings().weight
    assert tied or arch == "t5"
    smaller.save_pretrained(tmp_path)
    for made in (smaller, auto.from_pretrained(tmp_path)):
        assert (made.get_input_embeddings().weight is made.get_output_embeddings().weight) is tied
        batches = [dict(each(TEXTS[:5], padding=True, return_tensors="pt")) for each in (tokenizer, shorter)]
        if arch == "t5":
            batches = [batch | {"decoder_input_ids": batch["input_ids"]} for batch in batches]
        with torch.no_grad():
            before, now = model(**batches[0]).logits, made(**batches[1]).logits
        assert now.shape[-1] == report.rows_after
        at = [
            tokenizer.get_vocab()[token] for token, _ in sorted(shorter.get_vocab().items(), key=lambda item: item[1])
        ]
        assert torch.allclose(now, before[..., at], atol=1e-5)


@pytest.mark.parametrize("arch", KINDS)
def test_training_exporting_and_loading_work(arch: str, tmp_path: Path) -> None:
    """A Trainer takes the pruned pair, and what it exports answers alike in lowft and in plain transformers."""
    _, _, smaller, shorter, report = pruned(arch)
    rows = (TEXTS, ["good", "bad"] * (len(TEXTS) // 2))
    config = lowft.TrainingConfig(max_steps=2, batch_size=4, learning_rate=1e-3, device="cpu", max_length=100)
    trainer = lowft.Trainer(copy.deepcopy(smaller), rows, tokenizer=shorter, config=config)
    trainer.fit()
    folder = trainer.export(tmp_path / "export", verify="here")
    expected = torch.from_numpy(trainer._predictor().predict_logits(OTHERS))
    loaded = lowft.load(folder)
    assert loaded.model.config.vocab_size == report.rows_after  # type: ignore[union-attr]
    assert torch.equal(torch.from_numpy(loaded.predict_logits(OTHERS)), expected)
    auto: Any = AutoTokenizer
    plain = logits(AutoModelForSequenceClassification.from_pretrained(folder), auto.from_pretrained(folder), OTHERS)
    assert torch.allclose(plain, expected, atol=1e-5)


@pytest.mark.parametrize("arch", KINDS)
def test_rare_tokens_go_and_asked_for_ones_stay(arch: str) -> None:
    """`min_count` drops what is rare and says how much of the texts that touches; `keep` holds on to tokens."""
    model, tokenizer, *_, report = pruned(arch)
    token = next(
        token for text in OTHERS for token in tokenizer.tokenize(text) if token not in pruned(arch)[3].get_vocab()
    )
    smaller, shorter, rare = prune_vocabulary(model, tokenizer, TEXTS, min_count=4, keep=[token])
    assert token in shorter.get_vocab()
    assert rare.rows_after < report.rows_after
    counts: dict[str, int] = {}
    for text in TEXTS:
        for piece in tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).tokens:
            counts[piece] = counts.get(piece, 0) + 1
    lost = {piece: count for piece, count in counts.items() if piece not in shorter.get_vocab()}
    assert lost
    assert max(lost.values()) < 4
    assert (rare.tokens, rare.lost_tokens) == (sum(counts.values()), sum(lost.values()))
    assert torch.isfinite(logits(smaller, shorter, TEXTS)).all()


def test_pairs_labels_and_tables_are_read() -> None:
    """Texts come from any table; the second text of a pair counts as well."""
    model, tokenizer = tiny_pair("bert")
    _, shorter, report = prune_vocabulary(
        model, tokenizer, {"premise": TEXTS[:2], "hypothesis": OTHERS[:2], "label": [0, 1]}
    )
    assert shorter.tokenize(OTHERS[1]) == tokenizer.tokenize(OTHERS[1])
    assert "embedding rows" in str(report)
    assert "embedding rows" in report._repr_html_()


def test_rows_without_a_token_go_and_those_that_the_config_names_stay() -> None:
    """Rows beyond the tokenizer are dropped, unless the config speaks of one: it has a new number then."""
    model, tokenizer = tiny_pair("bert", spare=20)
    model.config.decoder_start_token_id = named = len(tokenizer) + 7
    smaller, shorter, report = prune_vocabulary(model, tokenizer, TEXTS)
    assert report.rows_after == len(shorter) + 1
    assert smaller.config.decoder_start_token_id == len(shorter)
    before, now = (made.get_input_embeddings().get_parameter("weight") for made in (model, smaller))
    assert torch.equal(before[named], now[-1])


def test_the_pad_token_that_positions_count_from_does_not_move() -> None:
    """RoBERTa counts positions from its pad token: it stays, or the cut is refused."""
    model, tokenizer, smaller, shorter, _ = pruned("roberta")
    assert shorter.pad_token_id == tokenizer.pad_token_id == smaller.config.pad_token_id == 1
    assert smaller.roberta.embeddings.word_embeddings.padding_idx == 1
    far = copy.deepcopy(model)
    for module in far.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.padding_idx = len(tokenizer) - 1
    with pytest.raises(ModelError, match=r"position_embeddings counts positions from the pad token's number"):
        prune_vocabulary(far, tokenizer, TEXTS)


def word_level() -> Any:
    """Return a tokenizer that knows whole words alone."""
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "film": 1}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=made, unk_token="[UNK]")


def with_dropout() -> Any:
    """Return a BPE tokenizer that joins pairs at random."""
    tokenizer = tiny_pair("gpt2")[1]
    tokenizer.backend_tokenizer.model.dropout = 0.1
    return tokenizer


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"texts": "a film"}, DataError, "write \\['a film'\\]"),
        ({"texts": []}, DataError, "no rows"),
        ({"min_count": 0}, ConfigError, "min_count must be a whole number of at least 1"),
        ({"keep": "film"}, ConfigError, "keep must be a list of tokens"),
        ({"keep": ["moviee"]}, ConfigError, "keep names 'moviee'.*Did you mean 'movie'"),
        ({"tokenizer": SimpleNamespace(is_fast=False)}, ModelError, "needs a tokenizer of the tokenizers library"),
        ({"tokenizer": word_level()}, ModelError, "WordLevel tokenizer cannot be pruned"),
        ({"tokenizer": with_dropout()}, ModelError, "BPE dropout 0.1"),
        ({"model": nn.Linear(2, 2)}, ModelError, "needs a transformers model.*received Linear"),
        ({"tokenizer": tiny_pair("roberta")[1]}, ModelError, "do not belong together"),
    ],
)
def test_what_cannot_be_pruned_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    """Each mistake has an error that names it."""
    model, tokenizer = tiny_pair("bert")
    arguments = {"model": model, "tokenizer": tokenizer, "texts": TEXTS} | change
    with pytest.raises(error, match=message):
        prune_vocabulary(arguments.pop("model"), arguments.pop("tokenizer"), arguments.pop("texts"), **arguments)


def test_a_quantized_model_is_refused() -> None:
    """Integers cannot be cut by rows: the order that works is in the message."""
    model, tokenizer = tiny_pair("bert")
    lowft.quantize_(model, "int8")
    with pytest.raises(ModelError, match="prune the vocabulary first, and quantize the result"):
        prune_vocabulary(model, tokenizer, TEXTS)


def test_a_real_model_is_cut_for_real_sentences(
    minilm_path: Path, rotten_tomatoes: tuple[list[str], list[int]]
) -> None:
    """MiniLM loses more than half of its rows for Rotten Tomatoes, and answers as before."""
    texts = rotten_tomatoes[0]
    model, tokenizer = lowft.load_model(minilm_path), lowft.load_tokenizer(minilm_path)
    smaller, shorter, report = prune_vocabulary(model, tokenizer, texts)
    assert (report.rows_before, report.lost_tokens) == (30522, 0)
    assert report.rows_after < 15_500
    assert report.parameters_after < 17_000_000
    assert torch.equal(logits(smaller, shorter, texts[:4]), logits(model, tokenizer, texts[:4]))
    assert "[UNK]" not in shorter.tokenize("an antidisestablishmentarian xylophonist")
