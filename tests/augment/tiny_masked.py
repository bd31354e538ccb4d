"""Folders of tiny models with a head for hidden words, and small tokenizers of three kinds."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedTokenizerFast

from tests.tiny import tiny_model, tiny_tokenizer

__all__ = ["byte_level_tokenizer", "masked_folder", "masked_model", "sentencepiece_tokenizer"]


def masked_model(arch: str = "bert", seed: int = 0, **settings: Any) -> Any:
    """Return a random model of the architecture with a head for hidden words, over the tests' vocabulary."""
    config = tiny_model(arch, num_layers=1).config.to_dict() | settings
    config.pop("model_type")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        auto: Any = AutoModelForMaskedLM
        return auto.from_config(AutoConfig.for_model(arch, **config), dtype=torch.float32).eval()


@functools.cache
def masked_folder(arch: str = "bert") -> str:
    """Return the folder of such a model, which goes when the process ends."""
    folder = tempfile.mkdtemp(prefix="lowft-masked-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    masked_model(arch).save_pretrained(folder)
    tiny_tokenizer(arch).save_pretrained(folder)
    return folder


def byte_level_tokenizer(*tokens: str) -> Any:
    """Return a byte-level BPE tokenizer, as RoBERTa's, with these tokens: "\u0120film" begins a word."""
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *tokens]
    made = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return _wrapped(made)


def sentencepiece_tokenizer(*tokens: str) -> Any:
    """Return a Unigram tokenizer, as ALBERT's, with these tokens: "\u2581film" begins a word."""
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *tokens]
    made = Tokenizer(models.Unigram([(name, -1.0) for name in names], unk_id=3, byte_fallback=False))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return _wrapped(made)


def _wrapped(tokenizer: Tokenizer) -> Any:
    fast: Any = PreTrainedTokenizerFast
    return fast(
        tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        mask_token="<mask>",
    )  # fmt: skip
