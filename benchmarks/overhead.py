"""What does the Trainer cost on top of a bare PyTorch loop that makes the same steps?

Both fine-tune MiniLM on the same batches with the same fused AdamW, clipping and learning rates, and must end with the
same weights. They take turns at every step, so that whatever else the machine does disturbs both alike. Both hold their
rows as tokens and pad a batch when it is due. Dropout is off: neither side has to draw what the other drew.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import numpy as np
import torch
from _common import describe_machine, minilm, rotten_tomatoes
from torch import nn
from torch.nn.utils.rnn import pad_sequence

import lowft
from lowft.data.epochs import plan_epoch

_SEED = 0
_RATE = 1e-4
_BATCH = 16
_WARMUP = 0.1


_FIRST = 5  # first steps, in which memory is allocated and kernels are chosen


def new_model() -> nn.Module:
    """Return the encoder with a new head, the same each time, without dropout."""
    model = lowft.load_model(minilm(), seed=_SEED)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def trainer_steps(model: nn.Module, rows: lowft.Rows, steps: int) -> Iterator[float]:
    """Make the steps with lowft, and yield each one's loss."""
    config = lowft.TrainingConfig(
        max_steps=steps, batch_size=_BATCH, learning_rate=_RATE, warmup_ratio=_WARMUP, seed=_SEED, device="cpu"
    )
    trainer = lowft.Trainer(model, rows, tokenizer=minilm(), config=config)
    for result in trainer.steps():
        yield result.loss


def bare_steps(model: nn.Module, rows: lowft.Rows, steps: int) -> Iterator[float]:
    """Make the steps as a careful person would write them down for once, and yield each one's loss."""
    encoded = lowft.load_tokenizer(minilm())(list(rows.texts), truncation=True, return_attention_mask=False)
    columns = {name: [torch.tensor(ids) for ids in encoded[name]] for name in encoded}
    columns["attention_mask"] = [torch.ones_like(ids) for ids in columns["input_ids"]]
    names = sorted(set(rows.labels or ()))
    labels = torch.tensor([names.index(label) for label in rows.labels or ()])
    lengths = np.array([len(ids) for ids in encoded["input_ids"]])
    epochs = math.ceil(steps / math.ceil(len(rows) / _BATCH))
    order = [
        list(batch.indices)
        for epoch in range(epochs)
        for (batch,) in plan_epoch(lengths, batch_size=_BATCH, seed=(_SEED, 0, epoch))
    ]
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in model.parameters() if weight.ndim > 1], "weight_decay": 0.01},
        {"params": [weight for weight in model.parameters() if weight.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=_RATE, fused=True)
    warmup = math.ceil(_WARMUP * steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (step + 1) / (warmup + 1) if step < warmup else (steps - step) / max(1, steps - warmup)
    )
    model.train()
    for chosen in order[:steps]:
        batch = {name: pad_sequence([column[row] for row in chosen], True) for name, column in columns.items()}
        loss = nn.functional.cross_entropy(model(**batch).logits, labels[chosen])
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield loss.item()


def main() -> None:
    """Make each step on both sides, one right after the other; print the medians, and the ratio with its spread."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of each side (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: what torch chooses)")
    options = parser.parse_args()
    describe_machine(options.threads)

    rows = rotten_tomatoes().select(range(0, 8000, 8))
    models = {"bare loop": new_model(), "Trainer": new_model()}
    sides = {
        "bare loop": bare_steps(models["bare loop"], rows, options.steps),
        "Trainer": trainer_steps(models["Trainer"], rows, options.steps),
    }
    times: dict[str, dict[str, list[float]]] = {name: {"clock": [], "processor": []} for name in sides}
    for step in range(options.steps):
        losses = {}
        for name in list(sides) if step % 2 == 0 else reversed(sides):
            clock, processor = time.perf_counter(), time.process_time()
            losses[name] = next(sides[name])
            times[name]["clock"].append(time.perf_counter() - clock)
            times[name]["processor"].append(time.process_time() - processor)
        assert math.isclose(*losses.values(), rel_tol=1e-5), f"step {step + 1}: the losses differ: {losses}"
    difference = max(
        (one - other).abs().max().item()
        for one, other in zip(*(model.parameters() for model in models.values()), strict=True)
    )
    assert difference <= 1e-6, f"the two sides do not train alike: weights differ by {difference}"
    print(f"After {options.steps} steps the weights differ by {difference:.1e} at most.\n")
    for kind in ("clock", "processor"):
        bare, trainer = (np.array(times[name][kind][_FIRST:]) for name in sides)
        low, middle, high = np.quantile(trainer / bare, [0.25, 0.5, 0.75])
        figures = f"bare loop {1000 * median(bare):6.1f} ms a step, Trainer {1000 * median(trainer):6.1f} ms"
        spread = f"half of the steps from {low:.3f} to {high:.3f}"
        print(f"{kind + ' time':14}  {figures}; Trainer / bare loop {middle:.3f} ({spread})")


if __name__ == "__main__":
    main()
