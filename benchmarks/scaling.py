"""How the time of training grows with rows and with length, with frozen layers cached and without.

    python benchmarks/scaling.py [--rows 500 1000 2000 4000] [--tokens 16 32 64 128] [--rows-of-each-length 500]
                                 [--top 2] [--epochs 3]

MiniLM on Rotten Tomatoes, whose sentences are joined and cut to make texts of one length. Both ways take turns at each
size. A straight line is fitted to the seconds by rows (overhead and seconds a row), a parabola to those by tokens (the
square is attention's). The cache's size, hit rate and seconds of filling stand beside them.
"""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _common import describe_machine, minilm, rotten_tomatoes

import lowft


@dataclass(frozen=True)
class Measured:
    """One run: seconds of training, and what its cache took and brought."""

    seconds: float
    bytes: int
    filling: float
    hit_rate: float


def texts_of(tokens: int, rows: int) -> lowft.Rows:
    """Return rows that fill so many tokens: sentences of one class joined until they are long enough, cut later."""
    data = rotten_tomatoes()
    sources = {label: itertools.cycle([t for t, own in zip(data.texts, data.labels or (), strict=True) if own == label])
               for label in ("negative", "positive")}  # fmt: skip
    made = []
    for number in range(rows):
        label = ("negative", "positive")[number % 2]
        text = f"{number} "
        while len(text.split()) < tokens:
            text += next(sources[label]) + " "
        made.append((text, label))
    return lowft.read_rows(made)


def measure(options: argparse.Namespace, rows: int, tokens: int, *, cache: bool) -> Measured:
    """Train once."""
    config = lowft.TrainingConfig(
        epochs=options.epochs, max_length=tokens, prefix_cache=cache, device="cpu", progress=False, learning_rate=3e-4
    )
    trainer = lowft.Trainer(
        minilm(), texts_of(tokens, rows), strategies=[lowft.PartialFreeze(top=options.top)], config=config
    )
    started = time.perf_counter()
    trainer.fit()
    seconds = time.perf_counter() - started
    values = {key: value for note in trainer.history.filter("note") for key, value in note.items()}
    return Measured(
        seconds, values.get("cached_bytes", 0), values.get("filling_seconds", 0.0), values.get("hit_rate", 0.0)
    )


def sweep(options: argparse.Namespace, sizes: list[tuple[int, int]], degree: int) -> dict[bool, list[Measured]]:
    """Run both ways at each size in turn, print the figures and the curve through them."""
    found: dict[bool, list[Measured]] = {True: [], False: []}
    for turn, (rows, tokens) in enumerate(sizes):
        for cache in (True, False) if turn % 2 == 0 else (False, True):
            found[cache].append(measure(options, rows, tokens, cache=cache))
        with_cache, without = found[True][-1], found[False][-1]
        print(
            f"{rows:6} rows of {tokens:4} tokens  cached {with_cache.seconds:7.1f} s  not {without.seconds:7.1f} s  "
            f"ratio {without.seconds / with_cache.seconds:.2f}  cache {with_cache.bytes / 2**20:7.1f} MiB "
            f"filled in {with_cache.filling:.1f} s, hit rate {with_cache.hit_rate:.1%}",
            flush=True,
        )
    where = [size[degree - 1] for size in sizes]
    for cache, runs in found.items():
        seconds = [run.seconds for run in runs]
        if len(where) > degree:
            curve = np.polynomial.Polynomial.fit(where, seconds, degree).convert()
            left = np.std(np.asarray(seconds) - curve(np.asarray(where)))
            terms = " + ".join(f"{value:.3g}·x^{power}" for power, value in enumerate(curve.coef))
            print(f"  {'cached' if cache else 'not cached'}: seconds = {terms} (deviation {left:.2f} s)")
    print(flush=True)
    return found


def draw_plot(path: Path, sweeps: dict[str, tuple[list[int], dict[bool, list[Measured]]]]) -> None:
    """Draw seconds against rows and against tokens."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (label, (where, found)) in zip(
        np.atleast_1d(figure.subplots(1, len(sweeps))), sweeps.items(), strict=True
    ):
        for cache, runs in found.items():
            seconds = [run.seconds for run in runs]
            (line,) = axes.plot(where, seconds, "o", label="cached" if cache else "not cached")
            degree = 1 if label == "rows" else 2
            if len(where) > degree:
                curve = np.polynomial.Polynomial.fit(where, seconds, degree)
                fine = np.linspace(min(where), max(where), 100)
                axes.plot(fine, curve(fine), color=line.get_color(), linewidth=1)
        axes.set(xlabel=label, ylabel="seconds of training", ylim=(0, None))
        axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Sweep over rows, then over lengths, and draw both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[500, 1000, 2000, 4000])
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument(
        "--rows-of-each-length", type=int, help="rows to try lengths with; the fewest of --rows if left out"
    )
    parser.add_argument("--top", type=int, default=2, help="highest blocks that train (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="passes over the rows (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads to compute with (default: %(default)s)")
    parser.add_argument("--plot", type=Path, default=Path("scaling.png"), help="where the plot goes")
    options = parser.parse_args()
    describe_machine(options.threads)
    by_rows = sweep(options, [(rows, options.tokens[0]) for rows in options.rows], degree=1)
    rows = options.rows_of_each_length or min(options.rows)
    by_tokens = sweep(options, [(rows, tokens) for tokens in options.tokens], degree=2)
    draw_plot(options.plot, {"rows": (options.rows, by_rows), "tokens": (options.tokens, by_tokens)})
    print(f"plot: {options.plot}")


if __name__ == "__main__":
    main()
