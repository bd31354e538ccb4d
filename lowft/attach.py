"""Strategies at work on one model, for the Trainer and for anyone's own loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lowft.errors import TrainingError
from lowft.models import set_train_mode_, set_trainable_
from lowft.models.layers import layers_if_any
from lowft.stages import Stage, Verdict
from lowft.state import State
from lowft.strategy import Chain, chain_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from lowft.data.batching import Batch
    from lowft.strategy import Strategy

__all__ = ["Attached", "attach"]


class Attached:
    """Strategies at work on one model; made by `attach`, and what the Trainer itself drives.

    Iterating over it runs the stages: each turn sets what trains. Within a turn, pass batches and losses
    through `on_batch` and `on_loss`, and step with `step`.

    Attributes:
        model: The model, as the strategies prepared it.
        layers: Its layers; None where they cannot be told apart.
        strategy: All strategies as one.
        stages: The stages they made of the first one.
        state: Where the run is.
        results: The validation metrics given to `decide`, one entry a stage.
        verdict: What `decide` last said; None before.
        ended: Whether a gate has ended the training: what is left are stages that run in any case.
    """

    def __init__(self, model: torch.nn.Module, strategy: Chain, stage: Stage) -> None:
        """Let the strategies prepare the model and shape the stages."""
        self.strategy = strategy
        self.model = self.strategy.prepare_model(model)
        # Now that they are what they will be during the run: a strategy may have dropped layers, or added some.
        self._trained_before = frozenset(name for name, value in self.model.named_parameters() if value.requires_grad)
        self.layers = layers_if_any(self.model)
        self.stages = self.strategy.stages((stage,), self.model)
        self.state = State(self.model, self.stages[0], stages=self.stages)
        self.results: list[dict[str, float]] = []
        self.verdict: Verdict | None = None
        self.ended = False
        self._finished = False
        self._loaded = False

    def __iter__(self) -> Iterator[Stage]:
        """Start each stage in turn, until the last or until a gate ends the training.

        After `load_state_dict`, the first turn goes on with the stage that was loaded.
        """
        loaded, self._loaded = self._loaded, False
        if not loaded:
            self.state.stage_index = 0
        for index in self.remaining_stages():
            yield self.state.stage if loaded else self.start_stage(index)
            loaded = False

    def remaining_stages(self) -> Iterator[int]:
        """Yield the number of the current stage and of each that is still to run after it.

        Once a gate has ended the training, these are only the stages that run in any case.
        """
        first = self.state.stage_index
        yield first
        for index in range(first + 1, len(self.stages)):
            if not self.ended or self.stages[index].always:
                yield index

    def start_stage(self, index: int) -> Stage:
        """Set what trains in a stage, tell the strategies, and return the stage.

        Args:
            index: The stage's number, from 0.
        """
        self.enter_stage(index)
        self.state.stage_step = 0
        self.state.epoch = 0
        self.state.stage_is_ended = False
        self.strategy.on_stage_start(self.state)
        return self.state.stage

    def enter_stage(self, index: int) -> None:
        """Set what trains in a stage without telling the strategies: for a run that resumes inside it."""
        self.state.stage_index = index
        self.state.stage = self.stages[index]
        set_trainable_(self.model, self.trained_in(self.state.stage))
        self.train()

    def train(self) -> None:
        """Put the model into training mode, its frozen modules into evaluation mode (dropout, norms)."""
        set_train_mode_(self.model, self.layers)

    def on_batch(self, batch: Batch) -> Batch:
        """Return the batch that the strategies make of a batch of tensors."""
        return self.strategy.on_batch(batch, self.state)

    def row_weights(self, outputs: Any, batch: Batch) -> Tensor | None:
        """Return by what to multiply the loss on labels of each row, `[batch]`; None where no strategy weighs rows."""
        ones = torch.ones(len(batch), device=next(iter(batch.inputs.values())).device)
        weights = self.strategy.row_weights(ones, outputs, batch, self.state)
        return None if weights is ones else weights

    def on_loss(self, loss: Tensor, outputs: Any, batch: Batch) -> Tensor:
        """Return the loss with what the strategies add to it."""
        return self.strategy.on_loss(loss, outputs, batch, self.state)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the strategies act on the gradients, step the optimizer, and clear the gradients."""
        self.strategy.before_step(self.state)
        optimizer.step()
        # None, not zeros: AdamW decays a parameter with a zero gradient, and a frozen one must stay as it is.
        self.model.zero_grad(set_to_none=True)
        self.state.begin_step()
        self.state.step += 1
        self.state.stage_step += 1

    def rewind(self) -> None:
        """Go back to before the first stage, with nothing remembered; weights and optimizer are the caller's matter."""
        self.state.stage_index = 0
        self.state.memory = {}
        self.results, self.verdict, self.ended = [], None, False

    def decide(self, metrics: Mapping[str, float]) -> Verdict:
        """Ask the gates of the stage that just ended what follows.

        Args:
            metrics: The stage's validation metrics.

        Returns:
            The verdict. Iteration over stages ends by itself after one that ends training; to undo a stage on
            `ROLL_BACK` is the caller's work here, since only the caller knows the weights of before (the Trainer
            does it by itself).

        Raises:
            ConfigError: A gate asks for a metric that is not among `metrics`.
        """
        self.results.append(dict(metrics))
        self.verdict = self.state.stage.decide(self.results)
        self.ended = self.ended or self.verdict.ends_training
        return self.verdict

    def finish(self) -> torch.nn.Module:
        """Return the model as it will be deployed; a second call changes nothing.

        What trains is what trained before the strategies came, and the model is in evaluation mode.
        """
        if not self._finished:
            self._finished = True
            self.model = self.strategy.finish_model(self.model)
            self.state.model = self.model
            for name, parameter in self.model.named_parameters():
                if parameter.is_floating_point():  # integers of a quantized model cannot have a gradient
                    parameter.requires_grad_(name in self._trained_before)
            self.model.eval()
        return self.model

    def parameter_groups(self, *, weight_decay: float = 0.01) -> list[dict[str, Any]]:
        """Return optimizer groups for the whole run: one for each depth, with and without weight decay.

        They hold every parameter that any stage may train, so that no stage has to touch the optimizer. Frozen
        parameters have no gradient, which leaves them as they are, byte for byte.

        Args:
            weight_decay: Decay of all but biases and normalisation weights, and of those 0.

        Returns:
            Groups with the keys `params`, `names`, `depth`, `weight_decay`.
        """
        depths = self.layers.depths if self.layers is not None else {}
        groups: dict[tuple[int, bool], dict[str, Any]] = {}
        trained = self.trained
        for name, parameter in self.model.named_parameters():
            if name not in trained:
                continue
            decayed = parameter.ndim > 1  # biases and the weights of norms are vectors
            depth = depths.get(name, 0)  # all alike where the layers cannot be told apart
            group = groups.setdefault(
                (depth, decayed),
                {"params": [], "names": [], "depth": depth, "weight_decay": weight_decay if decayed else 0.0},
            )
            group["params"].append(parameter)
            group["names"].append(name)
        return list(groups.values())

    @property
    def trained(self) -> frozenset[str]:
        """The names of all parameters that some stage trains."""
        return frozenset(name for stage in self.stages for name in self.trained_in(stage))

    def trained_in(self, stage: Stage) -> frozenset[str]:
        """Return the names of the parameters that a stage trains."""
        return self._trained_before if stage.trainable is None else stage.trainable

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what must be saved beside model and optimizer: a JSON object and tensors."""
        values, tensors = self.state.state_dict()
        return {"state": values, "results": self.results, "ended": self.ended}, tensors

    def load_state_dict(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Return to where `state_dict` was taken: position, memory, results, and what trains.

        Raises:
            TrainingError: The saved stage does not exist here.
        """
        index = values["state"]["stage_index"]
        if index >= len(self.stages):
            raise TrainingError(
                f"the saved run is in stage {index}, but these strategies make {len(self.stages)} stages: "
                f"attach the strategies that the run was started with"
            )
        self.state.load_state_dict(values["state"], tensors)
        self.results = [dict(result) for result in values["results"]]
        self.ended = values["ended"]
        self.enter_stage(index)
        self._loaded = True


def attach(model: torch.nn.Module, strategies: Sequence[Strategy], *, stage: Stage | None = None) -> Attached:
    """Put strategies to work on a model in a training loop of your own.

    Args:
        model: Any module whose layers `lowft.find_layers` can tell apart.
        strategies: What to apply, in order.
        stage: The settings of the one stage that strategies may split; a plain one if None.

    Returns:
        The handle to call from the loop. Iterate over it for the stages.

    Raises:
        ConfigError: The strategies are not strategies, or cannot work together.
        ModelError: A selection of layers does not fit the model.

    >>> import torch
    >>> from lowft.strategies import PartialFreeze
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    >>> run = attach(model, [PartialFreeze(train=("2.*",))])
    >>> optimizer = torch.optim.AdamW(run.parameter_groups(), lr=0.1)
    >>> before = model[0].weight.clone()
    >>> for stage in run:
    ...     for _ in range(3):
    ...         run.on_loss(model(torch.ones(2, 4)).sum(), None, None).backward()
    ...         run.step(optimizer)
    >>> bool((model[0].weight == before).all()), run.state.step
    (True, 3)
    """
    return Attached(model, chain_of(strategies), stage or Stage())
