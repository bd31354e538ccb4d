"""Tests of strategies, of how they combine, and of the contracts between them."""

from __future__ import annotations

import itertools
import pickle
import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowft.data.batching import Batch, BatchRandom, Example
from lowft.data.rows import Rows
from lowft.errors import ConfigError, StrategyConflictError, TrainingError
from lowft.stages import Stage
from lowft.state import State
from lowft.strategies import LayerwiseUnfreeze, PartialFreeze
from lowft.strategy import Chain, Contract, Strategy, chain
from tests.strategy_cases import AllHooks

FOLDED = {  # each hook that returns what it was given, with arguments to call it by
    "prepare_data": (Rows(("a",)),),
    "prepare_model": (torch.nn.Linear(1, 1),),
    "stages": ((Stage(),), torch.nn.Linear(1, 1)),
    "on_examples": ([Example(0, "a")], BatchRandom(1, position=(0,))),
    "on_batch": (Batch({"input_ids": torch.ones(1, 1)}), State(torch.nn.Linear(1, 1), Stage("first"), step=7)),
    "on_loss": (torch.ones(()), None, None, State(torch.nn.Linear(1, 1), Stage("first"), step=7)),
    "finish_model": (torch.nn.Linear(1, 1),),
}
TOLD = {name: (State(torch.nn.Linear(1, 1), Stage("first"), step=7),) for name in ("on_stage_start", "before_step")}
HOOKS: dict[str, tuple[Any, ...]] = {**FOLDED, **TOLD}

FACTS = st.frozensets(st.sampled_from("abc"), max_size=2)
CONTRACTS = st.lists(st.builds(Contract, FACTS, FACTS, FACTS), min_size=1, max_size=5)


@dataclass(frozen=True)
class First(Strategy):
    """Passes everything on, and says so."""

    log: ClassVar[list[str]] = []

    def __getattribute__(self, name: str) -> Any:
        if name in HOOKS:
            type(self).log.append(f"{type(self).__name__}.{name}")
        return super().__getattribute__(name)


@dataclass(frozen=True)
class Second(First):
    """The same, under another name."""


def made(contracts: Sequence[Contract]) -> list[Strategy]:
    """Return strategies P0, P1, … with these contracts."""
    names = [f"P{index}" for index in range(len(contracts))]
    own = {"__module__": __name__}
    pairs = zip(names, contracts, strict=True)
    return [type(name, (Strategy,), {"contract": contract, **own})() for name, contract in pairs]


def works(parts: Sequence[Strategy]) -> bool:
    """Read the rules naively: what is needed is there, what is there is not destroyed."""
    return all(
        part.contract.needs <= before and not part.contract.invalidates & before
        for index, part in enumerate(parts)
        for before in [frozenset().union(*(earlier.contract.provides for earlier in parts[:index]))]
    )


def raising(hook: str, action: Callable[[], Any]) -> Strategy:
    """Return a strategy of which one hook acts otherwise."""
    own = {"__module__": __name__, hook: lambda _self, *_arguments: action()}
    strategy: Strategy = type("Faulty", (Strategy,), own)()
    return strategy


@settings(max_examples=300)
@given(contracts=CONTRACTS)
def test_an_order_is_accepted_exactly_where_the_rules_allow_it(contracts: list[Contract]) -> None:
    """Any list is accepted as given or refused; if another order works, the message names one that does."""
    parts = made(contracts)
    if works(parts):
        assert list(chain(*parts).strategies) == parts
        return
    with pytest.raises(StrategyConflictError) as caught:
        chain(*parts)
    named = re.search(r"The order that works: \[(.*)\]", str(caught.value))
    if named:
        by_name = {part.name: part for part in parts}
        order = named[1].split(", ")
        assert sorted(order) == sorted(by_name)
        assert works([by_name[name] for name in order])
    else:
        assert not any(works(order) for order in itertools.permutations(parts))


def test_the_order_that_works_is_found_among_many() -> None:
    """A dozen strategies in the wrong order are told the right one, at once."""
    contracts = [Contract(needs=frozenset({f"f{index + 1}"}), provides=frozenset({f"f{index}"})) for index in range(12)]
    parts = made([*contracts, Contract(provides=frozenset({"f12"}))])
    expected = ", ".join(f"P{index}" for index in range(12, -1, -1))
    with pytest.raises(StrategyConflictError, match=re.escape(f"The order that works: [{expected}].")):
        chain(*parts)


def test_a_conflict_names_both_sides_and_what_to_do() -> None:
    """The message says who destroys what of whom, or who lacks what, and the way out."""
    user, maker = made([Contract(needs=frozenset({"x"})), Contract(provides=frozenset({"x"}))])
    with pytest.raises(StrategyConflictError) as caught:
        chain(user, maker)
    assert str(caught.value) == (
        "strategies=[P0, P1] cannot work: P0 needs 'x', and P1 provides it but comes later. "
        "The order that works: [P1, P0]."
    )
    with pytest.raises(StrategyConflictError, match=r"no strategy here provides it\. Add one that does"):
        chain(user)
    twice = Contract(provides=frozenset({"x"}), invalidates=frozenset({"x"}))
    with pytest.raises(StrategyConflictError, match=r"P1 changes 'x', on which P0 .* leave one of the two out"):
        chain(*made([twice, twice]))


def test_a_strategy_does_not_serve_itself() -> None:
    """A need is met by those before; that a strategy provides the same fact itself is no help and no cause."""
    both = Contract(needs=frozenset({"x"}), provides=frozenset({"x"}))
    with pytest.raises(StrategyConflictError, match="P0 needs 'x', and no strategy here provides it"):
        chain(*made([both]))
    assert len(chain(*made([Contract(provides=frozenset({"x"})), both])).strategies) == 2


def test_a_contract_holds_sets_of_words() -> None:
    """Any collection of words will do; a single text, which is a collection of letters, will not."""
    assert Contract(needs=["b", "a"]).needs == frozenset({"a", "b"})  # type: ignore[arg-type]
    for bad in ("trainable", None, 3, {1}):
        with pytest.raises(ConfigError, match=r"Contract\.provides must be a set of words; received"):
            Contract(provides=bad)  # type: ignore[arg-type]


def test_chains_flatten_and_have_a_neutral_element() -> None:
    """Chains in a chain are opened up, wherever they stand; an empty chain adds nothing."""
    one, two = PartialFreeze(embeddings=False), AllHooks()
    flat = chain(one, two)
    assert chain(chain(one), two) == chain(one, chain(two)) == chain(chain(), chain(one, two)) == flat
    assert flat.strategies == (one, two)
    assert chain() == Chain(())


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_run_in_the_order_of_the_list(hook: str) -> None:
    """A chain calls each hook of each strategy once, in order."""
    First.log.clear()
    getattr(chain(Second(), First()), hook)(*HOOKS[hook])
    assert First.log == [f"Second.{hook}", f"First.{hook}"]


@pytest.mark.parametrize("hook", FOLDED)
def test_hooks_do_nothing_by_default(hook: str) -> None:
    """A strategy that overrides nothing hands back the very object."""
    arguments = FOLDED[hook]
    assert getattr(chain(First()), hook)(*arguments) is arguments[0]


@pytest.mark.parametrize("hook", HOOKS)
def test_an_error_carries_the_name_of_its_hook(hook: str) -> None:
    """The original error comes through, with a note that says which hook of which strategy raised it."""
    error = KeyError("lost")

    def fail() -> None:
        raise error

    with pytest.raises(KeyError) as caught:
        getattr(chain(First(), raising(hook, fail)), hook)(*HOOKS[hook])
    assert caught.value is error
    (note,) = caught.value.__notes__
    assert note.startswith(f"raised by Faulty.{hook}")
    told_state = any(isinstance(argument, State) for argument in HOOKS[hook])
    assert ("in stage 'first', after step 7" in note) == told_state
    assert "in fail" in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("hook", FOLDED)
def test_a_hook_that_forgets_to_return_is_named(hook: str) -> None:
    """A hook that returns None is refused where it happens, not where the None does harm."""
    with pytest.raises(TrainingError, match=rf"Faulty\.{hook} returned None: it must return what it was given"):
        getattr(chain(raising(hook, lambda: None)), hook)(*HOOKS[hook])


@pytest.mark.parametrize(("hook", "nothing"), [("on_examples", []), ("stages", ())])
def test_a_hook_may_not_leave_nothing(hook: str, nothing: Any) -> None:
    """A batch without rows and a run without stages are refused, with the name of the hook."""
    with pytest.raises(TrainingError, match=rf"Faulty\.{hook} returned {re.escape(repr(nothing))}"):
        getattr(chain(raising(hook, lambda: nothing)), hook)(*HOOKS[hook])


def test_rows_recur_where_no_strategy_changes_them() -> None:
    """One that changes rows leaves none that come twice, unless it says which; a chain asks all."""
    rows, more = Rows(("a",)), Rows(("a", "b"))

    @dataclass(frozen=True)
    class Changes(Strategy):
        def on_examples(self, examples: list[Example], rng: BatchRandom) -> list[Example]:
            return examples

    @dataclass(frozen=True)
    class Knows(Changes):
        def recurring(self, dataset: Rows) -> Rows:
            return more

    assert PartialFreeze(top=1).recurring(rows) is rows
    assert Changes().recurring(rows) is None
    assert chain(PartialFreeze(top=1), Knows()).recurring(rows) is more
    assert chain(Changes(), Knows()).recurring(rows) is None


def test_what_is_no_strategy_is_refused() -> None:
    """A class, a list and any other object are refused with what to write instead."""
    with pytest.raises(ConfigError, match=r"PartialFreeze is the class; write PartialFreeze\(\.\.\.\)"):
        chain(PartialFreeze)  # type: ignore[arg-type]
    for other in ("PartialFreeze", [PartialFreeze()], None):
        with pytest.raises(ConfigError, match=re.escape(f"lowft.Strategy objects; received {other!r}")):
            chain(other)  # type: ignore[arg-type]


def test_a_strategy_stands_once() -> None:
    """Two of one class are refused, nested ones too; a subclass under another name is a strategy of its own."""
    with pytest.raises(StrategyConflictError, match="PartialFreeze stands 2 times"):
        chain(PartialFreeze(top=1), chain(AllHooks(), PartialFreeze(top=2)))
    assert len(chain(First(), Second()).strategies) == 2


def test_shipped_strategies_combine_in_both_orders() -> None:
    """A partial freeze narrows the stages of an unfreezing, before it or after it."""
    one, two = PartialFreeze(embeddings=False), LayerwiseUnfreeze()
    assert chain(one, two).strategies == (one, two)
    assert chain(two, one).strategies == (two, one)


def test_a_chain_travels_to_worker_processes() -> None:
    """A chain and its bound hooks survive pickling, as worker processes that are spawned need it."""
    chained = chain(LayerwiseUnfreeze(target=0.9), PartialFreeze(freeze=("*.bias",)), AllHooks(0.5))
    assert pickle.loads(pickle.dumps(chained)) == chained  # noqa: S301 - our own bytes
    hook = pickle.loads(pickle.dumps(chained.on_examples))  # noqa: S301
    example = Example(3, "a good film", None, 1)
    assert hook([example], BatchRandom(1, position=(0,))) == chained.on_examples(
        [example], BatchRandom(1, position=(0,))
    )
