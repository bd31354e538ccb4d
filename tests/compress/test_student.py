"""Students of fewer layers: what is kept is the teacher's, and plain transformers loads what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lowft.compress import make_student
from lowft.errors import ConfigError, ModelError
from lowft.models import find_layers, load_model
from tests.tiny import ARCHITECTURES, tiny_batch, tiny_model

WITH_LAYERS = [arch for arch in ARCHITECTURES if arch != "albert"]


def logits_of(model: torch.nn.Module, arch: str) -> torch.Tensor:
    """Return the logits of a ragged batch."""
    batch = tiny_batch(arch)
    with torch.no_grad():
        answer: torch.Tensor = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return answer


def skip_(model: torch.nn.Module, layers: set[int], total: int) -> None:
    """Let layers of the model hand on what they get, as if they were not there."""

    def hand_on(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        return (states, *output[1:]) if isinstance(output, tuple) else states

    for place, name in enumerate(find_layers(model).blocks):
        if place % total in layers:
            model.get_submodule(name).register_forward_hook(hand_on, with_kwargs=True)


@pytest.mark.parametrize("kept", [[0, 1, 2, 3], [0, 2], [0, 1, 3], [0]])
@pytest.mark.parametrize("arch", WITH_LAYERS)
def test_a_student_is_its_teacher_without_the_layers(arch: str, kept: list[int]) -> None:
    """The same logits as the teacher whose other layers hand on what they get; the teacher is left alone."""
    teacher = tiny_model(arch, num_layers=4)
    before = logits_of(teacher, arch)
    student = make_student(teacher, kept)
    assert torch.equal(logits_of(teacher, arch), before)
    assert torch.equal(before, logits_of(student, arch)) == (len(kept) == 4)
    skip_(teacher, {0, 1, 2, 3} - set(kept), 4)
    torch.testing.assert_close(logits_of(student, arch), logits_of(teacher, arch), rtol=0, atol=1e-6)


@pytest.mark.parametrize("arch", WITH_LAYERS)
def test_plain_transformers_loads_it(arch: str, tmp_path: Path) -> None:
    """The saved folder says how many layers there are: nothing is drawn at random."""
    student = make_student(tiny_model(arch, num_layers=4), 2)
    student.save_pretrained(tmp_path)
    reloaded, report = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    assert torch.equal(logits_of(reloaded.eval(), arch), logits_of(student, arch))


@pytest.mark.parametrize(
    ("layers", "keep", "expected"),
    [
        (3, "even", (0, 2, 5)),
        (2, "even", (0, 5)),
        (1, "even", (0,)),
        (2, "top", (4, 5)),
        (2, "bottom", (0, 1)),
        (6, "top", tuple(range(6))),
    ],
)
def test_which_layers_are_kept(layers: int, keep: Any, expected: tuple[int, ...]) -> None:
    """Evenly from the first to the last, from the top, or from the bottom."""
    teacher = tiny_model("bert", num_layers=6)
    student = make_student(teacher, layers, keep=keep)
    stack = "bert.encoder.layer"
    for place, number in enumerate(expected):
        kept = student.get_submodule(f"{stack}.{place}").state_dict()
        for name, tensor in teacher.get_submodule(f"{stack}.{number}").state_dict().items():
            assert torch.equal(tensor, kept[name])


def test_a_real_model_loses_half_of_its_layers(minilm_path: Path) -> None:
    """Six layers of MiniLM become three; embeddings and head stay."""
    teacher = load_model(minilm_path)
    student = make_student(teacher, 3)
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in (teacher, student)]
    assert sizes[0] - sizes[1] == 3 * sum(p.numel() for p in teacher.get_submodule("bert.encoder.layer.0").parameters())
    assert student.config.num_hidden_layers == 3


def test_the_random_stream_is_left_alone() -> None:
    """Building a model draws numbers; the caller's next one does not change."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    make_student(tiny_model("bert"), 1)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("layers", "keep", "message"),
    [
        (0, "even", "layers must be a whole number of at least 1"),
        (4, "even", "layers must be at most 3"),
        (True, "even", "layers must be a whole number"),
        ([0, 3], "even", "rising numbers from 0 to 2"),
        ([1, 0], "even", "rising numbers"),
        ([], "even", "rising numbers"),
        ("12", "even", "layers must be a whole number"),
        (2, "middle", "keep must be"),
    ],
)
def test_bad_layers_are_refused(layers: Any, keep: Any, message: str) -> None:
    """Each message gives the rule and the value."""
    with pytest.raises(ConfigError, match=message):
        make_student(tiny_model("bert"), layers, keep=keep)


def test_models_that_cannot_lose_layers_are_refused() -> None:
    """Shared layers, a lowest layer unlike the others, and a module that has no config."""
    with pytest.raises(ModelError, match="share their weights"):
        make_student(tiny_model("albert"), 1)
    with pytest.raises(ModelError, match="keep layer 0"):
        make_student(tiny_model("modernbert"), [1, 2])
    with pytest.raises(ModelError, match="needs a model of transformers"):
        make_student(torch.nn.Linear(1, 1), 1)  # type: ignore[arg-type]
