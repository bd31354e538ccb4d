"""The head first: set by regression on what the model knows already, then fine-tuned or not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from lowft._inference import tokens_at_once
from lowft._placement import device_of
from lowft._settings import check_flag, check_whole
from lowft.data.epochs import longest_first
from lowft.errors import StrategyConflictError, TrainingError
from lowft.models.probing import STRENGTHS, check_strengths, find_output_layer, probe_head_
from lowft.strategy import Contract, Strategy

if TYPE_CHECKING:
    from lowft.stages import Stage
    from lowft.state import State

__all__ = ["Probe"]

_STAGE = "probe"
_ROWS = 32  # at once through the model


@dataclass(frozen=True)
class Probe(Strategy):
    """Set the head by logistic regression on all labelled rows before fine-tuning, as `lowft.probe_head_` does.

    LP-FT, linear probing and then fine-tuning (Kumar et al. 2022, https://arxiv.org/abs/2202.10054): gradients that
    come through a random head distort the layers below before the head has learnt anything. The head is set when the
    first stage begins that does not only prepare the layers below, as those of `Contrastive` and
    `MaskedLanguageModeling` do. Labels may be one class, several classes or a number a row.

    Args:
        fine_tune: Whether the stages that were planned follow; False leaves the model as the probe found it: nothing
            below the head changes, except in stages that prepare it.
        strengths: Inverse strengths of regularisation (scikit-learn's C, for features of unit length) to choose from,
            by cross-validation within the training rows alone.
        folds: Parts to cut them into for that.

    Raises:
        ConfigError: A setting outside its range.
        ModelError: When the Trainer is built, a model without a linear output layer; when the stage begins, one that
            does not read one vector a row (GPT, Llama): put `PooledHead` before it.
        StrategyConflictError: `fine_tune=False` together with a strategy that plans several stages.

    >>> Probe(fine_tune=False).strengths
    (0.1, 1.0, 10.0, 100.0)
    """

    contract: ClassVar[Contract] = Contract(provides=frozenset({"stages"}))

    fine_tune: bool = True
    strengths: tuple[float, ...] = STRENGTHS
    folds: int = 4

    def __post_init__(self) -> None:
        """Check every setting."""
        check_flag("Probe.fine_tune", self.fine_tune)
        check_whole("Probe.folds", self.folds, least=2)
        object.__setattr__(self, "strengths", check_strengths("Probe.strengths", self.strengths))

    def stages(self, stages: tuple[Stage, ...], model: torch.nn.Module) -> tuple[Stage, ...]:
        """Leave the stages as they are, or put one in their place that trains nothing."""
        head = find_output_layer(model)
        if self.fine_tune:
            return stages
        before = [stage for stage in stages if stage.prepares]
        planned = [stage for stage in stages if not stage.prepares]
        if len(planned) > 1:
            raise StrategyConflictError(
                f"Probe(fine_tune=False) leaves nothing to fine-tune, and another strategy plans the stages "
                f"{', '.join(repr(stage.name) for stage in planned)}: leave that one out, or set fine_tune=True"
            )
        names = frozenset(name for name, _ in model.named_parameters() if name.rpartition(".")[0] == head)
        return (*before, replace(planned[0], name=_STAGE, trainable=names, epochs=None, max_steps=1))

    def on_stage_start(self, state: State) -> None:
        """Set the head, once."""
        memory = state.memory_of(self.name)
        if state.stage.prepares or memory.get("done"):
            return
        rows = state.train_rows
        if rows is None:
            raise TrainingError(
                "Probe reads the training rows of the Trainer, which a loop of your own does not have: call "
                "lowft.probe_head_(model, batches) before the loop instead"
            )
        known = rows.labelled[::-1]  # so that of rows as long as each other the first stays the first
        most = tokens_at_once(device_of(state.model), state.tokens_per_batch)
        ordered = [known[batch[::-1]].tolist() for batch in reversed(longest_first(rows.lengths[known], _ROWS, most))]
        batches = (rows.collate(batch) for batch in ordered)
        report = probe_head_(state.model, batches, strengths=self.strengths, folds=self.folds)
        memory["done"] = True
        state.forget_best()
        state.note(str(report))

    def before_step(self, state: State) -> None:
        """Let the one step of a stage that is there for the probe alone change nothing."""
        if state.stage.name == _STAGE and not self.fine_tune:
            state.model.zero_grad(set_to_none=True)
