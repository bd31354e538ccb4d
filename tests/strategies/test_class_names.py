"""Rows that say what the classes are called, added by a strategy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lowft.augment import RandomSwap
from lowft.data.batching import Batch
from lowft.data.rows import Rows
from lowft.data.templates import add_templated_rows
from lowft.errors import ConfigError, DataError
from lowft.registry import from_dict, to_dict
from lowft.state import State
from lowft.strategies import Augment, ClassNames, Contrastive, PooledHead, Probe
from tests.runs import NUMBERED, tiny_trainer, weights
from tests.strategy_cases import tiny_rows
from tests.test_strategies_table import assert_same
from tests.tiny import tiny_model

FEW = [PooledHead(), Contrastive(max_steps=2), Probe(strengths=(1.0,), fine_tune=False)]
NAMES = {"neg": "bad", "pos": "very good"}


def test_it_trains_as_with_the_rows_of_the_function() -> None:
    """A run with the strategy is the run on those rows, bit for bit, and says how many it learns from."""
    settings: dict[str, Any] = {"templates": ["It is {}", "So {}"], "copies": 3, "names": NAMES}
    own = tiny_trainer(strategies=[*FEW, ClassNames(**settings)])
    rows = add_templated_rows(tiny_rows(), **settings)
    other = tiny_trainer(strategies=FEW, train_dataset=rows)
    for trainer in (own, other):
        assert f"{len(tiny_rows()['text']) + 2 * 2 * 3} training rows" in str(trainer)
        trainer.fit()
    assert_same(weights(own), weights(other))


@pytest.mark.parametrize("first", [True, False])
def test_its_rows_are_augmented_too(first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bank holds variants of them, whichever of the two strategies comes first."""
    augment, named = Augment((RandomSwap(1.0),), bank=2), ClassNames(NAMES, copies=1)
    seen: list[str] = []
    on_batch = Augment.on_batch

    def watched(own: Augment, batch: Batch, state: State) -> Batch:
        seen.extend(text for text, _ in batch.texts)
        return on_batch(own, batch, state)

    monkeypatch.setattr(Augment, "on_batch", watched)
    tiny_trainer(strategies=[named, augment] if first else [augment, named]).fit()
    said = [text for text in seen if sorted(text.split()) == ["This", "bad", "is", "sentence"]]
    assert "This sentence is bad" in said
    assert len(set(said)) > 1


def test_rows_without_labels_stay_without() -> None:
    """They come before the new rows, and tell nothing of the classes."""
    given = Rows(("so dull", "what", "a joy"), labels=("bad", None, "good"))
    found = ClassNames(copies=1).prepare_data(given)
    assert found.select(range(3)) == given
    assert (found.texts[3:], found.labels) == (
        ("This sentence is bad", "This sentence is good"), ("bad", None, "good", "bad", "good")
    )  # fmt: skip
    assert found.numbers == (0, 1, 2, 3, 4)


def test_it_is_written_down_with_labels_of_any_kind(tmp_path: Path) -> None:
    """JSON has text for keys, labels may be numbers: what comes back is the same strategy, and does the same."""
    strategy = ClassNames({0: "bad", 1: "good"})
    assert from_dict(json.loads(json.dumps(to_dict(strategy)))) == strategy
    trainer = tiny_trainer(strategies=[*FEW, strategy], train_dataset=tiny_rows(classes=(0, 1)), eval_dataset=None)
    trainer.export(tmp_path / "model", verify="here")
    recipe = json.loads((tmp_path / "model" / "lowft.json").read_text())["recipe"]["strategies"]
    assert recipe[-1]["settings"]["names"] == [[0, "bad"], [1, "good"]]


def test_the_callers_names_stay_theirs() -> None:
    """A mapping that is changed afterwards changes nothing."""
    names = {0: "bad", 1: "good"}
    strategy = ClassNames(names)
    names[0] = "awful"
    assert strategy == ClassNames({0: "bad", 1: "good"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"names": "bad"}, r"ClassNames.names must say by label .* received 'bad'"),
        ({"names": 3}, r"ClassNames.names must say by label .* received 3"),
        ({"copies": 0}, r"ClassNames.copies .* at least 1"),
        ({"templates": ["It is"]}, r"each of ClassNames.templates .* got 'It is'"),
        ({"templates": "It is {}"}, r"ClassNames.templates must be a list of texts"),
    ],
)
def test_settings_that_make_no_rows(settings: dict[str, Any], message: str) -> None:
    """A mistake is said when the strategy is made."""
    with pytest.raises(ConfigError, match=message):
        ClassNames(**settings)


@pytest.mark.parametrize(
    ("strategy", "data", "outputs", "error", "message"),
    [
        (ClassNames(), tiny_rows(classes=(0, 1)), 2, ConfigError, r"ClassNames: nothing says in words .*: \[0, 1\]"),
        (ClassNames({"poss": "good"}), tiny_rows(), 2, ConfigError, r"'poss' is no class .* Did you mean 'pos'\?"),
        (ClassNames(), NUMBERED, 1, DataError, r"ClassNames: each row must have one class, .* regression"),
        (ClassNames(), tiny_rows() | {"text_pair": ["what"] * 14}, 2, DataError, r"ClassNames: .* pairs of texts"),
    ],
)
def test_data_that_it_does_not_fit(
    strategy: ClassNames, data: Any, outputs: int, error: type[Exception], message: str
) -> None:
    """The Trainer is not built, and the model stays as it was."""
    model = tiny_model("bert", outputs)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(error, match=message):
        tiny_trainer(model=model, strategies=[PooledHead(), strategy], train_dataset=data, eval_dataset=None)
    assert_same(before, dict(model.state_dict()))
