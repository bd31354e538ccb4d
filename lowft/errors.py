"""Every error that lowft raises on purpose: one class for each thing a caller would catch.

LowftError
├── ConfigError               a setting is out of its range, or settings contradict each other
│   └── StrategyConflictError strategies that cannot be combined, or not in this order
├── DataError                 rows that cannot be used: missing columns, bad texts, too few of them
│   ├── LabelError            labels that do not fit the task, the model or the training set
│   └── LeakageError          the same text on two sides of a split
├── ModelError                a model whose layers, names or weights are not as they must be
├── TrainingError             the run itself went wrong
│   └── NonFiniteError        a loss or a gradient became NaN or infinite
├── CheckpointError           a checkpoint or an exported folder that cannot be read or written
│   ├── CheckpointCorruptError   files that are damaged, missing or not what the manifest says
│   └── CheckpointMismatchError  a sound checkpoint that belongs to another run
└── MissingExtraError         an optional dependency is not installed

All derive from `LowftError`. Those that Python programmers would expect to be a `ValueError` or an
`ImportError` are one too.
"""

from __future__ import annotations

__all__ = [
    "AccuracyDropError",
    "CheckpointCorruptError",
    "CheckpointError",
    "CheckpointMismatchError",
    "ConfigError",
    "DataError",
    "LabelError",
    "LeakageError",
    "LowftError",
    "MissingExtraError",
    "ModelError",
    "NonFiniteError",
    "StrategyConflictError",
    "TrainingError",
]


class LowftError(Exception):
    """Base of every error that lowft raises on purpose."""


class ConfigError(LowftError, ValueError):
    """A setting is out of its range, or settings contradict each other."""


class StrategyConflictError(ConfigError):
    """Strategies that cannot be combined, or not in the order given."""


class DataError(LowftError, ValueError):
    """Rows that cannot be used: missing columns, bad texts, too few of them."""


class LabelError(DataError):
    """Labels that do not fit the task, the model or the training set."""


class LeakageError(DataError):
    """The same text stands on two sides of a split."""


class ModelError(LowftError, ValueError):
    """A model whose layers, names or weights are not as they must be."""


class TrainingError(LowftError, RuntimeError):
    """The run itself went wrong."""


class NonFiniteError(TrainingError):
    """A loss or a gradient became NaN or infinite; nothing was stepped with it."""


class CheckpointError(LowftError, RuntimeError):
    """A checkpoint or an exported folder that cannot be read or written."""


class CheckpointCorruptError(CheckpointError):
    """Files are damaged, missing, or not what the manifest says."""


class CheckpointMismatchError(CheckpointError):
    """The checkpoint is sound but belongs to another run."""


class AccuracyDropError(LowftError, RuntimeError):
    """What was to be exported is less accurate than it may be."""


class MissingExtraError(LowftError, ImportError):
    """An optional dependency is not installed."""

    @classmethod
    def of(cls, package: str, extra: str, purpose: str) -> MissingExtraError:
        """Return the error that names the missing `package` and the extra that brings it."""
        return cls(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f"Install it with: pip install 'lowft[{extra}]'"
        )
