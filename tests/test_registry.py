"""Tests of the registry: settings to JSON and back, by names that are looked up and never imported."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowft import registry
from lowft.errors import ConfigError
from lowft.registry import from_dict, register, registered, to_dict
from lowft.stages import MinImprovement, Target
from lowft.strategies import LayerwiseUnfreeze, PartialFreeze, Unfreeze
from lowft.strategy import Strategy, chain
from tests.strategy_cases import AllHooks


@register
@dataclass(frozen=True)
class Bag:
    """Settings that hold anything, each other included."""

    content: Any = None


@dataclass(frozen=True)
class Nobody:
    """Settings that nobody registered."""

    value: int = 1


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.builds(PartialFreeze, top=st.none() | st.integers(0, 9), freeze=st.lists(st.text()).map(tuple))
    | st.builds(Target, st.text(min_size=1), st.floats(allow_nan=False, allow_infinity=False))
    | st.builds(Unfreeze, st.just("all") | st.integers(0, 9), epochs=st.none() | st.floats(0.1, 9))
)
NESTED = st.recursive(
    LEAVES,
    lambda inner: (
        st.builds(Bag, inner)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(), inner, max_size=3).filter(lambda value: value.keys() != {"name", "settings"})
    ),
    max_leaves=12,
)


class FakeEntry:
    """An entry point of an installed package."""

    def __init__(self, name: str, result: Any) -> None:
        """Keep what loading brings: a class, or an error to raise."""
        self.name = name
        self.value = f"some_package:{name}"
        self.result = result

    def load(self) -> Any:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def install(monkeypatch: pytest.MonkeyPatch, entry: FakeEntry) -> None:
    """Make it look as if a package with this entry point were installed."""
    entries = {"lowft.strategies": [entry]}
    monkeypatch.setattr(registry, "entry_points", lambda *, group: entries.get(group, []))
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))


@given(value=NESTED)
def test_nested_settings_return_from_json_as_they_were(value: Any) -> None:
    """Whatever `to_dict` accepts is equal after a way through JSON text."""
    assert from_dict(json.loads(json.dumps(to_dict(value)))) == value


@pytest.mark.parametrize(
    "value",
    [
        chain(PartialFreeze(top=2), AllHooks(0.25)),
        LayerwiseUnfreeze((Unfreeze(1, learning_rate=1e-3), Unfreeze("all")), target=0.9, metric="loss"),
        MinImprovement("accuracy", 0.01),
    ],
)
def test_what_lowft_ships_returns(value: Any) -> None:
    """Strategies, chains of them, their settings and gates come back equal."""
    assert from_dict(json.loads(json.dumps(to_dict(value)))) == value


def test_lists_come_back_as_tuples() -> None:
    """JSON has one kind of sequence; a frozen dataclass is best served by tuples."""
    assert from_dict(to_dict(Bag([1, [2]]))) == Bag((1, (2,)))


def test_infinity_returns() -> None:
    """Python's JSON keeps infinities."""
    assert from_dict(json.loads(json.dumps(to_dict(Bag(-math.inf))))) == Bag(-math.inf)


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (Bag({1, 2}), "Bag.content is {1, 2}"),
        (Bag((0, {"a": object})), "Bag.content[1]['a'] is <class 'object'>"),
        (Bag({1: "a"}), "Bag.content is {1: 'a'}"),
        (Bag({"name": "x", "settings": {}}), "not with just 'name' and 'settings'"),
        (Bag(Nobody()), "Bag.content is Nobody(value=1)"),
        (lambda: 0, "settings is <function"),
    ],
)
def test_what_cannot_be_saved_is_named_with_its_place(value: Any, where: str) -> None:
    """A value that would not come back is refused, with the setting that holds it and what to do."""
    with pytest.raises(ConfigError, match=re.escape(where)) as caught:
        to_dict(value)
    assert "cannot be saved" in str(caught.value)
    assert "state.memory" in str(caught.value)


def test_a_namesake_is_not_mistaken_for_the_registered_class() -> None:
    """A dataclass that happens to be called like a registered one is not written under that name."""

    @dataclass(frozen=True)
    class Unfreeze:
        top: int = 1

    with pytest.raises(ConfigError, match="cannot be saved"):
        to_dict(Unfreeze())


def test_fields_that_are_computed_are_not_written() -> None:
    """A field that `__init__` does not take is made anew."""

    @register
    @dataclass(frozen=True)
    class Computed:
        base: int
        double: int = field(init=False)

        def __post_init__(self) -> None:
            object.__setattr__(self, "double", 2 * self.base)

    assert to_dict(Computed(3)) == {"name": "Computed", "settings": {"base": 3}}
    assert from_dict(to_dict(Computed(3))) == Computed(3)


def test_an_unknown_name_lists_near_ones() -> None:
    """A name that is not registered is never imported; near names are shown, or all."""
    with pytest.raises(ConfigError, match=r"'PartialFreze' is not a registered .*near names: PartialFreeze"):
        from_dict({"name": "PartialFreze", "settings": {}})
    with pytest.raises(ConfigError, match=r"known: .*LayerwiseUnfreeze, .*PartialFreeze"):
        from_dict({"name": "os.system", "settings": {}})


@pytest.mark.parametrize("name", [3, None, ["PartialFreeze"], {"name": "PartialFreeze"}])
def test_a_name_that_is_no_text_is_refused(name: Any) -> None:
    """A damaged file cannot get past the registry."""
    with pytest.raises(ConfigError, match="is not a registered strategy"):
        from_dict({"name": name, "settings": {}})


def test_settings_that_do_not_fit_are_refused() -> None:
    """Unknown settings, values out of range and settings that are no dictionary name the class."""
    with pytest.raises(ConfigError, match=r"PartialFreeze does not take these settings: \{'layers': 2\}"):
        from_dict({"name": "PartialFreeze", "settings": {"layers": 2}})
    with pytest.raises(ConfigError, match=r"Unfreeze\.top must be"):
        from_dict({"name": "Unfreeze", "settings": {"top": -1}})
    with pytest.raises(ConfigError, match=r"the settings of PartialFreeze must be a dictionary; received \[2\]"):
        from_dict({"name": "PartialFreeze", "settings": [2]})


def test_a_name_belongs_to_one_class() -> None:
    """A second class of a name is refused; the same class, as a cell run again makes it, replaces the first."""

    def make() -> type:
        @dataclass(frozen=True)
        class Repeated(Strategy):
            pass

        return Repeated

    first, second = make(), make()
    assert registered()["Repeated"] is second is not first
    assert to_dict(first()) == to_dict(second())
    with pytest.raises(ConfigError, match=r"the name 'Repeated' is taken by .*make.*give it another name"):

        @dataclass(frozen=True)
        class Repeated(Strategy):
            pass


def test_only_classes_are_registered() -> None:
    """A function or an object is refused."""
    with pytest.raises(ConfigError, match="register takes a class; received Bag"):
        register(Bag())  # type: ignore[type-var]


def test_an_installed_package_adds_its_strategies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class behind an entry point is found by name, though nothing imported its module."""
    outside = dataclasses.make_dataclass("Outside", [("rate", float, 0.5)], frozen=True)
    install(monkeypatch, FakeEntry("Outside", outside))
    assert from_dict({"name": "Outside", "settings": {"rate": 0.25}}) == outside(0.25)
    assert registered()["Outside"] is outside
    assert to_dict(outside(0.25)) == {"name": "Outside", "settings": {"rate": 0.25}}


def test_an_entry_point_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken package raises its own error with its entry point, and does not harm names that are known."""
    install(monkeypatch, FakeEntry("Unimportable", ImportError("no module named gone")))
    with pytest.raises(ImportError, match="gone") as caught:
        from_dict({"name": "Unimportable", "settings": {}})
    assert caught.value.__notes__ == [
        "raised by the entry point Unimportable = some_package:Unimportable of the group lowft.strategies"
    ]
    assert from_dict({"name": "PartialFreeze", "settings": {"top": 1}}) == PartialFreeze(top=1)
    assert to_dict(PartialFreeze(top=1))["name"] == "PartialFreeze"


def test_a_really_installed_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own metadata of a package on the path leads to its strategy."""
    (tmp_path / "lowft_elsewhere.py").write_text(_PACKAGE)
    metadata = tmp_path / "lowft_elsewhere-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lowft-elsewhere\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[lowft.strategies]\nElsewhere = lowft_elsewhere:Elsewhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))
    found = from_dict({"name": "Elsewhere", "settings": {"power": 3}})
    assert isinstance(found, Strategy)
    assert to_dict(found) == {"name": "Elsewhere", "settings": {"power": 3}}


_PACKAGE = """
from dataclasses import dataclass
from lowft.strategy import Strategy

@dataclass(frozen=True)
class Elsewhere(Strategy):
    power: int = 2
"""
