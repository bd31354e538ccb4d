"""Mask rearrangement: which units go together, where what they do overlaps."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rearranged"]

_CANDIDATES = 64  # on either side: those that gain most alone
_GAIN = 1e-6  # of the whole harm: less is rounding


@torch.no_grad()
def rearranged(slopes: Tensor, kept: Tensor) -> Tensor:
    """Exchange units that stay with units that go, as long as that lowers the harm of the cut.

    The harm is the sum over rows of the squared sum of the slopes of the units that go. Alone, each unit counts by its
    own square; together, two that do the same harm more than both alone, and two that undo each other harm less. The
    best exchange of two units, among those that promise most, is made until none helps; the number that stays is the
    same.

    Kwon et al. 2022, https://arxiv.org/abs/2204.09656, section 4.2: the mask that a greedy search finds with the
    diagonal of the Fisher information, improved with all of a layer's.

    Args:
        slopes: The derivative of each row's loss by the gate of each unit of a layer, `[rows, units]`.
        kept: The numbers of the units that stay, rising.

    Returns:
        Numbers of units that stay, rising, as many as before.

    >>> slopes = torch.tensor([[1.0, 1.3, -1.1, 2.0]])  # the first and the third undo each other best
    >>> rearranged(slopes, torch.tensor([2, 3]))
    tensor([1, 3])
    """
    gone = torch.ones(slopes.shape[1], dtype=torch.bool)
    gone[kept] = False
    if not gone.any() or gone.all():
        return kept
    information = slopes.double().T @ slopes.double()
    own = information.diagonal()
    shared = information[:, gone].sum(dim=1)  # of each unit with all that go
    for _ in range(len(gone)):
        going = _best(2 * shared - own, gone)
        staying = _best(-2 * shared - own, ~gone)
        gains = (2 * shared - own)[going, None] - (2 * shared + own)[staying] + 2 * information[going[:, None], staying]
        best = int(gains.argmax())
        back, out = going[best // len(staying)], staying[best % len(staying)]
        if gains.flatten()[best] <= _GAIN * shared[gone].sum().abs():
            break
        gone[back], gone[out] = False, True
        shared += information[:, out] - information[:, back]
    return (~gone).nonzero()[:, 0]


def _best(gains: Tensor, among: Tensor) -> Tensor:
    """Return the units with the greatest gains among some."""
    numbers = among.nonzero()[:, 0]
    return numbers[gains[numbers].topk(min(_CANDIDATES, len(numbers))).indices]
