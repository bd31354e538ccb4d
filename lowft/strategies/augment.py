"""Train on each batch's rows and on changed copies of them, together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lowft._settings import check_choice, check_real, check_whole
from lowft.augment import Augmenter
from lowft.errors import ConfigError
from lowft.strategy import Strategy

if TYPE_CHECKING:
    import random

    from lowft.data.batching import BatchRandom, Example
    from lowft.data.rows import Rows

__all__ = ["Augment"]


@dataclass(frozen=True)
class Augment(Strategy):
    """Add changed copies of a batch's rows to it, so that the model sees both together; labels are kept.

    Copies are fresh in every epoch. A copy is a function of (seed, stage, epoch, row) alone: the same for any number of
    worker processes, and after a resume. Copies that come back empty, equal to their row or to one another are left
    out, for they would add nothing. The loss is the mean over originals and copies, so a row with copies weighs more
    than one without. Where rows are pairs, both texts are changed. Frozen layers are run for the copies in every epoch,
    since these differ; of the rows themselves what they give is cached as ever.

    Source: training on originals and copies of Wei & Zou 2019, EDA, https://arxiv.org/abs/1901.11196. Label-preserving
    copies hardly help pre-trained models (Longpre et al. 2020, https://arxiv.org/abs/2010.01764): measure before you
    rely on it.

    Args:
        augmenters: What changes the copies.
        copies: Copies of each row in a batch.
        probability: Probability with which each of them is made.
        mix: "draw" changes each copy by one augmenter drawn at random, "chain" by all of them in turn.

    Raises:
        ConfigError: No augmenter, something that is none, or a setting outside its range. When the Trainer is built,
            also whatever an augmenter lacks, such as WordNet.

    >>> from lowft.augment import RandomDeletion, RandomSwap
    >>> from lowft.data.batching import BatchRandom, Example
    >>> augment = Augment([RandomSwap(), RandomDeletion(0.3)])
    >>> rows = [Example(0, "a warm and funny film"), Example(1, "dull")]
    >>> [example.text for example in augment.on_examples(rows, BatchRandom(1, position=(0, 0)))]
    ['a warm and funny film', 'dull', 'a warm and film']
    """

    augmenters: Sequence[Augmenter]
    copies: int = 1
    probability: float = 1.0
    mix: Literal["draw", "chain"] = "draw"

    def __post_init__(self) -> None:
        """Check every setting."""
        if not isinstance(self.augmenters, Sequence) or not self.augmenters:
            raise ConfigError(
                f"Augment.augmenters must be a list of at least one augmenter, such as [lowft.RandomSwap()]; "
                f"received {self.augmenters!r}"
            )
        for augmenter in self.augmenters:
            if not isinstance(augmenter, Augmenter):
                raise ConfigError(
                    f"Augment.augmenters must hold augmenters, such as lowft.RandomSwap(); received {augmenter!r}. A "
                    f"class of your own derives from lowft.Augmenter, an augmenter of nlpaug goes into lowft.NlpAug"
                )
        object.__setattr__(self, "augmenters", tuple(self.augmenters))
        check_whole("Augment.copies", self.copies, least=1)
        check_real("Augment.probability", self.probability, above=0, most=1)
        check_choice("Augment.mix", self.mix, ("draw", "chain"))

    def prepare_data(self, dataset: Rows) -> Rows:
        """Let the augmenters do once what they can do for all rows, and find out what they lack."""
        texts = [*dataset.texts, *(dataset.pairs or ())]
        for index, augmenter in enumerate(self.augmenters):
            # In a chain, later augmenters get texts that nobody knows yet: one is enough to see whether they run.
            augmenter.prepare(texts[:1] if self.mix == "chain" and index else texts)
        return dataset

    def recurring(self, dataset: Rows) -> Rows:
        """Return the rows: they stay in the batch as they are, and only their copies are new."""
        return dataset

    def on_examples(self, examples: list[Example], rng: BatchRandom) -> list[Example]:
        """Return the rows, and after them their changed copies."""
        copies: list[Example] = []
        sources: list[random.Random] = []
        chosen: list[int] = []
        for example in examples:
            source = rng.for_row(example.row)
            for _ in range(self.copies):
                if source.random() < self.probability:
                    copies.append(example)
                    sources.append(source)
                    chosen.append(source.randrange(len(self.augmenters)))
        for index, augmenter in enumerate(self.augmenters):
            places = [at for at, drawn in enumerate(chosen) if self.mix == "chain" or drawn == index]
            changed = _vary([copies[at] for at in places], augmenter, [sources[at] for at in places])
            for at, copy in zip(places, changed, strict=True):
                copies[at] = copy
        known = {(example.row, example.text, example.pair) for example in examples}
        kept: list[Example] = []
        for copy in copies:
            content = (copy.row, copy.text, copy.pair)
            if content not in known and not _is_empty(copy):
                known.add(content)
                kept.append(copy)
        return [*examples, *kept]


def _vary(examples: Sequence[Example], augmenter: Augmenter, sources: Sequence[random.Random]) -> list[Example]:
    """Return the examples with their texts changed, those of pairs too, in one call of the augmenter."""
    paired = [at for at, example in enumerate(examples) if example.pair is not None]
    texts = [example.text for example in examples] + [examples[at].pair or "" for at in paired]
    varied = augmenter(texts, [*sources, *(sources[at] for at in paired)])
    result = [dataclasses.replace(example, text=text) for example, text in zip(examples, varied, strict=False)]
    for at, pair in zip(paired, varied[len(examples) :], strict=True):
        result[at] = dataclasses.replace(result[at], pair=pair)
    return result


def _is_empty(example: Example) -> bool:
    return not example.text.strip() or (example.pair is not None and not example.pair.strip())
