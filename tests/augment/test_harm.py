"""Which changes cost rows their labels, as a model reads them, and what is chance."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowft.augment import Augmenter, RandomSwap
from lowft.augment import harm as module
from lowft.augment.harm import Harm, measure_harm, without_harm
from lowft.data.batching import TokenizedRows
from lowft.data.rows import Rows
from tests.tiny import tiny_tokenizer


class Reader(torch.nn.Module):
    """Says 1 of texts with "good", else 0: surely, unless there is a "seems"; and remembers how many it read."""

    def __init__(self) -> None:
        super().__init__()
        self.anything = torch.nn.Parameter(torch.zeros(1))
        self.read = 0
        known: Any = tiny_tokenizer().convert_tokens_to_ids
        self.good = known("good")
        self.unsure = known("seems")

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        assert not self.training
        self.read += len(input_ids)
        good, unsure = (torch.eq(input_ids, token).any(dim=1).float() for token in (self.good, self.unsure))
        score = (2 * good - 1) * (3 - 2.9 * unsure)
        return torch.stack([-score, score], dim=1)


@dataclass(frozen=True)
class Reversal(Augmenter):
    """Changes the class of a share of the texts, and leaves some as they were."""

    share: float = 1.0

    def vary(self, text: str, rng: random.Random) -> str:
        if rng.random() >= self.share:
            return f"{text} film"
        return text.replace("good", "bad") if "good" in text else f"{text} good"


@dataclass(frozen=True)
class Idle(Augmenter):
    """Changes nothing, or leaves nothing."""

    empty: bool = False

    def vary(self, text: str, rng: random.Random) -> str:
        return "" if self.empty else text


def rows(count: int = 40, *, pairs: bool = False) -> TokenizedRows:
    """Return rows of both classes, of which each fourth is read surely wrongly, and each fifth unsurely."""
    texts, labels = [], []
    for row in range(count):
        good = row % 2 == 0
        texts.append(f"a {'good' if good else 'dull'} {'film ' * (row % 7)}{'seems' if row % 5 == 0 else ''}".strip())
        labels.append(int(good) if row % 4 != 3 else 1 - int(good))
    second = tuple(f"story {'and ' * (row % 3)}love" for row in range(count)) if pairs else None
    return TokenizedRows(Rows(tuple(texts), second), tiny_tokenizer(), np.array(labels), 100, progress=False)


def test_only_rows_that_are_surely_right_and_changed_count() -> None:
    """Those read wrongly or unsurely say nothing, nor does a text that is as before or empty."""
    wanted = sum(row % 4 != 3 and row % 5 != 0 for row in range(40))
    model = Reader()
    found = measure_harm(model, rows(), [Reversal(), Idle(), Idle(empty=True), RandomSwap(1.0)])
    assert found[0] == Harm(wanted, wanted)
    assert found[1] == found[2] == Harm(0, 0)
    assert 0 < found[3].changed <= wanted
    assert found[3].misread == 0
    assert model.read == 40 + wanted + found[3].changed


def test_a_share_is_measured_and_the_same_whenever_it_is() -> None:
    """A change of some texts is seen in about as many; what is drawn depends on the text alone, pairs included."""
    for pairs in (False, True):
        (found,) = measure_harm(Reader(), rows(400, pairs=pairs), [Reversal(0.3)])
        assert 0.1 < found.misread / found.changed < 0.6  # of a pair, either text may have changed the class
        assert measure_harm(Reader(), rows(400, pairs=pairs), [Idle(), Reversal(0.3)])[1] == found


def test_no_more_rows_are_read_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a number of rows, a draw that is always the same stands for all."""
    monkeypatch.setattr(module, "_MOST_ROWS", 20)
    model = Reader()
    found = measure_harm(model, rows(400), [Reversal()])
    assert model.read == 20 + found[0].changed <= 40
    assert measure_harm(Reader(), rows(400), [Reversal()]) == found


@given(st.integers(0, 60), st.data(), st.floats(0.01, 0.9))
def test_chance_is_the_binomial_tail(changed: int, data: st.DataObject, allowed: float) -> None:
    """It is the sum of the probabilities of that many misread rows and of more."""
    misread = data.draw(st.integers(0, changed))
    expected = sum(
        math.comb(changed, count) * allowed**count * (1 - allowed) ** (changed - count)
        for count in range(misread, changed + 1)
    )
    assert Harm(changed, misread).chance(allowed) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_what_is_beyond_chance_is_switched_off_and_told() -> None:
    """An augmenter goes off where more rows are misread than allowed, by more than chance; those that are off stay."""
    augmenters: list[Augmenter] = [Reversal(0.0), Reversal(), Reversal(0.5)]
    off, message = without_harm(augmenters, [2], 0.2, Reader(), rows())
    assert off == [1, 2]
    assert message == (
        "validation rows that are read rightly and surely, and as another class after a change: "
        "Reversal 0 of 24 (0.0%); Reversal 24 of 24 (100.0%), beyond drop_harmful=0.2 and chance: switched off"
    )
    off, message = without_harm(augmenters[1:2], [], 0.2, Reader(), rows())
    assert off == [0]
    assert message.endswith("switched off; no augmenter is left, and rows are trained on alone")
    few = rows(5)  # three sure rows at most: all of them misread can be chance
    assert without_harm(augmenters[1:2], [], 0.5, Reader(), few)[0] == []


def test_false_alarms_are_as_rare_as_promised() -> None:
    """An augmenter that costs just as many labels as allowed is switched off once in a hundred times, or less."""
    draw = random.Random(0)
    alarms = sum(
        Harm(100, sum(draw.random() < 0.1 for _ in range(100))).chance(0.1) < 0.01 for _ in itertools.repeat(None, 1000)
    )
    assert alarms <= 20


def test_the_model_keeps_its_mode() -> None:
    """A model in training is read in evaluation mode, and trains on."""
    model: Any = Reader().train()
    measure_harm(model, rows(), [Reversal()])
    assert model.training
