"""What was cut from a model or converted in it, written down so that a fresh process rebuilds the same shape.

A function that changes the shape of a model in a way its config cannot say appends an entry to the model's
structure. An exported folder carries the entries; loading makes the model of the config, applies them in order, and
then fills in the weights, each of which must fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowft.errors import CheckpointCorruptError
from lowft.models.layers import within

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import torch

__all__ = ["rebuild_", "record_", "rename_", "structure_of"]

_ATTRIBUTE = "lowft_structure"


def record_(model: torch.nn.Module, kind: str, plan: Mapping[str, Any]) -> None:
    """Append an entry to the structure of a model that has just been changed.

    Args:
        model: The changed model.
        kind: What was done: a word that `rebuild_` knows.
        plan: All that it takes to do it again to a model of the former shape, as JSON values.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2)
    >>> record_(model, "widths", {"widths": {"0": 8}})
    >>> structure_of(model)
    [{'kind': 'widths', 'plan': {'widths': {'0': 8}}}]
    """
    setattr(model, _ATTRIBUTE, [*structure_of(model), {"kind": kind, "plan": dict(plan)}])


def structure_of(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Return what was done to the model that its config does not say, in order; empty for an ordinary one."""
    return list(getattr(model, _ATTRIBUTE, []))


def rename_(model: torch.nn.Module, names: Mapping[str, str], gone: Collection[str]) -> None:
    """Let a model's structure call blocks by other names, and say nothing of those that are gone.

    Args:
        model: The model.
        names: New names by old ones.
        gone: Names of blocks that the model no longer has.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2)
    >>> record_(model, "widths", {"widths": {"block.0": 8, "block.1": 4}})
    >>> rename_(model, {"block.1": "block.0"}, ["block.0"])
    >>> structure_of(model)
    [{'kind': 'widths', 'plan': {'widths': {'block.0': 4}}}]
    """

    def renamed(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        found = {}
        for name, own in value.items():
            old = next((old for old in (*names, *gone) if within(name, old)), None)
            if old is None or old in names:
                found[name if old is None else f"{names[old]}{name.removeprefix(old)}"] = renamed(own)
        return found

    if structure_of(model):
        setattr(model, _ATTRIBUTE, [{**entry, "plan": renamed(entry["plan"])} for entry in structure_of(model)])


def rebuild_(model: torch.nn.Module, structure: Sequence[Mapping[str, Any]], source: object) -> None:
    """Give a model of the config the shape that a structure describes; its weights are then still to be filled in.

    The model has the structure from then on, so that it can be changed further and exported again.

    Args:
        model: A model as its config alone makes it.
        structure: What `structure_of` returned.
        source: Where it comes from, for messages.

    Raises:
        CheckpointCorruptError: The structure is not one, or does not fit the model.
    """
    for entry in structure:
        if not isinstance(entry, dict) or not isinstance(entry.get("plan"), dict):
            raise CheckpointCorruptError(f"{source}: not an entry of a structure: {entry!r}")
        from lowft.compress.attention import rebuild_heads_
        from lowft.compress.feed_forward import rebuild_widths_
        from lowft.compress.quantization import rebuild_quantized_
        from lowft.models.pooling import POOLED, rebuild_pooled_

        kinds = {
            "heads": rebuild_heads_,
            "widths": rebuild_widths_,
            "quantized": rebuild_quantized_,
            POOLED: rebuild_pooled_,
        }
        rebuild = kinds.get(str(entry.get("kind")))
        if rebuild is None:
            raise CheckpointCorruptError(f"{source}: a structure of the kind {entry.get('kind')!r} is unknown here")
        try:
            rebuild(model, entry["plan"])
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointCorruptError(
                f"{source}: its structure does not fit the model of its config: {type(error).__name__} {error}"
            ) from error
        record_(model, entry["kind"], entry["plan"])
