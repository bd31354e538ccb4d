"""Compression of models: functions that prune, quantize and shrink, and the record of what they did."""

from __future__ import annotations

__all__: list[str] = []
