"""Keeping transformers silent where lowft itself says what there is to say."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

__all__ = ["quiet"]


@contextlib.contextmanager
def quiet(*, bars: bool = False) -> Iterator[None]:
    """Silence transformers' warnings for a block, and its progress bars unless `bars` keeps them."""
    from transformers.utils import logging

    noise: Any = logging  # untyped in transformers
    level, had_bars = noise.get_verbosity(), noise.is_progress_bar_enabled()
    noise.set_verbosity_error()
    if not bars:
        noise.disable_progress_bar()
    try:
        yield
    finally:
        noise.set_verbosity(level)
        if had_bars:
            noise.enable_progress_bar()
