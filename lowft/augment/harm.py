"""Whether an augmenter costs rows their labels: how a model reads validation rows after it has changed them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from lowft._inference import compute_logits
from lowft._placement import process_share
from lowft.augment.bank import change, is_empty
from lowft.data.batching import TokenizedRows
from lowft.data.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from torch import Tensor

    from lowft.augment.augmenter import Augmenter

__all__ = ["Harm", "measure_harm", "misread_copies", "without_harm"]

_SURE = 0.8  # least probability of the right class: what is barely right falls to the other side at a touch
_MOST_ROWS = 1000  # tell a share within two points, and keep a test cheap
_TOGETHER = 64  # rows at once through the model
_LEVEL = 0.01  # of the test, which several augmenters undergo several times


@dataclass(frozen=True)
class Harm:
    """What an augmenter did to rows that a model had read rightly and surely.

    Attributes:
        changed: How many of them it changed.
        misread: How many of these are read as another class since.

    >>> print(Harm(changed=200, misread=30))
    30 of 200 (15.0%)
    """

    changed: int
    misread: int

    def chance(self, allowed: float) -> float:
        """Return how probable as many misread rows or more are, if each is one with probability `allowed`.

        >>> Harm(200, 30).chance(0.1) < 0.05 < Harm(20, 3).chance(0.1)
        True
        """
        from scipy.stats import binom  # takes a second, which runs without the test need not spend

        return float(binom.sf(self.misread - 1, self.changed, allowed))

    def __str__(self) -> str:
        """Return it as words for a history."""
        share = f" ({self.misread / self.changed:.1%})" if self.changed else ""
        return f"{self.misread:,} of {self.changed:,}{share}"


def measure_harm(
    model: torch.nn.Module,
    rows: TokenizedRows,
    augmenters: Sequence[Augmenter],
    *,
    precision: str = "float32",
    most_tokens: int | None = None,
) -> list[Harm]:
    """Return what each augmenter does to rows that a classifier reads rightly, with a probability of at least 0.8.

    Every augmenter changes the same rows, in the same way whenever it is asked: up to 1,000 of them, drawn once. With
    several processes, each reads a share of them, and all have the same answer.

    Args:
        model: A classifier of one class a row.
        rows: Labelled rows.
        augmenters: What changes them.
        precision: In which the model computes.
        most_tokens: Tokens that go through it at once at most; None sets no limit.
    """
    most = min(len(rows), _MOST_ROWS)
    chosen = sorted(random.Random(0).sample(range(len(rows)), most))
    texts = list(zip(rows.rows.texts, rows.rows.pairs or [None] * len(rows), strict=True))
    assert rows.labels is not None  # noqa: S101 - validation rows have labels
    likely = _probabilities(model, rows, [texts[row] for row in chosen], precision, most_tokens)
    labels = rows.labels[chosen]
    sure = np.flatnonzero((likely.argmax(axis=1) == labels) & (likely.max(axis=1) >= _SURE))
    found = []
    for augmenter in augmenters:
        own = [texts[chosen[place]] for place in sure]
        varied = change(own, [augmenter], [random.Random(repr(pair)) for pair in own], None)
        differ = [at for at, pair in enumerate(varied) if pair != own[at] and not is_empty(pair)]
        misread = 0
        if differ:
            changed = [varied[at] for at in differ]
            read = _probabilities(model, rows, changed, precision, most_tokens).argmax(axis=1)
            misread = int((read != labels[sure[differ]]).sum())
        found.append(Harm(len(differ), misread))
    return found


def without_harm(
    augmenters: Sequence[Augmenter],
    off: Sequence[int],
    allowed: float,
    model: torch.nn.Module,
    rows: TokenizedRows,
    *,
    precision: str = "float32",
    most_tokens: int | None = None,
) -> tuple[list[int], str]:
    """Return which augmenters are off from now on, by their numbers, and what was found, as words for a history.

    Args:
        augmenters: All of them.
        off: Which are off already.
        allowed: Share of rows that may be misread after a change.
        model: A classifier of one class a row, trained on such changes.
        rows: Labelled rows.
        precision: In which the model computes.
        most_tokens: Tokens that go through it at once at most; None sets no limit.
    """
    tested = [index for index in range(len(augmenters)) if index not in off]
    left = [augmenters[index] for index in tested]
    found = measure_harm(model, rows, left, precision=precision, most_tokens=most_tokens)
    told, now_off = [], list(off)
    for index, harm in zip(tested, found, strict=True):
        told.append(f"{type(augmenters[index]).__name__} {harm}")
        if harm.chance(allowed) < _LEVEL:
            now_off.append(index)
            told[-1] += f", beyond drop_harmful={allowed:g} and chance: switched off"
    rest = "" if len(now_off) < len(augmenters) else "; no augmenter is left, and rows are trained on alone"
    message = "validation rows that are read rightly and surely, and as another class after a change: "
    return sorted(now_off), f"{message}{'; '.join(told)}{rest}"


def misread_copies(
    likely: Tensor, labels: Tensor, labelled: Tensor, first: Sequence[int], copies: Sequence[int], least: float
) -> Tensor:
    """Return which places hold copies that are surely misread while their row is read rightly, `[batch]`.

    Args:
        likely: The probability of each class, `[batch, classes]`.
        labels: Class ids, `[batch]`.
        labelled: Which of them are known, `[batch]`.
        first: For each place, that of its row.
        copies: The places that hold copies.
        least: Probability from which on a reading is sure.

    >>> likely = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.05, 0.95]])
    >>> labels, known = torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.bool)
    >>> misread_copies(likely, labels, known, [0, 0, 0, 0], [1, 2, 3], 0.9).tolist()
    [False, False, False, True]
    """
    is_copy = torch.zeros_like(labelled)
    is_copy[list(copies)] = True
    sure, taken_for = likely.max(dim=1)
    right = taken_for == labels
    return is_copy & labelled & right[list(first)] & ~right & (sure >= least)


def _probabilities(
    model: torch.nn.Module,
    like: TokenizedRows,
    texts: Sequence[tuple[str, str | None]],
    precision: str,
    most_tokens: int | None,
) -> npt.NDArray[np.float32]:
    """Return the probability of each class, `[texts, classes]`, tokens made as for other rows."""
    pairs = None if like.rows.pairs is None else tuple(pair or "" for _, pair in texts)
    rows = TokenizedRows(
        Rows(tuple(text for text, _ in texts), pairs),
        like.tokenizer,
        None,
        like.max_length,
        like.inputs,
        progress=False,
    )
    logits = compute_logits(
        model,
        rows,
        batch_size=_TOGETHER,
        most_tokens=most_tokens,
        precision=precision,
        share=process_share(),
        progress=False,
    )
    return torch.from_numpy(logits).softmax(dim=1).numpy()
