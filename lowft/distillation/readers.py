"""Where a teacher comes from: a folder, a hub id, or a model that is held; and what tells one from another."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lowft._inference import compute_logits
from lowft._preparation import choose_max_length, find_tokenizer
from lowft.checkpoint import model_tensors
from lowft.config import TrainingConfig
from lowft.data.batching import TokenizedRows, accepted_inputs
from lowft.data.rows import Rows
from lowft.errors import ConfigError, ModelError
from lowft.models.loading import EXPORT_SETTINGS, load_model, load_tokenizer
from lowft.registry import register

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "KnownTeacher",
    "Reader",
    "TextPair",
    "hold",
    "is_source",
    "name_folder",
    "open_reader",
    "output_order",
    "teachers_of",
]

TextPair = tuple[str, str | None]

_FILES_OF_A_MODEL = frozenset({".bin", ".json", ".model", ".onnx", ".safetensors", ".txt", ".xml"})


@dataclass(frozen=True)
class Reader:
    """One model with all that turns texts into its logits."""

    source: str
    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    names: tuple[str, ...]

    def tokenize(self, texts: Sequence[TextPair], max_length: int) -> TokenizedRows:
        """Return the texts as this model reads them, cut after so many tokens."""
        first, second = zip(*texts, strict=True)
        rows = Rows(first, second if second[0] is not None else None, None, tuple(range(len(first))))
        inputs = accepted_inputs(self.model, self.tokenizer)
        return TokenizedRows(rows, self.tokenizer, None, max_length, inputs, progress=False)

    def logits(self, texts: Sequence[TextPair]) -> Tensor:
        """Return the logits, `[texts, outputs]`."""
        rows = self.tokenize(texts, self.max_length)
        return torch.from_numpy(compute_logits(self.model, rows, batch_size=len(rows), progress=False))

    def digest(self) -> str:
        """Return what tells this teacher's answers from another's: its weights, vocabulary and length."""
        found = hashlib.sha256(f"{type(self.model).__name__} {self.max_length}".encode())
        tensors = model_tensors(self.model)
        for name, tensor in sorted(tensors.items()):
            found.update(name.encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        if not tensors:  # a graph, whose weights another runtime holds
            found.update(_folder_digest(Path(self.source)).encode())
        found.update(json.dumps(sorted(self.tokenizer.get_vocab().items())).encode())
        return found.hexdigest()


@register
@dataclass(frozen=True)
class KnownTeacher:
    """A teacher that is known by what it is, not by where it lies: what a recipe says of a model that was held.

    Attributes:
        name: What to call it.
        digest: The digest of its weights and vocabulary, or of the files of its folder.
    """

    name: str
    digest: str
    reader: Reader | None = field(default=None, init=False, repr=False, compare=False)


def is_source(value: Any) -> bool:
    """Tell whether a value may be a folder or a hub id."""
    return (isinstance(value, str) and bool(value.strip())) or hasattr(value, "__fspath__")


def hold(value: Any) -> KnownTeacher | None:
    """Return the teacher that an object in memory is; None for an object that is none.

    Args:
        value: A classifier of transformers, (model, tokenizer), a `Predictor`, or a `Trainer` that has finished.

    Raises:
        ConfigError: Its tokenizer is not known, or the Trainer has not finished.
        ModelError: The model has no head whose classes have names.
    """
    from lowft.predictor import Predictor
    from lowft.trainer import Trainer

    if isinstance(value, KnownTeacher):
        return value
    tokenizer = None
    if isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], torch.nn.Module):
        value, tokenizer = value
    if isinstance(value, Trainer):
        if not value.finished:
            raise ConfigError("Distill.teacher is a Trainer that has not finished: call its fit() first")
        value = value._predictor()  # noqa: SLF001 - what it predicts with
    if isinstance(value, Predictor):
        reader = Reader("", value.model, value.tokenizer, value.max_length, value.labels.names)
    elif isinstance(value, torch.nn.Module):
        reader = _reader_of(value, tokenizer)
    else:
        return None
    name = type(reader.model).__name__
    reader = Reader(name, reader.model, reader.tokenizer, reader.max_length, reader.names)
    known = KnownTeacher(name, reader.digest())
    object.__setattr__(known, "reader", reader)
    return known


def teachers_of(given: Any) -> tuple[str | KnownTeacher, ...]:
    """Return teachers in any form as a tuple: folders, hub ids and "self" as text, what is held with its digest.

    Raises:
        ConfigError: Something that can be no teacher.
        ModelError: A model whose outputs have no names.

    >>> teachers_of(["exports/large", Path("exports/other")])
    ('exports/large', 'exports/other')
    """
    held = None if is_source(given) else hold(given)
    if held is not None:
        return (held,)
    sources: Any = [given] if is_source(given) else given
    if not isinstance(sources, list | tuple):
        sources = []
    found = [os.fspath(source) if is_source(source) else hold(source) for source in sources]
    known = tuple(source for source in found if source is not None)
    if not known or len(known) < len(found):
        raise ConfigError(
            f"Distill.teacher must be a folder, a hub id, a classifier with its tokenizer, 'self', or a list of such; "
            f"received {given!r}. Write a model of another kind to a folder first, with trainer.export or "
            f"save_pretrained"
        )
    if "self" in known and len(known) > 1:
        raise ConfigError(f"Distill.teacher: 'self' stands alone; received {given!r}")
    return known


def name_folder(source: str | KnownTeacher) -> str | KnownTeacher:
    """Return a folder as its last part and a digest of its files, so that no recipe tells where it lies; else as it is.

    >>> name_folder("organisation/model")
    'organisation/model'
    """
    if isinstance(source, str) and os.path.isdir(source):  # noqa: PTH112 - perhaps a hub id, which is no path
        folder = Path(source).resolve()
        return KnownTeacher(folder.name, _folder_digest(folder))
    return source


def open_reader(source: str | KnownTeacher, device: torch.device) -> Reader:
    """Return the teacher, ready to read.

    Raises:
        ConfigError: It was held in memory, and is not given now or has changed.
        ModelError: It cannot be loaded, or has no trained head.
    """
    from lowft.export.folder import load

    if isinstance(source, KnownTeacher):
        if source.reader is None:
            raise ConfigError(
                f"Distill.teacher: this recipe names the teacher {source.name} (digest {source.digest[:12]}) but does "
                f"not hold it: give the model or its folder again, Distill(teacher=...)"
            )
        if source.reader.digest() != source.digest:
            raise ConfigError(
                f"Distill.teacher: the weights of {source.name} have changed since Distill(teacher=...) was called: "
                f"call it after the teacher's own training"
            )
        return source.reader
    if os.path.isfile(os.path.join(source, EXPORT_SETTINGS)):  # noqa: PTH113, PTH118 - also a hub id, which is no path
        found = load(source, device=device)
        return Reader(source, found.model, found.tokenizer, found.max_length, found.labels.names)
    model: Any = load_model(source)
    if not any(name.endswith("ForSequenceClassification") for name in model.config.architectures or ()):
        raise ModelError(
            f"{source} cannot be a teacher: it has no trained head to answer with. Fine-tune it first, and give the "
            f"folder that Trainer.export wrote"
        )
    reader = _reader_of(model.to(device).eval(), load_tokenizer(source))
    return Reader(source, reader.model, reader.tokenizer, reader.max_length, reader.names)


def output_order(reader: Reader, names: Sequence[str]) -> list[int]:
    """Return which of the teacher's outputs stands for each of the student's classes.

    Raises:
        ConfigError: They have other classes.
    """
    theirs, ours = [name.casefold() for name in reader.names], [name.casefold() for name in names]
    unnamed = all(name == f"label_{output}" for output, name in enumerate(theirs))
    if len(theirs) == len(ours) and (unnamed or len(ours) == 1):
        return list(range(len(ours)))
    if sorted(theirs) != sorted(ours):
        raise ConfigError(
            f"the teacher {reader.source!r} tells apart {', '.join(reader.names)}, the student {', '.join(names)}: "
            f"both must have the same classes. Choose a teacher that was trained on these labels"
        )
    return [theirs.index(name) for name in ours]


def _reader_of(model: torch.nn.Module, tokenizer: Any) -> Reader:
    settings: Any = getattr(model, "config", None)
    names = getattr(settings, "id2label", None)
    if not names or not type(model).__name__.endswith("ForSequenceClassification"):
        raise ModelError(
            f"Distill.teacher is a {type(model).__name__}: a model that is held must be a classifier of transformers "
            f"(...ForSequenceClassification), or come as a lowft.Predictor, which says what its outputs mean"
        )
    tokenizer = find_tokenizer(tokenizer, model, None)
    length = choose_max_length(TrainingConfig(), tokenizer, model)
    return Reader("", model, tokenizer, length, tuple(names[output] for output in range(settings.num_labels)))


def _folder_digest(folder: Path) -> str:
    """Return a digest of the files that make a model in a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in _FILES_OF_A_MODEL and path.is_file():
            with path.open("rb") as file:
                found.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()} ".encode())
    return found.hexdigest()
