"""The three tasks that losses, metrics and labels agree on, under the names that transformers uses."""

from __future__ import annotations

from typing import Literal, get_args

from lowft.errors import ConfigError

__all__ = ["TASKS", "Task", "check_task"]

Task = Literal["single_label_classification", "multi_label_classification", "regression"]
TASKS: tuple[Task, ...] = get_args(Task)


def check_task(task: str) -> Task:
    """Return `task` once it is known to be one of `TASKS`.

    Raises:
        ConfigError: It is another word.

    >>> check_task("regression")
    'regression'
    """
    for known in TASKS:
        if task == known:
            return known
    raise ConfigError(f"task must be one of {', '.join(TASKS)}, not {task!r}.")
