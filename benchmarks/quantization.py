"""What integers bring and cost: bytes, accuracy and time to answer, in each runtime, against float32 PyTorch.

MiniLM is fine-tuned on Rotten Tomatoes, exported in every format, loaded from there, and tested on the same rows, which
it has not seen. Then all of them answer the same batches in turn. The last table puts side by side what one folder
says in plain transformers and what the others say.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from _common import accuracy_of, answering, compression_options, describe_machine, fine_tuned, spread, times_in_turn

import lowft
from lowft.export.folder import Format

_LENGTH = 64  # tokens
_FORMATS: dict[str, tuple[Format, str]] = {
    "PyTorch float32": ("safetensors", "float32"),
    "PyTorch int8": ("safetensors", "int8"),
    "ONNX Runtime float32": ("onnx", "float32"),
    "ONNX Runtime int8": ("onnx", "int8"),
    "OpenVINO float32": ("openvino", "float32"),
    "OpenVINO int8": ("openvino", "int8"),
}
_REFERENCE = "PyTorch float32"


def export_all(source: Path, splits: lowft.Splits, folder: Path) -> dict[str, Path]:
    """Write a fine-tuned model in every format, each read again by a fresh process and measured before and after."""
    config = lowft.TrainingConfig(progress=False)
    trainer = lowft.Trainer(source, splits.train, splits.validation, config=config)  # which exports without a step
    return {
        name: trainer.export(folder / name.replace(" ", "-"), format=runtime, precision=precision, max_drop=None)
        for name, (runtime, precision) in _FORMATS.items()
    }


def main() -> None:
    """Export, test and time every format for each seed, and print every figure."""
    options = compression_options(__doc__).parse_args()
    describe_machine(options.threads)
    accuracies: dict[str, list[float]] = {name: [] for name in _FORMATS}
    ratios: dict[tuple[str, int], list[float]] = {(name, rows): [] for name in _FORMATS for rows in (1, 32)}
    sizes: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(options.seeds):
            source, splits = fine_tuned(options, Path(scratch), seed)
            folders = export_all(source, splits, Path(scratch, f"seed-{seed}"))
            loaded = {
                name: lowft.load(folder, precision="float32", threads=options.threads)
                for name, folder in folders.items()
            }
            for name, predictor in loaded.items():
                accuracies[name].append(accuracy_of(predictor, splits))
                files = [
                    path for path in folders[name].iterdir() if path.suffix in {".safetensors", ".onnx", ".bin", ".xml"}
                ]
                sizes[name] = sum(path.stat().st_size for path in files) / 1e6
            for rows in (1, 32):
                models = {name: predictor.model for name, predictor in loaded.items()}
                sides = answering(models, loaded[_REFERENCE].tokenizer, splits, rows=rows, tokens=_LENGTH)
                times = {name: median(found) for name, found in times_in_turn(sides, options.turns).items()}
                for name, seconds in times.items():
                    ratios[name, rows].append(times[_REFERENCE] / seconds)
                    print(
                        f"seed {seed}  batch {rows:2} × {_LENGTH}  {name:21} {1000 * seconds:7.1f} ms  "
                        f"{ratios[name, rows][-1]:.2f}x",
                        flush=True,
                    )
        print(f"\n{'':21}  MB of weights  accuracy %  against float32 (points)")
        for name, found in accuracies.items():
            drops = [value - reference for value, reference in zip(found, accuracies[_REFERENCE], strict=True)]
            listed = ", ".join(f"{drop:+.1f}" for drop in drops)
            print(f"{name:21} {sizes[name]:7.1f}        {spread(found)}  {mean(drops):+.2f} ({listed})")
        print(f"\nspeed against float32 PyTorch, {_LENGTH} tokens, median of each seed")
        for rows in (1, 32):
            for name in _FORMATS:
                found = ratios[name, rows]
                print(f"batch {rows:2}  {name:21} {mean(found):.2f}x ({min(found):.2f} to {max(found):.2f})")
        side_by_side(folders, list(splits.test.texts[:6]) if splits.test else [])


def side_by_side(folders: dict[str, Path], texts: list[str]) -> None:
    """Print the probability of the second class that each reader of the exported folders gives."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    plain = AutoModelForSequenceClassification.from_pretrained(folders[_REFERENCE]).eval()
    inputs = AutoTokenizer.from_pretrained(folders[_REFERENCE])(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        found = {"plain transformers": plain(**inputs).logits.softmax(dim=1).numpy()}
    for name, folder in folders.items():
        found[f"lowft.load, {name}"] = lowft.load(folder, precision="float32").predict_proba(texts)
    print("\nprobability of 'positive' for six test rows")
    for name, probabilities in found.items():
        print(f"{name:33} {np.array2string(probabilities[:, 1], precision=3, floatmode='fixed')}")


if __name__ == "__main__":
    main()
