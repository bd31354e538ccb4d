"""Compression of models: functions that make one smaller, and the record of what they did."""

from __future__ import annotations

from lowft.compress.pruning import PruningReport, prune_
from lowft.compress.student import make_student

__all__ = ["PruningReport", "make_student", "prune_"]
