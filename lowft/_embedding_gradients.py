"""Gradients of embedding tables on a CPU: only the rows that a batch looked up are computed, into memory that stays."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["EmbeddingGradients"]

_LEAST = 2**20  # weights, below which a table is not worth it


class EmbeddingGradients:
    """Saves training steps the fresh zeros that autograd makes for the gradient of each embedding table.

    Half of the weights of a small model are its vocabulary, and the pages of a new table of that size cost a step more
    time than its whole optimizer. So lookups give sparse gradients during the backward pass, and these are added to a
    table that is kept from step to step: in the same order, unless a table is looked up several times in a step. The
    optimizer and strategies see dense gradients as ever.

    >>> table = nn.Embedding(20_000, 64)
    >>> gradients = EmbeddingGradients(table)
    >>> with gradients.gathered():
    ...     table(torch.tensor([3, 5, 3])).sum().backward()
    >>> table.weight.grad.is_sparse, table.weight.grad[:6, 0].tolist(), table.sparse
    (False, [0.0, 0.0, 0.0, 2.0, 0.0, 1.0], False)
    """

    def __init__(self, model: nn.Module | None) -> None:
        """Find a model's large embeddings that train now; None has no such thing."""
        modules = () if model is None else model.modules()
        self._tables = [it for it in modules if isinstance(it, nn.Embedding) and _can_be_sparse(it)]
        self._dense: dict[int, Tensor] = {}

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Gather the gradients of all backward passes in here; they are dense once it is left."""
        for table in self._tables:
            table.sparse = True
        try:
            yield
        finally:
            for table in self._tables:
                table.sparse = False
        for index, table in enumerate(self._tables):
            found = table.weight.grad
            if found is not None and found.is_sparse:
                if index not in self._dense:
                    self._dense[index] = torch.empty_like(table.weight, requires_grad=False)
                table.weight.grad = self._dense[index].zero_().add_(found)


def _can_be_sparse(table: nn.Embedding) -> bool:
    """Tell whether a table is large, trains, and looks its rows up plainly."""
    return (
        type(table) is nn.Embedding  # not one whose weights are rounded on the way
        and table.weight.requires_grad
        and table.weight.is_leaf
        and table.weight.numel() >= _LEAST
        and not (table.sparse or table.scale_grad_by_freq or table.max_norm)
    )
