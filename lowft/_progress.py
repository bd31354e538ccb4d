"""Progress bars, where somebody looks at them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tqdm import tqdm

__all__ = ["progress_bar"]


def progress_bar(items: Iterable[Any] | None, description: str, *, shown: bool | None, **settings: Any) -> tqdm[Any]:
    """Return a tqdm bar over `items`.

    Args:
        items: What to go through, or None to move the bar by hand.
        description: Its label.
        shown: Whether to show it; None shows it in terminals and notebooks, not in log files.
        **settings: Passed to tqdm.
    """
    from tqdm.auto import tqdm

    if shown is None:
        # A program without a console has no stderr.
        shown = (sys.stderr is not None and sys.stderr.isatty()) or _in_notebook()
    return tqdm(items, description, disable=not shown, **settings)


def _in_notebook() -> bool:
    """Say whether a notebook's kernel runs this; tqdm itself takes its output for a log file."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config
