"""Run the Python of documentation pages, and write what it prints under it: `python docs/run_pages.py PAGE …`.

The blocks of a page run in order, in one process and one namespace, in an empty folder. A block fenced as `text` that
follows one of `python` is its output. Pictures that the code saves are put beside the page.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

__all__ = ["python_blocks", "run_page"]

_BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n```text\n(?P<output>.*?)```\n)?", re.DOTALL)


def python_blocks(page: Path) -> list[str]:
    """Return the Python blocks of a page, in order."""
    return [match["code"] for match in _BLOCK.finditer(page.read_text("utf-8"))]


def run_page(page: Path, folder: Path) -> list[str]:
    """Run a page's Python in a folder, and return what each block printed.

    Raises:
        Exception: Whatever the page's code raises.
    """
    namespace: dict[str, object] = {"__name__": "__main__"}
    outputs = []
    with contextlib.chdir(folder):
        for number, code in enumerate(python_blocks(page), start=1):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(code, f"{page.name}, block {number}", "exec"), namespace)  # noqa: S102 - our own pages
            outputs.append(printed.getvalue())
    return outputs


def _write_outputs(page: Path, outputs: list[str]) -> None:
    remaining = iter(outputs)

    def block(match: re.Match[str]) -> str:
        lines = [line.rstrip() for line in next(remaining).splitlines()]
        shown = "\n```text\n" + "\n".join(lines).strip("\n") + "\n```\n" if any(lines) else ""
        return f"```python\n{match['code']}```\n{shown}"

    page.write_text(_BLOCK.sub(block, page.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for argument in sys.argv[1:]:
        path = Path(argument).resolve()
        with tempfile.TemporaryDirectory() as scratch:
            _write_outputs(path, run_page(path, Path(scratch)))
            for picture in Path(scratch).glob("*.png"):
                shutil.copy(picture, path.parent)
