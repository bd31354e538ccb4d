"""Checks of single settings, so that every class refuses a bad value in the same words."""

from __future__ import annotations

import difflib
import math
from typing import TYPE_CHECKING, Any

from lowft.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["check_choice", "check_flag", "check_real", "check_text", "check_whole"]


def check_whole(name: str, value: Any, *, least: int) -> None:
    """Raise a ConfigError unless `value` is a whole number of at least `least`.

    >>> check_whole("Stage.batch_size", 8, least=1)
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}; received {value!r}")


def check_real(
    name: str,
    value: Any,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> None:
    """Raise a ConfigError unless `value` is a finite number inside the bounds.

    >>> check_real("Stage.layer_decay", 0.9, above=0, most=1)
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if number and above < value < below and least <= value <= most:
        return
    bounds = {"above": above, "at least": least, "at most": most, "below": below}
    rule = " and ".join(f"{words} {bound:g}" for words, bound in bounds.items() if math.isfinite(bound))
    raise ConfigError(f"{name} must be a finite number{' ' * bool(rule)}{rule}; received {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Raise a ConfigError unless `value` is True or False.

    >>> check_flag("Target.greater_is_better", True)
    """
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be True or False; received {value!r}")


def check_text(name: str, value: Any) -> None:
    """Raise a ConfigError unless `value` is a text that is not empty.

    >>> check_text("Target.metric", "accuracy")
    """
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name} must be a text that is not empty; received {value!r}")


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Raise a ConfigError unless `value` is one of the choices; the message names a near one.

    >>> check_choice("TrainingConfig.precision", "float32", ("float32", "bfloat16"))
    """
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        raise ConfigError(
            f"{name} must be one of {', '.join(map(repr, choices))}; received {value!r}"
            + (f". Did you mean {near[0]!r}?" if near else "")
        )
