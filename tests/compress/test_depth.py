"""Layers left out: the same as a student of the same layers, wherever the model remembers how many there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lowft.checkpoint import load_tensors_, model_tensors
from lowft.compress import make_student, prune_
from lowft.compress.structure import rebuild_, structure_of
from lowft.errors import ModelError
from tests.compress.test_parts import logits_of
from tests.tiny import ARCHITECTURES, tiny_batch, tiny_model

STACKED = [arch for arch in ARCHITECTURES if arch != "albert"]


@pytest.mark.parametrize("arch", STACKED)
def test_leaving_out_is_what_a_student_keeps(arch: str, tmp_path: Path) -> None:
    """In place and bit for bit, and plain transformers loads what is saved."""
    model = tiny_model(arch, num_layers=4)
    student = make_student(model, [0, 3])
    report = prune_(model, layers=[1, 2])
    assert len(report.left_out) == (4 if arch == "t5" else 2)
    assert report.plain
    assert torch.equal(logits_of(model, arch), logits_of(student, arch))
    assert model.config.to_dict() == student.config.to_dict()
    model.save_pretrained(tmp_path)
    reloaded, told = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"]
    assert torch.equal(logits_of(reloaded.eval(), arch), logits_of(model, arch))


def test_gpt2_scales_by_the_new_numbers(tmp_path: Path) -> None:
    """Where attention is scaled by the number of the layer, it is what a loaded model scales by."""
    model = tiny_model("gpt2", num_layers=3, scale_attn_by_inverse_layer_idx=True)
    prune_(model, layers=[0])
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(logits_of(reloaded.eval(), "gpt2"), logits_of(model, "gpt2"), rtol=0, atol=1e-6)


def test_without_batches_those_that_stay_are_spread_evenly() -> None:
    """As make_student's "even"."""
    model = tiny_model("bert", num_layers=5)
    report = prune_(model, layers=2)
    assert report.left_out == ("bert.encoder.layer.1", "bert.encoder.layer.3")
    assert len(report.after) == 3


@pytest.mark.parametrize("arch", ["bert", "llama", "t5", "modernbert"])
def test_with_batches_those_go_that_change_least(arch: str) -> None:
    """A layer that gives what it is given has no influence; in T5 and ModernBERT the lowest one stays."""
    model = tiny_model(arch, num_layers=4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            idle = name.endswith(
                (
                    "o_proj.weight", "down_proj.weight", ".o.weight", "wo.weight", "Wo.weight",
                    "attention.output.dense.weight", "2.output.dense.weight",
                )
            )  # fmt: skip
            if ".2." in name and idle:
                parameter.zero_()
    report = prune_(model, layers=1, batches=[tiny_batch(arch, seed=seed) for seed in range(2)])
    assert all(".2" in name for name in report.left_out)


@pytest.mark.parametrize("arch", ["t5", "modernbert"])
def test_the_lowest_layer_stays_where_others_depend_on_it(arch: str) -> None:
    """T5's holds the relative positions of all; ModernBERT's has no norm of its own."""
    model = tiny_model(arch)
    with pytest.raises(ModelError, match=r"layer 1 of .* cannot become number 0.*: keep layer 0"):
        prune_(model, layers=[0])
    assert logits_of(model, arch).equal(logits_of(tiny_model(arch), arch))


def test_what_was_cut_before_goes_with_its_layer() -> None:
    """The structure of an uneven model calls its layers by their new numbers."""
    model = tiny_model("bert", num_layers=4)
    prune_(model, 0.4, heads=0.5, scope="global", importance="random", multiple_of=1)
    before = {entry["kind"]: entry["plan"][entry["kind"]] for entry in structure_of(model)}
    prune_(model, 0.5, layers=[1])
    after = {entry["kind"]: entry["plan"][entry["kind"]] for entry in structure_of(model)}
    name = "bert.encoder.layer.{}.attention.self"
    assert [after["heads"][name.format(number)] for number in range(3)] == [
        before["heads"][name.format(number)] for number in (0, 2, 3)
    ]
    again = tiny_model("bert", num_layers=3, seed=5)
    rebuild_(again, structure_of(model), "memory")
    load_tensors_(again, model_tensors(model), "memory")
    assert torch.equal(logits_of(again, "bert"), logits_of(model, "bert"))


def test_a_decoder_still_writes() -> None:
    """Caches of keys and values count layers: a model with fewer of them generates as it computes."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    config: Any = tiny_model("llama", num_layers=4).config
    model: Any = LlamaForCausalLM(config)
    model.train(False)
    prune_(model, 0.5, heads=0.5, layers=[0, 2])
    ids = torch.tensor([[7, 8, 9]])
    with torch.no_grad():
        written = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=-1)
        expected = [int(model(written[:, :length]).logits[0, -1].argmax()) for length in range(3, written.shape[1])]
    assert written[0, 3:].tolist() == expected
    assert len(expected) == 4


def test_shared_layers_and_foreign_models_are_refused() -> None:
    """Each message says what to do instead."""
    with pytest.raises(ModelError, match=r"share their weights: .* config\.num_hidden_layers alone"):
        prune_(tiny_model("albert"), layers=1)
    model = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)) for _ in "abc"))
    with pytest.raises(ModelError, match="layers can be left out of a model of transformers"):
        prune_(model, layers=1)
