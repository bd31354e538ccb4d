"""Two real processes, started by torchrun, against one: the same weights, metrics, stops and errors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lowft.checkpoint import read_tensors, verify_folder
from lowft.export import load
from tests.test_strategies_table import assert_same

ROOT = Path(__file__).parents[1]
SECONDS = 600  # many times what it takes: a process that waits for the other in vain is what must be found
STEPS = {"plain": 4, "limited": 4, "staged": 8, "taught": 6, "compared": 7, "augmented": 4, "self-taught": 6}
Read = Callable[[str, int], tuple[dict[str, torch.Tensor], dict[str, Any]]]


def _start(folder: Path, *launcher: str) -> Read:
    """Run everything in test_processes' companion, leave no process behind, and return a reader of what it wrote."""
    command = [sys.executable, *launcher, "-m", "tests.two_processes", str(folder)]
    with (folder / "printed").open("w+") as printed:
        process = subprocess.Popen(command, cwd=ROOT, stdout=printed, stderr=printed)
        try:
            code = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun then ends those that it started
            process.wait(60)
            raise
        printed.seek(0)
        assert code == 0, printed.read()

    def read(name: str, rank: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return read_tensors(folder / f"{name}-{rank}.safetensors"), json.loads(
            (folder / f"{name}-{rank}.json").read_text()
        )

    return read


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the two processes."""
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(folder: Path) -> Read:
    """Return what two processes wrote."""
    return _start(folder, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Read:
    """Return what one process wrote."""
    return _start(tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize("name", STEPS)
def test_two_processes_train_what_one_would(name: str, one: Read, two: Read) -> None:
    """The same global batches give the same weights to 1e-6, uneven last steps and changes of stage included."""
    alone, told = one(name, 0)
    assert len([record for record in told["records"] if record["event"] == "train"]) == STEPS[name]
    for rank in (0, 1):
        together, _ = two(name, rank)
        assert alone.keys() == together.keys()
        for key, tensor in alone.items():
            torch.testing.assert_close(together[key], tensor, rtol=0, atol=1e-6, msg=f"{key} of rank {rank}")


def test_the_comparison_can_fail(one: Read) -> None:
    """Negative control: training moved the weights by far more than the tolerance, and differently in each run."""
    plain, staged = (one(name, 0)[0]["classifier.weight"] for name in ("plain", "staged"))
    assert (plain - staged).abs().max() > 1e-4


@pytest.mark.parametrize("name", STEPS)
def test_two_processes_record_what_one_would(name: str, one: Read, two: Read) -> None:
    """Losses, gradient norms, learning rates, evaluations and decisions are those of one process, on every rank."""
    (_, alone), (_, first), (_, second) = one(name, 0), two(name, 0), two(name, 1)
    assert first == second
    events = [[record for record in found["records"] if record["event"] != "note"] for found in (alone, first)]
    assert len(events[0]) == len(events[1])
    for own, other in zip(*events, strict=True):
        assert own.keys() == other.keys()
        for key in own:
            exact = isinstance(own[key], str | int)
            assert other[key] == (own[key] if exact else pytest.approx(own[key], rel=1e-5)), key
    rates = [[record["learning_rate"] for record in found if record["event"] == "train"] for found in events]
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 1
    assert first.get("metrics") == alone.get("metrics")


def test_processes_fill_one_cache_together(two: Read) -> None:
    """Each computes a share of what the frozen layers give, and is served all of it, in both stages that freeze any."""
    notes = [record for record in two("staged", 0)[1]["records"] if record["event"] == "note"]
    assert [note["message"].partition(":")[0] for note in notes if "cached_bytes" in note] == [
        "3 frozen blocks", "2 frozen blocks",
    ]  # fmt: skip
    assert [note["hit_rate"] for note in notes if "hit_rate" in note] == [1, 1]


def test_two_processes_make_the_same_copies(one: Read, two: Read) -> None:
    """Rows and their changed copies are in each step what one process reads, in the contrastive stage as well."""
    alone, together = one("compared", 0)[1]["texts"], two("compared", 0)[1]["texts"]
    assert alone == together
    assert len({text.split()[0] for text in alone}) == 2
    assert len(set(alone)) > 2 * 7 * 5  # copies are there, and differ from step to step


def test_two_processes_begin_again_together(two: Read) -> None:
    """A run that brought nothing is found collapsed by both, and begun again by both."""
    (weights, found), (others, other) = two("again", 0), two("again", 1)
    assert found == other
    assert_same(weights, others)
    told = [record["message"] for record in found["records"] if record["event"] == "note"]
    assert [message.partition(";")[2] for message in told] == [" it begins again with seed 4 (restart 1 of 1)", ""]
    assert len([record for record in found["records"] if record["event"] == "train"]) == 4


def test_processes_switch_the_same_augmenter_off(one: Read, two: Read) -> None:
    """Each reads a share of the validation rows, and both decide as one process would."""
    alone = one("augmented", 0)[1]
    assert alone["off"] == [1]
    assert [two("augmented", rank)[1]["off"] for rank in (0, 1)] == [[1], [1]]
    messages = [
        [record["message"] for record in found["records"] if record["event"] == "note"]
        for found in (alone, two("augmented", 0)[1])
    ]
    assert messages[0] == messages[1]
    assert any("Spoilt 8 of 8 (100.0%), beyond" in message for message in messages[0])


def test_processes_share_what_the_model_says_of_rows(one: Read, two: Read) -> None:
    """Every row has a label in the second epoch, whichever process read it, and both tell of all rows and copies."""
    found = [one("self-taught", 0), *(two("self-taught", rank) for rank in (0, 1))]
    alone, first, second = (
        [record["message"] for record in records["records"] if record["event"] == "note"] for _, records in found
    )
    assert alone == first == second
    assert "SelfTraining: 7 rows were trained on labels of the model's own" in "\n".join(alone)
    assert len([message for message in alone if message.startswith("Augment: ")]) == 2


def test_the_stages_change_what_trains(two: Read) -> None:
    """Two processes went through all three stages, each of which trained more than the one before."""
    stages = [record for record in two("staged", 0)[1]["records"] if record["event"] == "stage"]
    sizes = [stage["trainable_parameters"] for stage in stages]
    assert len(sizes) == 3
    assert sizes == sorted(set(sizes))
    assert [stage["decision"] for stage in stages] == ["continue", "continue", "end"]


def test_a_run_of_two_processes_resumes_bit_identically(two: Read) -> None:
    """Resumed in the middle of the second stage with dropout on, both processes end where the whole run ends."""
    whole = two("whole", 0)
    for name, rank in (("whole", 1), ("resumed", 0), ("resumed", 1)):
        weights, found = two(name, rank)
        assert_same(whole[0], weights, f"{name} on rank {rank}")
        assert whole[1] == found


def test_a_model_exported_by_two_processes_loads(two: Read, folder: Path) -> None:
    """The main process writes the export, and what it writes is whole."""
    weights, _ = two("plain", 0)
    loaded = load(folder / "work" / "exported").model.state_dict()
    assert_same(weights, loaded)


def test_a_stop_of_one_process_stops_both(two: Read, folder: Path) -> None:
    """A SIGTERM that one process alone gets ends both at the same step, saved once, with status 143."""
    for rank in (0, 1):
        _, found = two("told", rank)
        assert found["failure"] == ["SystemExit", "143"]
        assert len([record for record in found["records"] if record["event"] == "train"]) == 3
    assert sorted(path.name for path in (folder / "work" / "told").iterdir()) == ["checkpoint-2", "checkpoint-3"]
    verify_folder(folder / "work" / "told" / "checkpoint-3")


def test_a_failed_save_is_raised_in_both(two: Read, folder: Path) -> None:
    """The main process alone finds the disk full: both raise, neither waits, and no partial folder remains."""
    (_, main), (_, other) = two("save", 0), two("save", 1)
    for found in (main, other):
        kind, text = found["failure"]
        assert kind == "CheckpointError"
        assert "No space left on device" in text
        assert len([record for record in found["records"] if record["event"] == "train"]) == 2
    assert other["failure"][1].startswith("the main process failed: could not write")
    assert list((folder / "work" / "full").iterdir()) == []


@pytest.mark.parametrize(("case", "text"), [("taken", "is there already"), ("unwritable", "could not write")])
def test_a_failed_export_is_raised_in_both(case: str, text: str, two: Read, folder: Path) -> None:
    """Whatever keeps the main process from exporting, both raise and nothing is touched."""
    for rank in (0, 1):
        kind, message = two("export", rank)[1][case]
        assert kind == "CheckpointError"
        assert text in message
    assert [path.name for path in (folder / "work" / "taken").iterdir()] == ["thesis.tex"]


def test_a_bad_row_of_one_process_is_known_to_both(two: Read) -> None:
    """A loss that is NaN in one process is raised in both with the row's number, or skipped by both."""
    (weights, main), (others, other) = two("bad", 0), two("bad", 1)
    assert main == other
    kind, text = main["failure"]
    assert kind == "NonFiniteError"
    assert "the loss of rows [7];" in text
    assert len([record for record in main["records"] if record["event"] == "note"]) == 2
    assert_same(weights, others)
    assert all(tensor.isfinite().all() for tensor in weights.values())
