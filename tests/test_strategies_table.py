"""Every strategy and every allowed pair: train, resume at every step bit-identically, export, reload elsewhere."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lowft.attach import attach
from lowft.checkpoint import read_json, read_tensors
from lowft.config import TrainingConfig
from lowft.errors import LowftError, StrategyConflictError
from lowft.strategies import SelfTraining
from lowft.strategy import Strategy
from lowft.trainer import Trainer
from tests.strategy_cases import ALLOWED, FEW_LABEL_PAIRS, FEW_LABELS, REFUSED, STRATEGIES, tiny_rows
from tests.tiny import ARCHITECTURES, tiny_model, tiny_tokenizer

OTHERS = [arch for arch in ARCHITECTURES if arch != "bert"]
CASES = ALLOWED | FEW_LABEL_PAIRS
TEXTS = ["a dull and lazy film", "a warm , funny story about love", "plot"]
_LARGER = {"batch_size": 4}  # two steps for each epoch
_NEVER = 100  # more steps than any run here has

UNFIT = {
    "distill hidden": {"albert", "gpt2", "llama", "t5"},  # whose tokens or layers are not those of its teacher, a BERT
    "masked words": {"gpt2", "llama", "t5"},  # which do not read both ways
    "reinitialize": {"albert"},  # whose one block cannot be drawn anew in part
    "biases": {"llama", "modernbert", "t5"},  # which have no bias below the head
    "R-Drop": {"llama", "modernbert"},  # which drop nothing
}


def fits(name: str, arch: str) -> bool:
    """Say whether an architecture has what a case trains.

    The heads of GPT-2 and Llama read every token, which the probe does not take unless they are pooled. ALBERT's blocks
    share their weights: without the embeddings, the last stage has nothing that the one before it had not.
    """
    if any(part in name and arch in architectures for part, architectures in UNFIT.items()):
        return False
    if "probe" in name and "pooled" not in name:
        return arch not in {"gpt2", "llama"}
    return not (arch == "albert" and "embeddings frozen" in name and "unfreeze" in name)


@pytest.mark.parametrize("name", ["embeddings frozen + unfreeze", "unfreeze + embeddings frozen"])
def test_stages_that_would_go_no_deeper_are_refused(name: str) -> None:
    """What does not fit an architecture is an error before the training, and says which stages are alike."""
    with pytest.raises(StrategyConflictError, match=r"'top 1 block' and 'all layers' the same layers"):
        make_trainer(None, ALLOWED[name], "albert")


def make_trainer(folder: Path | None, strategies: tuple[Strategy, ...], arch: str = "bert", **settings: Any) -> Trainer:
    """Return a Trainer over a tiny model that saves at every step; equal arguments make equal runs."""
    defaults: dict[str, Any] = {
        "epochs": 2, "batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 5e-3, "save_steps": 1,
        "save_total_limit": 100, "seed": 3, "device": "cpu",
    }  # fmt: skip
    unlabeled = any(isinstance(part, SelfTraining) for part in strategies)
    return Trainer(
        tiny_model(arch),
        tiny_rows(),
        tiny_rows(8, seed=1),
        strategies=strategies,
        tokenizer=tiny_tokenizer(arch),
        config=TrainingConfig(**(defaults | settings), output_dir=folder),
        unlabeled_dataset=tiny_rows(6, seed=2)["text"] if unlabeled else None,
    )


def contents(checkpoint: Path) -> dict[str, Any]:
    """Return everything in a checkpoint that two equal runs share: all but what is measured of time and memory."""
    found: dict[str, Any] = {path.name: read_tensors(path) for path in checkpoint.glob("*.safetensors")}
    found["state.json"] = read_json(checkpoint / "state.json")
    del found["state.json"]["kept"]["seconds"], found["state.json"]["kept"]["measured"]
    found["history"] = [
        {key: value for key, value in record.items() if key != "peak_memory_bytes" and not key.endswith("seconds")}
        for record in json.loads((checkpoint / "history.json").read_text())
    ]
    return found


def assert_same(one: Any, other: Any, path: str = "") -> None:
    """Compare two checkpoints' contents bit for bit."""
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, path
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_same(one[key], other[key], f"{path}/{key}")
    else:
        assert one == other, path


def final_weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return a copy of the weights that the Trainer ended with."""
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def in_one_order(names: Iterable[str]) -> list[str]:
    """Return the cases; of strategies that are allowed in several orders the first of these alone.

    They are resumed in the first order, and exported in the last; `-m exhaustive` resumes each.
    """
    seen: set[frozenset[str]] = set()
    found = []
    for name in names:
        parts = frozenset(name.split(" + "))
        if parts not in seen:
            found.append(name)
        seen.add(parts)
    return found


EXPORTED = [(name, "bert") for name in in_one_order(reversed(ALLOWED))] + [("unfreeze", arch) for arch in OTHERS]


@pytest.mark.parametrize("name", in_one_order(ALLOWED))
def test_resume_is_bit_identical(name: str, tmp_path: Path) -> None:
    """A run stopped and resumed in a new Trainer ends as one that was never stopped: each strategy after any step."""
    if name == "none" or name in STRATEGIES or name in FEW_LABELS:
        check_every_step(name, "bert", tmp_path)
    else:
        check_where_stages_meet(name, "bert", tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("name", "arch"), [(name, arch) for name in ALLOWED for arch in ARCHITECTURES if fits(name, arch)]
)
def test_resume_at_every_step_on_every_architecture(name: str, arch: str, tmp_path: Path) -> None:
    """The same to the very end, for every case on every architecture: the whole product."""
    check_every_step(name, arch, tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", FEW_LABEL_PAIRS)
def test_what_is_for_few_labels_goes_with_every_strategy(name: str, tmp_path: Path) -> None:
    """A pair resumes bit-identically and exports, which verifies it in a fresh process; or it is refused by name."""
    try:
        trainer = make_trainer(None, FEW_LABEL_PAIRS[name], epochs=1)
    except StrategyConflictError as error:
        assert any(part.name in str(error) for part in FEW_LABEL_PAIRS[name])  # noqa: PT017 - either is right
        return
    check_where_stages_meet(name, "bert", tmp_path)
    trainer.fit()
    trainer.export(tmp_path / "export", max_drop=None)


def run_whole(name: str, arch: str, tmp_path: Path, **settings: Any) -> tuple[Trainer, list[int]]:
    """Run a case without a stop, and return it with the steps that it saved."""
    whole = make_trainer(tmp_path / "whole", CASES[name], arch, **settings)
    whole.fit()
    steps = sorted(int(path.name.split("-")[1]) for path in (tmp_path / "whole").glob("checkpoint-*"))
    assert len(steps) >= 4
    return whole, steps


def resumed_at(step: int, name: str, arch: str, tmp_path: Path, **settings: Any) -> tuple[Trainer, Path]:
    """Return a new Trainer whose folder holds the checkpoint of one step alone."""
    folder = tmp_path / f"from-{step}"
    shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    return make_trainer(folder, CASES[name], arch, **settings), folder


def check_every_step(name: str, arch: str, tmp_path: Path) -> None:
    """Run a case, then resume it from each of its checkpoints, and compare what all of them end with."""
    whole, steps = run_whole(name, arch, tmp_path)
    for step in steps:
        check_to_the_end(whole, step, steps[-1], name, arch, tmp_path)


def check_to_the_end(
    whole: Trainer, step: int, last: int, name: str, arch: str, tmp_path: Path, **settings: Any
) -> None:
    """Resume from one checkpoint, and compare what it ends with; it saves at the last step alone."""
    resumed, folder = resumed_at(step, name, arch, tmp_path, **settings | {"save_steps": last})
    resumed.fit(resume_from_checkpoint=True)
    checkpoint = f"checkpoint-{last}"
    assert_same(contents(tmp_path / "whole" / checkpoint), contents(folder / checkpoint), f"{name}, step {step}")
    assert_same(final_weights(whole), final_weights(resumed), f"{name}, step {step}, end")
    assert [r["decision"] for r in whole.history.filter("stage")] == [
        r["decision"] for r in resumed.history.filter("stage")
    ]


def check_where_stages_meet(name: str, arch: str, tmp_path: Path) -> None:
    """Resume a case from its first and its last but one checkpoint to the end, and for a step wherever a stage begins.

    That is for what a process keeps over many steps, for the middle of a stage, and for what a stage finds at its
    start. `-m exhaustive` resumes from every checkpoint.
    """
    whole, steps = run_whole(name, arch, tmp_path, **_LARGER)
    stages = {record["step"]: record["stage"] for record in whole.history.filter("train")}
    for step, following in itertools.pairwise(steps):
        if stages[step] == stages[following]:
            continue
        resumed, folder = resumed_at(step, name, arch, tmp_path, **_LARGER)
        next(iter(resumed.steps(resume_from_checkpoint=True)))
        checkpoint = f"checkpoint-{following}"
        assert_same(contents(tmp_path / "whole" / checkpoint), contents(folder / checkpoint), f"{name}, step {step}")
        shutil.rmtree(folder)
    for step in (steps[0], steps[-2]):
        check_to_the_end(whole, step, steps[-1], name, arch, tmp_path, **_LARGER)


@pytest.mark.parametrize("name", ["none", "unfreeze", "every hook"])
def test_the_comparison_can_fail(name: str, tmp_path: Path) -> None:
    """Negative control: a run with another seed does not compare equal."""
    make_trainer(tmp_path / "one", ALLOWED[name]).fit()
    make_trainer(tmp_path / "other", ALLOWED[name], seed=4).fit()
    last = max((tmp_path / "one").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])).name
    with pytest.raises(AssertionError):
        assert_same(contents(tmp_path / "one" / last), contents(tmp_path / "other" / last))


@pytest.mark.parametrize(
    ("name", "arch"),
    [(name, arch) for name in STRATEGIES for arch in OTHERS if fits(name, arch)],
)
def test_every_architecture_resumes_bit_identically(name: str, arch: str, tmp_path: Path) -> None:
    """Each strategy resumes in mid-run on each architecture; on BERT, the test of every step has it."""
    whole = make_trainer(tmp_path / "whole", CASES[name], arch, **_LARGER, save_steps=3)
    whole.fit()
    resumed, _ = resumed_at(3, name, arch, tmp_path, **_LARGER, save_steps=_NEVER)
    resumed.fit(resume_from_checkpoint=True)
    assert_same(final_weights(whole), final_weights(resumed), f"{name} on {arch}")


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_pair_names_both_sides(name: str) -> None:
    """A pair that cannot work is refused with a message that names what is in conflict."""
    first, second = REFUSED[name]
    with pytest.raises(StrategyConflictError) as caught:
        attach(tiny_model("bert"), [first, second]).start_stage(0)
    assert second.name in str(caught.value) or first.name in str(caught.value)


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Export every case, reload all of them in one fresh process, and return both sides' logits, or what failed."""
    root = tmp_path_factory.mktemp("exports")
    found: dict[str, Any] = {}
    for index, (name, arch) in enumerate(EXPORTED):
        trainer = make_trainer(None, ALLOWED[name], arch, epochs=1, batch_size=7, gradient_accumulation_steps=1)
        trainer.fit()
        try:
            trainer.export(root / str(index), max_drop=None, verify="here")
            found[f"{name} on {arch}"] = trainer._predictor().predict_logits(TEXTS)
        except LowftError as error:  # one bad case is one failing test
            found[f"{name} on {arch}"] = error
    (root / "reload.py").write_text(_RELOAD)
    answer = subprocess.run(
        [sys.executable, str(root / "reload.py"), str(root), str(len(EXPORTED)), json.dumps(TEXTS)],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    for key, answers in zip(found, json.loads(answer.stdout), strict=True):
        found[key] = (found[key], *answers)
    return found


_RELOAD = """
import json, sys
import torch, lowft
from transformers import AutoModelForSequenceClassification, AutoTokenizer

root, count, texts = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
torch.set_num_threads(1)
answers = []
for index in range(count):
    try:
        own = lowft.load(f"{root}/{index}").predict_logits(texts)
    except lowft.errors.LowftError as error:
        answers.append([str(error), None])
        continue
    try:
        model = AutoModelForSequenceClassification.from_pretrained(f"{root}/{index}").eval()
    except (OSError, RuntimeError) as error:
        answers.append([own.tolist(), str(error)])
        continue
    tokenizer = AutoTokenizer.from_pretrained(f"{root}/{index}")
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    kept = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        plain = model(**kept).logits.numpy()
    answers.append([own.tolist(), plain.tolist()])
print(json.dumps(answers))
"""


@pytest.mark.parametrize("key", [f"{name} on {arch}" for name, arch in EXPORTED])
def test_a_fresh_process_gives_the_same_logits(key: str, reloaded: dict[str, Any]) -> None:
    """`lowft.load` gives the same bits in a fresh process, and plain transformers the same model, or says no."""
    own, by_lowft, by_transformers = reloaded[key]
    assert isinstance(own, np.ndarray), own
    assert np.array_equal(own, np.float32(by_lowft)), by_lowft
    if "quantize" in key or "pooled" in key:  # it would read integers as weights, or draw a head of its own
        assert "no file named model.safetensors" in by_transformers
        return
    if "heads" in key:
        assert "mismatch" in by_transformers  # no config says how many heads each layer has
        return
    assert np.allclose(own, by_transformers, atol=1e-5)
