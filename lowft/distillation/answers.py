"""Logits that a teacher has given so far, kept in a strategy's memory and so in every checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lowft.distillation.cache import KEY_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

__all__ = ["Answers"]

_FIRST_ROOM = 1024


class Answers:
    """Finds logits by key in a dictionary of JSON values and tensors, and adds to it."""

    def __init__(self) -> None:
        self._known: dict[bytes, int] = {}

    def find(self, memory: Mapping[str, Any], keys: Sequence[bytes]) -> dict[bytes, Tensor]:
        """Return the logits, `[outputs]`, of those keys that have some."""
        count = memory.get("count", 0)
        if len(self._known) != count:  # made anew after a resume
            stored = memory["keys"][:count].numpy() if count else ()
            self._known = {key.tobytes(): place for place, key in enumerate(stored)}
        return {key: memory["logits"][self._known[key]] for key in keys if key in self._known}

    def keep(self, memory: dict[str, Any], logits: Mapping[bytes, Tensor], most: int) -> None:
        """Add logits, `[outputs]` each, as long as there are no more than `most`."""
        count = memory.get("count", 0)
        keys = list(logits)[: max(0, most - count)]
        if not keys:
            return
        rows = torch.stack([logits[key] for key in keys])
        end = count + len(keys)
        if "keys" not in memory or end > len(memory["keys"]):
            # Twice the room each time: one copy for many batches.
            size = max(_FIRST_ROOM, 2 * end)
            larger_keys, larger_logits = (
                torch.zeros(size, KEY_BYTES, dtype=torch.uint8),
                torch.zeros(size, rows.shape[1]),
            )
            if count:
                larger_keys[:count], larger_logits[:count] = memory["keys"][:count], memory["logits"][:count]
            memory["keys"], memory["logits"] = larger_keys, larger_logits
        memory["keys"][count:end] = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(-1, KEY_BYTES)
        memory["logits"][count:end] = rows
        memory["count"] = end
        self._known |= {key: count + place for place, key in enumerate(keys)}
