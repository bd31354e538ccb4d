"""Tests of when progress bars show."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from lowft._progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def _no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", None)


@pytest.mark.usefixtures("_no_notebook")
@pytest.mark.parametrize(("shown", "expected"), [(None, True), (True, True), (False, False)])
def test_a_terminal_shows_bars_unless_told_not_to(
    shown: bool | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None shows the bar where somebody looks."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    assert list(progress_bar([1, 2], "reading", shown=shown)) == [1, 2]
    assert ("reading" in screen.getvalue()) == expected


@pytest.mark.usefixtures("_no_notebook")
@pytest.mark.parametrize(("shown", "expected"), [(None, False), (True, True)])
def test_a_log_file_stays_clean(shown: bool | None, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """None shows nothing where the output is no terminal."""
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    assert list(progress_bar([1, 2], "reading", shown=shown)) == [1, 2]
    assert ("reading" in log.getvalue()) == expected


@pytest.mark.usefixtures("_no_notebook")
def test_a_program_without_a_console_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python has no stderr at all, nothing is shown and nothing breaks."""
    monkeypatch.setattr(sys, "stderr", None)
    assert list(progress_bar([1, 2], "reading", shown=None)) == [1, 2]


@pytest.mark.parametrize(
    ("shell", "expected"),
    [
        (SimpleNamespace(config={"IPKernelApp": {}}), True),
        (SimpleNamespace(config={}), False),
        (None, False),
    ],
)
def test_a_notebook_shows_bars(shell: Any, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook's kernel counts as somebody who looks; a plain IPython script does not."""
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    bar = progress_bar(None, "reading", shown=None, total=2)
    disabled = bar.disable  # closing it would set this
    bar.close()
    assert disabled != expected
