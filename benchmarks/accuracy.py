"""Does a staged recipe reach the accuracy of full fine-tuning in no more time?

Rotten Tomatoes with MiniLM: full fine-tuning and the staged recipe run in turn for each seed, on the same rows, and
are tested once each on rows that neither has seen. The training time holds the evaluations on validation rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from dataclasses import dataclass
from statistics import mean, stdev

from _common import FULL, describe_machine, draw, minilm, rotten_tomatoes

import lowft

# The recipe was chosen on other draws (seeds 11 and 14) than those that it is measured on (seeds 0, 1 and 2).
STAGED = lowft.LayerwiseUnfreeze(
    (
        lowft.Unfreeze(top=2, epochs=0.5, learning_rate=2e-4),
        lowft.Unfreeze(top="all", epochs=1.7, learning_rate=2e-4, layer_decay=0.85),
    )
)


@dataclass(frozen=True)
class Result:
    """One run: the share of test rows that are right, and seconds of training."""

    accuracy: float
    seconds: float


def run(sides: lowft.Splits, strategies: list[lowft.Strategy], config: lowft.TrainingConfig) -> Result:
    """Train on one side of a split, steer by the second, and test on the third."""
    trainer = lowft.Trainer(minilm(), sides.train, sides.validation, strategies=strategies, config=config)
    started = time.perf_counter()
    trainer.fit()
    seconds = time.perf_counter() - started
    return Result(trainer.evaluate(sides.test).metrics["accuracy"], seconds)


def main() -> None:
    """Run both sides for each seed, and print every figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=7000, help="training rows (default: %(default)s)")
    parser.add_argument("--test", type=int, default=1000, help="test rows (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each side (default: %(default)s)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, help="threads of torch (default: what torch chooses)")
    options = parser.parse_args()
    describe_machine(options.threads)

    data = rotten_tomatoes()
    sides: dict[str, list[lowft.Strategy]] = {"full": [], "staged": [STAGED]}
    results: dict[str, list[Result]] = {name: [] for name in sides}
    for seed in range(options.seeds):
        splits = draw(data, options.rows, options.test, seed)
        config = dataclasses.replace(FULL, seed=seed, precision=options.precision)
        for name in sides if seed % 2 == 0 else reversed(sides):
            result = run(splits, sides[name], config)
            results[name].append(result)
            print(f"seed {seed}  {name:6}  test accuracy {result.accuracy:.2%}  {result.seconds:7.1f} s", flush=True)
    print()
    for name, found in results.items():
        accuracies = [100 * result.accuracy for result in found]
        deviation = f"sd {stdev(accuracies):.2f}" if len(found) > 1 else "one run"
        times = ", ".join(f"{result.seconds:.0f}" for result in found)
        print(f"{name:6}  test accuracy {mean(accuracies):.2f} % ({deviation})  training {times} s")
    full, staged = results["full"], results["staged"]
    gain = 100 * (mean(result.accuracy for result in staged) - mean(result.accuracy for result in full))
    ratios = [two.seconds / one.seconds for one, two in zip(full, staged, strict=True)]
    print(f"staged - full: {gain:+.2f} points")
    print(f"time staged / full: {mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
