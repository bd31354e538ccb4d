"""Changed copies of texts: noise, synonyms, round trips through another language, each `(texts, rng) -> texts`."""

from __future__ import annotations

from lowft.augment.augmenter import Augmenter
from lowft.augment.contextual import ContextualReplacement
from lowft.augment.neighbors import EmbeddingNeighbors
from lowft.augment.noise import PunctuationInsertion, RandomDeletion, RandomMasking, RandomSwap
from lowft.augment.others import NlpAug
from lowft.augment.synonyms import RandomInsertion, SynonymReplacement
from lowft.augment.translation import ApertiumTranslator, BackTranslation, Seq2SeqTranslator, Translator

__all__ = [
    "ApertiumTranslator",
    "Augmenter",
    "BackTranslation",
    "ContextualReplacement",
    "EmbeddingNeighbors",
    "NlpAug",
    "PunctuationInsertion",
    "RandomDeletion",
    "RandomInsertion",
    "RandomMasking",
    "RandomSwap",
    "Seq2SeqTranslator",
    "SynonymReplacement",
    "Translator",
]
