"""Everything together: a smaller vocabulary, fewer neurons and heads, a teacher, integers; and where the rest is lost.

MiniLM is fine-tuned on Rotten Tomatoes, and loses words, neurons and heads in one go; a run then learns from the whole
model's answers and gets used to integers; the result is exported for OpenVINO and ONNX Runtime. All answer the same
batch in turn; float32 PyTorch is the reference.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from statistics import mean, median

import torch
from _common import (
    FULL,
    accuracy_of,
    compression_options,
    describe_machine,
    fine_tuned,
    labelled_batches,
    spread,
    times_in_turn,
)

import lowft

_LENGTH, _ROWS = 64, 32
_REFERENCE = "float32, PyTorch"


def main() -> None:
    """Compress for each seed, test and time every step of the way, and print every figure."""
    parser = compression_options(__doc__)
    parser.add_argument("--flops", type=float, default=0.35, help="operations left (default: %(default)s)")
    parser.add_argument("--epochs", type=float, default=2, help="of the recovery (default: %(default)s)")
    options = parser.parse_args()
    describe_machine(options.threads)

    accuracies: dict[str, list[float]] = {}
    ratios: dict[str, list[float]] = {}
    sizes: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(options.seeds):
            source, splits = fine_tuned(options, Path(scratch), seed)
            whole = lowft.load(source, precision="float32", threads=options.threads)
            model, tokenizer, words = lowft.prune_vocabulary(
                lowft.load_model(source), whole.tokenizer, splits.train.texts
            )
            started = time.perf_counter()
            predictor = dataclasses.replace(whole, model=model, tokenizer=tokenizer)
            lowft.prune_(
                model,
                flops=options.flops,
                importance="fisher",
                scope="global",
                batches=labelled_batches(predictor, splits.train, 512),
                tune=True,
            )
            strategies = [
                lowft.Distill(source, alpha=0.9),
                lowft.Quantize("int8", when="stage", epochs=0.5, learning_rate=1e-5),
            ]
            config = dataclasses.replace(
                FULL, epochs=options.epochs, learning_rate=5e-5, seed=seed, precision=options.precision
            )
            trainer = lowft.Trainer(
                model, splits.train, splits.validation, strategies=strategies, config=config, tokenizer=tokenizer
            )
            trainer.fit()
            print(f"seed {seed}  {words.rows_before:,} words to {words.rows_after:,}", flush=True)
            print(f"seed {seed}  pruned, distilled and used to integers in {time.perf_counter() - started:.0f} s")
            folder = Path(scratch, f"seed-{seed}")
            folders = {_REFERENCE: source}
            untouched = lowft.Trainer(source, splits.train, splits.validation, config=config)  # exports without a step
            folders["int8 alone, OpenVINO"] = untouched.export(folder / "int8", format="openvino", precision="int8")
            folders["all, PyTorch"] = trainer.export(folder / "own", max_drop=None)
            folders["all, ONNX Runtime"] = trainer.export(folder / "onnx", format="onnx", max_drop=None)
            folders["all, OpenVINO"] = trainer.export(folder / "openvino", format="openvino", max_drop=None)
            loaded = {
                name: lowft.load(path, precision="float32", threads=options.threads) for name, path in folders.items()
            }
            texts = list(splits.test.texts[:_ROWS]) if splits.test else []
            sides = {}
            for name, predictor in loaded.items():
                accuracies.setdefault(name, []).append(accuracy_of(predictor, splits))
                weights = [path for path in folders[name].iterdir() if path.suffix in {".safetensors", ".onnx", ".bin"}]
                sizes[name] = sum(path.stat().st_size for path in weights) / 1e6
                made = predictor.tokenizer(
                    texts, padding="max_length", max_length=_LENGTH, truncation=True, return_tensors="pt"
                )
                sides[name] = lambda predictor=predictor, batch=dict(made): _answer(predictor.model, batch)
            times = {name: median(found) for name, found in times_in_turn(sides, options.turns).items()}
            for name, seconds in times.items():
                ratios.setdefault(name, []).append(times[_REFERENCE] / seconds)
                print(
                    f"seed {seed}  {name:22} {accuracies[name][-1]:.1f} %  {1000 * seconds:6.1f} ms  "
                    f"{ratios[name][-1]:.2f}x",
                    flush=True,
                )
    print(f"\nbatch {_ROWS} × {_LENGTH}")
    for name, found in ratios.items():
        lost = mean(accuracies[name]) - mean(accuracies[_REFERENCE])
        print(
            f"{name:22} {mean(found):.2f}x as fast ({min(found):.2f} to {max(found):.2f})  "
            f"{sizes[name]:.1f} MB ({sizes[_REFERENCE] / sizes[name]:.1f}x smaller)  "
            f"accuracy {spread(accuracies[name])} % ({lost:+.2f} points)"
        )


def _answer(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> None:
    with torch.inference_mode():
        model(**batch)


if __name__ == "__main__":
    main()
