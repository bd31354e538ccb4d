"""Tests of stages, gates and the narrowing of what trains."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowft.errors import ConfigError, StrategyConflictError
from lowft.registry import from_dict, to_dict
from lowft.stages import Decision, Gate, MinImprovement, Stage, Target, Verdict, narrow

NAMES = st.frozensets(st.sampled_from("abcd"), min_size=1)
NUMBERS = st.floats(-1e6, 1e6)

BAD_PACE: list[tuple[str, Any, str]] = [
    ("learning_rate", 0, "a finite number above 0"),
    ("learning_rate", True, "a finite number above 0"),
    ("learning_rate", math.inf, "a finite number above 0"),
    ("epochs", "2", "a finite number above 0"),
    ("epochs", -1, "a finite number above 0"),
    ("epochs", math.nan, "a finite number above 0"),
    ("batch_size", 0, "a whole number of at least 1"),
    ("batch_size", 2.0, "a whole number of at least 1"),
    ("max_steps", "10", "a whole number of at least 1"),
    ("layer_decay", 0, "a finite number above 0 and at most 1"),
    ("layer_decay", 1.5, "a finite number above 0 and at most 1"),
    ("layer_decay", "0.9", "a finite number above 0 and at most 1"),
]
BAD_FLAGS: list[tuple[str, Any, str]] = [
    ("always", 1, "True or False"),
    ("prepares", "yes", "True or False"),
    ("labeled_only", None, "True or False"),
]


@pytest.mark.parametrize(("name", "value", "rule"), [*BAD_PACE, *BAD_FLAGS])
def test_a_setting_out_of_range_is_refused(name: str, value: Any, rule: str) -> None:
    """The message has the setting, the rule and the value."""
    with pytest.raises(ConfigError, match=re.escape(f"Stage.{name} must be {rule}; received {value!r}")):
        Stage(**{name: value})


@pytest.mark.parametrize("value", ["classifier.weight", 3])
def test_trainable_holds_names(value: Any) -> None:
    """One text is a set of letters to Python, and no set of names."""
    with pytest.raises(ConfigError, match=r"Stage\.trainable must be a set of names of parameters, or None"):
        Stage(trainable=value)


@pytest.mark.parametrize("value", [Target("loss", 1.0), "target", [0.9]])
def test_gates_are_gates(value: Any) -> None:
    """A gate outside a tuple, and what is no gate, are refused."""
    with pytest.raises(ConfigError, match=r"Stage\.gates must be a tuple of gates; received"):
        Stage(gates=value)


def test_collections_are_taken_as_they_come() -> None:
    """Lists and sets are stored as the frozen kinds; the caller's own stay theirs."""
    names, gates = {"a"}, [Target("loss", 1.0, greater_is_better=False)]
    stage = Stage(trainable=names, gates=gates)  # type: ignore[arg-type]
    names.add("b")
    gates.clear()
    assert stage.trainable == frozenset({"a"})
    assert len(stage.gates) == 1
    assert hash(stage) == hash(Stage(trainable=frozenset({"a"}), gates=stage.gates))


@pytest.mark.parametrize("gate", [Target, MinImprovement])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": ""}, "metric must be a text that is not empty; received ''"),
        ({"metric": 0.9}, "metric must be a text that is not empty; received 0.9"),
        ({"value": "0.9"}, "value must be a finite number; received '0.9'"),
        ({"value": math.nan}, "value must be a finite number; received nan"),
        ({"value": True}, "value must be a finite number; received True"),
        ({"greater_is_better": "no"}, "greater_is_better must be True or False; received 'no'"),
    ],
)
def test_a_gate_is_checked_before_anything_trains(gate: type, settings: dict[str, Any], message: str) -> None:
    """A bad gate is found when it is made, not after the stage that it should judge."""
    with pytest.raises(ConfigError, match=re.escape(f"{gate.__name__}.{message}")):
        gate(**({"metric": "accuracy", "value": 0.5} | settings))


@given(got=NUMBERS, value=NUMBERS, greater=st.booleans())
def test_a_target_stops_exactly_where_it_is_reached(got: float, value: float, *, greater: bool) -> None:
    """Equal counts as reached, in either direction."""
    verdict = Target("m", value, greater).decide([{"m": got}])
    assert (verdict.decision is Decision.STOP) == (got >= value if greater else got <= value)
    assert verdict.ends_training == (verdict.decision is Decision.STOP)
    assert ("did not reach" in verdict.reason) != verdict.ends_training


@given(before=NUMBERS, after=NUMBERS, value=st.floats(0, 10), greater=st.booleans())
def test_a_stage_that_brings_too_little_is_undone(before: float, after: float, value: float, *, greater: bool) -> None:
    """Only the last two stages are compared, and a gain of just the value is enough."""
    verdict = MinImprovement("m", value, greater).decide([{"m": 0.0}, {"m": before}, {"m": after}])
    gain = after - before if greater else before - after
    assert verdict.decision is (Decision.CONTINUE if gain >= value else Decision.ROLL_BACK)


def test_the_first_stage_is_never_undone() -> None:
    """There is nothing to compare the first stage with."""
    assert MinImprovement("m", 9.0).decide([{"m": 0.1}]).decision is Decision.CONTINUE


def test_a_gate_that_asks_for_what_was_not_measured_says_so() -> None:
    """The message lists what was measured and names a near one."""
    for gate in (Target("acuracy", 0.5), MinImprovement("acuracy")):
        with pytest.raises(ConfigError, match=r"measured by accuracy, loss; did you mean 'accuracy'\?"):
            gate.decide([{"accuracy": 0.5, "loss": 1.0}])
    with pytest.raises(ConfigError, match=r"measured by nothing$"):
        Target("accuracy", 0.5).decide([{}])


@pytest.mark.parametrize(("after", "decision"), [(0.84, Decision.ROLL_BACK), (0.86, Decision.CONTINUE)])
def test_an_improvement_may_be_held_against_the_noise(after: float, decision: Decision) -> None:
    """With "noise" the least improvement is the standard error that comes with the metric."""
    results = [{"m": 0.80, "m_noise": 0.9}, {"m": after, "m_noise": 0.05}]
    verdict = MinImprovement("m", "noise").decide(results)
    assert verdict.decision is decision
    assert "noise of these validation rows, 0.0500" in verdict.reason
    with pytest.raises(ConfigError, match="m_noise"):
        MinImprovement("m", "noise").decide([{"m": 0.8}, {"m": after}])


def test_the_first_gate_that_ends_training_decides() -> None:
    """Gates are asked in turn; where none ends the training, the last one's words stand."""
    reached, missed = Target("m", 0.5), Target("m", 0.9)
    undone = MinImprovement("m", 0.3)
    results = [{"m": 0.6}, {"m": 0.7}]
    assert Stage(gates=(missed, reached, undone)).decide(results).decision is Decision.STOP
    assert Stage(gates=(missed, undone, reached)).decide(results).decision is Decision.ROLL_BACK
    assert Stage(gates=(missed,)).decide(results).reason == "m 0.7000 did not reach the target 0.9"
    assert Stage().decide(results) == Verdict(Decision.CONTINUE, "no gate")


def test_a_gate_of_ones_own() -> None:
    """A subclass decides, is registered under its name, and cannot leave `decide` out."""

    @dataclass(frozen=True)
    class Patience(Gate):
        stages: int = 2

        def decide(self, results: Sequence[Mapping[str, float]]) -> Verdict:
            done = len(results) >= self.stages
            return Verdict(Decision.STOP if done else Decision.CONTINUE, "counted")

    stage = Stage(gates=(Patience(3),))
    assert [stage.decide([{}] * count).ends_training for count in (1, 2, 3)] == [False, False, True]
    assert from_dict(to_dict(Patience(3))) == Patience(3)
    assert Patience.may_roll_back
    assert not Target.may_roll_back
    with pytest.raises(TypeError, match="abstract"):
        Gate()  # type: ignore[abstract]


@given(sets=st.lists(st.none() | NAMES, min_size=1, max_size=4), names=NAMES)
def test_narrowing_intersects_or_says_what_overlaps_too_little(sets: list[frozenset[str] | None], names: Any) -> None:
    """Each stage trains what it trained and `names` allow; stages that differed and would not are refused."""
    stages = [Stage(f"s{index}", trainable=trainable) for index, trainable in enumerate(sets)]
    expected = [names if trainable is None else trainable & names for trainable in sets]
    levelled = any(
        expected[index] == expected[index - 1] and sets[index] != sets[index - 1] for index in range(1, len(sets))
    )
    if all(expected) and not levelled:
        assert [stage.trainable for stage in narrow(stages, names, "X")] == expected
    else:
        with pytest.raises(StrategyConflictError, match=r"^X leaves the stages? 's\d'"):
            narrow(stages, names, "X")
    assert [stage.trainable for stage in stages] == sets


def test_stages_of_equal_layers_may_stay_equal() -> None:
    """Two stages that differ in learning rate alone are narrowed alike, and that is no conflict."""
    narrowed = narrow([Stage("warm", learning_rate=1e-3), Stage("cool")], frozenset({"a"}), "PartialFreeze")
    assert [stage.trainable for stage in narrowed] == [frozenset({"a"})] * 2


def test_narrowing_says_what_to_do() -> None:
    """Both refusals name the strategy, the stages and the way out."""
    shallow, deep = Stage("top", trainable=frozenset("a")), Stage("all", trainable=frozenset("ab"))
    with pytest.raises(StrategyConflictError, match="stage 'top' nothing to train: let the two overlap, or leave"):
        narrow([shallow, deep], frozenset("b"), "PartialFreeze")
    with pytest.raises(StrategyConflictError, match="'top' and 'all' the same layers to train, so the second would"):
        narrow([shallow, deep], frozenset("a"), "PartialFreeze")
