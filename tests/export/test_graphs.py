"""Graphs for ONNX Runtime and OpenVINO: the answers of the model they were made of, and a guard on accuracy."""

from __future__ import annotations

import builtins
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from lowft.errors import (
    AccuracyDropError,
    CheckpointCorruptError,
    CheckpointError,
    ConfigError,
    MissingExtraError,
)
from lowft.export import load
from lowft.models.first_token import FirstToken
from lowft.strategies import Prune, Quantize
from lowft.trainer import Trainer
from tests.forgery import sign
from tests.runs import NO_DROPOUT, tiny_trainer
from tests.strategy_cases import tiny_rows
from tests.tiny import tiny_model, tiny_tokenizer

BOUNDS = {"float32": 1e-4, "float16": 0.02, "int8": 0.5}
GRAPHS = {"onnx": "model.onnx", "openvino": "model.xml"}
SHORT: dict[str, Any] = {"num_layers": 2}  # a top block and another: an export takes as long as it has blocks


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    """Return a Trainer that has learnt to tell its rows apart."""
    trainer = tiny_trainer(model=tiny_model("bert", **NO_DROPOUT, **SHORT), train_dataset=tiny_rows(40), epochs=4)
    trainer.fit()
    return trainer


@pytest.fixture(scope="module")
def folded() -> dict[Path, list[bool]]:
    """Return how the top block's first token was computed in each folder of `graphs`, which notes it."""
    return {}


@pytest.fixture(scope="module")
def graphs(
    trainer: Trainer, folded: dict[Path, list[bool]], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Path]:
    """Return its folders, one for each runtime and precision; tests copy them before they change them."""
    root = tmp_path_factory.mktemp("graphs")
    original = FirstToken.alone
    found = {}
    for runtime, precision in itertools.product(GRAPHS, BOUNDS):
        place = root / f"{runtime}-{precision}"
        folded[place] = []

        def noted(self: FirstToken, place: Path = place, **settings: Any) -> Any:
            if "trial" not in settings:
                folded[place].append(settings["folded"])
            return original(self, **settings)

        how: dict[str, Any] = {"format": runtime, "precision": precision, "verify": "here", "max_drop": None}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FirstToken, "alone", noted)
            found[runtime, precision] = trainer.export(place, **how)
    return found


def distance(answers: Any, expected: Any) -> float:
    """Return the root mean square of a difference over that of the second."""
    return float(np.sqrt(np.mean((answers - expected) ** 2)) / np.sqrt(np.mean(expected**2)))


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("runtime", GRAPHS)
def test_a_graph_answers_as_the_model_does(
    runtime: str, precision: str, trainer: Trainer, graphs: dict[tuple[str, str], Path]
) -> None:
    """Any number of rows and tokens; within the bound that the documentation states, and not by doing nothing."""
    folder, bound = graphs[runtime, precision], BOUNDS[precision]
    predictor = load(folder, threads=1)
    batches = (["plot"], tiny_rows(40, seed=7)["text"], ["a warm , funny story about love " * 6, "dull"])
    found, expected = (
        np.concatenate([each.predict_logits(rows) for rows in batches]) for each in (predictor, trainer._predictor())
    )
    assert distance(found, expected) < bound
    assert predictor.predict(["a dull and lazy film"])[0] in ("neg", "pos")
    assert predictor.predict_proba(["plot"]).sum() == pytest.approx(1, abs=1e-5)
    settings = json.loads((folder / "lowft.json").read_text())
    assert (settings["runtime"], settings["weights"]) == (runtime, precision)
    assert not (folder / "model.safetensors").exists()
    if precision != "float32":  # what it cost is in the papers
        assert {"validation, in float", "validation, as exported"} <= settings["metrics"].keys()
        assert f"graph in {precision}" in (folder / "README.md").read_text()


def test_integers_take_a_fourth_of_the_bytes(tmp_path: Path) -> None:
    """The graph with integers holds the weights as such, embeddings included."""
    model = tiny_model("bert", hidden_size=128, intermediate_size=512, num_layers=1)
    large = tiny_trainer(model=model, max_steps=1)
    large.fit()
    in_float = sum(weight.nbytes for weight in model.parameters())
    for precision, share in (("float16", 0.6), ("int8", 0.35)):
        folder = large.export(tmp_path / precision, format="onnx", precision=precision, max_drop=None, verify="here")
        assert (folder / "model.onnx").stat().st_size < share * in_float


def test_a_graph_holds_the_first_token_of_the_top_block(
    trainer: Trainer, folded: dict[Path, list[bool]], graphs: dict[tuple[str, str], Path]
) -> None:
    """Its head reads no other; integers keep a product for each layer, the keys' and values' too."""
    for (_, precision), folder in graphs.items():
        assert folded[folder] == [precision != "int8"], folder.name
    linears = [module for module in trainer.model.modules() if isinstance(module, torch.nn.Linear)]
    graph = onnx.load(graphs["onnx", "int8"] / "model.onnx").graph
    assert len([node for node in graph.node if node.op_type == "MatMulInteger"]) == len(linears)


def test_no_path_of_the_machine_is_in_the_graph(graphs: dict[tuple[str, str], Path]) -> None:
    """The exporter notes where each operation stands in the source; that stays at home."""
    for folder in graphs.values():
        for path in folder.iterdir():
            assert b"site-packages" not in path.read_bytes(), path.name
            assert str(folder.parent).encode() not in path.read_bytes(), path.name


@pytest.mark.parametrize("arch", ["gpt2", "llama", "t5"])
def test_a_pruned_and_quantized_decoder_is_exported_and_reloaded(arch: str, tmp_path: Path) -> None:
    """As safetensors with the same bits, and as a graph within its bound."""
    trainer = Trainer(
        tiny_model(arch, **SHORT),
        tiny_rows(),
        tiny_rows(8, seed=1),
        strategies=[Prune(0.5, multiple_of=4), Quantize("int8")],
        tokenizer=tiny_tokenizer(arch),
        config=tiny_trainer(epochs=1).config,
    )
    trainer.fit()
    rows = tiny_rows(40, seed=7)["text"]  # of a few, single ones decide how far integers are off
    expected = trainer._predictor().predict_logits(rows)
    folder = trainer.export(tmp_path / "own", max_drop=None, verify="here")
    assert np.array_equal(load(folder).predict_logits(rows), expected)
    graph = trainer.export(tmp_path / "graph", format="onnx", max_drop=None, verify="here")
    assert distance(load(graph).predict_logits(rows), expected) < 0.5


@pytest.mark.parametrize("arch", ["distilbert", "modernbert", "mpnet", "roberta"])
def test_encoders_of_other_architectures_become_graphs(arch: str, tmp_path: Path) -> None:
    """Each with the inputs that it takes, and with lengths that were not in the example."""
    trainer = Trainer(
        tiny_model(arch, **SHORT), tiny_rows(), tokenizer=tiny_tokenizer(arch), config=tiny_trainer(max_steps=1).config
    )
    trainer.fit()
    rows = ["plot", "a warm , funny story about love " * 9]
    predictor = load(trainer.export(tmp_path / "graph", format="onnx", verify="here"))
    assert distance(predictor.predict_logits(rows), trainer._predictor().predict_logits(rows)) < 1e-4


def test_integers_that_were_trained_for_are_those_of_the_graph(tmp_path: Path) -> None:
    """What the strategy left in float stays in float, and nothing is quantized a second time."""
    import onnx

    strategy = Quantize("int8", when="stage", keep=("classifier", "bert.encoder.layer.1.*"))
    trainer = tiny_trainer(model=tiny_model("bert", **SHORT), strategies=[strategy], epochs=1)
    trainer.fit()
    folder = trainer.export(tmp_path / "graph", format="onnx", max_drop=None, verify="here")
    graph = onnx.load(str(folder / "model.onnx")).graph
    integers = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2 and "zero_point" not in tensor.name
    ]
    ours: dict[str, Any] = dict(trainer.model.named_modules())
    query = ours["bert.encoder.layer.0.attention.self.query"].weight.numpy()
    assert any(np.array_equal(found, query.T) or np.array_equal(found, query) for found in integers)
    products = [node for node in graph.node if node.op_type == "MatMulInteger"]
    assert len(products) == 6 + 1  # a block, and the pooler


@pytest.mark.parametrize("runtime", ["safetensors", "onnx"])
def test_a_drop_in_accuracy_stops_the_export(runtime: Any, tmp_path: Path) -> None:
    """With the figures, the layers that suffer most, and no folder; the Trainer keeps its model."""
    rows = tiny_rows(40)
    model: Any = tiny_model("bert", **NO_DROPOUT, **SHORT)
    with torch.no_grad():  # what is spoilt below is to matter
        for layer in model.bert.encoder.layer:
            layer.output.dense.weight *= 5
    trainer = tiny_trainer(model=model, train_dataset=rows, eval_dataset=rows, epochs=8)
    trainer.fit()
    assert trainer.evaluate().metrics["accuracy"] > 0.8
    with torch.no_grad():  # one weight so large that eight bits are not enough for the others
        for layer in model.bert.encoder.layer:
            layer.output.dense.weight[:, 0] = 1e6
            layer.intermediate.dense.weight[0] = 0
            layer.intermediate.dense.bias[0] = -30
    before = trainer._predictor().predict_logits(rows["text"])
    with pytest.raises(AccuracyDropError, match=r"accuracy on 40 validation rows is .* before and .* after") as caught:
        trainer.export(tmp_path / "small", format=runtime, precision="int8", max_drop=0.02, verify="here")
    assert re.search(r"change the logits most.*layer\.\d\.output\.dense \(", str(caught.value))
    assert "Nothing was exported" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert np.array_equal(trainer._predictor().predict_logits(rows["text"]), before)
    folder = trainer.export(tmp_path / "small", format="safetensors", precision="int8", max_drop=None, verify="here")
    metrics = json.loads((folder / "lowft.json").read_text())["metrics"]
    assert (
        metrics["validation, in float"]["metrics"]["accuracy"]
        > metrics["validation, as exported"]["metrics"]["accuracy"]
    )


def test_what_the_exporter_cannot_translate_is_said(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the exporter's reason and the format that always works, and nothing is left behind."""

    def refuse(*_: Any, **__: Any) -> None:
        message = "no such operator"
        raise RuntimeError(message)

    monkeypatch.setattr("torch.onnx.export", refuse)
    with pytest.raises(
        CheckpointError, match=r"torch\.onnx cannot translate this Bert.*no such operator.*format='safetensors'"
    ):
        trainer.export(tmp_path / "graph", format="onnx", verify="here")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_answers_otherwise_is_not_exported(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound on the logits is checked before the folder appears."""
    monkeypatch.setattr("lowft.export.verification._BOUNDS", {"int8": 1e-9})
    with pytest.raises(CheckpointError, match=r"was not exported: its logits are .* away from PyTorch's, and int8 may"):
        trainer.export(tmp_path / "graph", format="onnx", precision="int8", max_drop=None, verify="here")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "tflite"}, "export: format must be one of 'safetensors', 'onnx', 'openvino'; received 'tflite'"),
        ({"precision": "float16"}, r"precision must be one of 'float32', 'bfloat16', 'int8'; received 'float16'"),
        ({"format": "onnx", "precision": "bfloat16"}, "precision must be one of 'float32', 'float16', 'int8'"),
        ({"verify": "never"}, "export: verify must be one of"),
        ({"max_drop": -0.1}, "export: max_drop must be"),
        ({"precision": "int8", "keep": ["clasifier"]}, "keep='clasifier' matches no linear layer"),
    ],
)
def test_settings_out_of_range(arguments: dict[str, Any], message: str, trainer: Trainer, tmp_path: Path) -> None:
    """Mistakes are found before anything is written."""
    with pytest.raises(ConfigError, match=message):
        trainer.export(tmp_path / "graph", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_four_bits_fit_no_graph(tmp_path: Path) -> None:
    """What a graph cannot hold is refused, with what can."""
    trainer = tiny_trainer(strategies=[Quantize("int4_weight_only")], epochs=1)
    trainer.fit()
    with pytest.raises(ConfigError, match=r"quantized as 'int4_weight_only': a graph holds float32, float16 or int8"):
        trainer.export(tmp_path / "graph", format="onnx")
    with pytest.raises(ConfigError, match=r"export it from a run without Quantize\('int4_weight_only'\)"):
        trainer.export(tmp_path / "graph", precision="float32")


@pytest.mark.parametrize(("runtime", "package"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_missing_runtime_is_named(
    runtime: str, package: str, graphs: dict[tuple[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading says which packages to install."""
    found = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.split(".", maxsplit=1)[0] == package:
            raise ImportError(name)
        return found(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=rf"lowft\[{runtime}\]"):
        load(graphs[runtime, "float32"])


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_a_forged_graph_is_refused(runtime: str, graphs: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    """A signed file that is no graph is an error that names it."""
    folder = Path(shutil.copytree(graphs[runtime, "float32"], tmp_path / "graph"))
    (folder / GRAPHS[runtime]).write_bytes(b"no graph at all")
    sign(folder)
    with pytest.raises(CheckpointCorruptError, match=f"{GRAPHS[runtime]} is no graph that {runtime} can run"):
        load(folder)


def test_a_graph_runs_on_the_processor_alone(graphs: dict[tuple[str, str], Path]) -> None:
    """A device or a model that a graph has no use for is refused."""
    folder = graphs["onnx", "float32"]
    with pytest.raises(ConfigError, match="which runs on the CPU: leave device out"):
        load(folder, device="cuda")
    with pytest.raises(ConfigError, match="leave model= out"):
        load(folder, model=tiny_model("bert"))
    with pytest.raises(ConfigError, match="threads must be"):
        load(folder, threads=0)
