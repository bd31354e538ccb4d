"""Data in: rows from any common form, their labels, splits without leakage, few-shot draws."""

from __future__ import annotations

from lowft.data.labels import Labels, Task
from lowft.data.rows import Rows, read_rows
from lowft.data.splits import Splits, few_shot, find_leakage, split
from lowft.data.templates import add_templated_rows

__all__ = [
    "Labels",
    "Rows",
    "Splits",
    "Task",
    "add_templated_rows",
    "few_shot",
    "find_leakage",
    "read_rows",
    "split",
]
