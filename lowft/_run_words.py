"""A run in words, before it begins: what will be trained on what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowft._tables import format_table, human_count
from lowft.models import layer_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowft._preparation import Parts
    from lowft.data.batching import TokenizedRows
    from lowft.loop import Loop
    from lowft.stages import Stage

__all__ = ["describe_run"]


def describe_run(loop: Loop, parts: Parts, strategies: Sequence[str]) -> str:
    """Return task, rows, strategies, layers and stages.

    Args:
        loop: The run.
        parts: What it is made of.
        strategies: Their names.
    """
    model = loop.attached.model
    held_out = "no validation rows" if parts.eval_rows is None else _counted(parts.eval_rows, "validation")
    lines = [
        f"{type(model).__name__} for {parts.labels.describe()}",
        f"{_counted(parts.train_rows, 'training')}, {held_out}, at most {parts.max_length} tokens each",
        f"strategies: {', '.join(strategies) or 'none (full fine-tuning)'}",
        "",
        layer_table(model),
        "",
        format_table(
            ("stage", "trains", "steps", "learning rate"), [_described(loop, stage) for stage in loop.attached.stages]
        ),
    ]
    return "\n".join(lines)


def _described(loop: Loop, stage: Stage) -> list[str]:
    names = loop.attached.trained_in(stage)
    sizes = (parameter.numel() for name, parameter in loop.attached.model.named_parameters() if name in names)
    rate = stage.learning_rate or loop.config.learning_rate
    return [stage.name, human_count(sum(sizes)), f"{loop.planned_steps(stage):,}", f"{rate:g}"]


def _counted(rows: TokenizedRows, kind: str) -> str:
    dropped = len(rows.rows.dropped)
    bare = rows.unlabelled
    told = f"{len(rows) - bare:,} {kind} rows" + (f" and {bare:,} without labels" if bare else "")
    return told + (f" ({dropped:,} bad dropped)" if dropped else "")
