"""Strategies to begin with, chosen from how many labels there are, and each choice explained."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from lowft._preparation import config_of, known_classes, source_of
from lowft.augment import RandomDeletion
from lowft.compress.structure import structure_of
from lowft.data._values import count_of
from lowft.data.labels import Labels
from lowft.data.rows import Rows, read_rows
from lowft.data.unlabeled import read_unlabeled
from lowft.errors import ConfigError, DataError
from lowft.models.layers import layers_if_any
from lowft.models.pooling import POOLED
from lowft.registry import to_dict
from lowft.strategies import Augment, ClassNames, Contrastive, LayerwiseUnfreeze, PooledHead, Probe, SelfTraining

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lowft.data.labels import Task
    from lowft.models.pooling import Pooling
    from lowft.strategy import Strategy

__all__ = ["Suggestion", "read_and_suggest", "suggest_strategies"]

# Where one choice gives way to the next.
_FEW_LABELS = 128  # labelled rows a class, below which a head that is fitted beats gradients through a random one
_NAMED = 64  # labelled rows a class, below which rows that say what the classes are called bring something
_MANY_LABELS = 1000  # labelled rows a class, from which all layers may train at once
_SHALLOW = 4  # blocks, below which layers are not worth unfreezing one after another
_LEAST_UNLABELED = 1.0  # rows without labels for each labelled one, below which they bring too little
_COMPARED = 4  # rows of each class that a contrastive batch should hold
_LARGEST_BATCH = 128  # rows that are compared at most


@dataclass(frozen=True)
class Suggestion:
    """Strategies, and why them; made by `suggest_strategies`, printed a reason a line.

    Attributes:
        strategies: To give to a Trainer; none is full fine-tuning.
        reasons: In words, for each strategy and for what was left out.
        uses_unlabeled: Whether some of them learns from rows without labels; if not, give the Trainer none.

    >>> print(Suggestion((LayerwiseUnfreeze(),), ("LayerwiseUnfreeze: 300 labelled rows a class",)))
    LayerwiseUnfreeze: 300 labelled rows a class
    """

    strategies: tuple[Strategy, ...]
    reasons: tuple[str, ...]
    uses_unlabeled: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "strategies": [to_dict(part.recorded()) for part in self.strategies],
            "reasons": list(self.reasons),
            "uses_unlabeled": self.uses_unlabeled,
        }

    def __str__(self) -> str:
        return "\n".join(self.reasons)


def suggest_strategies(
    model: str | Path | torch.nn.Module,
    train_dataset: Any,
    unlabeled_dataset: Any = None,
    *,
    task: Task | None = None,
    column_mapping: Mapping[str, str] | None = None,
    on_bad_row: Literal["error", "drop"] = "error",
    new_head: bool = False,
    revision: str | None = None,
) -> Suggestion:
    """Choose strategies to begin with from the labels, the rows without labels and the depth of the model.

    `Trainer(strategies="auto")` takes these. With few labels a head on pooled states is fitted by regression, where the
    rows allow it after a short contrastive stage, and where labels are words with rows that say them; with more, layers
    are unfrozen one after another; with many, all train at once. They are a start, and no search: compare others on
    the same draws with `lowft.compare_few_shot`.

    Args:
        model: What the Trainer is to train: a hub id, a folder, or a module, which is left as it is.
        train_dataset: Labelled rows, as for the Trainer.
        unlabeled_dataset: Rows without labels, as for the Trainer.
        task: The task; inferred from the labels if None.
        column_mapping: Your column names, as for the Trainer.
        on_bad_row: Whether rows that cannot be used are an error, or are dropped.
        new_head: Whether the checkpoint's head will be replaced.
        revision: The revision of the hub model.

    Raises:
        DataError: Rows or labels that cannot be used.

    >>> rows = (["a joy", "a bore", "great fun", "a waste of time"] * 4, ["good", "bad"] * 8)
    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> config = BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=6, intermediate_size=8)
    >>> suggestion = suggest_strategies(BertForSequenceClassification(config), rows)
    >>> [strategy.name for strategy in suggestion.strategies]
    ['ClassNames', 'PooledHead', 'Contrastive', 'Probe']
    """
    found, _, _ = read_and_suggest(
        model,
        train_dataset,
        unlabeled_dataset,
        task=task,
        column_mapping=column_mapping,
        on_bad_row=on_bad_row,
        new_head=new_head,
        revision=revision,
    )
    return found


def read_and_suggest(
    model: Any,
    train_dataset: Any,
    unlabeled_dataset: Any,
    *,
    task: Task | None,
    column_mapping: Mapping[str, str] | None,
    on_bad_row: Literal["error", "drop"],
    new_head: bool,
    revision: str | None,
) -> tuple[Suggestion, Rows, Rows | None]:
    """Return the suggestion, and the rows that were read for it: without labels, only where they are of use.

    Args:
        model: As for `suggest_strategies`, and so are the others.
        train_dataset: Labelled rows.
        unlabeled_dataset: Rows without labels.
        task: The task.
        column_mapping: Column names.
        on_bad_row: What to do with rows that cannot be used.
        new_head: Whether the head will be replaced.
        revision: The revision.

    Raises:
        DataError: Rows or labels that cannot be used.
    """
    rows = read_rows(
        train_dataset, column_mapping=column_mapping, on_bad_row=on_bad_row, require_labels=True, name="train_dataset"
    )
    bare = None
    if unlabeled_dataset is not None:
        bare = read_unlabeled(
            unlabeled_dataset,
            takes_pairs=rows.pairs is not None,
            column_mapping=column_mapping,
            on_bad_row=on_bad_row,
        )
    source_of(model)  # what is no model is refused
    config = config_of(model, revision)
    known = None if new_head else known_classes(model, config)
    labels = Labels.infer(rows.labels or (), task=task, names=rows.label_names, id2label=known, name="train_dataset")
    facts = _Facts(
        task=labels.task,
        rows=len(rows),
        classes=max(1, len(labels.classes)),
        most=max(Counter(map(str, rows.labels or ())).values()),
        said=_said_of(rows) if labels.task == "single_label_classification" else None,
        unlabeled=0 if bare is None else len(bare),
        blocks=_blocks_of(model, config),
        pooling=_pooling_of(model, config),
    )
    found = _choose(facts)
    return found, rows, bare if found.uses_unlabeled else None


@dataclass(frozen=True)
class _Facts:
    """What the choice depends on.

    Attributes:
        task: The task.
        rows: Labelled rows.
        classes: Classes; 1 for numbers.
        most: Rows of the most frequent class.
        said: What `ClassNames` would say of a class; None where the data does not tell its name, or rows are pairs.
        unlabeled: Rows without a label.
        blocks: Blocks of the model; None where unknown.
        pooling: How a pooled head should read the model; None where it can have none.
    """

    task: Task
    rows: int
    classes: int
    most: int
    said: str | None
    unlabeled: int
    blocks: int | None
    pooling: Pooling | None

    @property
    def each(self) -> float:
        """Labelled rows a class."""
        return self.rows / self.classes

    @property
    def amount(self) -> str:
        """How many labelled rows there are, in words."""
        if self.task == "regression":
            return f"{self.rows:,} labelled rows"
        return f"{count_of(round(self.each), 'labelled row')} a class"


def _choose(facts: _Facts) -> Suggestion:
    """Return what to begin with, by the table of limits above."""
    uses_unlabeled = facts.unlabeled >= max(1.0, _LEAST_UNLABELED * facts.rows)
    chosen: list[tuple[Strategy | None, str]]
    if facts.each < _FEW_LABELS and facts.pooling is not None:
        chosen = _for_few(facts, facts.pooling, uses_unlabeled=uses_unlabeled)
    else:
        chosen = [_for_more(facts)]
    if uses_unlabeled:
        chosen.append(_learner(facts))
    elif facts.unlabeled:
        chosen.append(
            (None, f"the {facts.unlabeled:,} rows without labels are left out: fewer than there are labelled ones")
        )
    strategies = tuple(strategy for strategy, _ in chosen if strategy is not None)
    reasons = tuple(why if strategy is None else f"{strategy.name}: {why}" for strategy, why in chosen)
    return Suggestion(strategies, reasons, uses_unlabeled)


def _for_few(facts: _Facts, pooling: Pooling, *, uses_unlabeled: bool) -> list[tuple[Strategy | None, str]]:
    read = "last token state" if pooling == "last" else f"{pooling} of the token states"
    why = f"{facts.amount}, fewer than {_FEW_LABELS}: the head reads the {read}, with no layer between to be learnt"
    chosen: list[tuple[Strategy | None, str]] = [(PooledHead(pooling), why)]
    named = facts.said is not None and facts.each < _NAMED
    if named:
        why = f"fewer than {_NAMED}, so {ClassNames().copies} more of each say what it is called, as {facts.said!r}"
        chosen.insert(0, (ClassNames(), f"{facts.amount}, {why}"))
    if facts.task == "single_label_classification" and (named or facts.most > 1):
        size = min(_LARGEST_BATCH, max(Contrastive().batch_size, _COMPARED * facts.classes))
        why = (
            f"rows of a class are compared with each other and with the rest, {size} at a time, before there is a head"
        )
        chosen.append((Contrastive(batch_size=size), why))
    if uses_unlabeled:
        why = "the head is fitted on the labelled rows first, so that fine-tuning does not begin with a random one"
        return [*chosen, (Probe(), why)]
    why = "the head is fitted by regression, cross-validated within the training rows, and no fine-tuning follows"
    return [*chosen, (Probe(fine_tune=False), why)]


def _for_more(facts: _Facts) -> tuple[Strategy | None, str]:
    if facts.blocks is None:
        return None, "full fine-tuning: the model's layers cannot be told apart"
    if facts.blocks < _SHALLOW:
        return None, f"full fine-tuning: {facts.blocks} blocks, fewer than {_SHALLOW}, leave little to unfreeze in turn"
    if facts.each >= _MANY_LABELS:
        return None, f"full fine-tuning: {facts.amount} are enough to train all layers at once"
    why = f"{facts.amount}: the layers nearest to the output learn first, the {facts.blocks} blocks below after them"
    if facts.each < _FEW_LABELS:
        why += "; this model cannot have a pooled head, which would suit so few"
    return LayerwiseUnfreeze(), why


def _learner(facts: _Facts) -> tuple[Strategy, str]:
    """Return what learns from rows without labels."""
    rows = f"{facts.unlabeled:,} rows without labels"
    if facts.task == "regression":
        augment = Augment([RandomDeletion()], consistency=1.0)
        return augment, f"{rows} teach by being answered alike with some words left out"
    if facts.each < _FEW_LABELS and facts.pooling is not None:
        return SelfTraining(0.0, start=0), f"{rows} have the labels that the fitted head gives, anew before each epoch"
    return SelfTraining(), f"{rows} have the labels that the model is sure of"


def _said_of(rows: Rows) -> str | None:
    """Return the first row that `ClassNames` would add; None where it would refuse these rows."""
    try:
        return ClassNames().prepare_data(rows).texts[len(rows)]
    except (ConfigError, DataError):
        return None


def _blocks_of(model: Any, config: Any) -> int | None:
    """Return how many blocks with weights of their own a model has."""
    if isinstance(model, torch.nn.Module):
        layers = layers_if_any(model)
        return None if layers is None else layers.num_blocks
    return getattr(config, "num_hidden_groups", None) or getattr(config, "num_hidden_layers", None)


def _pooling_of(model: Any, config: Any) -> Pooling | None:
    """Return how a pooled head should read a model: its own pooling where it has one, the last state of a decoder."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, PreTrainedModel

    if isinstance(model, torch.nn.Module):
        kinds = {entry["kind"]: entry["plan"] for entry in structure_of(model)}
        if POOLED in kinds:
            own: Pooling = kinds[POOLED]["pooling"]
            return own
        if not isinstance(model, PreTrainedModel) or not type(model).__name__.endswith("ForSequenceClassification"):
            return None
    one_way = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING
    return "last" if one_way and not getattr(config, "is_encoder_decoder", False) else "mean"
