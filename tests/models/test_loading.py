from __future__ import annotations

import json
import logging
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from lowft.data.labels import Labels
from lowft.errors import LabelError, ModelError
from lowft.models.layers import find_layers
from lowft.models.loading import load_model, load_tokenizer
from lowft.models.trainable import freeze_
from tests.tiny import ARCHITECTURES, tiny_batch, tiny_model, tiny_tokenizer

TWO = Labels("single_label_classification", ("neg", "pos"))
THREE = Labels("single_label_classification", ("a", "b", "c"))


def _save(folder: Path, arch: str = "bert", **settings: Any) -> Path:
    """Save a tiny classifier and its tokenizer."""
    model = tiny_model(arch, **settings)
    model.save_pretrained(folder)
    tiny_tokenizer(arch).save_pretrained(folder)
    return folder


def _save_body(folder: Path, arch: str = "bert") -> Path:
    """Save the body alone, as pre-training leaves it, and the tokenizer."""
    model = tiny_model(arch)
    body = model.base_model
    assert isinstance(body, PreTrainedModel)
    body.save_pretrained(folder)
    tiny_tokenizer(arch).save_pretrained(folder)
    return folder


def _edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config.update(changes)
    file.write_text(json.dumps(config))


def _edit_weights(folder: Path, change: Any) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, {"format": "pt"})


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BERT classifier of two labels."""
    return _save(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BERT without a head."""
    return _save_body(tmp_path_factory.mktemp("body"))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_saved_classifier_comes_back_as_it_was(arch: str, tmp_path: Path) -> None:
    """Every architecture's checkpoint loads with the same logits, and its tokenizer with the same ids."""
    model = load_model(_save(tmp_path, arch))
    batch = tiny_batch(arch)
    assert torch.equal(model(**batch).logits, tiny_model(arch)(**batch).logits)
    text = "A wonderful, unfunny movie!"
    assert load_tokenizer(tmp_path)(text)["input_ids"] == tiny_tokenizer(arch)(text)["input_ids"]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_bare_body_gets_a_head_for_the_labels(arch: str, tmp_path: Path) -> None:
    """From a body alone comes a classifier with the outputs, names and task that the labels ask for."""
    model = load_model(_save_body(tmp_path, arch), labels=THREE)
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert model.config.label2id == {"a": 0, "b": 1, "c": 2}
    assert model.config.problem_type == "single_label_classification"
    assert model(**tiny_batch(arch)).logits.shape == (4, 3)
    original = tiny_model(arch)
    for name, parameter in original.base_model.named_parameters():
        assert torch.equal(model.base_model.get_parameter(name), parameter)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_new_head_is_drawn_on_request(arch: str, tmp_path: Path) -> None:
    """new_head=True draws the output layer anew at its own or another size, and keeps the body."""
    folder = _save(tmp_path, arch)
    before = dict(tiny_model(arch).named_parameters())
    same = load_model(folder, new_head=True)
    changed = {name for name, p in same.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert changed <= set(find_layers(same).names_at(find_layers(same).num_blocks + 1))
    weight = max(changed)  # a bias comes before its weight
    assert 0 < same.get_parameter(weight).std() < before[weight].std() * 3
    assert load_model(folder, labels=THREE, new_head=True)(**tiny_batch(arch)).logits.shape == (4, 3)


def test_new_weights_come_from_the_seed_alone(body: Path) -> None:
    """Equal seeds give equal heads, unequal ones do not, and the global random state is not moved."""
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = load_model(body, labels=TWO, seed=1).get_parameter("classifier.weight")
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    again = load_model(body, labels=TWO, seed=1).get_parameter("classifier.weight")
    other = load_model(body, labels=TWO, seed=2).get_parameter("classifier.weight")
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_new_weights_are_told_in_one_line(
    body: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log names what is new; transformers' own report stays silent and its settings come back."""
    level = transformers_logging.get_verbosity()
    with caplog.at_level(logging.INFO, logger="lowft"):
        load_model(body, labels=TWO, seed=3)
    lines = [record.getMessage() for record in caplog.records if record.name == "lowft"]
    assert lines == [f"{body}: new weights, drawn from seed 3: classifier.bias, classifier.weight"]
    assert not any(capsys.readouterr())
    assert transformers_logging.get_verbosity() == level


def test_weights_are_float32_and_in_eval_mode(tmp_path: Path) -> None:
    """A checkpoint in half precision becomes float32."""
    _save(tmp_path)
    _edit_weights(tmp_path, lambda weights: weights.update({n: w.bfloat16() for n, w in weights.items()}))
    _edit_config(tmp_path, dtype="bfloat16")
    model = load_model(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training


def test_other_number_of_labels_is_an_error_that_offers_a_new_head(classifier: Path) -> None:
    """A trained head of another size is never cut or stretched."""
    with pytest.raises(ModelError, match=r"has 2 labels \(LABEL_0, LABEL_1\), and 3 are needed.*new_head=True"):
        load_model(classifier, labels=THREE)


def test_other_task_is_an_error_that_offers_a_new_head(tmp_path: Path) -> None:
    """A head trained for several labels at once is not read as one for a single label."""
    _save(tmp_path, problem_type="multi_label_classification")
    with pytest.raises(ModelError, match=r"trained for multi_label_classification, not single_label.*new_head=True"):
        load_model(tmp_path, labels=TWO)


def test_other_order_of_labels_is_an_error(tmp_path: Path) -> None:
    """A head whose labels stand in another order would be read wrongly; the letter case does not matter."""
    _save(tmp_path)
    _edit_config(tmp_path, id2label={"0": "POS", "1": "NEG"}, label2id={"POS": 0, "NEG": 1})
    with pytest.raises(LabelError, match=r"\{0: 'POS', 1: 'NEG'\}, these are \{0: 'neg', 1: 'pos'\}"):
        load_model(tmp_path, labels=TWO)
    _edit_config(tmp_path, id2label={"0": "NEG", "1": "POS"}, label2id={"NEG": 0, "POS": 1})
    assert load_model(tmp_path, labels=TWO).config.id2label == {0: "neg", 1: "pos"}


def _drop_block(weights: dict[str, torch.Tensor]) -> None:
    for name in [name for name in weights if ".layer.1." in name]:
        del weights[name]


def _widen(weights: dict[str, torch.Tensor]) -> None:
    weights["bert.embeddings.word_embeddings.weight"] = torch.zeros(700, 32)


@pytest.mark.parametrize("new_head", [False, True])
@pytest.mark.parametrize(
    ("change", "named"),
    [(_drop_block, "bert.encoder.layer.1.attention"), (_widen, "bert.embeddings.word_embeddings.weight")],
)
def test_a_body_that_does_not_fit_is_never_drawn_at_random(
    tmp_path: Path, change: Any, named: str, new_head: bool
) -> None:
    """Weights of the body that are missing or of another shape are an error that names them."""
    _save(tmp_path)
    _edit_weights(tmp_path, change)
    with pytest.raises(ModelError, match=named):
        load_model(tmp_path, new_head=new_head)


def test_a_head_of_another_shape_than_its_configuration_is_an_error(tmp_path: Path) -> None:
    """A head that does not fit its own config.json is named with both shapes, and new_head=True is offered."""
    _save(tmp_path)
    _edit_weights(tmp_path, lambda weights: weights.update({"classifier.weight": torch.zeros(5, 32)}))
    with pytest.raises(ModelError, match=r"classifier\.weight \(5, 32\), not \(2, 32\).*new_head=True"):
        load_model(tmp_path)
    assert load_model(tmp_path, new_head=True).get_parameter("classifier.weight").shape == (2, 32)


def test_a_pooler_may_be_new(tmp_path: Path) -> None:
    """A masked LM has no pooler: it is drawn with the head, and the rest is the checkpoint's."""
    config = AutoConfig.for_model(
        "bert", hidden_size=8, num_attention_heads=2, num_hidden_layers=2, intermediate_size=8, vocab_size=20
    )
    auto: Any = AutoModelForMaskedLM
    auto.from_config(config).save_pretrained(tmp_path)
    assert isinstance(load_model(tmp_path, labels=TWO).get_submodule("bert.pooler.dense"), nn.Linear)


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_decoders_get_their_pad_token_from_the_tokenizer(
    arch: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where neither config nor tokenizer knows a pad token, the end token pads, and a warning says so."""
    _save(tmp_path, arch)
    _edit_config(tmp_path, pad_token_id=None)
    file = tmp_path / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"pad_token": None}))
    with caplog.at_level(logging.WARNING, logger="lowft"):
        assert load_tokenizer(tmp_path).pad_token == "[SEP]"
    assert "no pad token: its end token '[SEP]' is used to pad" in caplog.text
    model = load_model(tmp_path)
    assert model.config.pad_token_id == load_tokenizer(tmp_path).pad_token_id == 3
    assert model(**tiny_batch(arch)).logits.shape == (4, 2)


def test_a_tokenizer_that_cannot_pad_is_an_error(tmp_path: Path) -> None:
    """Without a pad token and an end token, texts cannot share a batch."""
    tiny_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"pad_token": None, "eos_token": None}))
    with pytest.raises(ModelError, match="neither a pad token nor an end token"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("arch", ["bert", "llama", "t5"])
def test_a_missing_vocabulary_is_an_error(arch: str, tmp_path: Path) -> None:
    """A folder without tokenizer files is refused, though transformers would make up an empty vocabulary."""
    tiny_model(arch).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"holds no vocabulary|cannot be loaded"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_mistyped_path_suggests_its_neighbour(load: Any, classifier: Path) -> None:
    """A path that does not exist is an error with the names that come near, and no hub is asked."""
    wrong = classifier.with_name(classifier.name + "x")
    with pytest.raises(ModelError, match=rf"is not a folder\. Did you mean {classifier}"):
        load(str(wrong))
    with pytest.raises(ModelError, match=r"'./nothing/like/it' is not a folder. Check the path"):
        load("./nothing/like/it")
    with pytest.raises(ModelError, match="is not a folder"):
        load(Path("bert-base"))
    with pytest.raises(ModelError, match=r"is a file. Give the folder"):
        load(classifier / "config.json")


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_hub_id_without_a_connection_says_what_to_do(load: Any) -> None:
    """Offline, a hub id that is not cached is an error that tells how to bring the folder here."""
    with pytest.raises(ModelError, match=r"no folder 'nobody/nothing' here.*hf download nobody/nothing --local-dir"):
        load("nobody/nothing")


class _Planted:
    """Unpickling this writes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pytorch_model.bin", r"only pickled weights \(pytorch_model\.bin\).*save_file"),
        ("model.safetensors", "cannot be loaded"),
    ],
)
def test_a_pickle_is_never_opened(tmp_path: Path, name: str, message: str) -> None:
    """Pickled weights are refused under either name, and what they would run does not run."""
    _save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    planted = tmp_path / "planted"
    (tmp_path / name).write_bytes(pickle.dumps(_Planted(planted)))
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path)
    assert not planted.exists()


def test_the_advice_on_pickles_works(tmp_path: Path) -> None:
    """The command that the message gives makes a folder that loads."""
    _save(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError) as caught:
        load_model(tmp_path)
    program = str(caught.value).partition('python -c "')[2].rstrip('"')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        exec(program, {})  # noqa: S102 - the words of our own message
    batch = tiny_batch("bert")
    assert torch.equal(load_model(tmp_path)(**batch).logits, tiny_model("bert")(**batch).logits)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_folder_with_code_of_its_own_is_refused(tmp_path: Path, file: str) -> None:
    """auto_map asks for Python code from the folder: it is refused and the code does not run."""
    _save(tmp_path)
    planted = tmp_path / "planted"
    (tmp_path / "evil.py").write_text(f"open({str(planted)!r}, 'w')\n")
    settings = json.loads((tmp_path / file).read_text())
    key = "AutoConfig" if file == "config.json" else "AutoTokenizer"
    (tmp_path / file).write_text(json.dumps(settings | {"auto_map": {key: "evil.Evil"}}))
    with pytest.raises(ModelError, match=r"wants to run Python code of its own .*evil\.Evil"):
        (load_model if file == "config.json" else load_tokenizer)(tmp_path)
    assert not planted.exists()


def test_folders_that_are_no_models_are_told_apart(tmp_path: Path, classifier: Path) -> None:
    """No configuration, an adapter, no weights, a quantized or unknown model: each has its own message."""
    with pytest.raises(ModelError, match=r"has no config\.json.*it holds nothing"):
        load_model(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="is an adapter, not a model"):
        load_model(tmp_path)
    shutil.copy(classifier / "config.json", tmp_path)
    with pytest.raises(ModelError, match=r"has no weights \(model.safetensors\); it holds adapter_config.json"):
        load_model(tmp_path)
    _edit_config(tmp_path, quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(ModelError, match="is quantized already"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(ModelError, match=r"cannot be loaded. ValueError: .*no-such-model"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(tmp_path)


def test_real_encoder(minilm_path: Path) -> None:
    """all-MiniLM-L6-v2 loads with a new head; its six blocks are found, and its top two can train alone."""
    model = load_model(minilm_path, labels=TWO)
    layers = find_layers(model)
    assert layers.blocks == tuple(f"bert.encoder.layer.{i}" for i in range(6))
    assert layers.head == ("bert.pooler", "classifier")
    assert sum(p.numel() for p in model.base_model.parameters()) == 22_713_216
    names = freeze_(model, top=2, layers=layers)
    block = 1_774_464
    assert sum(model.get_parameter(name).numel() for name in names) == 2 * block + 384 * 385 + 2 * 385
    tokenizer = load_tokenizer(minilm_path)
    logits = model(**tokenizer(["A fine film.", "Dull."], padding=True, return_tensors="pt")).logits
    assert logits.shape == (2, 2)
