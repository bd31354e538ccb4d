"""The curve of accuracy against real speed when neurons and heads are cut out of a fine-tuned model.

MiniLM is fine-tuned on Rotten Tomatoes. For each budget of operations it loses neurons and heads in one go (Fisher
information over training rows, what is kept rescaled: Kwon et al. 2022), is tested, trains for one more epoch on the
labels and on the answers of the whole model, and is tested again. All sizes answer the same batch in turn, in float32
PyTorch.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from statistics import mean, median

from _common import (
    FULL,
    accuracy_of,
    answering,
    compression_options,
    describe_machine,
    fine_tuned,
    labelled_batches,
    spread,
    times_in_turn,
)

import lowft


def main() -> None:
    """Cut, test, recover, test and time every budget for each seed, and print every figure."""
    parser = compression_options(__doc__)
    parser.add_argument(
        "--flops", type=float, nargs="*", default=[0.8, 0.6, 0.4, 0.2], help="operations left (default: %(default)s)"
    )
    parser.add_argument("--calibration", type=int, default=1024, help="rows for the cut (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=3e-5, help="of the recovery (default: %(default)s)")
    options = parser.parse_args()
    describe_machine(options.threads)

    sides = ["whole", *(f"{left:.0%} left" for left in options.flops)]
    cut: dict[str, list[float]] = {side: [] for side in sides}
    recovered: dict[str, list[float]] = {side: [] for side in sides}
    ratios: dict[str, list[float]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(options.seeds):
            source, splits = fine_tuned(options, Path(scratch), seed)
            assert splits.test is not None
            whole = lowft.load(source, precision="float32")
            found = accuracy_of(whole, splits)
            models = {"whole": whole.model}
            cut["whole"].append(found)
            recovered["whole"].append(found)
            for side, left in zip(sides[1:], options.flops, strict=True):
                model = lowft.load_model(source)
                started = time.perf_counter()
                report = lowft.prune_(
                    model,
                    flops=left,
                    importance="fisher",
                    scope="global",
                    batches=labelled_batches(whole, splits.train, options.calibration),
                    tune=True,
                )
                model.train(mode=False)
                pruning = time.perf_counter() - started
                cut[side].append(accuracy_of(dataclasses.replace(whole, model=model), splits))
                trainer = lowft.Trainer(
                    model,
                    splits.train,
                    splits.validation,
                    strategies=[lowft.Distill(source, alpha=0.9, cache_dir=Path(scratch, f"answers-{seed}"))],
                    config=dataclasses.replace(
                        FULL, epochs=1, learning_rate=options.learning_rate, seed=seed, precision=options.precision
                    ),
                    tokenizer=whole.tokenizer,
                )
                started = time.perf_counter()
                trainer.fit()
                recovery = time.perf_counter() - started
                models[side] = trainer.model.eval()
                recovered[side].append(accuracy_of(dataclasses.replace(whole, model=trainer.model), splits))
                print(
                    f"seed {seed}  {side:8}  {report.parameters_after / 1e6:.1f} M parameters  cut in {pruning:.0f} s: "
                    f"{cut[side][-1]:.1f} %  recovered in {recovery:.0f} s: {recovered[side][-1]:.1f} %",
                    flush=True,
                )
            times = times_in_turn(answering(models, whole.tokenizer, splits, rows=32), options.turns)
            for side in sides:
                ratios[side].append(median(times["whole"]) / median(times[side]))
    print("\n                    accuracy as cut                       accuracy recovered")
    for side in sides:
        lost = mean(recovered[side]) - mean(recovered["whole"])
        print(
            f"{side:8}  {mean(ratios[side]):.2f}x ({min(ratios[side]):.2f} to {max(ratios[side]):.2f})  "
            f"{spread(cut[side])}  {spread(recovered[side])}  {lost:+.2f} points"
        )


if __name__ == "__main__":
    main()
