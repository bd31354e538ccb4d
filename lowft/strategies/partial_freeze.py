"""Train only chosen layers, and leave the rest byte-identical."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowft.models import preview, trainable_names
from lowft.stages import narrow
from lowft.strategy import Contract, Strategy

if TYPE_CHECKING:
    import torch

    from lowft.models import Selection
    from lowft.stages import Stage

__all__ = ["PartialFreeze"]


@dataclass(frozen=True)
class PartialFreeze(Strategy):
    """Train only chosen layers; what is frozen stays byte-identical, its dropout and norms in evaluation mode.

    Lower layers of a pre-trained encoder carry what transfers best, so training the top alone keeps most of the
    accuracy at a part of the cost (Lee et al. 2019, "What Would Elsa Do?", https://arxiv.org/abs/1911.03090).
    Together with `LayerwiseUnfreeze`, a layer trains where both allow it. `lowft.freeze_` does the same to any
    model in a loop of your own.

    Args:
        top: Train this many of the uppermost blocks (0: the head only) instead of all parameters.
        embeddings: Whether the embeddings train; None trains them where neither `top` nor `train` narrows the choice.
        head: Whether everything after the last block trains.
        biases_only: Of what is chosen below the head, train only biases (BitFit: Ben Zaken et al. 2022,
            https://arxiv.org/abs/2106.10199).
        train: Glob patterns of parameters or modules that train besides.
        freeze: Glob patterns of parameters or modules that never train, whatever else is said.

    Raises:
        ConfigError: When the Trainer is built: `top` outside the model, a pattern that matches nothing (near names
            are listed), or nothing left to train.
        ModelError: When the Trainer is built: layers that cannot be found, or a tied weight frozen on one side.

    >>> PartialFreeze(top=2)
    PartialFreeze(top=2, embeddings=None, head=True, biases_only=False, train=(), freeze=())
    """

    contract: ClassVar[Contract] = Contract(provides=frozenset({"trainable"}))

    top: int | None = None
    embeddings: bool | None = None
    head: bool = True
    biases_only: bool = False
    train: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Store lists as tuples: settings compare and hash, and JSON returns tuples."""
        for name in ("train", "freeze"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))

    def stages(self, stages: tuple[Stage, ...], model: torch.nn.Module) -> tuple[Stage, ...]:
        """Narrow what trains in each stage to what the settings choose."""
        names = trainable_names(model, **self._selection())
        return narrow(stages, names, self.name)

    def preview(self, model: torch.nn.Module) -> str:
        """Return the table of layers as it would be, with what would train; the model is not changed.

        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        >>> print(PartialFreeze(top=0).preview(model).splitlines()[-1])
               total          50         10  200 B
        """
        return preview(model, **self._selection())

    def _selection(self) -> Selection:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[return-value]
