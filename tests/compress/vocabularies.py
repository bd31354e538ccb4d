"""Small tokenizers of every kind, trained in memory, each with a tiny model that reads its tokens."""

from __future__ import annotations

import copy
import functools
import json
import random
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AlbertTokenizer,
    AutoModelForSequenceClassification,
    BertTokenizer,
    DebertaV2Tokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    MPNetTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    T5Tokenizer,
)

from tests.tiny import WORDS, tiny_model

__all__ = ["ARCHITECTURES", "OTHERS", "TEXTS", "tiny_pair", "tokenizer_for"]

_DRAW = random.Random(0)
TEXTS = [" ".join(_DRAW.choices(WORDS[:120], k=2 + row % 7)) for row in range(40)]
OTHERS = [" ".join(_DRAW.choices(WORDS[120:], k=2 + row % 7)) for row in range(80)]
_EVERY = [*TEXTS, *OTHERS, "naïve café, 日本 — 1994!", "Don't stop; it's (really) good: 7/10?", "“quoted” 🙂 text"]
_SIZE = 700

_BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
_BYTES = [f"<0x{value:02X}>" for value in range(256)]


@functools.cache
def _word_piece(*special: str) -> dict[str, int]:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]" if "[UNK]" in special else "<unk>"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(_EVERY, trainers.WordPieceTrainer(vocab_size=_SIZE, special_tokens=list(special)))
    return dict(made.get_vocab())


@functools.cache
def _bpe(*special: str, of_bytes: bool) -> tuple[dict[str, int], list[tuple[str, str]]]:
    made = Tokenizer(models.BPE(unk_token=None if of_bytes else "<unk>"))
    made.pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=False) if of_bytes else pre_tokenizers.Metaspace(split=False)
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet() if of_bytes else []
    trainer = trainers.BpeTrainer(
        vocab_size=_SIZE + len(special), special_tokens=list(special), initial_alphabet=alphabet, max_token_length=9
    )
    made.train_from_iterator(_EVERY, trainer)
    model = json.loads(made.to_str())["model"]
    return model["vocab"], [(first, second) for first, second in model["merges"]]


@functools.cache
def _unigram(*special: str) -> list[tuple[str, float]]:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=_SIZE, special_tokens=list(special), unk_token="<unk>")
    made.train_from_iterator(_EVERY, trainer)
    return [(piece, score) for piece, score in json.loads(made.to_str())["model"]["vocab"]]


def _plain_bytes() -> Any:
    """Return a tokenizer of no special class, as that of ModernBERT is."""
    vocabulary, merges = _bpe(*_BERT, of_bytes=True)
    made = Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    fast: Any = PreTrainedTokenizerFast
    return fast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def _of(kind: Any, parts: tuple[Any, Any], **names: str) -> Any:
    vocabulary, merges = parts
    return kind(vocab=vocabulary, merges=merges, **names)


_MADE: dict[str, Callable[[], Any]] = {
    "bert": lambda: BertTokenizer(vocab=_word_piece(*_BERT)),
    "distilbert": lambda: BertTokenizer(vocab=_word_piece(*_BERT)),
    "electra": lambda: BertTokenizer(vocab=_word_piece(*_BERT)),
    "mpnet": lambda: MPNetTokenizer(vocab=_word_piece("<s>", "<pad>", "</s>", "[UNK]", "<mask>")),
    "roberta": lambda: _of(RobertaTokenizer, _bpe(*_ROBERTA, of_bytes=True)),
    "gpt2": lambda: _of(GPT2Tokenizer, _bpe("<|endoftext|>", of_bytes=True), pad_token="<|endoftext|>"),
    "modernbert": _plain_bytes,
    "llama": lambda: _of(
        LlamaTokenizer, _bpe("<unk>", "<s>", "</s>", *_BYTES, of_bytes=False), pad_token="</s>"
    ),
    "t5": lambda: T5Tokenizer(vocab=_unigram("<pad>", "</s>", "<unk>"), extra_ids=3),
    "albert": lambda: AlbertTokenizer(vocab=_unigram("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")),
    "deberta-v2": lambda: DebertaV2Tokenizer(
        vocab=_unigram("[PAD]", "[CLS]", "[SEP]", "<unk>", "[MASK]"), unk_token="<unk>"
    ),
}  # fmt: skip
ARCHITECTURES = tuple(_MADE)


def tokenizer_for(arch: str) -> Any:
    """Return a new tokenizer of the kind that models of an architecture have."""
    return _MADE[arch]()


def tiny_pair(arch: str, auto: Any = AutoModelForSequenceClassification, spare: int = 0) -> tuple[PreTrainedModel, Any]:
    """Return a random model in eval mode with a tokenizer, and so many rows more than there are tokens."""
    tokenizer = tokenizer_for(arch)
    config = copy.deepcopy(tiny_model(arch).config)
    config.vocab_size = len(tokenizer) + spare
    config.pad_token_id = tokenizer.pad_token_id
    config.bos_token_id = tokenizer.bos_token_id or tokenizer.cls_token_id
    config.eos_token_id = tokenizer.eos_token_id or tokenizer.sep_token_id
    for name in ("cls", "sep"):
        if hasattr(config, f"{name}_token_id"):
            setattr(config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    if arch == "t5":
        config.decoder_start_token_id = tokenizer.pad_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model: PreTrainedModel = auto.from_config(config, dtype=torch.float32)
    model.train(False)
    return model, tokenizer
