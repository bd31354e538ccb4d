"""What each augmenter brings with few labels, and how many rows a second it makes.

Each is trained on the same draws of rows as the baseline without copies, so the gains are paired. A small CNN over word
embeddings, trained from scratch, is the positive control: what helps anything should help there. With WordNet installed
(Debian: wordnet-base), its synonyms are tried too and timed; neighbours of MiniLM's own embeddings are in any case, and
`--masked` names a masked language model, whose proposals are.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import time
from functools import partial
from statistics import mean, stdev
from typing import Literal

import torch
from _common import FULL, describe_machine, draw, minilm, rotten_tomatoes, spread
from scipy.stats import t
from transformers.modeling_outputs import SequenceClassifierOutput

import lowft

AUGMENTERS: dict[str, lowft.Augmenter] = {
    "masking": lowft.RandomMasking(),
    "swap": lowft.RandomSwap(),
    "deletion": lowft.RandomDeletion(),
    "punctuation": lowft.PunctuationInsertion(),
    "synonyms": lowft.SynonymReplacement(),
    "neighbors": lowft.SynonymReplacement(lowft.EmbeddingNeighbors(minilm())),
    "insertion": lowft.RandomInsertion(),
    "back-translation": lowft.BackTranslation(lowft.ApertiumTranslator("eng-spa"), lowft.ApertiumTranslator("spa-eng")),
}


class SmallCNN(torch.nn.Module):
    """Word embeddings, filters of three widths, the largest answer of each: Kim 2014."""

    def __init__(self, vocabulary: int, classes: int = 2, width: int = 100) -> None:
        """Make the layers."""
        super().__init__()
        self.embeddings = torch.nn.Embedding(vocabulary, width)
        self.filters = torch.nn.ModuleList(torch.nn.Conv1d(width, 64, size, padding=size - 1) for size in (3, 4, 5))
        self.dropout = torch.nn.Dropout(0.5)
        self.classifier = torch.nn.Linear(3 * 64, classes)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SequenceClassifierOutput:
        """Return logits, `[batch, classes]`."""
        words = (self.embeddings(input_ids) * attention_mask[..., None]).transpose(1, 2)
        found = [torch.relu(layer(words)).amax(dim=2) for layer in self.filters]
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(torch.cat(found, dim=1))))


def available(masked: str | None) -> dict[str, lowft.Augmenter]:
    """Return the augmenters that have what they need on this machine, and say which have not."""
    found = {}
    contextual = {} if masked is None else {"in context": lowft.ContextualReplacement(masked)}
    for name, augmenter in (AUGMENTERS | contextual).items():
        try:
            augmenter.prepare(["a warm and funny film"])
        except lowft.MissingExtraError as error:
            print(f"left out: {name} ({error})", flush=True)
            continue
        found[name] = augmenter
    return found


def accuracy(
    model: str,
    splits: lowft.Splits,
    strategies: list[lowft.Strategy],
    *,
    epochs: float,
    seed: int,
    precision: Literal["float32", "bfloat16"],
) -> float:
    """Return the percentage of test rows that are right."""
    config = dataclasses.replace(FULL, epochs=epochs, seed=seed, precision=precision)
    if model == "MiniLM":
        trainer = lowft.Trainer(minilm(), splits.train, strategies=strategies, config=config)
    else:
        torch.manual_seed(seed)
        tokenizer = lowft.load_tokenizer(minilm())
        config = dataclasses.replace(config, learning_rate=2e-3, precision="float32")
        cnn = SmallCNN(len(tokenizer))
        trainer = lowft.Trainer(cnn, splits.train, tokenizer=tokenizer, strategies=strategies, config=config)
    trainer.fit()
    return 100 * trainer.evaluate(splits.test).metrics["accuracy"]


def interval(gains: list[float]) -> str:
    """Return the mean of paired gains with a 95 % interval from their spread."""
    if len(gains) == 1:
        return f"{gains[0]:+.2f} (one draw)"
    quantile = float(t.ppf(0.975, len(gains) - 1))  # a few draws tell their own spread badly
    return f"{mean(gains):+.2f} ± {quantile * stdev(gains) / len(gains) ** 0.5:.2f}"


def main() -> None:
    """Print gains and speeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 500], help="labelled rows (default: %(default)s)")
    parser.add_argument("--test", type=int, default=1000, help="test rows (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=5, help="draws of rows (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=250, help="least optimizer steps of a run (default: %(default)s)")
    parser.add_argument("--only", nargs="+", help="augmenters to try; all if left out")
    parser.add_argument("--masked", help="folder or hub id of a masked language model, for words in context")
    parser.add_argument("--models", nargs="+", default=["MiniLM", "CNN"], help="models (default: %(default)s)")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32", help="of MiniLM (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads to compute with (default: %(default)s)")
    options = parser.parse_args()
    describe_machine(options.threads)
    data = rotten_tomatoes()
    augmenters = {
        name: it for name, it in available(options.masked).items() if not options.only or name in options.only
    }
    texts = list(data.texts[:2000])
    for name, augmenter in augmenters.items():
        augmenter.prepare(texts[:1])
        started = time.perf_counter()
        augmenter(texts, random.Random(0))
        print(f"{name:18} {len(texts) / (time.perf_counter() - started):10,.0f} rows a second", flush=True)
    cases: dict[str, list[lowft.Strategy]] = {name: [lowft.Augment([it])] for name, it in augmenters.items()}
    consistent = [it for name, it in augmenters.items() if name in {"synonyms", "deletion", "swap"}]
    if consistent:
        cases["consistency"] = [lowft.Augment(consistent, consistency=1.0, temperature=0.4, drop_misread=0.9)]
    cases["R-Drop"] = [lowft.RDrop()]
    for model in options.models:
        for rows in options.rows:
            print(f"\n{model}, {rows} rows, {options.draws} draws")
            # Rows with copies take no more steps: equal optimizer steps, and twice the rows in each.
            epochs = max(2.0, options.steps * FULL.batch_size / rows)
            splits = [draw(data, rows, options.test, seed) for seed in range(options.draws)]
            run = partial(accuracy, model, epochs=epochs, precision=options.precision)
            plain = [run(split, [], seed=seed) for seed, split in enumerate(splits)]
            print(f"{'no copies':18} {spread(plain)} %", flush=True)
            for name, strategies in cases.items():
                found = [run(split, strategies, seed=seed) for seed, split in enumerate(splits)]
                gains = [one - other for one, other in zip(found, plain, strict=True)]
                print(f"{name:18} {spread(found)} %, gain {interval(gains)}", flush=True)


if __name__ == "__main__":
    main()
