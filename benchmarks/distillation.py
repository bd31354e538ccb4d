"""How much of what a smaller model lacks does a teacher give it?

MiniLM is fine-tuned on Rotten Tomatoes: the teacher. A smaller model, layers 0, 2 and 5 of MiniLM as it was
pre-trained, learns from the labels alone. The student begins as those layers of the teacher, and learns from its
answers too; a second student also from what the teacher answers to sentences without labels, out of IMDB's reviews. All
train for as many epochs, are tested on the same rows, which none has seen, and answer the same batch in turn.
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
    imdb_sentences,
    minilm,
    spread,
    times_in_turn,
)

import lowft

_TEACHER, _ALONE, _DISTILLED, _MORE = "teacher", "trained alone", "distilled", "and unlabelled"


def texts_read(trainer: lowft.Trainer) -> int:
    """Return how many texts a run's teacher has read so far."""
    memory = trainer._loop.attached.state.memory  # noqa: SLF001
    return int(memory.get("Distill", {}).get("asked", 0))


def main() -> None:
    """Train both students for each seed, test and time them, and print every figure."""
    parser = compression_options(__doc__)
    parser.add_argument("--layers", type=int, default=3, help="layers of the small models (default: %(default)s)")
    parser.add_argument("--epochs", type=float, default=3, help="of either (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="of either (default: %(default)s)")
    parser.add_argument("--alpha", type=float, default=0.5, help="share of the teacher (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=2.0, help="of the softened answers (default: %(default)s)")
    parser.add_argument("--unlabeled", type=int, default=0, help="sentences without labels (default: %(default)s)")
    parser.add_argument("--first-seed", type=int, default=0, help="draw to begin with (default: %(default)s)")
    options = parser.parse_args()
    describe_machine(options.threads)

    sides = (_TEACHER, _ALONE, _DISTILLED, *((_MORE,) if options.unlabeled else ()))
    accuracies: dict[str, list[float]] = {side: [] for side in sides}
    ratios: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            source, splits = fine_tuned(options, Path(scratch), seed)
            teacher = lowft.load(source, precision="float32")
            models = {_TEACHER: teacher.model}
            accuracies[_TEACHER].append(accuracy_of(teacher, splits))
            config = dataclasses.replace(
                FULL,
                epochs=options.epochs,
                learning_rate=options.learning_rate,
                seed=seed,
                precision=options.precision,
            )
            for side in sides[1:]:
                large = lowft.load_model(minilm(), labels=teacher.labels) if side == _ALONE else None
                distill = lowft.Distill(source, alpha=options.alpha, temperature=options.temperature)
                trainer = lowft.Trainer(
                    lowft.make_student(large or lowft.load_model(source), options.layers),
                    splits.train,
                    splits.validation,
                    unlabeled_dataset=imdb_sentences(options.unlabeled, seed) if side == _MORE else None,
                    strategies=[] if side == _ALONE else [distill],
                    config=config,
                    tokenizer=teacher.tokenizer,
                )
                started = time.perf_counter()
                asked = [texts_read(trainer) for result in trainer.steps() if result.metrics is not None]
                seconds = time.perf_counter() - started
                accuracies[side].append(accuracy_of(trainer._predictor(), splits))  # noqa: SLF001
                models[side] = trainer.model.eval()
                read = f"; texts the teacher has read after each epoch: {asked}" if side != _ALONE else ""
                print(f"seed {seed}  {side:13}  trained in {seconds:.0f} s{read}", flush=True)
            batch = answering(models, teacher.tokenizer, splits, rows=32)
            times = {side: median(found) for side, found in times_in_turn(batch, options.turns).items()}
            ratios.append(times[_TEACHER] / times[_DISTILLED])
            listed = "  ".join(f"{side} {accuracies[side][-1]:.1f} %" for side in sides)
            print(f"seed {seed}  {listed}  {ratios[-1]:.2f}x as fast as the teacher", flush=True)
    print()
    for side in sides:
        print(f"{side:13}  accuracy {spread(accuracies[side])} %")
    gap = mean(accuracies[_TEACHER]) - mean(accuracies[_ALONE])
    print(f"the teacher is {gap:.2f} points above the one trained alone")
    for side in sides[2:]:
        gain = mean(accuracies[side]) - mean(accuracies[_ALONE])
        closed = f"{gain / gap:.0%} of it" if gap > 0 else "and there was none to close"
        print(f"{side} closes {gain:+.2f} points, {closed}")
    print(f"batch 32 × 64 tokens: {mean(ratios):.2f}x as fast as the teacher ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
