"""How much of a batch is padding, and how much batches differ, beside the grouping of transformers' Trainer.

    python benchmarks/padding.py [--rows 100 400 800 2000 8000] [--batch 16] [--epochs 12] [--data rotten_tomatoes]

Both plan the same rows. Padding is what the tokens of all batches exceed those of the rows by. "Meet again" is the
share of pairs of rows in one batch that are in one batch in the next epoch too: the less, the more random.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from _common import describe_machine, minilm, reviews
from transformers.trainer_pt_utils import get_length_grouped_indices

import lowft
from lowft.data.epochs import plan_epoch

Lengths = npt.NDArray[np.int64]
Batches = list[Sequence[int]]


def main() -> None:
    """Plan some epochs in each way for each number of rows, and print a line for both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 400, 800, 2000, 8000])
    parser.add_argument("--batch", type=int, default=16, help="rows in a batch (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=12, help="epochs to plan (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=256, help="tokens after which texts are cut")
    parser.add_argument("--data", choices=("rotten_tomatoes", "imdb"), default="rotten_tomatoes")
    options = parser.parse_args()
    describe_machine(None)

    texts = list(reviews(options.data).texts)
    ids = lowft.load_tokenizer(minilm())(texts, truncation=True, max_length=options.tokens)["input_ids"]
    every = np.random.default_rng(0).permutation([len(row) for row in ids])

    def random(lengths: Lengths, epoch: int) -> Batches:
        return _planned(lengths, options.batch, epoch, grouped=False)

    def transformers(lengths: Lengths, epoch: int) -> Batches:
        generator = torch.Generator().manual_seed(epoch)
        untyped: Any = get_length_grouped_indices
        order = untyped(lengths.tolist(), options.batch, generator=generator)
        return [order[start : start + options.batch] for start in range(0, len(order), options.batch)]

    def own(lengths: Lengths, epoch: int) -> Batches:
        return _planned(lengths, options.batch, epoch, grouped=True)

    sides: dict[str, Callable[[Lengths, int], Batches]] = {
        "random": random, "transformers, grouped": transformers, "lowft, grouped": own,
    }  # fmt: skip
    for rows in options.rows:
        lengths = every[:rows]
        for name, side in sides.items():
            epochs = [side(lengths, epoch) for epoch in range(options.epochs)]
            padded = mean(sum(len(batch) * lengths[list(batch)].max() for batch in epoch) for epoch in epochs)
            pairs = [_pairs(epoch) for epoch in epochs]
            again = mean(len(one & other) / len(one) for one, other in itertools.pairwise(pairs))
            print(f"{rows:6d} rows  {name:22s} padding {padded / lengths.sum() - 1:6.1%}  meet again {again:6.1%}")


def _planned(lengths: Lengths, batch: int, epoch: int, *, grouped: bool) -> Batches:
    plan = plan_epoch(lengths, batch_size=batch, seed=(epoch,), group_by_length=grouped)
    return [part.indices for step in plan for part in step]


def _pairs(batches: Batches) -> set[tuple[int, int]]:
    """Return which rows are in one batch."""
    return {pair for batch in batches for pair in itertools.combinations(sorted(batch), 2)}


if __name__ == "__main__":
    main()
