"""A teacher that reads the student's own tokens: it can be compared token by token, layer by layer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from lowft._inference import evaluation_mode, logits_of
from lowft._placement import device_of
from lowft.distillation.answers import Answers
from lowft.distillation.cache import AnswerCache, Entry, key_of
from lowft.distillation.capture import Capture
from lowft.distillation.teacher import check_identity
from lowft.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lowft.data.batching import Batch
    from lowft.distillation.comparing import Side
    from lowft.distillation.readers import Reader, TextPair

__all__ = ["TokenTeacher", "real_tokens"]


def real_tokens(batch: Batch) -> Tensor:
    """Return which tokens are no padding, `[batch, tokens]`."""
    mask = batch.inputs.get("attention_mask")
    return torch.ones_like(batch.inputs["input_ids"]).bool() if mask is None else mask.bool()


class TokenTeacher:
    """One teacher with what is captured of it while it reads a batch.

    Args:
        model: The model; it is put into evaluation mode where it reads.
        side: What is captured of it.
        identity: What tells its answers from another's.
        reader: How it reads texts, to make sure that it does as the student does; None for the student's own copy.
        order: Which of its outputs stands for each class.
        cache: Answers on disk, or None.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        side: Side,
        identity: str,
        *,
        reader: Reader | None = None,
        order: Sequence[int] | None = None,
        cache: AnswerCache | None = None,
    ) -> None:
        self._model = model
        self._side = side
        self.identity = identity
        self._reader = reader
        self._order = order
        self.cache = cache
        self._answers = Answers()
        self._device = device_of(model)

    @torch.no_grad()
    def read(self, batch: Batch, memory: dict[str, Any], most: int) -> tuple[Tensor, list[Tensor]]:
        """Return the logits, `[batch, outputs]`, and what is captured, `[batch, tokens, width]` each.

        Args:
            batch: The student's batch, with texts.
            memory: The strategy's memory; its entry "asked" counts the texts that were read.
            most: Logits kept there, where nothing is captured.

        Raises:
            CheckpointMismatchError: The memory holds another teacher's answers.
            ConfigError: The teacher reads a text as other tokens.
        """
        check_identity(memory, self.identity, self._reader.source if self._reader else "the model's own copy")
        ids, mask = batch.inputs["input_ids"], real_tokens(batch)
        rows = [row[real].tolist() for row, real in zip(ids.cpu(), mask.cpu(), strict=True)]
        keys = [key_of(json.dumps(text), json.dumps(row)) for text, row in zip(batch.texts, rows, strict=True)]
        plain = not self._side.widths
        found: dict[bytes, Entry] = {}
        if plain:
            empty = torch.empty(0, 0)
            found = {key: Entry(logits, empty) for key, logits in self._answers.find(memory, keys).items()}
        new = {key: number for number, key in enumerate(keys) if key not in found}
        if self.cache is not None:
            found |= self.cache.find(memory, list(new))
        unread = {key: number for key, number in new.items() if key not in found}
        memory["asked"] = memory.get("asked", 0) + len(unread)
        if unread:
            read = dict(zip(unread, self._read(batch, list(unread.values()), rows), strict=True))
            if self.cache is not None:
                self.cache.add(memory, read)
            found |= read
        if plain:
            self._answers.keep(memory, {key: found[key].logits for key in new}, most)
        logits = torch.stack([found[key].logits for key in keys]).to(ids.device)
        if plain:
            return logits, []
        states = torch.zeros(*ids.shape, sum(self._side.widths), device=ids.device)
        states[mask] = torch.cat([found[key].states for key in keys]).to(ids.device)
        return logits, list(torch.split(states, list(self._side.widths), dim=2))

    def _read(self, batch: Batch, numbers: Sequence[int], rows: Sequence[Sequence[int]]) -> list[Entry]:
        """Return what the teacher says of some rows of a batch."""
        if self._reader is None:
            inputs = {name: tensor[numbers] for name, tensor in batch.inputs.items()}
            mask = real_tokens(batch)[numbers]
        else:
            texts = [batch.texts[number] for number in numbers]
            own = self._tokenized(self._reader, texts, [rows[number] for number in numbers])
            inputs, mask = own.to(self._device).inputs, real_tokens(own)
        capture = Capture(self._model, self._side.states, self._side.relations, training=False)
        try:
            with evaluation_mode(self._model):
                logits = logits_of(self._model(**inputs)).float().cpu()
            found = capture.take(*mask.shape)
        finally:
            capture.close()
        logits = logits if self._order is None else logits[:, self._order]
        if not found:
            return [Entry(row, torch.empty(0, 0)) for row in logits]
        states = torch.cat(found, dim=2).cpu()
        pairs = zip(logits, states, mask.cpu(), strict=True)
        return [Entry(row.clone(), vectors[real].clone()) for row, vectors, real in pairs]

    def _tokenized(self, reader: Reader, texts: Sequence[TextPair], rows: Sequence[Sequence[int]]) -> Batch:
        """Return the texts as the teacher reads them, once it is known to read the student's tokens."""
        longest = max(len(row) for row in rows)
        if longest > reader.max_length:
            raise ConfigError(
                f"Distill compares token by token, and {reader.source!r} reads at most {reader.max_length} tokens, "
                f"the student {longest}: set TrainingConfig(max_length={reader.max_length}), or leave hidden and "
                f"relations out"
            )
        special = reader.tokenizer.num_special_tokens_to_add(pair=texts[0][1] is not None)
        tokenized = reader.tokenize(texts, max(longest, special + 1))
        batch = tokenized.collate(range(len(texts)))
        own = [row[real].tolist() for row, real in zip(batch.inputs["input_ids"], real_tokens(batch), strict=True)]
        for text, ours, theirs in zip(texts, rows, own, strict=True):
            if list(ours) != theirs:
                raise ModelError(
                    f"Distill compares token by token, and the teacher {reader.source!r} reads {text[0][:60]!r} as "
                    f"other tokens ({theirs[:6]}) than the student ({list(ours[:6])}): leave hidden and relations out, "
                    f"which distills the logits alone, or choose a teacher with the student's tokenizer"
                )
        return batch
