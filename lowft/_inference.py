"""Logits for many rows: sorted by length, without gradients, shared among processes, back in the caller's order."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lowft._memory import is_out_of_memory, release_memory, too_long
from lowft._placement import device_of, gather
from lowft._progress import progress_bar
from lowft.data.epochs import longest_first
from lowft.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    import numpy.typing as npt
    from torch import Tensor

    from lowft.data.batching import TokenizedRows

    Serving = Callable[[dict[str, Tensor], dict[str, Tensor]], AbstractContextManager[Any]]

__all__ = [
    "autocast",
    "compute_logits",
    "evaluation_mode",
    "kept_modes",
    "logits_of",
    "logits_of_rows",
    "tokens_at_once",
]

# What a feed-forward layer gives for more is beyond 32 MB in models of usual widths. Blocks of such a size the system
# takes back after each use, and to get their pages anew costs a CPU more than larger products save.
_CPU_TOKENS = 2048


def tokens_at_once(device: torch.device, asked: int | None = None) -> int | None:
    """Return how many tokens should go through a model at once at most, without gradients; None without a limit.

    >>> cpu, gpu = torch.device("cpu"), torch.device("cuda")
    >>> tokens_at_once(cpu), tokens_at_once(cpu, 512), tokens_at_once(gpu)
    (2048, 512, None)
    """
    if device.type != "cpu":
        return asked
    return _CPU_TOKENS if asked is None else min(asked, _CPU_TOKENS)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which a forward pass runs at the chosen precision."""
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


@contextlib.contextmanager
def kept_modes(model: torch.nn.Module) -> Iterator[None]:
    """After a block, put each module back into the mode (training or evaluation) it was in before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            if module.training != training:  # setting an attribute of a module is slow
                module.training = training


@contextlib.contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for a block, then each of its modules back into the mode it was in."""
    with kept_modes(model):
        model.eval()
        yield


def logits_of(outputs: Any) -> Tensor:
    """Return the logits, `[batch, outputs]`, of whatever a model's forward returned.

    Raises:
        ModelError: There are none, or they have another shape.
    """
    logits = outputs if isinstance(outputs, torch.Tensor) else getattr(outputs, "logits", None)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        got = f"logits of shape {list(logits.shape)}" if isinstance(logits, torch.Tensor) else type(outputs).__name__
        raise ModelError(
            f"the model's forward must return logits [batch, outputs], as a tensor or as the attribute 'logits'; "
            f"received {got}. Give a model with a classification or regression head"
        )
    return logits


@torch.no_grad()
def logits_of_rows(
    model: torch.nn.Module,
    rows: TokenizedRows,
    indices: npt.NDArray[np.int64],
    *,
    precision: str,
    serving: Serving | None,
) -> npt.NDArray[np.float32]:
    """Return the logits, `[indices, outputs]` in float32, of rows that go through the model as one batch."""
    device = device_of(model)
    collated = rows.collate(indices.tolist())
    batch = collated.to(device)
    served = contextlib.nullcontext() if serving is None else serving(batch.inputs, collated.inputs)
    with autocast(precision, device), served:
        return logits_of(model(**batch.inputs)).float().cpu().numpy()


@torch.no_grad()
def compute_logits(  # noqa: PLR0913 - what a run asks for, each with a default
    model: torch.nn.Module,
    rows: TokenizedRows,
    *,
    batch_size: int,
    most_tokens: int | None = None,
    precision: str = "float32",
    share: tuple[int, int] = (0, 1),
    progress: bool | None = None,
    description: str = "predicting",
    serving: Serving | None = None,
) -> npt.NDArray[np.float32]:
    """Return the model's logits, `[rows, outputs]` in float32, for every row in order.

    Args:
        model: The model.
        rows: The rows.
        batch_size: Rows in a batch at most.
        most_tokens: Tokens in a batch at most, padding included; a longer row goes alone. None leaves it to lowft.
        precision: "float32" or "bfloat16".
        share: The number of this process, and how many share the work.
        progress: Whether to show a progress bar; None decides by the terminal.
        description: Its label.
        serving: Given the inputs of a batch on the model's device and on the CPU, returns the context in which cached
            layers are handed over.

    Raises:
        TrainingError: There is no memory for a row alone; more rows that find none are computed in halves.
    """
    rank, processes = share
    most_tokens = tokens_at_once(device_of(model), most_tokens)
    batches = longest_first(rows.lengths, batch_size, most_tokens)  # too large a batch fails at once
    found: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]] = []
    shown = progress if len(batches) > 1 else False

    most = batch_size
    with evaluation_mode(model):
        for indices in progress_bar(batches[rank::processes], description, shown=shown, leave=False):
            waiting = [indices[start : start + most] for start in range(0, len(indices), most)]
            while waiting:
                try:
                    logits = logits_of_rows(model, rows, waiting[0], precision=precision, serving=serving)
                    found.append((waiting.pop(0), logits))
                    continue
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    if len(waiting[0]) == 1:
                        raise too_long(description, int(rows.lengths[waiting[0][0]]), error) from error
                release_memory()
                most = (len(waiting[0]) + 1) // 2
                rest = np.concatenate(waiting)
                waiting = [rest[start : start + most] for start in range(0, len(rest), most)]
    if processes > 1:
        found = [answer for own in gather(found) for answer in own]
    result = np.empty((len(rows), found[0][1].shape[1]), dtype=np.float32)
    for indices, logits in found:
        result[indices] = logits
    return result
