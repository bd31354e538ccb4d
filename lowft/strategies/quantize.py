"""Low-precision integers in the model that is deployed, and training that gets used to them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowft._settings import check_text, check_whole
from lowft.compress.quantization import check_quantization, layers_to_quantize, quantize_, scheme_of
from lowft.compress.quantized_layers import FakeQuantization, Scheme, fake_quantize_, undo_fake_quantization_
from lowft.errors import ConfigError, ModelError
from lowft.stages import check_pace
from lowft.strategy import Contract, Strategy

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from lowft.data.batching import Batch
    from lowft.stages import Stage
    from lowft.state import State

__all__ = ["Quantize"]

_STAGE = "quantize"
_HOW = "lowft_quantization"  # an attribute of the model while it trains


@dataclass(frozen=True)
class Quantize(Strategy):
    """Deploy the model with low-precision integers, as `lowft.quantize_` does.

    With `when="end"` the trained model is quantized. With "stage" a stage of its own follows the others, and runs even
    where a gate ended them, in which the model computes with rounded weights and activations, and learns to do well
    with them (Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 3); with "start" it does so from the first
    step, with the number or the name of a stage from there on. The model that was trained so and the one that is
    exported hold the same integers, and answer alike.

    Args:
        scheme: How: "int8" (weights and activations), "int8_weight_only", "int4_weight_only" or "bfloat16".
        when: "end", "stage", "start", or a stage of those that a strategy before made: its number from 0, or its name,
            such as "all layers". Where a gate ends the training before that stage, it is as with "end".
        keep: Glob patterns of modules that stay in float.
        embeddings: Whether embeddings are quantized too.
        epochs: Passes over the training rows in the stage.
        learning_rate: Its peak learning rate; None takes that of the stage before.

    Raises:
        ConfigError: A setting outside its range, or two that contradict each other; when the Trainer is built, a
            pattern that matches no module, or a stage that there is not.
        ModelError: When the Trainer is built, a model that is quantized already, or has nothing that can be.

    >>> Quantize("int8", when="stage", keep=("classifier",)).scheme
    'int8'
    """

    contract: ClassVar[Contract] = Contract(provides=frozenset({"precision"}))

    scheme: Scheme = "int8"
    when: int | str = "end"
    keep: tuple[str, ...] = ()
    embeddings: bool = True
    epochs: float = 1.0
    learning_rate: float | None = None
    max_steps: ClassVar[None] = None
    batch_size: ClassVar[None] = None
    layer_decay: ClassVar[None] = None

    def __post_init__(self) -> None:
        """Check every setting, and say what the strategy asks of others."""
        check_quantization("Quantize", scheme=self.scheme, keep=self.keep, embeddings=self.embeddings)
        if isinstance(self.when, str):
            check_text("Quantize.when", self.when)
        else:
            check_whole("Quantize.when", self.when, least=0)
        check_pace(self)
        object.__setattr__(self, "keep", tuple(self.keep))
        if self.scheme == "bfloat16" and self.when != "end":
            raise ConfigError(
                f"Quantize(scheme='bfloat16') has nothing to get used to; received when={self.when!r}. Leave when out, "
                f"and set TrainingConfig(precision='bfloat16') to train in it"
            )
        if self.when != "end":
            # The frozen prefix gives other values once it rounds.
            provides = {"precision"} if self.when == "start" else {"precision", "stages"}
            object.__setattr__(self, "contract", Contract(frozenset(), frozenset(provides), frozenset({"prefix"})))

    def prepare_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Find what is to be quantized, and let it round where that is to be learnt."""
        if scheme_of(model):
            raise ModelError(f"this {type(model).__name__} is quantized already: train the full-precision model")
        names = layers_to_quantize(model, self.scheme, keep=self.keep, embeddings=self.embeddings)
        if self.when != "end":
            how = FakeQuantization(self.scheme, on=self.when == "start")
            for module in {model.get_submodule(name): None for name in names}:
                fake_quantize_(module, how)
            setattr(model, _HOW, how)
        return model

    def stages(self, stages: tuple[Stage, ...], model: torch.nn.Module) -> tuple[Stage, ...]:  # noqa: ARG002
        """Append the stage in which the model gets used to integers, or make sure that there is one to begin with."""
        if self.when in {"start", "end"}:
            return stages
        if self.when != "stage":
            self._first(stages)
            return stages
        rate = self.learning_rate or stages[-1].learning_rate
        own = dataclasses.replace(
            stages[-1], name=_STAGE, gates=(), always=True, epochs=self.epochs, max_steps=None, learning_rate=rate
        )
        return (*stages, own)

    def on_stage_start(self, state: State) -> None:
        """Begin to round, from where weights that were best without it no longer count."""
        if self.when not in {"start", "end"} and state.stage_index == self._first(state.stages):
            getattr(state.model, _HOW).on = True
            state.forget_best()

    def on_batch(self, batch: Batch, state: State) -> Batch:
        """Round in the stages that are for it; said at each batch, since a resumed stage does not start anew."""
        if self.when not in {"start", "end"}:
            getattr(state.model, _HOW).on = state.stage_index >= self._first(state.stages)
        return batch

    def finish_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Put the integers in place."""
        if self.when != "end":
            delattr(model, _HOW)
            for module in model.modules():
                if hasattr(module, _HOW):
                    undo_fake_quantization_(module)
        quantize_(model, self.scheme, keep=self.keep, embeddings=self.embeddings)
        return model

    def _first(self, stages: Sequence[Stage]) -> int:
        """Return the number of the stage from which on the model rounds.

        Raises:
            ConfigError: There is no such stage.
        """
        names = [stage.name for stage in stages]
        if isinstance(self.when, int) and self.when < len(names):
            return self.when
        wanted = _STAGE if self.when == "stage" else self.when
        if wanted not in names:
            listed = ", ".join(f"{number} {name!r}" for number, name in enumerate(names))
            raise ConfigError(
                f"Quantize.when must be 'end', 'stage', 'start', or one of the stages so far, {listed}; received "
                f"{self.when!r}. Put the strategy that makes stages before Quantize"
            )
        return names.index(str(wanted))
