"""Cut out of a model, while it trains, what it can do without, so that what is left learns to do without it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from lowft._placement import gather, process_share
from lowft._settings import check_choice, check_real
from lowft.compress.budgets import CutPlan, Goal, Scope
from lowft.compress.depth import drop_layers_, layers_to_drop
from lowft.compress.importance import GRADIENTS, Importance, by_mean
from lowft.compress.parts import (
    Part,
    add_gates_,
    column_sums,
    gate_of,
    magnitudes,
    remove_gates_,
    set_gate_,
)
from lowft.compress.pruning import Size, check_prunable, cut_, prune_
from lowft.compress.sparsity import add_masks_, bake_masks_, masked_layers, set_masks_, smallest
from lowft.errors import ConfigError
from lowft.stages import check_pace
from lowft.strategy import Contract, Strategy

if TYPE_CHECKING:
    from torch import Tensor

    from lowft.stages import Stage
    from lowft.state import State

__all__ = ["Prune"]

_STAGE = "prune"
_WORK = "lowft_pruning"  # an attribute of the model while it trains


@dataclass(frozen=True)
class _Work:
    """What is gated or masked in a model while it trains; none of it changes but the target of a latency."""

    plan: CutPlan | None
    parts: tuple[Part, ...]
    masked: tuple[str, ...]


@dataclass(frozen=True)
class Prune(Strategy):
    """Cut neurons, heads or layers out of the model, and train on, so that it computes less and stays accurate.

    By default a stage of its own follows the others, and runs even where a gate ended them: step by step more neurons
    and heads are shut, along the cubic ramp of Zhu & Gupta 2017 (https://arxiv.org/abs/1710.01878, section 3), each
    time those that matter least by what the training has shown so far; the rest of the stage is recovery. What is shut
    stays shut. In the end it is cut out, and the model gives what it gave with it shut. With `when="start"` all is cut
    before the training, which then is the recovery, and faster from its first step. Layers are left out before the
    training in either case.

    Say what is to go (`neurons`, `heads`, `layers`), or what is to be left by one budget (`parameters`, `flops` or
    `latency`, each a fraction of the whole model's); see `lowft.prune_`. A latency is measured once, before the first
    step, and is in every checkpoint from then on as the operations that take so long.

    `weights` sets single weights to zero along the ramp and keeps them there. That saves neither time nor memory: the
    matrices are as large as before.

    Args:
        neurons: Share of the feed-forward neurons to cut, from 0 to below 1.
        importance: What makes a unit worth keeping, as for `lowft.prune_`; "taylor" and "fisher" add up over the steps
            of the stage, from the gradients of its training, where "fisher" squares those of a whole step. In blocks
            that do not train there are none, and magnitude decides.
        scope: Whether units compete within their layer or in the whole model.
        when: "stage", or "start", before there are any gradients: with "magnitude" or "random" only.
        epochs: Passes over the training rows in that stage.
        learning_rate: Its peak learning rate; None takes that of the stage before.
        ramp: Share of the stage's steps in which units are shut; 0 shuts all at the first step.
        multiple_of: The neurons left in a layer are a multiple of this.
        heads: Share of the attention heads to cut, from 0 to below 1; each layer keeps one at least.
        layers: How many layers to leave out, so that those that stay are spread evenly, or their numbers, rising from 0
            at the bottom.
        parameters: Fraction of the parameters to be left.
        flops: Fraction of the operations to be left.
        latency: Fraction of the time of a forward pass to be left, on this machine.
        weights: Share of the single weights of the blocks to set to zero; goes alone.
        uniform: Refuse what the config cannot say, as for `lowft.prune_`.
        shape: Rows and tokens of the batch for which operations and time are counted.

    Raises:
        ConfigError: A setting outside its range, or two that contradict each other; when the Trainer is built, a budget
            that cannot be met.
        ModelError: When the Trainer is built, a model whose neurons or heads cannot be told.

    >>> Prune(0.5, heads=0.25, importance="fisher").when
    'stage'
    """

    # A frozen prefix must not be cached: shut units in it change what it gives.
    contract: ClassVar[Contract] = Contract(
        provides=frozenset({"shapes", "stages"}), invalidates=frozenset({"precision", "prefix"})
    )

    neurons: float = 0.0
    importance: Importance = "taylor"
    scope: Scope = "layer"
    when: Literal["stage", "start"] = "stage"
    epochs: float = 1.0
    learning_rate: float | None = None
    ramp: float = 0.5
    multiple_of: int = 8
    heads: float = 0.0
    layers: int | Sequence[int] = 0
    parameters: float | None = None
    flops: float | None = None
    latency: float | None = None
    weights: float = 0.0
    uniform: bool = False
    shape: tuple[int, int] = (1, 64)
    max_steps: ClassVar[None] = None
    batch_size: ClassVar[None] = None
    layer_decay: ClassVar[None] = None

    def __post_init__(self) -> None:
        """Check every setting."""
        goal = self._goal
        check_choice("Prune.when", self.when, ("stage", "start"))
        check_real("Prune.ramp", self.ramp, least=0, most=1)
        check_pace(self)
        object.__setattr__(self, "shape", goal.shape)
        if isinstance(self.layers, Sequence) and not isinstance(self.layers, str):
            object.__setattr__(self, "layers", tuple(self.layers))
        if self.when == "start" and self.importance in GRADIENTS and goal.kinds:
            raise ConfigError(
                f"Prune(when='start') cuts before there are any gradients, which importance={self.importance!r} "
                f"needs: set importance='magnitude', or call lowft.prune_ with batches before the training"
            )
        if self.when == "start" and self.latency is not None:
            raise ConfigError(
                "Prune(when='start') would measure the latency anew whenever the run is resumed, and cut another "
                "shape: call lowft.prune_(model, latency=...) before the training, or set when='stage'"
            )

    @property
    def _goal(self) -> Goal:
        return Goal.of("Prune", self)

    @property
    def _has_stage(self) -> bool:
        """Whether there is something to do along a ramp: layers go at once."""
        return self.when == "stage" and bool(self._goal.kinds or self.weights)

    def prepare_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Leave layers out; cut at once, or put an open gate on each unit."""
        check_prunable(model)
        goal = self._goal
        if self.when == "start":
            prune_(
                model,
                **{name: getattr(self, name) for name in _SHARED},
                seed=torch.initial_seed() % 2**63,
            )
            return model
        goal.find_parts(model)  # what cannot be told is said before anything is left out
        if self.layers:
            drop_layers_(model, layers_to_drop("Prune", model, self.layers))
        parts = goal.find_parts(model)
        plan = CutPlan(model, goal, parts, self.importance) if parts else None
        masked = masked_layers(model) if self.weights else ()
        add_gates_(model, parts)
        add_masks_(model, masked)
        setattr(model, _WORK, _Work(plan, parts, masked))
        return model

    def stages(self, stages: tuple[Stage, ...], model: torch.nn.Module) -> tuple[Stage, ...]:
        """Append the stage in which units are shut."""
        if not self._has_stage:
            return stages
        last = stages[-1]
        self._check_gradients(model, last.trainable)
        own = dataclasses.replace(
            last,
            name=_STAGE,
            gates=(),
            always=True,
            epochs=self.epochs,
            max_steps=None,
            learning_rate=self.learning_rate or last.learning_rate,
        )
        return (*stages, own)

    def on_stage_start(self, state: State) -> None:
        """Begin with nothing known of the units' worth, or with what chance says."""
        if not self._has_stage:
            return
        work = _work_of(state.model)
        if self.latency is not None and state.stage_index == 0:
            state.memory_of(self.name)["flops"] = self._measure(state.model, work)
        if state.stage.name != _STAGE:
            return
        # Once more: a strategy after this one may have narrowed what trains.
        self._check_gradients(state.model, state.stage.trainable)
        if work.parts and self.importance != "magnitude":
            # Drawn here, where every process draws the same.
            drawn = self.importance == "random"
            scores = [torch.rand(part.units) if drawn else torch.zeros(part.units) for part in work.parts]
            state.memory_of(self.name)["scores"] = scores

    def before_step(self, state: State) -> None:
        """Learn what the units are worth, and shut as many as the ramp says."""
        if not self._has_stage or state.stage.name != _STAGE:
            return
        work, progress = _work_of(state.model), self._progress(state)
        if work.masked:
            more = set_masks_(state.model, smallest(state.model, work.masked, self.weights * progress, self.scope))
        else:
            more = self._shut_(state, work, progress)
        if more:
            state.forget_best()  # weights from before less was left are better, and not what is asked for

    def finish_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Cut out what is shut."""
        if self.when == "start":
            return model
        work = _work_of(model)
        delattr(model, _WORK)
        bake_masks_(model, work.masked)
        kept = [gate_of(model, part).nonzero()[:, 0].cpu() for part in work.parts]
        remove_gates_(model, work.parts)
        if work.parts:
            cut_(model, work.parts, kept, before=Size.of(model, self.shape[1]))
        return model

    def _shut_(self, state: State, work: _Work, progress: float) -> bool:
        """Shut the units that matter least, and return whether those are more than before."""
        plan = work.plan
        assert plan is not None  # noqa: S101 - there is one where there are units
        if self.latency is not None:
            plan.target = state.memory_of(self.name)["flops"]
        gates = [gate_of(state.model, part).cpu() for part in work.parts]
        # What is shut stays so: it has no gradient any more to prove its worth by.
        scores = [
            score.masked_fill(gate == 0, -1.0)
            for score, gate in zip(self._scores(state, work.parts), gates, strict=True)
        ]
        for part, numbers in zip(work.parts, plan.kept(scores, progress), strict=True):
            gate = torch.zeros(part.units)
            gate[numbers] = 1
            set_gate_(state.model, part, gate)
        return any(not torch.equal(gate_of(state.model, p).cpu(), g) for p, g in zip(work.parts, gates, strict=True))

    def _measure(self, model: torch.nn.Module, work: _Work) -> float:
        """Return the fraction of operations that takes the time asked for; the same in every process."""
        assert work.plan is not None  # noqa: S101 - there is one where there is a budget
        if process_share()[0] == 0:
            bare = copy.deepcopy(model)
            remove_gates_(bare, work.parts)  # which take time, and will be gone
            work.plan.meet_latency(bare, by_mean([magnitudes(bare, part) for part in work.parts]))
        target: float = gather(work.plan.target)[0]
        return target

    def _check_gradients(self, model: torch.nn.Module, trainable: frozenset[str] | None) -> None:
        """Refuse to compare blocks with gradients to blocks without."""
        if self.scope == "layer" or self.importance not in GRADIENTS:
            return
        parameters = dict(model.named_parameters())
        frozen = []
        for site in (site for part in _work_of(model).parts for site in part.sites):
            name = f"{site.reads}.weight"
            if not (parameters[name].requires_grad if trainable is None else name in trainable):
                frozen.append(site.block)
        if frozen:
            raise ConfigError(
                f"Prune(importance={self.importance!r}, scope='global') compares units of all blocks by their "
                f"gradients, and {', '.join(dict.fromkeys(frozen))} do not train: set scope='layer' or "
                f"importance='magnitude', or let all blocks train"
            )

    def _progress(self, state: State) -> float:
        """Return how much of the pruning is done in this step, from above 0 to 1: 1 − (1 − t)³."""
        steps = max(1, round(self.ramp * state.stage_steps))
        return 1 - (1 - min(1.0, (state.stage_step + 1) / steps)) ** 3

    def _scores(self, state: State, parts: Sequence[Part]) -> list[Tensor]:
        """Return what each unit is worth by now; what gradients have told is kept in the memory."""
        if self.importance == "magnitude":
            return by_mean([magnitudes(state.model, part) for part in parts])
        scores: list[Tensor] = state.memory_of(self.name)["scores"]
        if self.importance == "random":
            return scores
        for at, part in enumerate(parts):
            slope = column_sums(state.model, part)
            if slope is None:
                scores[at] = magnitudes(state.model, part)
            else:
                scores[at] = scores[at] + (slope.square() if self.importance == "fisher" else slope.abs())
        return scores


_SHARED = (
    "neurons", "heads", "layers", "weights", "parameters", "flops", "importance", "scope", "uniform", "multiple_of",
    "shape",
)  # fmt: skip


def _work_of(model: torch.nn.Module) -> _Work:
    work: _Work = getattr(model, _WORK)
    return work
