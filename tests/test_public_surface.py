"""Tests of what lowft shows to its users."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

import lowft

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(lowft.__path__, "lowft.")
    if not any(part.startswith("_") for part in module.name.split("."))
)


def _as_ruff_sorts(name: str) -> tuple[bool, bool, str]:
    """Return the key of the order that ruff asks for: CONSTANTS, then Classes, then functions."""
    return not name.isupper(), not name[0].isupper(), name


def test_all_is_what_the_package_shows() -> None:
    """`lowft.__all__` names every visible object of the package and nothing else."""
    visible = {
        name
        for name, value in vars(lowft).items()
        if not name.startswith("_") and not isinstance(value, ModuleType) and value is not annotations
    }
    assert set(lowft.__all__) == visible


def test_no_foreign_module_shows() -> None:
    """No module that lowft imports for itself can be reached as an attribute of the package."""
    modules = {value.__name__ for name, value in vars(lowft).items() if isinstance(value, ModuleType)}
    assert {name for name in modules if not name.startswith("lowft.")} == set()


@pytest.mark.parametrize("module_name", ["lowft", *MODULES])
def test_all_is_sorted(module_name: str) -> None:
    """Every public module has an `__all__`, sorted and without repetition, of names that exist."""
    module = importlib.import_module(module_name)
    names = list(module.__all__)
    assert names == sorted(set(names), key=_as_ruff_sorts)
    assert [name for name in names if not hasattr(module, name)] == []


@pytest.mark.parametrize("module_name", ["lowft", *MODULES])
def test_every_module_says_what_it_is_for(module_name: str) -> None:
    """Every public module has a docstring."""
    assert (importlib.import_module(module_name).__doc__ or "").strip()


@pytest.mark.parametrize("name", lowft.__all__)
def test_every_public_name_has_a_docstring(name: str) -> None:
    """Every public class and function has a docstring that someone wrote, not a dataclass's signature."""
    value = getattr(lowft, name)
    if inspect.isclass(value) or inspect.isroutine(value):
        text = (value.__doc__ or "").strip()
        assert text
        assert not text.startswith(f"{name}(")


@pytest.mark.parametrize("module_name", MODULES)
def test_names_are_defined_once(module_name: str) -> None:
    """A name of `lowft` that a submodule shows too is the same object there."""
    module = importlib.import_module(module_name)
    shared = set(lowft.__all__) & set(module.__all__)
    assert [name for name in shared if getattr(lowft, name) is not getattr(module, name)] == []
