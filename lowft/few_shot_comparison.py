"""Ways of training with few labels, compared fairly: on the same draws of rows, with all runs reported."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lowft._plots import INK, PALETTE, finish, new_figure, tidy
from lowft._progress import progress_bar
from lowft._settings import check_whole
from lowft._tables import format_table, human_seconds
from lowft.data.rows import Rows, read_rows
from lowft.data.splits import few_shot, find_leakage
from lowft.errors import ConfigError, LeakageError

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

__all__ = ["Arm", "FewShotComparison", "FewShotRun", "compare_few_shot"]

_RESAMPLES = 10_000
_CONFIDENCE = 0.95


class _Predicts(Protocol):
    """What an arm returns: a Trainer, a Predictor, or anything else that predicts."""

    def predict(self, texts: Any, /) -> Sequence[Any]:
        """Return one label a text."""


Arm = Callable[[Rows, int], _Predicts]


@dataclass(frozen=True)
class FewShotRun:
    """One training: which arm, on which draw.

    Attributes:
        arm: The arm's name.
        k: Rows of each class that it was trained on.
        draw: Number of the draw.
        seed: Seed that the arm was given.
        score: What was measured on the test rows.
        seconds: Of training, without the test.
    """

    arm: str
    k: int
    draw: int
    seed: int
    score: float
    seconds: float


@dataclass(frozen=True)
class FewShotComparison:
    """All runs of `compare_few_shot`; printed as a table.

    For each k and arm: the mean over all runs, the standard deviation over draws, the worst run, and the mean
    difference to the first arm on the same draws and seeds, with its 95 % interval by a bootstrap over draws.

    Attributes:
        runs: Every run that was made.
        metric: What the score is.
        baseline: The arm that others are compared with.

    >>> runs = [FewShotRun(arm, 8, draw, 0, score + draw / 100, 1.0)
    ...         for arm, score in (("plain", 0.6), ("probe", 0.65)) for draw in range(3)]
    >>> [round(value, 4) for value in FewShotComparison(tuple(runs), "accuracy", "plain").difference("probe", 8)]
    [0.05, 0.05, 0.05]
    """

    runs: tuple[FewShotRun, ...]
    metric: str
    baseline: str

    def scores(self, arm: str, k: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the scores of an arm, `[draws, seeds]`.

        Raises:
            ConfigError: There is no such arm or k.
        """
        own = [run for run in self.runs if run.arm == arm and run.k == k]
        if not own:
            raise ConfigError(
                f"there are no runs of the arm {arm!r} with k={k!r}; there are the arms {', '.join(self._arms)} and "
                f"k of {', '.join(map(str, self._sizes()))}"
            )
        draws = sorted({run.draw for run in own})
        return np.array([[run.score for run in own if run.draw == draw] for draw in draws], dtype=np.float64)

    def difference(self, arm: str, k: int, *, resamples: int = _RESAMPLES) -> tuple[float, float, float]:
        """Return how much better an arm is than the baseline: the mean over the same draws, and its 95 % interval.

        Draws are resampled, each with all its seeds: runs on one draw are no independent evidence. With one draw
        there is no interval, and both ends are NaN.

        Raises:
            ConfigError: There is no such arm or k.
        """
        paired = (self.scores(arm, k) - self.scores(self.baseline, k)).mean(1)
        if len(paired) == 1:
            return float(paired[0]), float("nan"), float("nan")
        picks = np.random.default_rng(0).integers(len(paired), size=(resamples, len(paired)))
        tail = (1 - _CONFIDENCE) / 2
        low, high = np.quantile(paired[picks].mean(1), [tail, 1 - tail])
        return float(paired.mean()), float(low), float(high)

    def to_dict(self) -> dict[str, Any]:
        """Return every run, and what the table says, as JSON values."""
        return {
            "metric": self.metric,
            "baseline": self.baseline,
            "runs": [vars(run) for run in self.runs],
            "summary": [self._summary(arm, k) for k in self._sizes() for arm in self._arms],
        }

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the mean score of each arm against k, with a dot for every run.

        Args:
            path: Where to save it; the ending names the format.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        figure, (axes,) = new_figure("FewShotComparison.plot")
        sizes = self._sizes()
        for index, arm in enumerate(self._arms):
            colour = PALETTE[index % len(PALETTE)]
            means = [float(self.scores(arm, k).mean()) for k in sizes]
            axes.plot(sizes, means, color=colour, marker="o", label=arm)
            for k in sizes:
                values = self.scores(arm, k).ravel()
                axes.scatter([k] * len(values), values, color=colour, s=9, alpha=0.35, linewidths=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(k) for k in sizes])
        axes.set_xlabel("labelled rows of each class", color=INK)
        axes.set_ylabel(self.metric, color=INK)
        axes.legend(frameon=False)
        tidy(axes)
        return finish(figure, path)

    def __str__(self) -> str:
        """Return the table."""
        rows = []
        for k in self._sizes():
            for arm in self._arms:
                one = self._summary(arm, k)
                told = ""
                if arm != self.baseline:
                    told = f"{one['difference']:+.4f}"
                    if one["interval"] is not None:
                        told += " [{:+.4f}, {:+.4f}]".format(*one["interval"])
                figures = [f"{one['mean']:.4f}", "" if one["sd"] is None else f"{one['sd']:.4f}", f"{one['worst']:.4f}"]
                rows.append([str(k), arm, str(one["runs"]), *figures, told, human_seconds(one["seconds"])])
        headers = ["k", "arm", "runs", self.metric, "sd", "worst", "difference [95 %]", "time"]
        return format_table(headers, rows, align="rlrrrrlr")

    @property
    def _arms(self) -> tuple[str, ...]:
        """The arms, in the order in which they ran."""
        return tuple(dict.fromkeys(run.arm for run in self.runs))

    def _sizes(self) -> list[int]:
        return sorted({run.k for run in self.runs})

    def _summary(self, arm: str, k: int) -> dict[str, Any]:
        scores = self.scores(arm, k)
        mean, low, high = self.difference(arm, k)
        return {
            "k": k,
            "arm": arm,
            "runs": scores.size,
            "mean": float(scores.mean()),
            "sd": float(scores.mean(1).std(ddof=1)) if len(scores) > 1 else None,
            "worst": float(scores.min()),
            "difference": mean,
            "interval": None if np.isnan(low) else [low, high],
            "seconds": float(np.mean([run.seconds for run in self.runs if run.arm == arm and run.k == k])),
        }


def compare_few_shot(  # noqa: PLR0913 - an experiment has as many sides
    data: Any,
    test: Any,
    arms: Mapping[str, Arm],
    *,
    k: Sequence[int] = (8, 16, 32),
    draws: int = 10,
    seeds: int = 1,
    first_draw: int = 0,
    metric: tuple[str, Callable[[Sequence[Any], Sequence[Any]], float]] | None = None,
    column_mapping: Mapping[str, str] | None = None,
    on_run: Callable[[FewShotRun], None] | None = None,
    progress: bool | None = None,
) -> FewShotComparison:
    """Compare ways of training with few labels: every arm on the same draws, nested in k, and all runs reported.

    With few labels, which rows were drawn and which seed was used move the result more than the method does
    (Dodge et al. 2020, https://arxiv.org/abs/2002.06305; Zhang et al. 2021, https://arxiv.org/abs/2006.05987). An arm
    gets the k rows of a class and nothing else: a validation set that a user with so few labels would not have is not
    there, and what an arm wants to choose it chooses within its rows.

    Args:
        data: Labelled rows to draw from, as `lowft.read_rows` takes them.
        test: Labelled rows to measure on; none of them may be in `data`.
        arms: By name, functions of (rows, seed) that train and return what has `predict(texts)`: a `Trainer`, a
            `Predictor` or a model of another library. The first is the baseline.
        k: Rows of each class, one or several.
        draws: How many draws of rows; the draw decides which rows, see `lowft.few_shot`.
        seeds: How many times each arm trains on a draw; an arm gets `draw * seeds + number` as its seed.
        first_draw: The number of the first draw: draws that were used to choose settings are not to be reported.
        metric: A name, and a function of (labels, predictions) that returns a number of which more is better; the
            accuracy if None.
        column_mapping: As for `read_rows`, of both.
        on_run: Called after each run, to show or save it.
        progress: Whether to show a progress bar over the runs; None decides by the terminal.

    Returns:
        All runs; print it, plot it, or take `to_dict()`.

    Raises:
        ConfigError: No arms, or a setting out of its range.
        DataError: Bad rows, or a class with too few of them.
        LeakageError: Test rows that are in `data` too.

    >>> import lowft
    >>> rows = ([f"{word} {i}" for i in range(8) for word in ("good", "bad")], ["pos", "neg"] * 8)
    >>> class Says:
    ...     def __init__(self, label):
    ...         self.label = label
    ...     def predict(self, texts):
    ...         return [self.label or ("pos" if "good" in text else "neg") for text in texts]
    >>> arms = {"one class": lambda rows, seed: Says("pos"), "words": lambda rows, seed: Says(None)}
    >>> test = (["so good", "so bad"], ["pos", "neg"])
    >>> result = compare_few_shot(rows, test, arms, k=[2, 4], draws=3)
    >>> len(result.runs), result.difference("words", 4)
    (12, (0.5, 0.5, 0.5))
    """
    _check_settings(arms, k, draws=draws, seeds=seeds, first_draw=first_draw)
    rows = read_rows(data, column_mapping=column_mapping, require_labels=True, name="data")
    held_out = read_rows(test, column_mapping=column_mapping, require_labels=True, name="test")
    leaks = find_leakage(rows, held_out)
    if leaks:
        raise LeakageError(
            f"compare_few_shot: {len(leaks):,} rows of test are in data too, the first as row {leaks[0][0]}: "
            f"lowft.split(..., on_leakage='drop') makes clean sides"
        )
    named, measure = metric if metric is not None else ("accuracy", _accuracy)
    sizes = sorted(set(k))
    few_shot(rows, sizes[-1])  # too few rows are found before anything is trained
    runs = []
    questions: Any = (
        held_out.texts if held_out.pairs is None else list(zip(held_out.texts, held_out.pairs, strict=True))
    )
    every = [*itertools.product(range(first_draw, first_draw + draws), sizes, range(seeds), arms)]
    for draw, size, number, name in progress_bar(every, "comparing", shown=progress):
        seed = draw * seeds + number
        drawn = few_shot(rows, size, seed=draw)
        started = time.perf_counter()
        trained = arms[name](drawn, seed)
        seconds = time.perf_counter() - started
        score = float(measure(held_out.labels or (), trained.predict(list(questions))))
        runs.append(FewShotRun(name, size, draw, seed, score, seconds))
        if on_run is not None:
            on_run(runs[-1])
    return FewShotComparison(tuple(runs), named, next(iter(arms)))


def _check_settings(arms: Any, k: Any, **counts: int) -> None:
    if not isinstance(arms, Mapping) or not arms or not all(callable(arm) for arm in arms.values()):
        raise ConfigError(f"compare_few_shot: arms must name one or more functions of (rows, seed); received {arms!r}")
    if isinstance(k, str) or not hasattr(k, "__iter__") or not tuple(k):
        raise ConfigError(f"compare_few_shot: k must be one or more numbers of rows; received {k!r}")
    for value in k:
        check_whole("compare_few_shot: k", value, least=1)
    for name, value in counts.items():
        check_whole(f"compare_few_shot: {name}", value, least=0 if name == "first_draw" else 1)


def _accuracy(labels: Sequence[Any], predictions: Sequence[Any]) -> float:
    return float(np.mean([one == other for one, other in zip(labels, predictions, strict=True)]))
