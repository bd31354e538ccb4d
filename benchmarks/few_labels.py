"""What few labels bring: plain fine-tuning, frozen embeddings, SetFit and lowft on the same draws.

MiniLM learns two classes from 8, 16, 32 and 64 labels each. Draws are nested and the same for every arm; no arm has
validation rows. Settings of lowft were chosen on draws of IMDB; `--first-draw` reports on others. SetFit takes part
where the packages setfit and sentence-transformers are installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import tempfile
from functools import partial
from typing import Any, Literal

from _common import LABELS, describe_machine, minilm, reviews

import lowft
from lowft.few_shot_comparison import Arm

_PRECISION = "float32"


def main() -> None:
    """Train every arm on every draw, print each run as it ends, and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--k", type=int, nargs="*", default=[8, 16, 32, 64], help="labels a class")
    parser.add_argument("--draws", type=int, default=10, help="draws of rows (default: %(default)s)")
    parser.add_argument("--first-draw", type=int, default=0, help="number of the first draw (default: %(default)s)")
    parser.add_argument("--test", type=int, default=1000, help="test rows (default: %(default)s)")
    parser.add_argument("--unlabeled", type=int, default=5000, help="rows without labels, for lowft with them")
    parser.add_argument("--data", choices=("rotten_tomatoes", "imdb"), default="rotten_tomatoes")
    parser.add_argument("--arms", nargs="*", choices=sorted(ARMS), default=["plain", "frozen", "setfit", "lowft"])
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default=_PRECISION, help="to train in")
    parser.add_argument("--threads", type=int, default=2, help="threads to compute with (default: %(default)s)")
    options = parser.parse_args()
    describe_machine(options.threads)
    missing = [name for name in ("setfit", "sentence_transformers") if importlib.util.find_spec(name) is None]
    if missing and any(name.startswith("setfit") for name in options.arms):
        print(f"SetFit is left out: {' and '.join(missing)} not installed (pip install setfit)\n")
        options.arms = [name for name in options.arms if not name.startswith("setfit")]

    data = reviews(options.data)
    order = random.Random(0).sample(range(len(data)), len(data))
    clean = lowft.split(data.select(order), validation=0, test=options.test, seed=0, on_leakage="drop")
    pool = clean.train.select(range(options.unlabeled))
    rest = clean.train.select(range(options.unlabeled, len(clean.train)))
    length = 128 if options.data == "imdb" else None
    arms = {name: ARMS[name](options, length, list(pool.texts)) for name in options.arms}

    def show(run: lowft.FewShotRun) -> None:
        print(f"{run.k:3d} a class, draw {run.draw}, {run.arm}: {run.score:.4f} in {run.seconds:.1f} s", flush=True)

    print(lowft.compare_few_shot(rest, clean.test, arms, k=options.k, draws=options.draws,
                                 first_draw=options.first_draw, on_run=show))  # fmt: skip


def _arm(
    strategies: list[lowft.Strategy] | Literal["auto"],
    *,
    unlabeled: bool = False,
    **settings: Any,
) -> Any:
    """Return what makes an arm of lowft, perhaps with rows without labels."""

    def make(options: argparse.Namespace, length: int | None, pool: list[str]) -> Arm:
        def train(rows: lowft.Rows, seed: int) -> lowft.Trainer:
            config = lowft.TrainingConfig(
                seed=seed, max_length=length, precision=options.precision, progress=False, **settings
            )
            trainer = lowft.Trainer(
                minilm(), rows, unlabeled_dataset=pool if unlabeled else None, strategies=strategies, config=config
            )
            trainer.fit()
            return trainer

        return train

    return make


def _setfit(*, class_names: bool = False) -> Any:
    """Return what makes an arm of SetFit with its own defaults, perhaps with the rows for class names too."""

    def make(options: argparse.Namespace, length: int | None, pool: list[str]) -> Arm:  # noqa: ARG001
        return partial(_train_setfit, length=length, class_names=class_names)

    return make


def _train_setfit(rows: lowft.Rows, seed: int, *, length: int | None, class_names: bool) -> Any:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from setfit import SetFitModel, Trainer, TrainingArguments
    from sklearn.linear_model import LogisticRegression

    encoder = SentenceTransformer(str(minilm()), device="cpu")  # which takes the mean over tokens by default
    encoder.max_seq_length = length or 256

    model = SetFitModel(model_body=encoder, model_head=LogisticRegression(), labels=list(LABELS))
    rows = lowft.add_templated_rows(rows) if class_names else rows
    dataset = Dataset.from_dict({"text": list(rows.texts), "label": list(rows.labels or ())})
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(output_dir=scratch, seed=seed, show_progress_bar=False)
        Trainer(model, arguments, train_dataset=dataset).train()
    return model


_CONTRASTIVE: list[lowft.Strategy] = [lowft.PooledHead(), lowft.Contrastive(), lowft.Probe(fine_tune=False)]

ARMS = {
    "plain": _arm([], epochs=10, batch_size=16),
    "frozen": _arm([lowft.PooledHead(), lowft.Probe(fine_tune=False)]),
    "probe, then fine-tuning": _arm([lowft.PooledHead(), lowft.Probe()], max_steps=24, batch_size=32),
    "setfit": _setfit(),
    "setfit, class names": _setfit(class_names=True),
    "lowft": _arm(_CONTRASTIVE),
    "lowft, class names": _arm([lowft.ClassNames(), *_CONTRASTIVE]),
    "reinitialize": _arm([lowft.Reinitialize(top=1)], max_steps=200, batch_size=16),
    "plain, 200 steps": _arm([], max_steps=200, batch_size=16),
    "auto": _arm("auto"),
    "auto, unlabelled": _arm("auto", unlabeled=True, epochs=2, batch_size=32),
}

if __name__ == "__main__":
    main()
