"""Compression of models: functions that make one smaller, and the record of what they did."""

from __future__ import annotations

from lowft.compress.costs import count_flops
from lowft.compress.pruning import PruningReport, prune_
from lowft.compress.quantization import QuantizationReport, SensitivityTable, quantization_sensitivity, quantize_
from lowft.compress.student import make_student

__all__ = [
    "PruningReport",
    "QuantizationReport",
    "SensitivityTable",
    "count_flops",
    "make_student",
    "prune_",
    "quantization_sensitivity",
    "quantize_",
]
