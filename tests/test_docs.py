"""The README and the documentation pages: every Python block in them runs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
    if "```python" in path.read_text("utf-8") and "_build" not in path.parts
)


def _runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_pages", ROOT / "docs" / "run_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_pages() -> None:
    """The pages are found: an empty list would pass silently."""
    assert "README.md" in PAGES
    assert len(PAGES) >= 5


@pytest.fixture
def _all_cores() -> Iterator[None]:
    """Let the real model of the pages use every core; no page is compared to the bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_all_cores")
@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs(page: str, tmp_path: Path) -> None:
    """Each Python block of a page runs, in order, without an error."""
    assert _runner().run_page(ROOT / page, tmp_path)
