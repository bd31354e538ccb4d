"""Forward passes of several models timed in turn, and what may be said of the times."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lowft._inference import autocast, evaluation_mode, logits_of
from lowft._placement import device_of
from lowft.data.batching import accepted_inputs
from lowft.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy.typing as npt
    from tqdm import tqdm

    from lowft.data.rows import Rows
    from lowft.predictor import Predictor

__all__ = ["Load", "exact_inputs", "forward", "median_interval", "ratio_interval", "time_in_turns", "watch_load"]

_LEAST = 5  # turns, however little time there is
_WARM_UPS = 2
_REST = 0.02  # seconds: threads of a runtime that has answered spin on for a while, at the expense of the next
_ENCODED = 64  # rows that give their tokens at most
_BUSY = 0.1  # share of the processors that others may use before a warning


def exact_inputs(predictor: Predictor, rows: Rows, batch_size: int, length: int) -> dict[str, torch.Tensor]:
    """Return inputs of exactly `[batch_size, length]` tokens, made of the texts' own.

    Long rows are cut; in short ones the tokens of the text are repeated before the last special tokens.

    Raises:
        ConfigError: So many tokens are too few for any text, or more than the predictor reads.
    """
    tokenizer = predictor.tokenizer
    special = tokenizer.num_special_tokens_to_add(pair=predictor.takes_pairs)
    if not special < length <= predictor.max_length:
        raise ConfigError(
            f"lengths must be from {special + 1} to {predictor.max_length} tokens, what this model reads; received "
            f"{length}"
        )
    taken = min(len(rows), _ENCODED)
    encoded = tokenizer(
        list(rows.texts[:taken]),
        None if rows.pairs is None else list(rows.pairs[:taken]),
        truncation=True,
        max_length=length,
        return_attention_mask=False,
        return_special_tokens_mask=True,
    )
    wanted = accepted_inputs(predictor.model, tokenizer)
    names = [name for name in encoded if name in wanted]
    made: dict[str, list[list[int]]] = {name: [] for name in names}
    for row, mask in enumerate(encoded["special_tokens_mask"]):
        own = [place for place, is_special in enumerate(mask) if not is_special]
        if not own:
            continue
        missing = length - len(mask)
        places = list(range(len(mask)))
        places[own[-1] + 1 : own[-1] + 1] = [own[turn % len(own)] for turn in range(missing)]
        for name in names:
            ids = encoded[name][row]
            fill = [ids[place] for place in places]
            if name == "token_type_ids":  # what is repeated belongs to the text that it now stands in
                fill[own[-1] + 1 : own[-1] + 1 + missing] = [ids[own[-1]]] * missing
            made[name].append(fill)
    if not made["input_ids"]:
        raise DataError("no row has a token of its own, so nothing can be timed: give rows with text")
    count = len(made["input_ids"])
    device = device_of(predictor.model)
    inputs = {
        name: torch.tensor([values[row % count] for row in range(batch_size)]).to(device)
        for name, values in made.items()
    }
    if "attention_mask" in wanted:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs


@torch.no_grad()
def forward(predictor: Predictor, inputs: Mapping[str, torch.Tensor]) -> None:
    """Compute the logits of a batch, and wait until they are there."""
    with autocast(predictor.precision, device_of(predictor.model)):
        logits_of(predictor.model(**inputs)).float().cpu()


def time_in_turns(
    predictors: Mapping[str, Predictor],
    rows: Rows,
    batch_size: int,
    length: int,
    *,
    repeats: int,
    seconds: float,
    order: random.Random,
    bar: tqdm[Any],
) -> dict[str, npt.NDArray[np.float64]]:
    """Return the seconds of each model's forward passes, `[turns]`; value `n` of each was measured in turn `n`.

    In each turn every model goes once, in an order drawn anew, so that whatever slows the machine for a while slows
    all of them. A pass that is not timed goes before each that is: it brings the model back into the caches, and lets
    the threads of the model before come to rest.

    Args:
        predictors: The models by name.
        rows: What their inputs are made of.
        batch_size: Rows in a pass.
        length: Tokens of each.
        repeats: Turns at most.
        seconds: After which no further turn begins, but for the fifth.
        order: Draws the order.
        bar: Moved by one for each turn, and to the end by those left out.
    """
    inputs = {name: exact_inputs(predictor, rows, batch_size, length) for name, predictor in predictors.items()}
    found: dict[str, list[float]] = {name: [] for name in predictors}
    names = list(predictors)
    with contextlib.ExitStack() as stack:
        for predictor in predictors.values():
            stack.enter_context(evaluation_mode(predictor.model))
        stack.enter_context(_no_garbage_collection())
        for name, predictor in predictors.items():
            for _ in range(_WARM_UPS):
                forward(predictor, inputs[name])
        began = time.perf_counter()
        for turn in range(repeats):
            if turn >= _LEAST and time.perf_counter() - began > seconds:
                bar.update(repeats - turn)
                break
            order.shuffle(names)
            for name in names:
                time.sleep(_REST)
                forward(predictors[name], inputs[name])
                start = time.perf_counter()
                forward(predictors[name], inputs[name])
                found[name].append(time.perf_counter() - start)
            bar.update()
    return {name: np.array(times) for name, times in found.items()}


def median_interval(
    times: npt.NDArray[np.float64], *, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Return a bootstrap interval of the median.

    >>> median_interval(np.full(9, 2.0), confidence=0.95, resamples=100, seed=0)
    (2.0, 2.0)
    """
    return _bounds(np.median(times[_draws(len(times), resamples, seed)], axis=1), confidence)


def ratio_interval(
    reference: npt.NDArray[np.float64],
    times: npt.NDArray[np.float64],
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> tuple[float, float]:
    """Return a bootstrap interval of the reference's median time over this one's; turns are drawn, so pairs stay pairs.

    >>> ratio_interval(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0]), confidence=0.95, resamples=100, seed=0)
    (2.0, 2.0)
    """
    drawn = _draws(len(times), resamples, seed)
    return _bounds(np.median(reference[drawn], axis=1) / np.median(times[drawn], axis=1), confidence)


@dataclass
class Load:
    """What else ran on the machine during a block.

    Attributes:
        average: Load average of the minute before the block; None where the system has none.
        others: Processors that other programs used in the block, on average; None where the system does not say.
    """

    average: float | None = None
    others: float | None = None

    def warning(self) -> str | None:
        """Return what a reader must know of it, or None where the machine was quiet."""
        cores = os.cpu_count() or 1
        used, what = (self.others, "used") if self.others is not None else (self.average, "asked for")
        if used is None or used <= _BUSY * cores:
            return None
        average = "" if self.average is None else f" (load average before it: {self.average:.1f})"
        return (
            f"The machine was busy: other programs {what} {used:.1f} of its {cores} processors during the timing"
            f"{average}. Times are too long and may be unfair to some: measure again on a quiet machine."
        )


@contextlib.contextmanager
def watch_load() -> Iterator[Load]:
    """Find out what other programs do during a block."""
    load = Load()
    with contextlib.suppress(AttributeError, OSError):
        load.average = os.getloadavg()[0]
    wall, everything, own = time.perf_counter(), _all_processors(), time.process_time()
    yield load
    spent = time.perf_counter() - wall
    now = _all_processors()
    if everything is not None and now is not None and spent > 0:
        load.others = max(0.0, (now - everything - (time.process_time() - own)) / spent)


def _all_processors() -> float | None:
    """Return the seconds that all processors have worked since the system began, or None where it does not say."""
    try:
        fields = Path("/proc/stat").read_text("utf-8").split("\n", 1)[0].split()[1:]
        user, nice, system, _idle, _waiting, hard, soft, stolen, *_ = map(int, fields)
        return (user + nice + system + hard + soft + stolen) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect garbage now, and none in a block."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _draws(turns: int, resamples: int, seed: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(turns, size=(resamples, turns))


def _bounds(values: npt.NDArray[np.float64], confidence: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
