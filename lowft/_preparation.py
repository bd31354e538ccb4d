"""From what a user hands to the Trainer to checked, tokenised parts; every mistake is found here, before training."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from lowft._alignment import align_
from lowft._inference import evaluation_mode, logits_of
from lowft._placement import device_of
from lowft.compress.quantization import scheme_of
from lowft.data.batching import TokenizedRows, accepted_inputs
from lowft.data.labels import Labels
from lowft.data.rows import Rows, read_rows
from lowft.data.splits import find_leakage
from lowft.data.unlabeled import encode_known, join, read_unlabeled
from lowft.errors import ConfigError, DataError, LabelError, ModelError
from lowft.models.loading import load_model, load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedTokenizerBase

    from lowft.config import TrainingConfig
    from lowft.data.labels import Task
    from lowft.strategy import Strategy

__all__ = [
    "Parts",
    "choose_max_length",
    "config_of",
    "find_tokenizer",
    "known_classes",
    "name_classes_",
    "prepare",
    "source_of",
]

_logger = logging.getLogger("lowft")

_NO_LIMIT = 1_000_000  # tokenizers that know no limit report an absurdly large one
_UNLIMITED_DEFAULT = 512  # tokens for models without a limit of their own, such as T5
_SHOWN = 5


@dataclass(frozen=True)
class Parts:
    """What a run is made of."""

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    labels: Labels
    train_rows: TokenizedRows
    eval_rows: TokenizedRows | None
    max_length: int
    source: str | None


def prepare(  # noqa: PLR0913 - what a user may say about the data and the model
    model: Any,
    train_dataset: Any,
    eval_dataset: Any,
    unlabeled_dataset: Any,
    strategy: Strategy,
    config: TrainingConfig,
    *,
    tokenizer: Any,
    column_mapping: Mapping[str, str] | None,
    task: Task | None,
    new_head: bool,
    revision: str | None,
) -> Parts:
    """Read the rows, settle task and labels, load what is named, tokenise, and try one forward pass."""
    read = partial(read_rows, column_mapping=column_mapping, on_bad_row=config.on_bad_row, require_labels=True)
    rows = read(train_dataset, name="train_dataset")
    held_out = None if eval_dataset is None else read(eval_dataset, name="eval_dataset")
    if unlabeled_dataset is not None:
        more = read_unlabeled(
            unlabeled_dataset,
            takes_pairs=rows.pairs is not None,
            column_mapping=column_mapping,
            on_bad_row=config.on_bad_row,
        )
        _check_alike(rows, more, "unlabeled_dataset")
        if held_out is not None:
            _check_leakage(more, held_out, "unlabeled_dataset")
        rows = join(rows, more)
    rows = strategy.prepare_data(rows)
    if held_out is not None:
        _check_alike(rows, held_out, "eval_dataset")
        _check_leakage(rows.select(_labelled(rows)), held_out, "train_dataset")
    source = source_of(model)
    known = None if new_head else known_classes(model, config_of(model, revision))
    values = rows.select(_labelled(rows)).labels or ()
    labels = Labels.infer(values, task=task, names=rows.label_names, id2label=known, name="train_dataset")
    tokenizer = find_tokenizer(tokenizer, model, revision)
    if source is not None:
        model = load_model(source, labels=labels, revision=revision, new_head=new_head, seed=config.seed)
    _check_weights(model)
    align_(model)
    max_length = choose_max_length(config, tokenizer, model)
    inputs = accepted_inputs(model, tokenizer)

    def tokenized(some: Rows, name: str) -> TokenizedRows:
        encoded = encode_known(labels, some, name=name)
        made = TokenizedRows(some, tokenizer, encoded, max_length, inputs, config.progress)
        if made.truncated:
            _logger.info("%s: %d of %d rows reach the limit of %d tokens", name, made.truncated, len(some), max_length)
        return made

    train_rows = tokenized(rows, "train_dataset")
    eval_rows = tokenized(held_out, "eval_dataset") if held_out is not None else None
    _check_outputs(model, train_rows, labels)
    return Parts(model, tokenizer, labels, train_rows, eval_rows, max_length, None if source is None else str(source))


def source_of(model: Any) -> Any:
    """Return the folder or hub id that a model is named by; None where it is a module.

    Raises:
        ConfigError: It is neither.
    """
    if isinstance(model, str) or hasattr(model, "__fspath__"):
        return model
    if not isinstance(model, torch.nn.Module):
        raise ConfigError(
            f"model must be a hub id, a folder or a torch.nn.Module; received {type(model).__name__}: {model!r}"
        )
    return None


def _labelled(rows: Rows) -> list[int]:
    """Return the positions of the rows that have a label."""
    return [index for index, label in enumerate(rows.labels or ()) if label is not None]


def _check_alike(train: Rows, others: Rows, name: str) -> None:
    if (train.pairs is None) != (others.pairs is None):
        one, other = ("single texts", "pairs") if train.pairs is None else ("pairs", "single texts")
        raise DataError(f"train_dataset holds {one} and {name} {other}: both must be alike")


def _check_leakage(seen: Rows, held_out: Rows, name: str) -> None:
    leaks = find_leakage(seen, held_out)
    if leaks:
        shown = ", ".join(f"{second} (as {first})" for first, second in leaks[:_SHOWN])
        warnings.warn(
            f"{len(leaks)} rows of eval_dataset are also in {name}, so its figures will look too good: rows "
            f"{shown}{', …' if len(leaks) > _SHOWN else ''}. lowft.split(…, on_leakage='drop') makes clean sides",
            stacklevel=4,
        )


def config_of(model: Any, revision: str | None) -> Any:
    """Return the config of a module, folder or hub id; None where it cannot be read, which loading it will say."""
    if isinstance(model, torch.nn.Module):
        return getattr(model, "config", None)
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
    except (OSError, ValueError):
        return None


def known_classes(model: Any, config: Any) -> Mapping[int, str] | None:
    """Return the class names of a head that is there already, by the model's config."""
    has_head = isinstance(model, torch.nn.Module) or any(
        name.endswith("ForSequenceClassification") for name in getattr(config, "architectures", None) or ()
    )
    return getattr(config, "id2label", None) if has_head else None


def find_tokenizer(tokenizer: Any, model: Any, revision: str | None) -> PreTrainedTokenizerBase:
    """Return the tokenizer that was given, as an object, a folder or a hub id, or else that of the model."""
    if tokenizer is not None and not isinstance(tokenizer, str) and not hasattr(tokenizer, "__fspath__"):
        if not callable(tokenizer) or not hasattr(tokenizer, "pad_token_id"):
            raise ConfigError(
                f"tokenizer must be a transformers tokenizer, a hub id or a folder; received {tokenizer!r}"
            )
        given: PreTrainedTokenizerBase = tokenizer
        return given
    source = tokenizer or model
    if isinstance(source, torch.nn.Module):
        source = getattr(getattr(source, "config", None), "name_or_path", "")
        if not source:
            raise ConfigError(
                "tokenizer is missing: the model was not loaded from a folder or hub id that would tell which one it "
                "needs. Pass tokenizer=, an object, a folder or a hub id"
            )
    return load_tokenizer(source, revision=revision)


def _check_weights(model: torch.nn.Module) -> None:
    if scheme_of(model):
        raise ModelError(
            f"this {type(model).__name__} is quantized already, and integers cannot be fine-tuned: fine-tune the "
            f"full-precision model with strategies=[lowft.Quantize(...)]"
        )
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ModelError(f"the parameter {name!r} is on the meta device and has no values: load the weights first")
        if parameter.dtype in (torch.float16, torch.bfloat16):
            raise ModelError(
                f"the parameter {name!r} is {parameter.dtype}, in which small updates are lost: load the model with "
                f"dtype=torch.float32, and set TrainingConfig(precision='bfloat16') for speed"
            )


def choose_max_length(config: TrainingConfig, tokenizer: PreTrainedTokenizerBase, model: torch.nn.Module) -> int:
    """Return the tokens after which a text is cut: the caller's choice, else the model's limit."""
    limits = [tokenizer.model_max_length] if tokenizer.model_max_length < _NO_LIMIT else []
    settings: Any = getattr(model, "config", None)
    positions = getattr(settings, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        # RoBERTa and its kin number positions from pad_token_id + 1, and so can use that many fewer.
        embeddings = [module for name, module in model.named_modules() if name.endswith("position_embeddings")]
        padded = any(getattr(module, "padding_idx", None) is not None for module in embeddings)
        limits.append(positions - settings.pad_token_id - 1 if padded else positions)
    limit = min(limits, default=None)
    if config.max_length is None:
        return limit or _UNLIMITED_DEFAULT
    if limit is not None and config.max_length > limit:
        raise ConfigError(
            f"TrainingConfig.max_length must be at most {limit}, the limit of this model; received {config.max_length}"
        )
    return config.max_length


def _check_outputs(model: torch.nn.Module, rows: TokenizedRows, labels: Labels) -> None:
    """Try one row, so that a model without a fitting head is found before training."""
    device = device_of(model)
    with evaluation_mode(model), torch.no_grad():
        outputs = logits_of(model(**rows.collate([0]).to(device).inputs)).shape[1]
    if outputs != labels.num_labels:
        raise LabelError(
            f"the model has {outputs} outputs, and the training labels need {labels.num_labels} "
            f"({labels.describe()}): load it with num_labels={labels.num_labels}, or give its folder or hub id and "
            f"new_head=True"
        )


def name_classes_(model: torch.nn.Module, labels: Labels) -> None:
    """Write task and class names into the model's config, which transformers saves and pipelines show."""
    settings: Any = getattr(model, "config", None)
    if hasattr(settings, "id2label"):
        settings.id2label = labels.id2label
        settings.label2id = labels.label2id
        settings.problem_type = labels.task
