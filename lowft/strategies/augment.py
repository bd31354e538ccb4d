"""Train on each batch's rows and on changed copies of them, together."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from lowft._inference import logits_of
from lowft._placement import gather
from lowft._settings import check_choice, check_real, check_whole
from lowft.augment import Augmenter
from lowft.augment.bank import VariantBank, change, is_empty, prepare_all
from lowft.augment.harm import misread_copies, without_harm
from lowft.consistency import Annealing, consistency_loss, first_of_row, signal_threshold, task_of
from lowft.data.rows import Rows
from lowft.errors import ConfigError, TrainingError
from lowft.strategy import Contract, Strategy

if TYPE_CHECKING:
    import random

    from torch import Tensor

    from lowft.data.batching import Batch, BatchRandom, Example
    from lowft.state import State

__all__ = ["Augment"]


@dataclass(frozen=True)
class Augment(Strategy):
    """Add changed copies of a batch's rows to it, so that the model sees both together.

    Copies are fresh in every epoch. A copy is a function of (seed, stage, epoch, row) alone: the same for any number of
    worker processes, and after a resume. Copies that come back empty, equal to their row or to one another are left
    out, for they would add nothing. The loss is the mean over originals and copies, so a row with copies weighs more
    than one without. Where rows are pairs, both texts are changed. Frozen layers are run for fresh copies in every
    epoch, since these differ; what they give of the rows themselves, and of the copies in a bank, is cached.

    A copy has its row's label. With `consistency`, the model is also to answer a copy as it answers the row
    (`lowft.consistency_loss`), whatever the label: then rows of `Trainer(unlabeled_dataset=...)` teach too, and
    `label_weight` says how much of a copy's target the label is: 1 all of it, beside the model's answer; 0 nothing,
    the model alone gives it; between, a softened label.

    Sources: training on originals and copies of Wei & Zou 2019, EDA, https://arxiv.org/abs/1901.11196; consistency with
    confidence, sharpening and annealing of Xie et al. 2020, UDA, https://arxiv.org/abs/1904.12848. Label-preserving
    copies hardly help pre-trained models (Longpre et al. 2020, https://arxiv.org/abs/2010.01764): measure before you
    rely on it.

    Args:
        augmenters: What changes the copies.
        copies: Copies of each row in a batch.
        probability: Probability with which each of them is made.
        mix: "draw" changes each copy by one augmenter drawn at random, "chain" by all of them in turn.
        consistency: Weight of the consistency loss, a mean over rows in which a row without a copy costs nothing.
        temperature: Sharpens the answers that copies are pulled to, where below 1.
        confidence: Rows that the model is less sure of than this pull at no copy.
        label_weight: How much a copy counts in the loss on labels, from 0 to 1; a row counts 1.
        annealing: Leave rows out of the loss on labels whose label is likelier than a threshold that grows to 1 in the
            course of each stage: "linear", "log" (early) or "exp" (late, for few labels). The mean is still that over
            all rows. None leaves none out.
        drop_misread: Leave copies out of the loss on labels that the model takes for another class with at least this
            probability while it reads the row itself rightly: the label was probably not kept. The history says how
            many. None leaves none out.
        drop_harmful: Switch an augmenter off that costs validation rows their labels: that has the model read more than
            this share of them as another class, beyond chance (binomial test at 1 %). These are the rows that the model
            reads rightly with a probability of 0.8 or more, up to 1,000 of them, and the augmenter changes. They are
            looked at as epochs 2, 3, 5, 9, … of each stage begin, and as later stages do; the history has the figures.
            This finds broken labels; whether a run had ended better, `lowft.compare_few_shot` tells. None: no test.
        bank: Make so many variants of each row once, before training, and draw copies from these: for slow augmenters.
            They depend on the text alone. None makes fresh ones.
        bank_workers: Worker processes that make them.
        bank_dir: A folder where they are kept for further runs; None for none.

    Raises:
        ConfigError: No augmenter, something that is none, or a setting outside its range. When the Trainer is built,
            also whatever an augmenter lacks, such as WordNet, and what the task has no use for.

    >>> from lowft.augment import RandomDeletion, RandomSwap
    >>> from lowft.data.batching import BatchRandom, Example
    >>> augment = Augment([RandomSwap(), RandomDeletion(0.3)])
    >>> rows = [Example(0, "a warm and funny film"), Example(1, "dull")]
    >>> [example.text for example in augment.on_examples(rows, BatchRandom(1, position=(0, 0)))]
    ['a warm and funny film', 'dull', 'a warm and film']
    """

    contract: ClassVar[Contract] = Contract()

    augmenters: Sequence[Augmenter]
    copies: int = 1
    probability: float = 1.0
    mix: Literal["draw", "chain"] = "draw"
    consistency: float = 0.0
    temperature: float = 1.0
    confidence: float = 0.0
    label_weight: float = 1.0
    annealing: Annealing | None = None
    drop_misread: float | None = None
    drop_harmful: float | None = None
    bank: int | None = None
    bank_workers: int = 0
    bank_dir: str | os.PathLike[str] | None = None
    _off: frozenset[int] = field(default=frozenset(), init=False, repr=False, compare=False)

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
        self._check_loss()
        self._check_bank()

    def _check_loss(self) -> None:
        check_real("Augment.consistency", self.consistency, least=0)
        check_real("Augment.temperature", self.temperature, above=0)
        check_real("Augment.confidence", self.confidence, least=0, below=1)
        check_real("Augment.label_weight", self.label_weight, least=0, most=1)
        if self.annealing is not None:
            check_choice("Augment.annealing", self.annealing, ("linear", "log", "exp"))
        if self.drop_misread is not None:
            check_real("Augment.drop_misread", self.drop_misread, least=0.5, most=1)
        if self.drop_harmful is not None:
            check_real("Augment.drop_harmful", self.drop_harmful, above=0, below=1)
        if self.consistency > 0:
            object.__setattr__(self, "contract", Contract(provides=frozenset({"unlabeled"})))
            return
        for name, idle in (("temperature", 1), ("confidence", 0)):
            if getattr(self, name) != idle:
                raise ConfigError(
                    f"Augment.{name} is a setting of the consistency loss, which is off; received "
                    f"{getattr(self, name)!r}. Set consistency=1.0 too, or leave it out"
                )
        if self.label_weight == 0:
            raise ConfigError(
                "Augment(label_weight=0.0) leaves copies nothing to be learnt from: set consistency=1.0 too, or a "
                "label_weight above 0"
            )

    def _check_bank(self) -> None:
        check_whole("Augment.bank_workers", self.bank_workers, least=0)
        if self.bank_dir is not None:
            if not isinstance(self.bank_dir, str | os.PathLike) or not os.fspath(self.bank_dir):
                raise ConfigError(f"Augment.bank_dir must be a folder or None; received {self.bank_dir!r}")
            object.__setattr__(self, "bank_dir", os.fspath(self.bank_dir))
        if self.bank is None:
            if self.bank_workers or self.bank_dir is not None:
                raise ConfigError(
                    f"Augment.bank_workers and bank_dir are settings of the bank, which is off; received "
                    f"{self.bank_workers!r} and {self.bank_dir!r}. Set bank=4 too, or leave them out"
                )
            return
        check_whole("Augment.bank", self.bank, least=1)
        if self.drop_harmful is not None:
            raise ConfigError(
                f"Augment.drop_harmful={self.drop_harmful!r} switches augmenters off in the course of a run, and the "
                f"variants of bank={self.bank!r} are made before it: leave one of the two out"
            )
        if self.bank < self.copies:
            raise ConfigError(
                f"Augment.bank must be at least the {self.copies} copies of a row in a batch; received {self.bank}"
            )
        folder = None if self.bank_dir is None else Path(self.bank_dir)
        # What it remembers is a function of the settings and texts: no result depends on what it has made before.
        bank = VariantBank(self.augmenters, self.bank, self.mix == "chain", self.bank_workers, folder)
        object.__setattr__(self, "_bank", bank)

    def recorded(self) -> Augment:
        """Return the strategy without what only this machine knows."""
        return dataclasses.replace(self, bank_workers=0, bank_dir=None)

    def prepare_data(self, dataset: Rows) -> Rows:
        """Let the augmenters do once what they can do for all rows, and find out what they lack."""
        if self.bank is not None:
            self._variants.fill(list(zip(dataset.texts, dataset.pairs or [None] * len(dataset), strict=True)))
            return dataset
        prepare_all(self.augmenters, [*dataset.texts, *(dataset.pairs or ())], chained=self.mix == "chain")
        return dataset

    def prepare_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Find out what the task has no use for."""
        task = getattr(getattr(model, "config", None), "problem_type", None)
        if task is None:
            return model
        if task == "regression" and (self.temperature != 1 or self.confidence > 0):
            raise ConfigError(
                f"Augment: a regression has no probabilities to sharpen or to be sure of: leave out "
                f"temperature={self.temperature!r} and confidence={self.confidence!r}"
            )
        if task != "single_label_classification":
            for name in ("annealing", "drop_misread", "drop_harmful"):
                if getattr(self, name) is not None:
                    raise ConfigError(
                        f"Augment.{name} asks how likely the one right class is, and the task is {task}; received "
                        f"{getattr(self, name)!r}. Leave it out"
                    )
        return model

    def variants(self, texts: Sequence[tuple[str, str | None]]) -> list[tuple[tuple[str, str | None], ...]]:
        """Return all that the copies of rows can be, known before training: of a run with a bank.

        Args:
            texts: The text and the second text, or None, of each row.

        Raises:
            ConfigError: There is no bank.

        >>> from lowft.augment import RandomSwap
        >>> Augment([RandomSwap()], bank=2).variants([("a warm film", None)])
        [(('film warm a', None),)]
        """
        if self.bank is None:
            raise ConfigError("Augment.variants: without bank= every copy is fresh, and none is known in advance")
        return self._variants.of(texts)

    def recurring(self, dataset: Rows) -> Rows:
        """Return the rows, which stay in the batch as they are, and what a bank holds; fresh copies come once."""
        if self.bank is None:
            return dataset
        held = self.variants(list(zip(dataset.texts, dataset.pairs or (None,) * len(dataset), strict=True)))
        known = dict.fromkeys(variant for variants in held for variant in variants)
        pairs = None if dataset.pairs is None else (*dataset.pairs, *(pair or "" for _, pair in known))
        return Rows((*dataset.texts, *(text for text, _ in known)), pairs)

    def on_stage_start(self, state: State) -> None:
        """Find out whether there are rows to see harm in."""
        if self.drop_harmful is not None and state.eval_rows is None:
            raise ConfigError(
                f"Augment.drop_harmful={self.drop_harmful!r} looks at validation rows, and there are none: pass "
                f"Trainer(eval_dataset=...), or leave it out"
            )

    def for_epoch(self, state: State) -> Augment:
        """Return the strategy without the augmenters that do harm."""
        if self.drop_harmful is None:
            return self
        memory, now = state.memory_of(self.name), [state.stage_index, state.epoch]
        # With each test the time to the next one doubles. A run that resumes within an epoch is beyond its test.
        if state.epoch & (state.epoch - 1) == 0 and memory.get("tested") != now:
            memory["tested"] = now
            if state.step > 0 and len(memory.get("off", [])) < len(self.augmenters):
                assert state.eval_rows is not None  # noqa: S101 - refused at the start
                memory["off"], message = without_harm(
                    self.augmenters, memory.get("off", []), self.drop_harmful, state.model, state.eval_rows,
                    precision=state.precision, most_tokens=state.tokens_per_batch,
                )  # fmt: skip
                state.note(f"Augment: {message}")
        quieter = dataclasses.replace(self)
        object.__setattr__(quieter, "_off", frozenset(memory.get("off", [])))
        return quieter

    def on_examples(self, examples: list[Example], rng: BatchRandom) -> list[Example]:
        """Return the rows, and after them their changed copies."""
        copies = self._fresh(examples, rng) if self.bank is None else self._drawn(examples, rng)
        known = {(example.row, example.text, example.pair) for example in examples}
        kept: list[Example] = []
        for copy in copies:
            content = (copy.row, copy.text, copy.pair)
            if content not in known and not is_empty((copy.text, copy.pair)):
                known.add(content)
                kept.append(copy)
        return [*examples, *kept]

    def row_weights(self, weights: Tensor, outputs: Any, batch: Batch, state: State) -> Tensor:
        """Return how much rows and copies count in the loss on labels."""
        if self.label_weight == 1 and self.annealing is None and self.drop_misread is None:
            return weights
        first, copies = self._places(batch)
        if self.label_weight < 1 and copies:
            own = torch.ones_like(weights)
            own[copies] = self.label_weight
            weights = weights * own * (len(own) / own.sum())
        if self.annealing is None and self.drop_misread is None:
            return weights
        assert batch.labels is not None  # noqa: S101 - a loss on labels is to be weighed
        likely = logits_of(outputs).detach().float().softmax(dim=1)
        labels = batch.labels.clamp(min=0)  # a row without a label has no loss to be weighed
        if self.annealing is not None:
            done = min(1.0, state.stage_step / max(1, state.stage_steps - 1))
            threshold = signal_threshold(self.annealing, done=done, classes=likely.shape[1])
            weights = weights * (likely.gather(1, labels[:, None])[:, 0] <= threshold)
        if self.drop_misread is not None:
            weights = weights * ~self._misread(likely, labels, batch.labelled, first, copies, state)
        return weights

    def on_loss(self, loss: Tensor, outputs: Any, batch: Batch, state: State) -> Tensor:  # noqa: ARG002
        """Return the loss with the distance between the answers to copies and to their rows."""
        if self.consistency == 0:
            return loss
        first, copies = self._places(batch)
        if not copies:
            return loss
        if batch.labels is None:
            raise TrainingError("Augment(consistency=...) tells the task from a batch's labels, and there are none")
        logits = logits_of(outputs).float()
        distance = consistency_loss(
            logits[copies],
            logits[[first[place] for place in copies]],
            task=task_of(batch.labels),
            temperature=self.temperature,
            confidence=self.confidence,
            reduction="sum",
        )
        # A mean over the rows of the plan, so that it is the same for any size of micro-batch.
        return loss + self.consistency * distance / (len(set(first)) * self.copies)

    def before_step(self, state: State) -> None:
        """Count the copies that were left out; say at the end of a stage how many these were."""
        if self.drop_misread is None:
            return
        memory = state.memory_of(self.name)
        for own in gather(state.step_memory_of(self.name).get("misread", [])):
            memory["misread"] = [*map(sum, zip(memory.get("misread", [0, 0]), *own, strict=True))]
        if state.stage_step + 1 == state.stage_steps:
            self._tell(state)

    @property
    def _variants(self) -> VariantBank:
        bank: VariantBank = self._bank  # type: ignore[attr-defined]
        return bank

    def _fresh(self, examples: Sequence[Example], rng: BatchRandom) -> list[Example]:
        """Return copies made for this batch."""
        active = [augmenter for index, augmenter in enumerate(self.augmenters) if index not in self._off]
        if not active:
            return []
        copies: list[Example] = []
        sources: list[random.Random] = []
        chosen: list[int] = []
        for example in examples:
            source = rng.for_row(example.row)
            for _ in range(self.copies):
                if source.random() < self.probability:
                    copies.append(example)
                    sources.append(source)
                    chosen.append(source.randrange(len(active)))
        texts = [(copy.text, copy.pair) for copy in copies]
        changed = change(texts, active, sources, None if self.mix == "chain" else chosen)
        return [
            dataclasses.replace(copy, text=text, pair=pair) for copy, (text, pair) in zip(copies, changed, strict=True)
        ]

    def _drawn(self, examples: Sequence[Example], rng: BatchRandom) -> list[Example]:
        """Return copies drawn from the bank."""
        copies: list[Example] = []
        found = self._variants.of([(example.text, example.pair) for example in examples])
        for example, variants in zip(examples, found, strict=True):
            source = rng.for_row(example.row)
            for text, pair in source.sample(variants, min(self.copies, len(variants))):
                if source.random() < self.probability:
                    copies.append(dataclasses.replace(example, text=text, pair=pair))
        return copies

    def _places(self, batch: Batch) -> tuple[list[int], list[int]]:
        """Return, for each place of a batch, that of its row, and the places that hold changed copies."""
        if len(batch.rows) != len(batch) or len(batch.texts) != len(batch):
            raise TrainingError(
                f"Augment tells copies from rows by their numbers and texts; received {len(batch.rows)} numbers and "
                f"{len(batch.texts)} texts for {len(batch)} rows. In a loop of your own, make batches with "
                f"Batch(inputs, labels, rows=..., texts=...)"
            )
        first = first_of_row(batch.rows)
        return first, [place for place, row in enumerate(first) if batch.texts[place] != batch.texts[row]]

    def _misread(
        self, likely: Tensor, labels: Tensor, labelled: Tensor, first: list[int], copies: list[int], state: State
    ) -> Tensor:
        """Return which places hold copies that are surely read as another class than their row's, `[batch]`."""
        assert self.drop_misread is not None  # noqa: S101 - asked for
        memory = state.memory_of(self.name)
        if memory.get("epoch", [state.stage_index, state.epoch]) != [state.stage_index, state.epoch]:
            self._tell(state)
        memory["epoch"] = [state.stage_index, state.epoch]
        misread = misread_copies(likely, labels, labelled, first, copies, self.drop_misread)
        counted = (int(labelled[copies].sum()), int(misread.sum()))
        state.step_memory_of(self.name).setdefault("misread", []).append(counted)
        return misread

    def _tell(self, state: State) -> None:
        copies, misread = state.memory_of(self.name).pop("misread", [0, 0])
        if copies:
            share = f"{misread:,} of {copies:,} copies ({misread / copies:.1%})"
            state.note(f"Augment: {share} were surely taken for another class, and left out of the loss on labels")
