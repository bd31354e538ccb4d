"""Layers are matched and captured on every architecture, or refused with what to do."""

from __future__ import annotations

import pytest
import torch

from lowft.distillation.capture import Capture, match_layers
from lowft.distillation.comparing import Compared, Projections, compare_layers
from lowft.errors import ConfigError, ModelError
from tests.tiny import ARCHITECTURES, tiny_batch, tiny_model


def compared(arch: str, **values: object) -> Compared:
    """Return the comparison of a student of 2 layers with a teacher of 3 and twice the width, where it can be so."""
    asked: dict[str, object] = {"hidden": True, "relations": True, "layers": "even", "heads": None}
    return compare_layers(tiny_model(arch, num_layers=2), tiny_model(arch), **(asked | values))  # type: ignore[arg-type]


def hooks(model: torch.nn.Module) -> int:
    """Return how many forward hooks there are."""
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch != "albert"])
def test_every_architecture_gives_states_and_relations(arch: str) -> None:
    """The captured states are the model's own; queries, keys and values have the widths that were promised."""
    plan = compared(arch)
    model, inputs = tiny_model(arch), {k: v for k, v in tiny_batch(arch).items() if k != "labels"}
    rows, tokens = inputs["input_ids"].shape
    with torch.no_grad():
        outputs = model(**inputs, output_hidden_states=True)
        before = hooks(model)  # transformers leaves some of its own
        capture = Capture(model, plan.teacher.states, plan.teacher.relations, training=False)
        model(**inputs)
    found = capture.take(rows, tokens)
    assert [vectors.shape for vectors in found] == [(rows, tokens, width) for width in plan.teacher.widths]
    states = outputs["encoder_hidden_states" if arch == "t5" else "hidden_states"]
    if arch in {"bert", "distilbert", "electra", "roberta", "mpnet", "deberta-v2"}:  # others add a last norm
        torch.testing.assert_close(found[1], states[-1])
    assert plan.student.widths[-3:] == plan.teacher.widths[-3:]
    assert all(width % plan.heads == 0 for width in plan.teacher.widths[-3:])
    capture.close()
    assert hooks(model) == before


def test_joint_projections_are_taken_apart() -> None:
    """GPT-2's one matrix gives queries, keys and values side by side."""
    model, batch = tiny_model("gpt2"), tiny_batch("gpt2")
    capture = Capture(model, (), "transformer.h.2", training=False)
    seen = []
    model.get_submodule("transformer.h.2.attn.c_attn").register_forward_hook(lambda *given: seen.append(given[2]))
    model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    found = capture.take(*batch["input_ids"].shape)
    assert len(found) == 3
    torch.testing.assert_close(torch.cat(found, dim=2), seen[0])


def test_evaluation_leaves_nothing() -> None:
    """What cannot be followed by a backward pass is not kept, and asking for it is an error that says so."""
    model, batch = tiny_model("bert"), tiny_batch("bert")
    capture = Capture(model, ("bert.encoder.layer.0",))
    with torch.no_grad():
        model(input_ids=batch["input_ids"])
    with pytest.raises(ModelError, match="call the model on the batch before on_loss"):
        capture.take(*batch["input_ids"].shape)
    model(input_ids=batch["input_ids"])
    assert capture.take(*batch["input_ids"].shape)[0].requires_grad


def test_shared_layers_are_refused() -> None:
    """ALBERT has one layer that runs several times."""
    with pytest.raises(ModelError, match=r"share their weights.*distills the logits alone"):
        compared("albert")


def test_layers_are_matched_evenly_or_as_asked() -> None:
    """Even: each layer of the student with that at the same share of the teacher's height."""
    assert match_layers("even", 6, 6) == tuple((number, number) for number in range(1, 7))
    assert match_layers("even", 4, 2)[-1] == (4, 2)
    plan = compared("bert", layers=[(2, 1)])
    assert plan.student.states == ("bert.encoder.layer.1",)
    assert plan.teacher.states == ("bert.encoder.layer.0",)
    assert plan.teacher.relations == "bert.encoder.layer.0"
    with pytest.raises(ConfigError, match=r"from 1 to 2.*from 1 to 3; received \(3, 3\)"):
        compared("bert", layers=[(3, 3)])


def test_heads_fit_both_sides() -> None:
    """As many as the teacher's attention has, where all widths allow it; others are refused if they do not divide."""
    assert compared("bert").heads == 4
    assert compared("llama").heads == 4  # keys and values are of half the width
    with pytest.raises(ConfigError, match=r"must divide.*\[32\]; received 5"):
        compared("bert", heads=5)


def test_projections_begin_as_they_should() -> None:
    """An identity where widths agree; else a matrix that keeps lengths."""
    projections = Projections([4, 4], [4, 8])
    states = torch.randn(2, 3, 4)
    same, wider = projections([states, states])
    assert torch.equal(same, states)
    torch.testing.assert_close(wider.norm(dim=2), states.norm(dim=2))
