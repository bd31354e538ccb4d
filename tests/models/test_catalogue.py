from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel

from lowft.errors import ConfigError
from lowft.models.catalogue import ModelCard, ModelTable, small_models

_DEBERTA = {
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
_MINILM = {"hidden_size": 384, "intermediate_size": 1536}
_MULTILINGUAL = {**_MINILM, "vocab_size": 250037}


def _bert(layers: int, hidden: int) -> tuple[str, dict[str, Any]]:
    return "bert", {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": hidden // 64,
        "intermediate_size": 4 * hidden,
    }


def _neox(layers: int, hidden: int) -> tuple[str, dict[str, Any]]:
    return "gpt_neox", {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": hidden // 64,
        "intermediate_size": 4 * hidden,
        "vocab_size": 50304,
    }


def _smollm(layers: int, hidden: int, inner: int, heads: int) -> tuple[str, dict[str, Any]]:
    return "llama", {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
    }


# The published hyper-parameters of each model; what is left out is the default of its configuration class.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "google/bert_uncased_L-2_H-128_A-2": _bert(2, 128),
    "google/bert_uncased_L-4_H-256_A-4": _bert(4, 256),
    "google/bert_uncased_L-4_H-512_A-8": _bert(4, 512),
    "google/bert_uncased_L-8_H-512_A-8": _bert(8, 512),
    "google-bert/bert-base-uncased": _bert(12, 768),
    "albert/albert-base-v2": (
        "albert",
        {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    ),
    "google/electra-small-discriminator": ("electra", {}),
    "google/mobilebert-uncased": ("mobilebert", {}),
    "huawei-noah/TinyBERT_General_4L_312D": (
        "bert",
        {"num_hidden_layers": 4, "hidden_size": 312, "intermediate_size": 1200},
    ),
    "huawei-noah/TinyBERT_General_6L_768D": _bert(6, 768),
    "distilbert/distilbert-base-uncased": ("distilbert", {}),
    "distilbert/distilroberta-base": (
        "roberta",
        {"num_hidden_layers": 6, "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1},
    ),
    "distilbert/distilbert-base-multilingual-cased": ("distilbert", {"vocab_size": 119547}),
    "nreimers/MiniLM-L6-H384-uncased": ("bert", {**_MINILM, "num_hidden_layers": 6}),
    "microsoft/MiniLM-L12-H384-uncased": ("bert", _MINILM),
    "microsoft/Multilingual-MiniLM-L12-H384": ("bert", _MULTILINGUAL),
    "sentence-transformers/all-MiniLM-L6-v2": ("bert", {**_MINILM, "num_hidden_layers": 6}),
    "sentence-transformers/all-MiniLM-L12-v2": ("bert", _MINILM),
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2": ("bert", _MULTILINGUAL),
    "intfloat/multilingual-e5-small": ("bert", _MULTILINGUAL),
    "BAAI/bge-small-en-v1.5": ("bert", _MINILM),
    "microsoft/mpnet-base": ("mpnet", {"max_position_embeddings": 514}),
    "microsoft/deberta-v3-xsmall": ("deberta-v2", {**_DEBERTA, **_bert(12, 384)[1]}),
    "microsoft/deberta-v3-small": ("deberta-v2", {**_DEBERTA, **_bert(6, 768)[1]}),
    "answerdotai/ModernBERT-base": ("modernbert", {}),
    "EleutherAI/pythia-70m": _neox(6, 512),
    "EleutherAI/pythia-160m": _neox(12, 768),
    "distilbert/distilgpt2": ("gpt2", {"n_layer": 6}),
    "openai-community/gpt2": ("gpt2", {}),
    "facebook/opt-125m": ("opt", {}),
    "HuggingFaceTB/SmolLM2-135M": _smollm(30, 576, 1536, 9),
    "HuggingFaceTB/SmolLM2-360M": _smollm(32, 960, 2560, 15),
    "Qwen/Qwen2.5-0.5B": (
        "qwen2",
        {
            "num_hidden_layers": 24,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "max_position_embeddings": 32768,
        },
    ),
    "google/t5-efficient-mini": ("t5", {"d_model": 384, "d_ff": 1536, "num_layers": 4, "num_heads": 8}),
    "google-t5/t5-small": ("t5", {}),
    "google/flan-t5-small": (
        "t5",
        {"d_model": 512, "d_ff": 1024, "num_layers": 8, "num_heads": 6, "feed_forward_proj": "gated-gelu"},
    ),
}
# Position tables of these have two rows before the first token's.
OFFSET = {"roberta": 2, "mpnet": 2}


@pytest.mark.parametrize("card", small_models(), ids=lambda card: card.name)
def test_figures_are_those_of_the_model(card: ModelCard) -> None:
    """Parameters, layers, width and context are those of the body that the published configuration builds."""
    arch, settings = CONFIGS[card.name]
    config = AutoConfig.for_model(arch, **settings)
    auto: Any = AutoModel
    with torch.device("meta"):
        body = auto.from_config(config)
    assert sum(parameter.numel() for parameter in body.parameters()) == card.parameters
    assert card.bytes == 4 * card.parameters
    assert config.num_hidden_layers * (2 if card.kind == "encoder-decoder" else 1) == card.layers
    assert config.hidden_size == card.hidden
    if arch != "t5":  # relative positions have no table
        assert config.max_position_embeddings - OFFSET.get(arch, 0) == card.context


def test_every_card_is_complete() -> None:
    """Names are unique and every card has its source, language, licence and a year."""
    cards = small_models()
    assert {card.name for card in cards} == set(CONFIGS)
    assert len(cards) == len(CONFIGS) >= 20
    for card in cards:
        assert card.source.startswith(("https://arxiv.org/abs/", f"https://huggingface.co/{card.name}"))
        assert card.languages
        assert card.license
        assert 2018 <= card.year <= 2026
    assert {card.kind for card in cards} == {"encoder", "decoder", "encoder-decoder"}


@given(
    max_parameters=st.none() | st.integers(5_000_000, 200_000_000),
    max_bytes=st.none() | st.integers(20_000_000, 800_000_000),
    min_context=st.none() | st.integers(1, 512),
    language=st.sampled_from([None, "en"]),
)
def test_filters_keep_what_fits_and_only_that(
    max_parameters: int | None, max_bytes: int | None, min_context: int | None, language: str | None
) -> None:
    """A model is listed if and only if it meets every limit."""
    found = set(
        small_models(max_parameters=max_parameters, max_bytes=max_bytes, min_context=min_context, language=language)
    )
    for card in small_models():
        fits = (
            (max_parameters is None or card.parameters <= max_parameters)
            and (max_bytes is None or card.bytes <= max_bytes)
            and (min_context is None or card.context >= min_context)
            and (language is None or language in card.languages)
        )
        assert (card in found) == fits


def test_words_filter() -> None:
    """Kind, licence and language choose the cards that have them."""
    assert {card.kind for card in small_models(kind="decoder")} == {"decoder"}
    assert {card.license for card in small_models(license="mit")} == {"mit"}
    german = small_models(language="de", kind="encoder")
    assert german
    assert all("de" in card.languages for card in german)


@pytest.mark.parametrize("sort_by", ["parameters", "bytes", "layers", "hidden", "context", "year", "name"])
def test_sorting(sort_by: Any) -> None:
    """The table ascends in the attribute asked for."""
    values = [getattr(card, sort_by) for card in small_models(sort_by=sort_by)]
    assert values == sorted(values)


def test_table_is_a_sequence_that_prints_and_becomes_a_frame() -> None:
    """Cards come by index and slice, as text, as HTML and as a data frame."""
    table = small_models(max_parameters=12_000_000)
    assert isinstance(table[:2], ModelTable)
    assert table[:2][1] is table[1]
    assert [card.name for card in table] == table.to_frame()["name"].tolist()
    assert table.to_frame()["bytes"].tolist() == [card.bytes for card in table]
    lines = str(table).splitlines()
    assert len(lines) == 2 + len(table)
    assert "4.39 M" in lines[2]
    assert table._repr_html_().count("<tr>") == 1 + len(table)
    assert "13 or more" in str(small_models(language="de", kind="decoder"))


@pytest.mark.parametrize("setting", ["max_parameters", "max_bytes", "min_context"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "9"])
def test_limits_must_be_positive_whole_numbers(setting: str, value: Any) -> None:
    """A limit that cannot be met or read is refused with its name and value."""
    limits: dict[str, Any] = {setting: value}
    with pytest.raises(ConfigError, match=rf"{setting} must be a positive whole number, not {value!r}"):
        small_models(**limits)


@pytest.mark.parametrize(
    ("setting", "value", "known"),
    [
        ("language", "English", "ar, bg, "),
        ("license", "gpl", "apache-2.0, mit, other"),
        ("kind", "seq2seq", "decoder, encoder, encoder-decoder"),
        ("sort_by", "speed", "bytes, context"),
    ],
)
def test_unknown_words_list_the_known_ones(setting: str, value: str, known: str) -> None:
    """A language, licence, kind or order that no card has is refused with those there are."""
    words: dict[str, Any] = {setting: value}
    with pytest.raises(ConfigError, match=f"{setting} must be one of .*{known}.*, not '{value}'"):
        small_models(**words)


def test_nothing_fits_names_the_nearest() -> None:
    """A budget that no model meets is an error that names the nearest model and its figure."""
    with pytest.raises(ConfigError, match=r"bert_uncased_L-2_H-128_A-2 comes nearest, with parameters 4385920"):
        small_models(max_parameters=1_000_000)
    with pytest.raises(ConfigError, match=r"Qwen2\.5-0\.5B comes nearest, with context 32768"):
        small_models(min_context=100_000)
    with pytest.raises(ConfigError, match="No model in the catalogue fits"):
        small_models(kind="decoder", license="unstated")
