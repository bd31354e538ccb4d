"""How many units stay and which: by a share of each kind, or by what the whole model may cost."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lowft._settings import check_choice, check_flag, check_real, check_whole
from lowft.compress.attention import find_heads, heads_in_config
from lowft.compress.costs import Seconds, unit_flops, unit_parameters
from lowft.compress.feed_forward import find_neurons
from lowft.compress.importance import GRADIENTS, Importance
from lowft.compress.parts import Kind, Part, cut_part_
from lowft.errors import ConfigError, ModelError

__all__ = ["CutPlan", "Goal", "Scope", "choose"]

Scope = Literal["layer", "global"]
BUDGETS = ("parameters", "flops", "latency")
_HALVINGS = 40  # of the interval in which a share is looked for
_ROUNDING = 1e-9  # what was counted once is still within the budget that it made
_TIMINGS = 6  # of really cut models on the way to a latency


@dataclass(frozen=True)
class Goal:
    """What is to be left of a model: the settings that `prune_` and `Prune` share.

    Attributes:
        neurons: Share of the neurons to cut.
        heads: Share of the heads to cut.
        budget: What the whole model may cost, as a fraction of what it costs now, and in what; None for shares.
        scope: Whether units compete within their layer or in the whole model.
        multiple_of: The neurons left in a layer are a multiple of this.
        shape: Rows and tokens of the batch for which operations and time are counted.
        uniform: Whether the config must be able to say what is left.
    """

    neurons: float
    heads: float
    budget: tuple[str, float] | None
    scope: Scope
    multiple_of: int
    shape: tuple[int, int]
    uniform: bool

    @staticmethod
    def of(owner: str, settings: Any) -> Goal:
        """Return the goal that the settings of `prune_` or `Prune` say, once each is in its range.

        Args:
            owner: Who is asked, for messages.
            settings: An object or a dictionary with them.

        Raises:
            ConfigError: One is out of its range, or two contradict each other.
        """
        plain = isinstance(settings, dict)
        value: Callable[[str], Any] = settings.__getitem__ if plain else lambda name: getattr(settings, name)
        for name in ("neurons", "heads", "weights"):
            check_real(f"{owner}: {name}", value(name), least=0, below=1)
        check_choice(f"{owner}: scope", value("scope"), get_args(Scope))
        check_choice(f"{owner}: importance", value("importance"), get_args(Importance))
        check_whole(f"{owner}: multiple_of", value("multiple_of"), least=1)
        check_flag(f"{owner}: uniform", value("uniform"))
        shape = value("shape")
        if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) != 2:
            raise ConfigError(f"{owner}: shape must be two whole numbers, rows and tokens; received {shape!r}")
        for name, number in zip(("rows", "tokens"), shape, strict=True):
            check_whole(f"{owner}: {name} of shape", number, least=1)
        given = [name for name in BUDGETS if value(name) is not None]
        for name in given:
            check_real(f"{owner}: {name}", value(name), above=0, below=1)
        shares = [name for name in ("neurons", "heads", "layers", "weights") if value(name)]
        if len(given) > 1 or (given and shares):
            raise ConfigError(
                f"{owner}: {' and '.join((*given, *shares))} say twice how much is to be left: give one budget "
                f"(parameters, flops or latency), or what to cut (neurons, heads, layers)"
            )
        if value("weights") and len(shares) > 1:
            raise ConfigError(f"{owner}: weights sets single weights to zero and goes alone, without other shares")
        if not given and not shares:
            raise ConfigError(
                f"{owner} has nothing to cut: give neurons, heads, layers, weights, or a budget (parameters, flops, "
                f"latency)"
            )
        if value("uniform") and value("scope") != "layer":
            raise ConfigError(
                f"{owner}: uniform=True leaves every layer as many, which scope={value('scope')!r} does not: leave one "
                f"of them out"
            )
        budget = (given[0], float(value(given[0]))) if given else None
        return Goal(
            value("neurons"),
            value("heads"),
            budget,
            value("scope"),
            value("multiple_of"),
            (shape[0], shape[1]),
            value("uniform"),
        )

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of units that compete."""
        heads: tuple[Kind, ...] = ("heads",) if self.heads or self.budget else ()
        neurons: tuple[Kind, ...] = ("neurons",) if self.neurons or self.budget else ()
        return (*heads, *neurons)

    def find_parts(self, model: nn.Module) -> tuple[Part, ...]:
        """Return the parts that compete, in the order in which a forward pass meets them, as near as a sort can say.

        Raises:
            ModelError: They cannot be told in this model.
        """
        parts: list[Part] = []
        if "heads" in self.kinds:
            heads = find_heads(model)
            if not self.uniform or heads_in_config(model, heads, 1) is not None:
                parts += heads
            elif self.heads:
                raise ModelError(
                    f"the config of this {type(model).__name__} cannot say that there are fewer heads of the same "
                    f"size, which uniform=True asks for: cut neurons or layers alone, or leave uniform out, and let "
                    f"lowft.load read what you export"
                )
        if "neurons" in self.kinds:
            parts += find_neurons(model)
        order = {name: number for number, (name, _) in enumerate(model.named_modules())}
        return tuple(sorted(parts, key=lambda part: order[part.sites[0].reads]))


class CutPlan:
    """Says which units stay, for a goal, a model and what its units are worth."""

    def __init__(self, model: nn.Module, goal: Goal, parts: Sequence[Part], importance: Importance) -> None:
        """Count what the units cost.

        Raises:
            ConfigError: The budget cannot be met.
            ModelError: The model cannot be run to count its operations.
        """
        self.goal = goal
        self.parts = parts
        self.per_cost = importance in GRADIENTS  # a loss is comparable between units; norms only within a layer
        self.what, self.target = goal.budget or ("", 0.0)
        if self.what == "parameters":
            self.whole, self.costs = unit_parameters(model, parts)
        elif self.what:
            self.whole, self.costs = unit_flops(model, parts, goal.shape[1])
        if self.what in {"parameters", "flops"}:
            least = self.least()
            if self.target < least:
                raise ConfigError(
                    f"{self.what}={self.target:g} cannot be met: with one head and {goal.multiple_of} neurons in each "
                    f"layer, {least:.3f} of the whole model's {self.what} is left, which is the least there can be. "
                    f"Leave out layers, or choose a smaller model"
                )

    def kept(self, scores: Sequence[Tensor], progress: float = 1.0) -> list[Tensor]:
        """Return the numbers of the units of each part that stay, rising.

        Args:
            scores: What each unit is worth, `[units]` a part.
            progress: How much of the pruning is to be done, from 0 to 1.
        """
        goal = self.goal
        if goal.budget is not None:
            return self._within(scores, 1 - (1 - self.target) * progress + _ROUNDING)
        found: dict[int, Tensor] = {}
        for kind, share, multiple in (("heads", goal.heads, 1), ("neurons", goal.neurons, goal.multiple_of)):
            own = [at for at, part in enumerate(self.parts) if part.kind == kind]
            chosen = choose([scores[at] for at in own], share * progress, scope=goal.scope, multiple_of=multiple)
            found |= dict(zip(own, chosen, strict=True))
        return [found[at] for at in range(len(self.parts))]

    def least(self) -> float:
        """Return the fraction of the whole cost that is left where every part keeps as little as it may."""
        return self._cost([min(self._step(part), part.units) for part in self.parts])

    def meet_latency(self, model: nn.Module, scores: Sequence[Tensor]) -> float:
        """Let the budget be the operations whose model takes the time asked for, and return the time reached.

        Really cut copies are timed in turn with the whole model, at the goal's shape, and the operations halved in.

        Raises:
            ConfigError: Not even the smallest model is that fast.
        """

        def measure(fraction: float) -> tuple[float, float]:
            """Return what a model within a fraction of the operations really has of them, and of the time."""
            small = copy.deepcopy(model)
            self.target = fraction
            kept = self.kept(scores)
            for part, numbers in zip(self.parts, kept, strict=True):
                cut_part_(small, part, numbers)
            return self._cost([len(numbers) for numbers in kept]), Seconds(self.goal.shape).ratio(small, model)

        wanted = self.target
        low, high = self.least(), 1.0
        found, reached = measure(low)
        if reached > wanted:
            self.target = wanted
            raise ConfigError(
                f"latency={wanted:g} cannot be met: with one head and {self.goal.multiple_of} neurons in each layer, "
                f"the model takes {reached:.2f} of the whole model's time for {self.goal.shape[0]} × "
                f"{self.goal.shape[1]} tokens, which is the least there can be. Leave out layers, or choose a smaller "
                f"model"
            )
        for _ in range(_TIMINGS):
            middle = (low + high) / 2
            cost, took = measure(middle)
            if took <= wanted:
                low, found, reached = middle, cost, took
            else:
                high = middle
        self.target = found
        return reached

    def _step(self, part: Part) -> int:
        return self.goal.multiple_of if part.kind == "neurons" else 1

    def _cost(self, counts: Sequence[int]) -> float:
        cut = ((part.units - count) * cost for part, count, cost in zip(self.parts, counts, self.costs, strict=True))
        return 1 - sum(cut) / self.whole

    def _within(self, scores: Sequence[Tensor], most: float) -> list[Tensor]:
        """Return the best units that cost no more than a fraction of the whole."""
        if self.goal.scope == "layer":
            low, high = 0.0, 1.0
            for _ in range(_HALVINGS):
                share = (low + high) / 2
                if self._cost([len(numbers) for numbers in self._by_share(scores, share)]) > most:
                    low = share
                else:
                    high = share
            return self._by_share(scores, high)
        costs = self.costs if self.per_cost else [1.0] * len(scores)
        worth = torch.cat([score / cost for score, cost in zip(scores, costs, strict=True)])
        places = torch.empty(len(worth), dtype=torch.long)
        places[worth.argsort(stable=True)] = torch.arange(len(worth))
        ranks = torch.split(places, [len(score) for score in scores])  # 0 is worth least
        first, last = 0, len(worth)  # how many go: the fewest that meet the budget
        while first < last:
            middle = (first + last) // 2
            if self._cost(self._counts(ranks, middle)) > most:
                first = middle + 1
            else:
                last = middle
        counts = self._counts(ranks, first)
        return [rank.argsort(descending=True)[:count].sort().values for rank, count in zip(ranks, counts, strict=True)]

    def _counts(self, ranks: Sequence[Tensor], gone: int) -> list[int]:
        """Return how many units each part keeps where so many of lowest rank go, rounded down to the multiple."""
        counts = []
        for part, rank in zip(self.parts, ranks, strict=True):
            count, step = int((rank >= gone).sum()), min(self._step(part), part.units)
            counts.append(count if count == part.units else max(step, count // step * step))
        return counts

    def _by_share(self, scores: Sequence[Tensor], share: float) -> list[Tensor]:
        return [
            choose([score], share, multiple_of=self._step(part))[0]
            for part, score in zip(self.parts, scores, strict=True)
        ]


def choose(scores: Sequence[Tensor], share: float, *, scope: Scope = "layer", multiple_of: int = 1) -> list[Tensor]:
    """Return the numbers of the units to keep in each part, rising.

    Args:
        scores: What each unit of each part is worth, `[units]` each.
        share: Share of all units to cut.
        scope: Whether they compete within their part or with all.
        multiple_of: Parts keep a multiple of this, and at least so many, where they have as many.

    >>> choose([torch.tensor([3.0, 1.0, 2.0, 4.0])], 0.5)
    [tensor([0, 3])]
    """
    if scope == "layer" or not scores:
        counts = [(1 - share) * len(values) for values in scores]
    else:
        every = torch.cat(list(scores))
        best = every.argsort(descending=True, stable=True)[: round((1 - share) * len(every))]
        chosen = torch.zeros(len(every), dtype=torch.bool)
        chosen[best] = True
        counts = [float(part.sum()) for part in torch.split(chosen, [len(values) for values in scores])]
    kept = []
    for values, count in zip(scores, counts, strict=True):
        step = min(multiple_of, len(values))
        number = min(len(values), max(step, round(count / step) * step))
        kept.append(values.argsort(descending=True, stable=True)[:number].sort().values)
    return kept
