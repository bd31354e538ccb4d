"""Compression of models: functions that make one smaller, and the record of what they did."""

from __future__ import annotations

from lowft.compress.costs import count_flops
from lowft.compress.pruning import PruningReport, prune_
from lowft.compress.quantization import QuantizationReport, SensitivityTable, quantization_sensitivity, quantize_
from lowft.compress.student import make_student
from lowft.compress.vocabulary import VocabularyReport, prune_vocabulary

__all__ = [
    "PruningReport",
    "QuantizationReport",
    "SensitivityTable",
    "VocabularyReport",
    "count_flops",
    "make_student",
    "prune_",
    "prune_vocabulary",
    "quantization_sensitivity",
    "quantize_",
]
