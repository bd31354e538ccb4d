"""Forward passes timed in turn: fair to every side, and what else the machine did is said."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lowft._progress import progress_bar
from lowft._timing import Load, exact_inputs, ratio_interval, time_in_turns, watch_load
from lowft.data.rows import Rows, read_rows
from lowft.predictor import Predictor
from tests.test_deployment import HOW, TWO, rows
from tests.tiny import ARCHITECTURES, SEP, tiny_model, tiny_tokenizer


class Recorder(nn.Module):
    """Stands for a model, and writes down when it is called."""

    def __init__(self, name: str, calls: list[str]) -> None:
        super().__init__()
        self.name, self.calls = name, calls

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return logits of zero."""
        self.calls.append(self.name)
        return torch.zeros(len(input_ids), 2)


@pytest.mark.parametrize(("seconds", "turns"), [(60, 12), (1e-9, 5)])
def test_candidates_are_timed_in_turn(seconds: float, turns: int) -> None:
    """After warm-up each turn has every candidate once, twice in a row, in changing order; five turns at least."""
    calls: list[str] = []
    found = {name: Predictor(Recorder(name, calls), tiny_tokenizer(), TWO, 32) for name in "abc"}
    with progress_bar(None, "", shown=False, total=12) as bar:
        times = time_in_turns(
            found, read_rows(rows(4)), 2, 8, repeats=12, seconds=seconds, order=random.Random(0), bar=bar
        )
    assert {name: len(values) for name, values in times.items()} == dict.fromkeys("abc", turns)
    timed = calls[6:]
    made = [timed[turn : turn + 6] for turn in range(0, len(timed), 6)]
    assert len(made) == turns
    for turn in made:
        assert turn[::2] == turn[1::2]
        assert sorted(turn[::2]) == list("abc")
    assert len({tuple(turn) for turn in made}) > 1


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("length", [9, 30])
def test_inputs_have_exactly_the_shape_asked_for(arch: str, pairs: bool, length: int) -> None:
    """Rows are cut, or their texts' tokens repeated, to the length; special tokens stay what and where they were."""
    tokenizer = tiny_tokenizer(arch)
    made = Predictor(tiny_model(arch), tokenizer, TWO, 40, takes_pairs=pairs)
    texts = ("a warm film", "a long and dull story of a very old actor and his dog")
    given = Rows(texts, texts[::-1] if pairs else None, labels=("bad", "good"))
    inputs = exact_inputs(made, given, 3, length)
    assert {tuple(tensor.shape) for tensor in inputs.values()} == {(3, length)}
    assert inputs["attention_mask"].all()
    special = tokenizer.num_special_tokens_to_add(pair=pairs)
    ids = inputs["input_ids"]
    assert [(row < 5).sum().item() for row in ids] == [special] * 3
    if special:
        assert (ids[:, -1] == SEP).all()
    assert torch.equal(ids[0], ids[2])
    assert made.model(**inputs).logits.shape == (3, 2)


@given(st.lists(st.floats(0.5, 2), min_size=5, max_size=30), st.floats(0.25, 4))
def test_a_constant_factor_is_found_and_equals_are_not_told_apart(times: list[float], factor: float) -> None:
    """The ratio's interval is the factor where all turns agree on it, and encloses 1 for equal times."""
    own = np.array(times)
    low, high = ratio_interval(factor * own, own, **HOW)
    assert low == pytest.approx(factor)
    assert high == pytest.approx(factor)
    low, high = ratio_interval(own, own, **HOW)
    assert low <= 1 <= high


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (Load(0.1, 0.05), None),
        (Load(None, None), None),
        (Load(9.0, 0.0), None),
        (Load(3.2, 1.5), "other programs used 1.5 of its 2 processors during the timing (load average before it: 3.2)"),
        (Load(1.5, None), "other programs asked for 1.5"),
    ],
)
def test_a_busy_machine_is_said(load: Load, said: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the processors in other hands is worth a warning; the load average counts where nothing else does."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    warning = load.warning()
    assert warning is None if said is None else said in str(warning)


def test_own_work_is_not_that_of_others() -> None:
    """What this process computes does not count as what other programs use."""
    with watch_load() as load:
        torch.randn(600, 600).matmul(torch.randn(600, 600))
    assert load.others is None or 0 <= load.others < 1000
