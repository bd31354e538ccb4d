"""Cut neurons out while training, so that what is left learns to do without them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from lowft._settings import check_choice, check_real
from lowft.compress.feed_forward import (
    FeedForward,
    add_gates_,
    column_sums,
    find_feed_forwards,
    gate_of,
    magnitudes,
    remove_gates_,
)
from lowft.compress.pruning import Importance, Scope, by_mean, check_pruning, choose_neurons, cut_, prune_
from lowft.errors import ConfigError
from lowft.stages import check_pace
from lowft.strategy import Contract, Strategy

if TYPE_CHECKING:
    from torch import Tensor

    from lowft.stages import Stage
    from lowft.state import State

__all__ = ["Prune"]

_STAGE = "prune"
_PARTS = "lowft_feed_forwards"  # an attribute of the model while it trains


@dataclass(frozen=True)
class Prune(Strategy):
    """Cut feed-forward neurons out of the model, and train on, so that it computes less and stays accurate.

    By default a stage of its own follows the others, and runs even where a gate ended them: step by step more neurons
    are shut, along the cubic ramp of Zhu & Gupta 2017 (https://arxiv.org/abs/1710.01878, section 3), each time those
    that matter least by what the training has shown so far; the rest of the stage is recovery. Shut neurons stay shut.
    In the end they are cut out, and the model gives what it gave with them shut. With `when="start"` they are cut
    before the training, which then is the recovery, and faster from its first step.

    Args:
        neurons: Share of the feed-forward neurons to cut, above 0 and below 1.
        importance: What makes a neuron worth keeping, as for `lowft.prune_`; "taylor" and "fisher" add up over the
            steps of the stage, from the gradients of its training. In blocks that do not train there are none, and
            magnitude decides.
        scope: Whether neurons compete within their layer, which leaves a shape that plain transformers loads, or in the
            whole model.
        when: "stage", or "start", before there are any gradients: with "magnitude" or "random" only.
        epochs: Passes over the training rows in that stage.
        learning_rate: Its peak learning rate; None takes that of the stage before.
        ramp: Share of the stage's steps in which neurons are shut; 0 shuts all at the first step.
        multiple_of: The neurons left in a layer are a multiple of this.

    Raises:
        ConfigError: A setting outside its range, or two that contradict each other.
        ModelError: When the Trainer is built, a model whose neurons cannot be told by the shapes of its layers.

    >>> Prune(0.5, importance="fisher").when
    'stage'
    """

    # A frozen prefix must not be cached: shut neurons in it change what it gives.
    contract: ClassVar[Contract] = Contract(
        provides=frozenset({"shapes", "stages"}), invalidates=frozenset({"precision", "prefix"})
    )

    neurons: float
    importance: Importance = "taylor"
    scope: Scope = "layer"
    when: Literal["stage", "start"] = "stage"
    epochs: float = 1.0
    learning_rate: float | None = None
    ramp: float = 0.5
    multiple_of: int = 8
    max_steps: ClassVar[None] = None
    batch_size: ClassVar[None] = None
    layer_decay: ClassVar[None] = None

    def __post_init__(self) -> None:
        """Check every setting."""
        check_pruning(
            "Prune", neurons=self.neurons, importance=self.importance, scope=self.scope, multiple_of=self.multiple_of
        )
        check_real("Prune: neurons", self.neurons, above=0, below=1)
        check_choice("Prune.when", self.when, ("stage", "start"))
        check_real("Prune.ramp", self.ramp, least=0, most=1)
        check_pace(self)
        if self.when == "start" and self.importance in {"taylor", "fisher"}:
            raise ConfigError(
                f"Prune(when='start') cuts before there are any gradients, which importance={self.importance!r} needs: "
                f"set importance='magnitude', or call lowft.prune_ with batches before the training"
            )

    def prepare_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Cut at once, or put an open gate before each neuron."""
        if self.when == "start":
            prune_(
                model, self.neurons, importance=self.importance, scope=self.scope, multiple_of=self.multiple_of,
                seed=torch.initial_seed() % 2**63,
            )  # fmt: skip
            return model
        parts = find_feed_forwards(model)
        add_gates_(model, parts)
        setattr(model, _PARTS, parts)
        return model

    def stages(self, stages: tuple[Stage, ...], model: torch.nn.Module) -> tuple[Stage, ...]:
        """Append the stage in which neurons are shut."""
        if self.when == "start":
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
        """Begin with nothing known of the neurons' worth, or with what chance says."""
        if state.stage.name != _STAGE or self.when == "start":
            return
        parts = _parts_of(state.model)
        # Once more: a strategy after this one may have narrowed what trains.
        self._check_gradients(state.model, state.stage.trainable)
        if self.importance != "magnitude":
            # Drawn here, where every process draws the same.
            drawn = self.importance == "random"
            scores = [torch.rand(part.width) if drawn else torch.zeros(part.width) for part in parts]
            state.memory_of(self.name)["scores"] = scores

    def before_step(self, state: State) -> None:
        """Learn what the neurons are worth, and shut as many as the ramp says."""
        if state.stage.name != _STAGE or self.when == "start":
            return
        parts = _parts_of(state.model)
        gates = [gate_of(state.model, part) for part in parts]
        before = sum(int(gate.sum()) for gate in gates)
        scores = self._scores(state, parts)
        if self.importance == "magnitude":
            scores = by_mean(scores)
        # What is shut stays so: it has no gradient any more to prove its worth by.
        scores = [score.masked_fill(gate.cpu() == 0, -1.0) for score, gate in zip(scores, gates, strict=True)]
        share = self.neurons * self._progress(state)
        kept = choose_neurons(scores, share, scope=self.scope, multiple_of=self.multiple_of)
        for gate, numbers in zip(gates, kept, strict=True):
            gate.zero_()
            gate[numbers.to(gate.device)] = 1
        if sum(int(gate.sum()) for gate in gates) != before:
            state.forget_best()  # weights from before fewer neurons are better, and not what is asked for

    def finish_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Cut out the neurons that are shut."""
        if self.when == "start":
            return model
        parts = _parts_of(model)
        kept = [gate_of(model, part).nonzero()[:, 0].cpu() for part in parts]
        remove_gates_(model, parts)
        delattr(model, _PARTS)
        cut_(model, parts, kept)
        return model

    def _check_gradients(self, model: torch.nn.Module, trainable: frozenset[str] | None) -> None:
        """Refuse to compare blocks with gradients to blocks without."""
        if self.scope == "layer" or self.importance not in {"taylor", "fisher"}:
            return
        parameters = dict(model.named_parameters())
        frozen = []
        for part in _parts_of(model):
            name = f"{part.reads}.weight"
            if not (parameters[name].requires_grad if trainable is None else name in trainable):
                frozen.append(part.block)
        if frozen:
            raise ConfigError(
                f"Prune(importance={self.importance!r}, scope='global') compares neurons of all blocks by their "
                f"gradients, and {', '.join(frozen)} do not train: set scope='layer' or importance='magnitude', or let "
                f"all blocks train"
            )

    def _progress(self, state: State) -> float:
        """Return how much of the pruning is done in this step, from above 0 to 1: 1 − (1 − t)³."""
        steps = max(1, round(self.ramp * state.stage_steps))
        return 1 - (1 - min(1.0, (state.stage_step + 1) / steps)) ** 3

    def _scores(self, state: State, parts: tuple[FeedForward, ...]) -> list[Tensor]:
        """Return what each neuron is worth by now; what gradients have told is kept in the memory."""
        if self.importance == "magnitude":
            return [magnitudes(state.model, part) for part in parts]
        scores: list[Tensor] = state.memory_of(self.name)["scores"]
        if self.importance == "random":
            return scores
        for at, part in enumerate(parts):
            gradient = state.model.get_submodule(part.reads).get_parameter("weight").grad
            if gradient is None:
                scores[at] = magnitudes(state.model, part)
            else:
                slope = column_sums(state.model, part, gradient)
                scores[at] = scores[at] + (slope.square() if self.importance == "fisher" else slope.abs())
        return scores


def _parts_of(model: torch.nn.Module) -> tuple[FeedForward, ...]:
    parts: tuple[FeedForward, ...] = getattr(model, _PARTS)
    return parts
