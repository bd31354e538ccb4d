"""What a strategy is, how strategies combine, and where the training loop calls them.

The loop, drawn once, with every hook marked `←`. The Trainer, `lowft.attach` and every bridge run this one:

    prepare_data(dataset)                 ← once: more rows, other views of them
    prepare_model(model)                  ← once: surgery, before the optimizer exists
    stages(stages, model)                 ← once: one stage may become several
    for stage in stages:
        what trains is set: everything outside `stage.trainable` is frozen
        on_stage_start(state)             ←
        recurring(dataset)                ← the rows that the batches hold again and again: frozen layers run once
        for_epoch(state)                  ← as each pass over the rows begins: whose `on_examples` changes them
        for step in stage:
            on_examples(examples, rng)    ← raw rows, as a batch is collated (may run in a worker process)
            on_batch(batch, state)        ← tensors on their device
            outputs = model(**batch.inputs)
            row_weights(weights, outputs, batch, state) ← how much each row counts in the loss on labels
            loss = loss_fn(outputs.logits, batch.labels)
            on_loss(loss, outputs, batch, state) ←
            loss.backward()
            before_step(state)            ← gradients are there, clipped and finite
            optimizer.step()
        evaluate; the stage's gate decides: continue, stop or roll back
    finish_model(model)                   ← once: what will be deployed

A strategy is a frozen dataclass of settings. It holds nothing that changes: that lives in
`state.memory[name]`, as JSON values and tensors, so that it is saved and restored without any code of its own.
"""

from __future__ import annotations

import contextlib
from abc import ABC
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, final

from lowft.errors import ConfigError, StrategyConflictError, TrainingError
from lowft.state import State

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from torch import Tensor

    from lowft.data.batching import Batch, BatchRandom, Example
    from lowft.data.rows import Rows
    from lowft.stages import Stage

__all__ = ["Chain", "Contract", "Strategy", "chain", "chain_of"]

_Value = TypeVar("_Value")

_NOBODY = "no strategy here provides it"


@dataclass(frozen=True)
class Contract:
    """What a strategy asks of those before it, and does to what they have done.

    Facts are words such as `"trainable"` (which parameters train), `"stages"`, `"shapes"` (of parameters),
    `"precision"` (of weights), `"modules"` (added to the model while it trains), `"prefix"` (a frozen prefix that can
    be cached), `"unlabeled"` (something is learnt from rows without labels) and `"exportable"`. A package with
    strategies of its own may use words of its own.

    Args:
        needs: Facts that a strategy earlier in the list must provide.
        provides: Facts that hold from this strategy on, and that it relies on until the end.
        invalidates: Facts that this strategy destroys: it cannot follow one that provides them.

    Raises:
        ConfigError: One of them is not a set of words.

    >>> Contract(provides=frozenset({"trainable"})).needs
    frozenset()
    """

    needs: frozenset[str] = frozenset()
    provides: frozenset[str] = frozenset()
    invalidates: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Take any collection of words, but not a single text, which is a collection of letters."""
        for field in fields(self):
            words = getattr(self, field.name)
            plain = isinstance(words, Collection) and not isinstance(words, str)
            if not plain or not all(isinstance(word, str) for word in words):
                raise ConfigError(f"Contract.{field.name} must be a set of words; received {words!r}")
            object.__setattr__(self, field.name, frozenset(words))


@dataclass(frozen=True)
class Strategy(ABC):
    """One way to train with less: override the hooks you need, every other one does nothing.

    Declare a subclass as `@dataclass(frozen=True)` with settings that JSON can hold; it is then registered
    under its class name, and resumes and exports like those that lowft ships. Hooks that transform return their
    value. The module's docstring shows when each is called.

    >>> @dataclass(frozen=True)
    ... class ScaleLoss(Strategy):
    ...     factor: float = 0.5
    ...
    ...     def on_loss(self, loss, outputs, batch, state):
    ...         return loss * self.factor
    >>> ScaleLoss(0.25).name
    'ScaleLoss'
    """

    contract: ClassVar[Contract] = Contract()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Register the class, so that files can name it."""
        from lowft.registry import register

        super().__init_subclass__(**kwargs)
        register(cls)

    @property
    def name(self) -> str:
        """The name in the registry, in recipes, in messages, and the key of `state.memory`."""
        return type(self).__name__

    def recorded(self) -> Strategy:
        """Return the strategy as recipes and checkpoints name it: without what only this machine knows."""
        return self

    def prepare_data(self, dataset: Rows) -> Rows:
        """Return the training rows, perhaps with more."""
        return dataset

    def prepare_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model, perhaps changed, before the optimizer exists."""
        return model

    def stages(self, stages: tuple[Stage, ...], model: torch.nn.Module) -> tuple[Stage, ...]:  # noqa: ARG002
        """Return the stages, perhaps split, narrowed or with other settings."""
        return stages

    def recurring(self, dataset: Rows) -> Rows | None:
        """Return the rows that batches hold again and again, with what `on_examples` and `on_batch` make of them.

        Frozen layers are computed once for each of them. None where no row comes twice as it was, which is assumed of a
        strategy that changes rows and does not say otherwise.
        """
        changed = type(self).on_examples is not Strategy.on_examples or type(self).on_batch is not Strategy.on_batch
        return None if changed else dataset

    def on_stage_start(self, state: State) -> None:
        """Act when a stage begins and what trains has been set."""

    def for_epoch(self, state: State) -> Strategy:  # noqa: ARG002
        """Return the strategy whose `on_examples` changes the rows of the epoch that begins: this one, or a copy.

        For a strategy that changes rows in the light of what has happened, which worker processes cannot see. It is
        called once more where a run resumes within an epoch, and must then return the same as before.
        """
        return self

    def on_examples(self, examples: list[Example], rng: BatchRandom) -> list[Example]:  # noqa: ARG002
        """Return the raw rows of a batch, perhaps with more; may run in a worker process."""
        return examples

    def on_batch(self, batch: Batch, state: State) -> Batch:  # noqa: ARG002
        """Return the batch of tensors that the model will see."""
        return batch

    def row_weights(self, weights: Tensor, outputs: Any, batch: Batch, state: State) -> Tensor:  # noqa: ARG002
        """Return by what the loss on labels of each row is multiplied, `[batch]`; ones at first."""
        return weights

    def on_loss(self, loss: Tensor, outputs: Any, batch: Batch, state: State) -> Tensor:  # noqa: ARG002
        """Return the loss to minimise, a mean over the rows of the batch."""
        return loss

    def before_step(self, state: State) -> None:
        """Act when the gradients of a step are there, just before the optimizer uses them."""

    def finish_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model that will be evaluated last and deployed."""
        return model


@final
@dataclass(frozen=True)
class Chain(Strategy):
    """Several strategies that act as one, each hook in the order of the list. Made by `chain`."""

    strategies: tuple[Strategy, ...] = ()

    def prepare_data(self, dataset: Rows) -> Rows:
        """Return the training rows after every strategy has prepared them."""
        return self._fold("prepare_data", dataset)

    def prepare_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model after every strategy has prepared it."""
        return self._fold("prepare_model", model)

    def stages(self, stages: tuple[Stage, ...], model: torch.nn.Module) -> tuple[Stage, ...]:
        """Return the stages that remain after every strategy has shaped them."""
        return self._fold("stages", stages, model)

    def recurring(self, dataset: Rows) -> Rows | None:
        """Return the rows that come again and again after every strategy; None where one of them leaves none."""
        rows: Rows | None = dataset
        for strategy in self.strategies:
            with _blame(strategy, "recurring", ()):
                rows = None if rows is None else strategy.recurring(rows)
        return rows

    def on_stage_start(self, state: State) -> None:
        """Tell every strategy that a stage begins."""
        self._each("on_stage_start", state)

    def for_epoch(self, state: State) -> Chain:
        """Return the strategies that change the rows of the epoch that begins."""
        found = []
        for strategy in self.strategies:
            with _blame(strategy, "for_epoch", (state,)):
                found.append(strategy.for_epoch(state))
                if not isinstance(found[-1], Strategy):
                    raise TrainingError(f"{strategy.name}.for_epoch must return a strategy; it returned {found[-1]!r}")
        return Chain(tuple(found))

    def on_examples(self, examples: list[Example], rng: BatchRandom) -> list[Example]:
        """Return the rows after every strategy has seen them."""
        return self._fold("on_examples", examples, rng)

    def on_batch(self, batch: Batch, state: State) -> Batch:
        """Return the batch after every strategy has seen it."""
        return self._fold("on_batch", batch, state)

    def row_weights(self, weights: Tensor, outputs: Any, batch: Batch, state: State) -> Tensor:
        """Return how much each row counts after every strategy has weighed it."""
        return self._fold("row_weights", weights, outputs, batch, state)

    def on_loss(self, loss: Tensor, outputs: Any, batch: Batch, state: State) -> Tensor:
        """Return the loss after every strategy has added its part."""
        return self._fold("on_loss", loss, outputs, batch, state)

    def before_step(self, state: State) -> None:
        """Let every strategy act before the optimizer does."""
        self._each("before_step", state)

    def finish_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model after every strategy has finished it."""
        return self._fold("finish_model", model)

    def _fold(self, hook: str, value: _Value, *rest: Any) -> _Value:
        """Pass `value` through the hook of every strategy in turn."""
        for strategy in self.strategies:
            with _blame(strategy, hook, rest):
                value = getattr(strategy, hook)(value, *rest)
                if value is None or (isinstance(value, list | tuple) and not value):
                    raise TrainingError(
                        f"{strategy.name}.{hook} returned {value!r}: it must return what it was given, changed or not"
                    )
        return value

    def _each(self, hook: str, state: State) -> None:
        for strategy in self.strategies:
            with _blame(strategy, hook, (state,)):
                getattr(strategy, hook)(state)


def chain(*strategies: Strategy) -> Chain:
    """Combine strategies into one, in the order given, or say why they cannot work together.

    Nothing is reordered: a list that cannot work is refused with the order that can.

    Args:
        *strategies: Strategies; a chain among them is opened up.

    Returns:
        A strategy whose hooks call those of its parts in turn.

    Raises:
        ConfigError: Something in the list is not a strategy, or a class stands in it twice.
        StrategyConflictError: A strategy needs what none before it provides, or destroys what one before it
            relies on.

    >>> from lowft.strategies import LayerwiseUnfreeze, PartialFreeze
    >>> len(chain(PartialFreeze(freeze=("*embeddings*",)), LayerwiseUnfreeze()).strategies)
    2
    """
    parts: list[Strategy] = []
    for strategy in strategies:
        if isinstance(strategy, type) and issubclass(strategy, Strategy):
            raise ConfigError(f"strategies: {strategy.__name__} is the class; write {strategy.__name__}(...)")
        if not isinstance(strategy, Strategy):
            raise ConfigError(f"strategies must be lowft.Strategy objects; received {strategy!r}")
        parts.extend(strategy.strategies if isinstance(strategy, Chain) else [strategy])
    names = [part.name for part in parts]
    for name in names:
        if names.count(name) > 1:
            raise StrategyConflictError(
                f"{name} stands {names.count(name)} times in {names}; a strategy may be given once. "
                f"Put its settings into one {name}(...), or subclass it under another name."
            )
    _check_contracts(parts)
    return Chain(tuple(parts))


def chain_of(strategies: Sequence[Strategy]) -> Chain:
    """Combine a list of strategies into one, as `chain` does, and refuse what is no list.

    Raises:
        ConfigError: As `chain`, or `strategies` is not a list.
    """
    if isinstance(strategies, str | bytes) or not hasattr(strategies, "__iter__"):
        raise ConfigError(
            f"strategies must be a list of strategies; received {strategies!r}. A Trainer takes 'auto' as well"
        )
    return chain(*strategies)


def _check_contracts(parts: Sequence[Strategy]) -> None:
    reason = _conflict(parts)
    if reason is None:
        return
    works = _working_order(parts)
    if works is not None:
        advice = f"The order that works: [{', '.join(part.name for part in works)}]."
    elif reason.endswith(_NOBODY):
        advice = "Add one that does, or take out the one that needs it."
    else:
        advice = "No order of these strategies works: leave one of the two out."
    received = ", ".join(part.name for part in parts)
    raise StrategyConflictError(f"strategies=[{received}] cannot work: {reason}. {advice}")


def _working_order(parts: Sequence[Strategy]) -> list[Strategy] | None:
    """Return the first order without conflict, in the sense of the list given; None where there is none.

    A part may come next once all that it needs is provided and nobody left destroys what it provides. What may
    come next stays so whatever is put before it, so taking the first such part never leads astray.
    """
    order: list[Strategy] = []
    left = list(parts)
    provided: set[str] = set()
    while left:
        for part in left:
            destroyed = frozenset().union(*(other.contract.invalidates for other in left if other is not part))
            if part.contract.needs <= provided and not part.contract.provides & destroyed:
                break
        else:
            return None
        order.append(part)
        left.remove(part)
        provided |= part.contract.provides
    return order


def _conflict(parts: Sequence[Strategy]) -> str | None:
    """Return why this order cannot work, naming both sides; None if it can."""
    holders: dict[str, str] = {}
    for part in parts:
        for fact in sorted(part.contract.needs):
            if fact not in holders:
                later = [other.name for other in parts if other is not part and fact in other.contract.provides]
                source = f"{later[0]} provides it but comes later" if later else _NOBODY
                return f"{part.name} needs {fact!r}, and {source}"
        for fact in sorted(part.contract.invalidates):
            if fact in holders:
                return f"{part.name} changes {fact!r}, on which {holders[fact]} before it relies"
        holders |= dict.fromkeys(part.contract.provides, part.name)
    return None


@contextlib.contextmanager
def _blame(strategy: Strategy, hook: str, arguments: tuple[Any, ...]) -> Iterator[None]:
    """Add the hook's name to whatever it raises; the traceback stays the original one."""
    try:
        yield
    except Exception as error:
        states = [argument for argument in arguments if isinstance(argument, State)]
        where = f" in stage {states[0].stage.name!r}, after step {states[0].step}" if states else ""
        error.add_note(f"raised by {strategy.name}.{hook}{where}")
        raise
