"""Fail when a public name of lowft is missing from the reference or has no docstring.

Usage: `python docs/check_coverage.py docs/_build/objects.inv`, after the documentation is built.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from sphinx.util.inventory import InventoryFile

import lowft


def _documented(inventory: Path) -> set[str]:
    """Return every Python name that the built documentation describes."""
    with inventory.open("rb") as stream:
        kinds = InventoryFile.load(stream, uri="", joinfunc=str.__add__)
    return {name for kind, entries in kinds.items() if kind.startswith("py:") for name in entries}


def _has_docstring(value: object) -> bool:
    """Tell whether someone wrote a docstring; a dataclass without one gets its signature for it."""
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return True  # a constant or an alias: Python keeps no docstring for it
    text = (value.__doc__ or "").strip()
    return bool(text) and not text.startswith(f"{value.__name__}(")


def main(inventory: Path) -> int:
    """Print what is missing and return the exit status."""
    if not inventory.is_file():
        print(f"{inventory} does not exist: build the documentation first, with: nox -s docs")
        return 2
    documented = _documented(inventory)
    faults = []
    for name in lowft.__all__:
        if f"lowft.{name}" not in documented:
            faults.append(f"lowft.{name} is not in the reference: list it in docs/reference.md")
        if not _has_docstring(getattr(lowft, name)):
            faults.append(f"lowft.{name} has no docstring: write one where it is defined")
    print(*faults, f"public names: {len(lowft.__all__)}, faults: {len(faults)}", sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
