"""Where one training step spends its time: how much is matrix arithmetic, and how near that is to what the machine can.

    python benchmarks/step_profile.py [--top 2 | --top all] [--batch 16] [--tokens 32] [--steps 20] [--threads 2]

MiniLM makes steps on texts of one length with lowft's Trainer. torch's profiler says which share of the time is spent
in matrix products; torch's counter says how many operations these are. The machine's rate is measured between the
steps, on products of the shape that a feed-forward layer of this batch has. Every second step is made with torch's own
dropout, to compare.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from _common import describe_machine, minilm
from scaling import texts_of
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import lowft
from lowft import _dropout

if TYPE_CHECKING:
    from collections.abc import Iterator

_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "scaled_dot_product", "mkldnn_linear", "sgemm")
_WARM_UP = 3


def machine_rate(rows: int, precision: str, turns: int = 5) -> float:
    """Return the operations a second of a feed-forward layer's product, `[rows, 384] × [384, 1536]`."""
    dtype = getattr(torch, precision)
    left, right = torch.randn(rows, 384, dtype=dtype), torch.randn(384, 1536, dtype=dtype)
    times = []
    for _ in range(turns):
        started = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - started)
    return 2 * rows * 384 * 1536 / min(times)


def seconds_of(steps: Iterator[Any]) -> float:
    """Make a step, and return how long it took."""
    started = time.perf_counter()
    next(steps)
    return time.perf_counter() - started


@contextlib.contextmanager
def torchs_dropout() -> Iterator[None]:
    """Let lowft drop values as torch does."""
    own, _dropout._OWN = _dropout._OWN, _dropout._TORCHS  # noqa: SLF001 - what is compared
    try:
        yield
    finally:
        _dropout._OWN = own  # noqa: SLF001


def main() -> None:
    """Make the steps, and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--top", default="all", help="highest blocks that train, or all (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="rows in a batch (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of a row (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="steps that are timed (default: %(default)s)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=2, help="threads to compute with (default: %(default)s)")
    options = parser.parse_args()
    describe_machine(options.threads)
    total = 4 * options.steps + _WARM_UP + 2
    config = lowft.TrainingConfig(
        max_steps=total, batch_size=options.batch, max_length=options.tokens, precision=options.precision,
        device="cpu", progress=False,
    )  # fmt: skip
    strategies: list[lowft.Strategy] = [] if options.top == "all" else [lowft.PartialFreeze(top=int(options.top))]
    rows = texts_of(options.tokens, options.batch * 4)
    steps = lowft.Trainer(minilm(), rows, strategies=strategies, config=config).steps()
    for _ in range(_WARM_UP):
        next(steps)
    times, torch_times, rates = [], [], []
    for _ in range(options.steps):
        times.append(seconds_of(steps))
        with torchs_dropout():
            torch_times.append(seconds_of(steps))
        rates.append(machine_rate(options.batch * options.tokens, options.precision))
    counter: Any = FlopCounterMode(display=False)
    with counter:
        next(steps)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(options.steps):
            next(steps)
    events: Any = found.key_averages()
    whole = sum(event.self_cpu_time_total for event in events)
    products = sum(event.self_cpu_time_total for event in events if any(product in event.key for product in _PRODUCTS))
    seconds, operations, rate = median(times), counter.get_total_flops(), max(rates)
    share = products / whole
    print(f"a step: {1000 * seconds:.1f} ms, {options.batch / seconds:.0f} rows/s, {operations / 1e9:.2f} G operations")
    print(
        f"with torch's own dropout: {1000 * median(torch_times):.1f} ms, {median(torch_times) / seconds:.2f} times that"
    )
    print(f"matrix products: {share:.1%} of the profiled time")
    print(f"the machine's rate: {rate / 1e9:.1f} G operations a second (median {median(rates) / 1e9:.1f})")
    print(f"the step's rate: {operations / seconds / 1e9:.1f}, {operations / seconds / rate:.1%} of the machine's")
    print(f"within matrix products: {operations / (seconds * share) / rate:.1%} of the machine's\n")
    print(events.table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=40))


if __name__ == "__main__":
    main()
