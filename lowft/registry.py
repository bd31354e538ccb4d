"""Settings objects by name: how a recipe is written to JSON and read back without importing anything it names."""

from __future__ import annotations

import dataclasses
import difflib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from lowft.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["from_dict", "register", "registered", "to_dict"]

_Class = TypeVar("_Class", bound=type)

_ENTRY_POINT = "lowft.strategies"
_KEYS = {"name", "settings"}
_CLASSES: dict[str, type] = {}


def register(cls: _Class) -> _Class:
    """Make a settings class known by its name, so that files can name it; strategies do this by themselves.

    Args:
        cls: A class that is, or is about to be, a frozen dataclass.

    Raises:
        ConfigError: It is not a class, or another module already has a class of that name.

    >>> import dataclasses
    >>> @register
    ... @dataclasses.dataclass(frozen=True)
    ... class Ramp:
    ...     steps: int = 10
    >>> from_dict(to_dict(Ramp(3)))
    Ramp(steps=3)
    """
    if not isinstance(cls, type):
        raise ConfigError(f"register takes a class; received {cls!r}")
    known = _CLASSES.get(cls.__name__)
    if known is not None and not _is_same(known, cls):
        raise ConfigError(
            f"the name {cls.__name__!r} is taken by {known.__module__}.{known.__qualname__}, so "
            f"{cls.__module__}.{cls.__qualname__} cannot be registered under it: give it another name"
        )
    _CLASSES[cls.__name__] = cls
    return cls


def registered() -> Mapping[str, type]:
    """Return every known settings class by name, those of installed packages included.

    Other packages add theirs with the entry point group `lowft.strategies`.

    >>> "PartialFreeze" in registered()
    True
    """
    import lowft.strategies  # noqa: F401 - defines, and so registers, those that lowft ships

    for entry in entry_points(group=_ENTRY_POINT):
        if entry.name not in _CLASSES:
            try:
                register(entry.load())
            except Exception as error:
                error.add_note(f"raised by the entry point {entry.name} = {entry.value} of the group {_ENTRY_POINT}")
                raise
    return dict(_CLASSES)


def to_dict(value: Any, *, where: str = "settings") -> Any:
    """Return settings as values that JSON holds; a settings object becomes `{"name": …, "settings": …}`.

    A list and a tuple are the same to JSON: `from_dict` returns tuples.

    Raises:
        ConfigError: A value that JSON cannot hold, with its place.

    >>> from lowft.strategies import PartialFreeze
    >>> to_dict(PartialFreeze(top=2))["name"]
    'PartialFreeze'
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [to_dict(item, where=f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value) and value.keys() != _KEYS:
        return {key: to_dict(item, where=f"{where}[{key!r}]") for key, item in value.items()}
    name = type(value).__name__
    known = _find(name)
    if dataclasses.is_dataclass(value) and known is not None and _is_same(known, type(value)):
        settings = {
            field.name: to_dict(getattr(value, field.name), where=f"{name}.{field.name}")
            for field in dataclasses.fields(value)
            if field.init
        }
        return {"name": name, "settings": settings}
    raise ConfigError(
        f"{where} is {value!r}, which cannot be saved: settings are JSON values (text, numbers, lists, "
        f"dictionaries with text keys, but not with just 'name' and 'settings') or frozen dataclasses registered "
        f"with lowft.register. Keep what changes during a run in state.memory."
    )


def from_dict(value: Any) -> Any:
    """Return the settings that `to_dict` wrote. Names are looked up in the registry, never imported.

    Raises:
        ConfigError: A name that is not registered, or settings that its class does not take, or refuses.

    >>> from_dict({"name": "PartialFreeze", "settings": {"top": 2}}).top
    2
    """
    if isinstance(value, list):
        return tuple(from_dict(item) for item in value)
    if not isinstance(value, dict):
        return value
    if value.keys() != _KEYS:
        return {key: from_dict(item) for key, item in value.items()}
    name, settings = value["name"], value["settings"]
    cls = _find(name) if isinstance(name, str) else None
    if cls is None:
        known = registered()
        near = difflib.get_close_matches(str(name), known, n=3)
        raise ConfigError(
            f"{name!r} is not a registered strategy or settings class; "
            f"{'near names: ' + ', '.join(near) if near else 'known: ' + ', '.join(sorted(known))}. "
            f"Import the module that defines it first, or install the package that brings it."
        )
    if not isinstance(settings, dict):
        raise ConfigError(f"the settings of {name} must be a dictionary; received {settings!r}")
    try:
        return cls(**{key: from_dict(item) for key, item in settings.items()})
    except TypeError as error:
        raise ConfigError(f"{name} does not take these settings: {settings!r} ({error})") from error


def _find(name: str) -> type | None:
    """Return the class of that name; installed packages are asked only where it is not known already."""
    return _CLASSES.get(name) or registered().get(name)


def _is_same(one: type, other: type) -> bool:
    """Say whether two classes are one, or one and what its cell or module made of it when run again."""
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)
