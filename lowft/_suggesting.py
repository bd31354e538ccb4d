"""Settings that keep to a limit: what changes no result first, then less training, then shorter texts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lowft._peak import check_measurable
from lowft._planning import probe_stages
from lowft._settings import check_real, check_whole
from lowft._tables import human_bytes, human_seconds
from lowft.errors import ConfigError, ModelError, TrainingError
from lowft.planning import Plan
from lowft.stages import Stage
from lowft.strategies.layerwise_unfreeze import LayerwiseUnfreeze
from lowft.strategies.partial_freeze import PartialFreeze
from lowft.strategy import chain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lowft.config import TrainingConfig
    from lowft.loop import Loop
    from lowft.strategy import Strategy

__all__ = ["make_plan"]

_SHARES_KEPT = (95, 75, 50)  # percentages of the training texts that a lower max_length leaves whole
_LEAST_LENGTH = 8  # tokens, of which some are special


@dataclass(frozen=True)
class _Choice:
    """One way to run."""

    strategies: tuple[Strategy, ...]
    config: TrainingConfig
    max_length: int
    halvings: int = 0
    asked: str = ""
    depth: str = ""
    length: str = ""
    others: tuple[str, ...] = ()

    @property
    def changes(self) -> tuple[str, ...]:
        """What the run as it was asked for takes, and what differs from it."""
        return tuple(filter(None, (self.asked, self.depth, self.length, *self.others)))


def make_plan(loop: Loop, max_length: int, *, max_minutes: float | None, max_memory: int | None) -> Plan:
    """Measure the run as it is; where that does not keep to the limits, look for settings that do.

    Args:
        loop: A run that has not begun.
        max_length: Tokens after which its texts are cut.
        max_minutes: The limit on time.
        max_memory: The limit on memory, in bytes.

    Raises:
        ConfigError: A limit out of its range, or one on memory where memory cannot be measured; several processes.
        TrainingError: The run has begun already.
    """
    if max_minutes is not None:
        check_real("plan: max_minutes", max_minutes, above=0)
    if max_memory is not None:
        check_whole("plan: max_memory", max_memory, least=1)
        check_measurable("plan", loop.placement.device)
    if loop.placement.processes > 1:
        raise ConfigError("plan measures a run in one process: call it in a process of its own, before the others")
    if loop.finished or loop.attached.state.step > 0:
        raise TrainingError("plan foretells a run that has not begun, and this one has: make a new Trainer for it")
    search = _Search(loop, max_minutes, max_memory)
    start = _Choice(loop.attached.strategy.strategies, loop.config, max_length)
    plan = search.measure(start)
    if plan.fits:
        return plan
    peak = plan.peak_memory_bytes
    asked = f"as it is, the run takes {human_seconds(plan.seconds)}" + (
        "" if peak is None else f" and {human_bytes(peak)}"
    )
    return search.look(replace(start, asked=asked), plan)


@dataclass
class _Search:
    """Tries choices on a loop."""

    loop: Loop
    max_minutes: float | None
    max_memory: int | None

    def measure(self, choice: _Choice) -> Plan:
        """Return what a choice costs."""
        stages = self._stages(choice.strategies)
        found = probe_stages(self.loop, stages, choice.config, choice.max_length, choice.halvings)
        return Plan(found, choice.config, choice.strategies, self.max_minutes, self.max_memory, choice.changes)

    def look(self, start: _Choice, measured: Plan) -> Plan:
        """Return the plan of the choice that changes least and keeps to the limits; the nearest, if none does."""
        if not start.config.prefix_cache:
            cached = replace(start.config, prefix_cache=True)
            start = replace(
                start, config=cached, others=(*start.others, "prefix_cache=True: frozen blocks run once for each row")
            )
            measured = self.measure(start)
        plan = self._in_memory(start, measured)
        if plan.fits:
            return plan
        for shorter in (start, *self._shorter(start)):
            depths = [shorter, *self._shallower(shorter)]
            plan = self._in_memory(depths[-1])
            if plan.fits:
                return self._deepest(depths, plan)
        return plan

    def _deepest(self, depths: Sequence[_Choice], fitting: Plan) -> Plan:
        """Return the plan of the first of the choices that fits, where each costs less than the one before."""
        low, high = 0, len(depths) - 1
        while low < high:
            middle = (low + high) // 2
            plan = self._in_memory(depths[middle])
            if plan.fits:
                high, fitting = middle, plan
            else:
                low = middle + 1
        return fitting

    def _in_memory(self, choice: _Choice, plan: Plan | None = None) -> Plan:
        """Return the plan with as many rows at a time as there is room for."""
        plan = plan or self.measure(choice)
        for smaller in self._fewer_at_a_time(choice):
            if plan.fits_memory:
                break
            plan = self.measure(smaller)
        return plan

    def _fewer_at_a_time(self, choice: _Choice) -> Iterator[_Choice]:
        """Yield the choice with ever fewer rows at a time, and the same rows in each optimizer step."""
        config, most = choice.config, self.max_memory
        if any(stage.batch_size for stage in self._stages(choice.strategies)):
            # Each stage has its own: the run itself halves them.
            largest = max(stage.batch_size or config.batch_size for stage in self._stages(choice.strategies))
            for halvings in range(1, math.ceil(math.log2(largest)) + 1):
                yield replace(
                    choice,
                    halvings=halvings,
                    config=replace(config, max_memory=most, eval_batch_size=_halved(config.eval_batch_size, halvings)),
                    others=(
                        *choice.others,
                        f"max_memory={most}: micro-batches go through the model in {2**halvings} parts, the same rows",
                    ),
                )
            return
        for rows in reversed([rows for rows in range(1, config.batch_size) if config.batch_size % rows == 0]):
            times = config.batch_size // rows
            if rows > 1 and times & (times - 1) and config.batch_size % 2 == 0:
                continue  # by halves where they go
            changed = replace(
                config,
                batch_size=rows,
                gradient_accumulation_steps=config.gradient_accumulation_steps * times,
                eval_batch_size=max(1, config.eval_batch_size // times),
            )
            words = (
                f"batch_size={rows}, gradient_accumulation_steps={changed.gradient_accumulation_steps}, "
                f"eval_batch_size={changed.eval_batch_size}: fewer rows at a time take less memory, and the same "
                f"{config.batch_size * config.gradient_accumulation_steps} rows are in each optimizer step"
            )
            yield replace(choice, config=changed, others=(*choice.others, words))

    def _shorter(self, choice: _Choice) -> Iterator[_Choice]:
        """Yield the choice with texts cut ever earlier."""
        lengths = self.loop.train_rows.lengths
        known = min(choice.max_length, int(lengths.max()))
        for share in _SHARES_KEPT:
            length = max(_LEAST_LENGTH, math.ceil(np.percentile(lengths, share)))
            if length < known:
                known = length
                cut = 100 * float((lengths > length).mean())
                yield replace(
                    choice,
                    max_length=length,
                    config=replace(choice.config, max_length=length),
                    length=f"max_length={length}: {cut:.0f} % of the training texts lose their end",
                )

    def _shallower(self, choice: _Choice) -> Iterator[_Choice]:
        """Yield the choice with ever fewer layers to train."""
        for strategies, words in (*self._without_stages(choice.strategies), *self._frozen(choice.strategies)):
            try:
                stages = self._stages(strategies)
            except (ConfigError, ModelError):
                continue  # these settings do not go together with the rest
            if all(stage.trainable is not None and stage.trainable <= self.loop.attached.trained for stage in stages):
                yield replace(choice, strategies=strategies, depth=words)

    def _without_stages(self, strategies: tuple[Strategy, ...]) -> Iterator[tuple[tuple[Strategy, ...], str]]:
        """Yield the strategies with the deepest stages of a schedule left out."""
        for place, part in enumerate(strategies):
            if isinstance(part, LayerwiseUnfreeze):
                schedule = part.schedule_for(self.loop.attached.model, len(self.loop.train_rows))
                for count in range(len(schedule) - 1, 0, -1):
                    changed = replace(part, schedule=schedule[:count])
                    left_out = ", ".join(f"top={stage.top!r}" for stage in schedule[count:])
                    words = f"LayerwiseUnfreeze without the stages {left_out}: the deepest take most"
                    yield (*strategies[:place], changed, *strategies[place + 1 :]), words

    def _frozen(self, strategies: tuple[Strategy, ...]) -> Iterator[tuple[tuple[Strategy, ...], str]]:
        """Yield the strategies with the lower layers frozen."""
        layers = self.loop.attached.layers
        if layers is None or any(isinstance(part, LayerwiseUnfreeze) for part in strategies):
            return
        place = next((index for index, part in enumerate(strategies) if isinstance(part, PartialFreeze)), None)
        freeze = PartialFreeze() if place is None else strategies[place]
        others = strategies if place is None else (*strategies[:place], *strategies[place + 1 :])
        assert isinstance(freeze, PartialFreeze)  # noqa: S101 - found as one
        at_most = layers.num_blocks if freeze.top is None else freeze.top - 1
        for top in range(at_most, -1, -1):
            kept = f"the top {top} of {layers.num_blocks} blocks and the head train" if top else "the head alone trains"
            yield (
                (*others[: place or 0], replace(freeze, top=top), *others[place or 0 :]),
                f"PartialFreeze(top={top}): {kept}; what is below needs no gradients and no optimizer state",
            )

    def _stages(self, strategies: tuple[Strategy, ...]) -> tuple[Stage, ...]:
        loop = self.loop
        return chain(*strategies).stages((Stage(rows=len(loop.train_rows)),), loop.attached.model)


def _halved(rows: int, times: int) -> int:
    return max(1, rows >> times)
