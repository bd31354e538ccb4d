"""Resuming: what may differ between a run and one that goes on from it."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from lowft import _building
from lowft._placement import Placement
from lowft.checkpoint import Checkpoints
from lowft.config import TrainingConfig
from lowft.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    ConfigError,
    StrategyConflictError,
)
from lowft.strategies import PartialFreeze
from lowft.strategy import Contract, Strategy
from lowft.trainer import Trainer
from tests.forgery import flip
from tests.strategy_cases import tiny_rows
from tests.test_run_randomness import DrawsEverywhere, train
from tests.test_strategies_table import assert_same, contents, final_weights, make_trainer
from tests.tiny import tiny_model, tiny_tokenizer

LAST = 4
OPTIMIZER = "optimizer.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that was never stopped, with all its checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    make_trainer(folder, (PartialFreeze(top=1),), max_steps=LAST).fit()
    return folder


@pytest.fixture
def stopped(whole: Path, tmp_path: Path) -> Path:
    """Return the folder of the same run, stopped in the middle."""
    shutil.copytree(whole / "checkpoint-2", tmp_path / "run" / "checkpoint-2")
    return tmp_path / "run"


# --- 10: the optimizer's file, and random streams ----------------------------------------------------------------


@pytest.mark.parametrize("damage", [Path.unlink, flip, lambda path: path.write_bytes(b"")])
def test_a_lost_optimizer_state_is_an_error_or_a_warning(
    damage: Callable[[Path], object], whole: Path, stopped: Path
) -> None:
    """Strictly, the run does not go on; with strict=False it does, with a fresh optimizer, and says so."""
    damage(stopped / "checkpoint-2" / OPTIMIZER)
    strict = make_trainer(stopped, (PartialFreeze(top=1),), max_steps=LAST)
    with (
        pytest.warns(UserWarning, match=f"skipping a damaged checkpoint: .*{OPTIMIZER}"),
        pytest.raises(CheckpointCorruptError, match=f"every checkpoint in .* is damaged: .*{OPTIMIZER}"),
    ):
        strict.fit(resume_from_checkpoint=True)
    assert strict.history.filter("train") == []

    relaxed = make_trainer(stopped, (PartialFreeze(top=1),), max_steps=LAST)
    with pytest.warns(UserWarning, match=f"the optimizer starts afresh: .*checkpoint-2/{OPTIMIZER} "):
        relaxed.fit(resume_from_checkpoint=True, strict=False)
    assert relaxed.history.filter("train")[-1]["step"] == LAST
    # Neither the state that was lost nor a damaged one was used: the first step is AdamW's first.
    state = contents(stopped / f"checkpoint-{LAST}")[OPTIMIZER]
    assert {float(value) for key, value in state.items() if key.endswith("/step")} == {2.0}
    with pytest.raises(AssertionError):
        assert_same(contents(whole / f"checkpoint-{LAST}"), contents(stopped / f"checkpoint-{LAST}"))


def test_a_sound_optimizer_state_is_used_without_strict_too(whole: Path, stopped: Path) -> None:
    """strict=False forgives what is damaged and changes nothing else: no warning, the same bits."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        make_trainer(stopped, (PartialFreeze(top=1),), max_steps=LAST).fit(resume_from_checkpoint=True, strict=False)
    assert_same(contents(whole / f"checkpoint-{LAST}"), contents(stopped / f"checkpoint-{LAST}"))


# --- 11: other data, workers, processes --------------------------------------------------------------------------


def other_trainer(folder: Path, **parts: Any) -> Trainer:
    """Return the run of `whole` with some of its parts exchanged."""
    settings = {
        "max_steps": LAST, "epochs": 2, "batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 5e-3,
        "save_steps": 1, "save_total_limit": 100, "seed": 3, "device": "cpu", "output_dir": folder,
    }  # fmt: skip
    given: dict[str, Any] = {
        "model": tiny_model("bert"),
        "train_dataset": tiny_rows(),
        "eval_dataset": tiny_rows(8, seed=1),
        "strategies": (PartialFreeze(top=1),),
        "tokenizer": tiny_tokenizer("bert"),
    }
    config = TrainingConfig(**(settings | parts.pop("settings", {})))
    return Trainer(**(given | parts), config=config)


def mean_error(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return a loss of one's own, `[batch]`."""
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def changed_rows() -> dict[str, list[Any]]:
    """Return the training rows with one word changed."""
    rows = tiny_rows()
    rows["text"][3] += " good"
    return rows


DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "fewer rows": ({"train_dataset": tiny_rows(12)}, r"training rows\.count was 14 and is now 12"),
    "a changed row": (
        {"train_dataset": changed_rows()},
        r"training rows\.fingerprint was '\w+' and is now '\w+'; training rows\.tokens was \d+ and is now \d+",
    ),
    "other validation rows": (
        {"eval_dataset": tiny_rows(8, seed=2)},
        r"validation rows\.fingerprint was '\w+' and is now '\w+'",
    ),
    "no validation rows": ({"eval_dataset": None}, r"validation rows was \{'count': 8, .*\} and is now None"),
    "workers": ({"settings": {"dataloader_num_workers": 2}}, r"config\.dataloader_num_workers was 0 and is now 2"),
    "other labels": (
        {"train_dataset": tiny_rows(classes=("bad", "good")), "eval_dataset": tiny_rows(8, 1, ("bad", "good"))},
        r"labels\.classes was \['neg', 'pos'\] and is now \['bad', 'good'\]",
    ),
    "another tokenizer": ({"tokenizer": tiny_tokenizer("gpt2")}, r"training rows\.tokens was \d+ and is now \d+"),
    "another model": (
        {"model": tiny_model("distilbert")},
        "model was 'BertForSequenceClassification' and is now 'DistilBertForSequenceClassification'",
    ),
    "another loss": ({"loss": "focal"}, r"loss was '(\w+)' and is now '(?!\1)\w+'"),
    "a loss of one's own": ({"loss": mean_error}, r"loss was '\w+' and is now 'mean_error'"),
    "a setting": ({"settings": {"learning_rate": 1e-3}}, r"config\.learning_rate was 0\.005 and is now 0\.001"),
    "another seed": ({"settings": {"seed": 4}}, r"config\.seed was 3 and is now 4"),
    "a strategy's setting": (
        {"strategies": (PartialFreeze(top=2),)},
        r"strategies\.PartialFreeze\.top was 1 and is now 2",
    ),
    "a strategy more": (
        {"strategies": (PartialFreeze(top=1), DrawsEverywhere())},
        r"order of strategies was \[.*\] and is now \[.*\]; strategies\.DrawsEverywhere was None and is now \{\}",
    ),
    "a strategy less": ({"strategies": ()}, r"strategies\.PartialFreeze was \{.*'top': 1.*\} and is now None"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_run_that_differs_does_not_resume(name: str, stopped: Path) -> None:
    """Other rows, labels, workers, settings, strategies, loss, model or tokens: an error with both values."""
    parts, message = DIFFERENT[name]
    trainer = other_trainer(stopped, **parts)
    before = final_weights(trainer)
    with pytest.raises(CheckpointMismatchError, match=message) as caught:
        trainer.fit(resume_from_checkpoint=True)
    assert "belongs to another run" in str(caught.value)
    assert "pass strict=False to go on regardless" in str(caught.value)
    assert_same(before, final_weights(trainer))
    assert trainer.history.filter("train") == []
    assert Checkpoints(stopped).steps() == [2]


def test_another_number_of_processes_does_not_resume(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of rows depends on the number of processes, so it must be the same."""
    monkeypatch.setattr(_building, "find_placement", lambda device: Placement(torch.device("cpu"), processes=2))
    with pytest.raises(CheckpointMismatchError, match="processes was 1 and is now 2"):
        other_trainer(stopped).fit(resume_from_checkpoint=True)


def test_an_equal_run_resumes(whole: Path, stopped: Path) -> None:
    """Negative control: with nothing exchanged, the same run goes on, and ends bit-identically."""
    other_trainer(stopped).fit(resume_from_checkpoint=True)
    assert_same(contents(whole / f"checkpoint-{LAST}"), contents(stopped / f"checkpoint-{LAST}"))


def test_what_does_not_change_the_result_may_differ(whole: Path, stopped: Path) -> None:
    """Where and how often to save, the size of evaluation batches, and progress bars are free."""

    def rounded(value: Any, name: str = "") -> Any:
        """Round the evaluation losses: a sum over batches of another size is another in its last bits."""
        if isinstance(value, dict):
            return {key: rounded(part, key) for key, part in value.items()}
        if isinstance(value, list):
            return [rounded(part) for part in value]
        return float(f"{value:.5g}") if name in ("loss", "eval_loss") else value

    settings = {"save_total_limit": 1, "eval_batch_size": 3, "progress": False, "save_steps": LAST}
    other_trainer(stopped, settings=settings).fit(resume_from_checkpoint=True)
    assert Checkpoints(stopped).steps() == [LAST]
    one, other = (contents(folder / f"checkpoint-{LAST}") for folder in (whole, stopped))
    assert_same(rounded(one), rounded(other))


def test_a_difference_may_be_accepted(stopped: Path) -> None:
    """With strict=False, the difference is a warning with both values, and the run goes on with the new ones."""
    trainer = other_trainer(stopped, settings={"learning_rate": 1e-3})
    with pytest.warns(UserWarning, match=r"belongs to another run: config\.learning_rate was 0\.005 and is now 0\.001"):
        trainer.fit(resume_from_checkpoint=True, strict=False)
    assert trainer.history.filter("train")[-1]["step"] == LAST
    assert trainer.history.filter("train")[-1]["learning_rate"] < 1e-3


def test_a_checkpoint_of_another_shape_is_never_loaded(stopped: Path) -> None:
    """Even strict=False does not press weights into a model that they do not fit."""
    trainer = other_trainer(stopped, model=tiny_model("bert", num_layers=2))
    with pytest.raises(
        CheckpointMismatchError, match=r"holds 'bert\.encoder\.layer\.2\..*', which this model does not"
    ):
        trainer.fit(resume_from_checkpoint=True, strict=False)


# --- from where --------------------------------------------------------------------------------------------------


def test_any_checkpoint_may_be_named(whole: Path, tmp_path: Path) -> None:
    """A folder given by name is gone on from, with an output folder, another one, or none."""
    expected = contents(whole / f"checkpoint-{LAST}")
    trainer = make_trainer(tmp_path / "new", (PartialFreeze(top=1),), max_steps=LAST)
    with_folder = train(trainer, resume_from_checkpoint=str(whole / "checkpoint-1"))
    assert_same(expected, contents(tmp_path / "new" / f"checkpoint-{LAST}"))
    without = make_trainer(None, (PartialFreeze(top=1),), max_steps=LAST)
    assert_same(with_folder, train(without, resume_from_checkpoint=whole / "checkpoint-1"))
    assert sorted(path.name for path in whole.iterdir()) == [f"checkpoint-{step}" for step in range(1, LAST + 1)]


def test_a_finished_run_that_is_resumed_ends_at_once(whole: Path, tmp_path: Path) -> None:
    """From the last checkpoint there is nothing left to do but to finish."""
    shutil.copytree(whole / f"checkpoint-{LAST}", tmp_path / f"checkpoint-{LAST}")
    trainer = make_trainer(tmp_path, (PartialFreeze(top=1),), max_steps=LAST)
    trainer.fit(resume_from_checkpoint=True)
    assert [record["step"] for record in trainer.history.filter("train")] == [1, 2, 3, 4]
    reference = make_trainer(None, (PartialFreeze(top=1),), max_steps=LAST)
    assert_same(train(reference), final_weights(trainer))


def test_resuming_needs_something_to_resume_from(tmp_path: Path) -> None:
    """Without an output folder, or with an empty one, the message says what to do."""
    with pytest.raises(ConfigError, match=r"resume_from_checkpoint=True needs TrainingConfig\(output_dir=\.\.\.\), or"):
        make_trainer(None, ()).fit(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match="holds no checkpoint to resume from"):
        make_trainer(tmp_path, ()).fit(resume_from_checkpoint=True)
    with pytest.raises(CheckpointCorruptError, match="is missing"):
        make_trainer(tmp_path, ()).fit(resume_from_checkpoint=tmp_path / "nowhere")


# --- 19: a strategy twice, a bad order ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Shrink(Strategy):
    """Changes shapes, which a strategy before it may rely on."""

    contract: ClassVar[Contract] = Contract(provides=frozenset({"shapes"}), invalidates=frozenset({"precision"}))

    def prepare_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Fail: a list that is refused must not come so far."""
        raise AssertionError(model)


@dataclass(frozen=True)
class Round(Strategy):
    """Lowers the precision, after which shapes must stay."""

    contract: ClassVar[Contract] = Contract(needs=frozenset({"shapes"}), provides=frozenset({"precision"}))


@pytest.mark.parametrize(
    ("strategies", "message"),
    [
        (
            (Round(), Shrink()),
            r"Round needs 'shapes', and Shrink provides it but comes later\. The order .*\[Shrink, Ro",
        ),
        ((Round(),), "Round needs 'shapes', and no strategy here provides it"),
        ((PartialFreeze(top=1), PartialFreeze(top=2)), "PartialFreeze stands 2 times .* may be given once"),
    ],
)
def test_a_list_that_cannot_work_is_refused_before_the_model_is_touched(
    strategies: tuple[Strategy, ...], message: str, tmp_path: Path
) -> None:
    """The Trainer is not built; the message names both sides, and the order that works where there is one."""
    with pytest.raises(StrategyConflictError, match=message):
        make_trainer(tmp_path / "run", strategies)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_holds_the_recipe_in_words(whole: Path) -> None:
    """The recipe of a checkpoint is JSON that a person can read, by the names of the settings."""
    run = json.loads((whole / "checkpoint-1" / "run.json").read_text())
    assert run["strategies"]["PartialFreeze"]["top"] == 1
    assert run["config"]["seed"] == 3
