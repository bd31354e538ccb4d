"""What it saves to compute the first token of the top block alone, where the head reads no other.

    python benchmarks/top_block.py [--tokens 32 128] [--turns 12] [--threads 2]

MiniLM makes forward and backward passes of 16 rows, a fourth of them shorter: whole, with the first token alone but
keys and values of all tokens, and as lowft does it, in turn. Everything trains, or the top two blocks on random states.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from statistics import median
from typing import Any

import torch
from _common import describe_machine, minilm
from transformers.masking_utils import create_bidirectional_mask

import lowft
from lowft._dropout import fast_dropout
from lowft.models.first_token import FirstToken

_ROWS = 16
_WAYS: dict[str, bool | None] = {"whole": None, "with keys and values": False, "as lowft does it": True}


def seconds_of(model: Any, inputs: dict[str, torch.Tensor], states: torch.Tensor | None) -> float:
    """Return how long a pass forward and backward takes, of the whole model or of the top two blocks on states."""
    started = time.perf_counter()
    if states is None:
        logits = model(**inputs).logits
    else:
        mask = create_bidirectional_mask(model.config, states, inputs["attention_mask"])
        for block in model.bert.encoder.layer[-2:]:
            states = block(states, mask)
        logits = model.classifier(model.bert.pooler(states))
    logits.square().mean().backward()
    model.zero_grad()
    return time.perf_counter() - started


def main() -> None:
    """Time all ways in turn, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 128], help="of a row")
    parser.add_argument("--turns", type=int, default=12, help="of each way (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads to compute with (default: %(default)s)")
    options = parser.parse_args()
    describe_machine(options.threads)
    model: Any = lowft.load_model(minilm())
    draws = torch.Generator().manual_seed(0)
    for tokens in options.tokens:
        ids = torch.randint(1000, 20000, (_ROWS, tokens), generator=draws)
        mask = torch.ones_like(ids)
        mask[: _ROWS // 4, -tokens // 4 :] = 0
        inputs = {"input_ids": ids, "attention_mask": mask}
        model.eval()
        top = FirstToken.find(model, lowft.find_layers(model), inputs)
        assert top is not None  # MiniLM's head reads the first token
        model.train()
        for what in ("everything", "the top two"):
            states = torch.randn(_ROWS, tokens, model.config.hidden_size) if what == "the top two" else None
            times: dict[str, list[float]] = {way: [] for way in _WAYS}
            for _ in range(options.turns + 2):
                for way, folded in _WAYS.items():
                    alone = contextlib.nullcontext() if folded is None else top.alone(folded=folded)
                    with fast_dropout(), alone:
                        times[way].append(seconds_of(model, inputs, states))
            found = {way: 1000 * median(each[2:]) for way, each in times.items()}
            told = ", ".join(f"{way} {value:.0f} ms" for way, value in found.items())
            print(f"{what}, {tokens} tokens: {told}: {found['whole'] / found['as lowft does it']:.2f}", flush=True)


if __name__ == "__main__":
    main()
