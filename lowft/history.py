"""What happened in a run: losses, evaluations and stages, as records that can be saved, printed and drawn."""

from __future__ import annotations

import copy
import json
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from lowft._curves import PREFIX, draw_comparison, draw_curves, metric_names
from lowft._plots import finish
from lowft._tables import format_table, html_table, human_count, human_seconds
from lowft.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["History", "plot_histories"]

_EVENTS = ("train", "evaluate", "stage", "note")
_NON_FINITE = "$float"  # JSON has no NaN and no infinity: {"$float": "nan"} stands for one


class History(Sequence[dict[str, Any]]):
    """The records of a run, in order: plain dicts of JSON values.

    | event | further values |
    | --- | --- |
    | `"train"` | `loss`, `learning_rate`, `grad_norm`, `rows` |
    | `"evaluate"` | `eval_loss`, `eval_accuracy`, … |
    | `"stage"` | `trainable_parameters`, `decision`, `reason`, `peak_memory_bytes`: at the end of a stage |
    | `"note"` | `message`; of cached layers also `cached_bytes`, `filling_seconds`, and in the end `hit_rate` |

    Every record also holds `event`, `step` (optimizer steps so far), `stage`, `stage_name`, `epoch` and
    `seconds` (since the run began). Records that are handed out are copies.

    Args:
        records: Records to begin with, such as `history.records` of another.

    >>> history = History()
    >>> history.append("train", step=10, seconds=2.5, loss=0.64)
    >>> history.append("evaluate", step=10, seconds=3.0, eval_accuracy=0.81)
    >>> print(history)
    step  stage  epoch    time  train loss  accuracy
    ----  -----  -----  ------  ----------  --------
    10           0.00   3.00 s      0.6400    0.8100
    """

    def __init__(self, records: Sequence[Mapping[str, Any]] = ()) -> None:
        self._records: list[dict[str, Any]] = []
        for index, record in enumerate(records):
            if not {"event", "step"} <= record.keys():
                raise ConfigError(f"Each record needs an event and a step; record {index} has {sorted(record)}.")
            self.append(**record)

    def append(
        self,
        event: str,
        *,
        step: int,
        stage: int = 0,
        stage_name: str = "",
        epoch: float = 0.0,
        seconds: float = 0.0,
        **values: Any,
    ) -> None:
        """Add a record.

        Args:
            event: `"train"`, `"evaluate"`, `"stage"` or `"note"`.
            step: Optimizer steps so far.
            stage: Which stage, from 0.
            stage_name: What it is called.
            epoch: Passes over the training rows, of this stage.
            seconds: Since the run began.
            values: What else there is to say: JSON values, or single numbers of NumPy and PyTorch.

        Raises:
            ConfigError: The event is unknown, `step` is no count, or a value is no JSON value.
        """
        if event not in _EVENTS:
            raise ConfigError(f"event must be one of {', '.join(_EVENTS)}, not {event!r}.")
        if isinstance(step, bool) or not isinstance(step, numbers.Integral) or step < 0:
            raise ConfigError(f"step must be a whole number of optimizer steps so far, not {step!r}.")
        common = {"step": step, "stage": stage, "stage_name": stage_name, "epoch": epoch, "seconds": seconds}
        record = {name: _plain(name, value) for name, value in (common | values).items()}
        self._records.append({"event": event, **record})

    @property
    def records(self) -> list[dict[str, Any]]:
        """All records, as copies."""
        return copy.deepcopy(self._records)

    def filter(self, event: str) -> list[dict[str, Any]]:
        """Return the records of one kind: `"train"`, `"evaluate"`, `"stage"` or `"note"`.

        Raises:
            ConfigError: The event is unknown.
        """
        if event not in _EVENTS:
            raise ConfigError(f"event must be one of {', '.join(_EVENTS)}, not {event!r}.")
        return [copy.deepcopy(record) for record in self._records if record["event"] == event]

    @property
    def seconds(self) -> float:
        """Seconds of training and evaluations so far; saving and the caller's work between steps are not in it."""
        return max((float(record["seconds"]) for record in self._records), default=0.0)

    @property
    def peak_memory_bytes(self) -> int | None:
        """The most memory that an ended stage took, in bytes; None where none has ended or it cannot be measured.

        On a GPU that is what torch allocated there. Elsewhere it is the resident memory of the whole process, as limits
        on containers count it: Python, its libraries, the model, the rows and all else that the process holds.

        >>> history = History()
        >>> history.append("stage", step=10, peak_memory_bytes=600_000_000)
        >>> history.peak_memory_bytes
        600000000
        """
        peaks = [record.get("peak_memory_bytes") for record in self._records if record["event"] == "stage"]
        return max((int(peak) for peak in peaks if peak is not None), default=None)

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(copy.deepcopy, self._records)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        return copy.deepcopy(self._records[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, History) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]  # it grows

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(self.filter(event))} {event}" for event in _EVENTS)
        return f"<History: {counts}>"

    def __str__(self) -> str:
        headers, rows = self._table()
        return format_table(headers, rows, align=_align(headers)) if rows else "No evaluation yet."

    def _repr_html_(self) -> str:
        headers, rows = self._table()
        return html_table(headers, rows, align=_align(headers)) if rows else "<p>No evaluation yet.</p>"

    def to_frame(self) -> pd.DataFrame:
        """Return a pandas table with one row for each record and one column for each name."""
        import pandas as pd

        return pd.DataFrame(self.records)

    def to_json(self) -> str:
        """Write all records as JSON text, without loss: every number comes back as the same number."""
        return json.dumps(_encoded(self._records), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> History:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: The text is not a history.

        >>> history = History([{"event": "train", "step": 1, "loss": 0.1}])
        >>> History.from_json(history.to_json()) == history
        True
        """
        try:
            records = json.loads(text, object_hook=_decoded)
        except ValueError as error:
            raise ConfigError(f"This text is not JSON, so not a history that lowft wrote: {error}") from error
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise ConfigError(f"A history is a list of records, not {text[:40]!r}.")
        return cls(records)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the training loss and below it the metrics, against optimizer steps, with the stages marked.

        The faint line is the loss as recorded, the strong one its moving average. Metrics that share all
        values share a line. Metrics that are better small (errors) have a panel of their own.

        Args:
            path: Where to save it; the ending names the format.

        Raises:
            ConfigError: There is nothing to draw yet.
            MissingExtraError: matplotlib is not installed.
        """
        return finish(draw_curves(self._records, purpose="History.plot"), path)

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """Return headers and cells: one row for each evaluation and each end of a stage."""
        names = metric_names(self._records)
        verdicts = any(record["event"] == "stage" for record in self._records)
        headers = [
            "step",
            "stage",
            "epoch",
            "time",
            "train loss",
            *(name.removeprefix(PREFIX) for name in names),
        ]
        rows, losses = [], list[float]()
        for record in self._records:
            if record["event"] == "train" and "loss" in record:
                losses.append(record["loss"])
            if record["event"] not in {"evaluate", "stage"}:
                continue
            place = [f"{record['step']:,}", record["stage_name"], f"{record['epoch']:.2f}"]
            figures = [f"{record[name]:.4f}" if name in record else "" for name in names]
            loss = f"{sum(losses) / len(losses):.4f}" if losses else ""
            rows.append([*place, human_seconds(record["seconds"]), loss, *figures, *([_verdict(record)] * verdicts)])
            losses.clear()
        return headers + ["verdict"] * verdicts, rows


def plot_histories(
    histories: Mapping[str, History],
    metric: str = "accuracy",
    path: str | Path | None = None,
    *,
    x: Literal["step", "seconds"] = "step",
) -> Figure:
    """Draw one metric of several runs into one panel, to see which got where, and how soon.

    Args:
        histories: The runs by the names to show.
        metric: An evaluated metric, such as `"accuracy"` or `"loss"`.
        path: Where to save it; the ending names the format.
        x: What runs along the bottom: optimizer steps, or seconds since the run began.

    Raises:
        ConfigError: No run holds the metric, or `x` is something else.
        MissingExtraError: matplotlib is not installed.
    """
    if x not in {"step", "seconds"}:
        raise ConfigError(f"x must be one of step, seconds, not {x!r}.")
    runs = {name: history.records for name, history in histories.items()}
    name = PREFIX + metric.removeprefix(PREFIX)
    if missing := [run for run, records in runs.items() if name not in metric_names(records)]:
        known = sorted({each.removeprefix(PREFIX) for records in runs.values() for each in metric_names(records)})
        raise ConfigError(
            f"metric {metric!r} was not evaluated in {', '.join(missing)}; "
            f"these runs hold {', '.join(known) or 'no metric'}."
        )
    if not runs:
        raise ConfigError("histories is empty; pass at least one run by name.")
    return finish(draw_comparison(runs, name, x, purpose="plot_histories"), path)


def _plain(name: str, value: Any) -> Any:
    """Return a value as JSON has it: a single number of NumPy or PyTorch becomes Python's own."""
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)  # an enumeration, or NumPy's float64, would not come back as what it was
    if value is None:
        return None
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value) and _NON_FINITE not in value:
        return {key: _plain(f"{name}[{key!r}]", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(f"{name}[{index}]", item) for index, item in enumerate(value)]
    if getattr(value, "ndim", None) == 0:
        return _plain(name, value.item())
    raise ConfigError(
        f"{name} must be a JSON value (number, text, list, mapping with text keys, None) or a single number "
        f"of NumPy or PyTorch, not {type(value).__name__}: convert it first."
    )


def _encoded(value: Any) -> Any:
    """Return JSON values with NaN and infinities put into words."""
    if isinstance(value, float) and not math.isfinite(value):
        return {_NON_FINITE: str(value)}
    if isinstance(value, list):
        return [_encoded(item) for item in value]
    if isinstance(value, dict):
        return {key: _encoded(item) for key, item in value.items()}
    return value


def _decoded(mapping: dict[str, Any]) -> Any:
    """Return the number that a mapping stands for, or the mapping."""
    return float(mapping[_NON_FINITE]) if mapping.keys() == {_NON_FINITE} else mapping


def _verdict(record: Mapping[str, Any]) -> str:
    """Return in words how a stage ended, or nothing for another record."""
    if record["event"] != "stage":
        return ""
    words = ": ".join(str(record[name]) for name in ("decision", "reason") if record.get(name))
    trained = record.get("trainable_parameters")
    return words if trained is None else f"{words} ({human_count(trained)} trained)".strip()


def _align(headers: Sequence[str]) -> str:
    """Align texts left and numbers right."""
    return "".join("l" if header in {"stage", "verdict"} else "r" for header in headers)
