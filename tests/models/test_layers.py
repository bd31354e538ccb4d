from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from lowft.errors import ConfigError, ModelError
from lowft.models.layers import Layers, find_layers, layer_table
from tests.tiny import ARCHITECTURES, tiny_model

BLOCKS = {
    "albert": ("albert.encoder.albert_layer_groups.0",),
    "bert": tuple(f"bert.encoder.layer.{i}" for i in range(3)),
    "deberta-v2": tuple(f"deberta.encoder.layer.{i}" for i in range(3)),
    "distilbert": tuple(f"distilbert.transformer.layer.{i}" for i in range(3)),
    "electra": tuple(f"electra.encoder.layer.{i}" for i in range(3)),
    "gpt2": tuple(f"transformer.h.{i}" for i in range(3)),
    "llama": tuple(f"model.layers.{i}" for i in range(3)),
    "modernbert": tuple(f"model.layers.{i}" for i in range(3)),
    "mpnet": tuple(f"mpnet.encoder.layer.{i}" for i in range(3)),
    "roberta": tuple(f"roberta.encoder.layer.{i}" for i in range(3)),
    "t5": tuple(f"transformer.{side}.block.{i}" for side in ("encoder", "decoder") for i in range(3)),
}
T5_BIAS = "block.0.layer.0.SelfAttention.relative_attention_bias"
EMBEDDINGS = {
    "albert": ("albert.embeddings", "albert.encoder.embedding_hidden_mapping_in"),
    "bert": ("bert.embeddings",),
    "deberta-v2": ("deberta.embeddings", "deberta.encoder.rel_embeddings", "deberta.encoder.LayerNorm"),
    "distilbert": ("distilbert.embeddings",),
    "electra": ("electra.embeddings", "electra.embeddings_project"),
    "gpt2": ("transformer.wte", "transformer.wpe"),
    "llama": ("model.embed_tokens",),
    "modernbert": ("model.embeddings",),
    "mpnet": ("mpnet.embeddings", "mpnet.encoder.relative_attention_bias"),
    "roberta": ("roberta.embeddings",),
    "t5": ("transformer.shared", f"transformer.encoder.{T5_BIAS}", f"transformer.decoder.{T5_BIAS}"),
}
HEAD = {
    "albert": ("albert.pooler", "classifier"),
    "bert": ("bert.pooler", "classifier"),
    "deberta-v2": ("pooler", "classifier"),
    "distilbert": ("pre_classifier", "classifier"),
    "electra": ("classifier",),
    "gpt2": ("transformer.ln_f", "score"),
    "llama": ("model.norm", "score"),
    "modernbert": ("model.final_norm", "head", "classifier"),
    "mpnet": ("classifier",),
    "roberta": ("classifier",),
    "t5": ("transformer.decoder.final_layer_norm", "classification_head"),
}
NORMS = {"albert": 3, "deberta-v2": 8, "modernbert": 8, "t5": 17}


class Residual(nn.Module):
    """A block of a hand-written model."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + torch.relu(self.up(self.norm(hidden)))


class Custom(nn.Module):
    """A hand-written model whose registration order is not its order of execution."""

    def __init__(self, blocks: nn.Module, *, fails: bool = False) -> None:
        super().__init__()
        self.head = nn.Linear(8, 2)
        self.blocks = blocks
        self.last_norm = nn.LayerNorm(8)
        self.widen = nn.Linear(4, 8)
        self.table = nn.Embedding(10, 4)
        self.scale = nn.Parameter(torch.ones(8))
        self.drop = nn.Dropout(0.5)
        self.fails = fails

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.drop(self.widen(self.table(ids)) * self.scale)
        if self.fails:
            raise RuntimeError
        for block in self.blocks.children():
            hidden = block(hidden)
        logits: torch.Tensor = self.head(self.last_norm(hidden).mean(1))
        return logits


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_layers_of_every_architecture(arch: str) -> None:
    """Embeddings, blocks, head, norms and sharing are found in each of the eleven architectures."""
    layers = find_layers(tiny_model(arch))
    assert layers.blocks == BLOCKS[arch]
    assert layers.embeddings == EMBEDDINGS[arch]
    assert layers.head == HEAD[arch]
    assert len(layers.norms) == NORMS.get(arch, 7)
    assert layers.shared == (arch == "albert")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_parameter_has_one_depth(arch: str) -> None:
    """`depths` holds each parameter once, and the depths partition the parameters."""
    model = tiny_model(arch)
    layers = find_layers(model)
    names = [name for name, _ in model.named_parameters()]
    assert sorted(layers.depths) == sorted(names)
    by_depth = [name for depth in range(layers.num_blocks + 2) for name in layers.names_at(depth)]
    assert sorted(by_depth) == sorted(names)
    assert all(layers.names_at(depth) for depth in range(layers.num_blocks + 2))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gradients_stop_where_the_depths_say(arch: str) -> None:
    """With everything below a depth frozen, the loss still reaches every parameter above it, and no other."""
    model = tiny_model(arch)
    layers = find_layers(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(layers.depths[name] >= layers.num_blocks)
    ids = torch.tensor([[5, 6, 7, 3]])
    model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.tensor([1])).loss.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {name for name, depth in layers.depths.items() if depth >= layers.num_blocks}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_model_is_left_as_it_was(arch: str) -> None:
    """Weights, training flags, gradients, hooks and the random state survive the look at the layers."""
    model = tiny_model(arch)
    model.train()
    next(model.children()).eval()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    find_layers(model)
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_between_encoder_and_decoder_belongs_to_the_block_below() -> None:
    """T5's norm after its encoder has the depth of the last encoder block."""
    layers = find_layers(tiny_model("t5"))
    assert layers.depths["transformer.encoder.final_layer_norm.weight"] == 3


def test_position_table_handed_to_the_blocks_is_an_embedding() -> None:
    """DeBERTa's relative positions are depth 0 also where only the blocks touch the table."""
    layers = find_layers(tiny_model("deberta-v2", norm_rel_ebd="none"))
    assert layers.depths["deberta.encoder.rel_embeddings.weight"] == 0


def test_a_single_block_is_still_a_block() -> None:
    """A model cut down to one block keeps the same three parts."""
    for arch in ("bert", "distilbert", "gpt2"):
        layers = find_layers(tiny_model(arch, num_layers=1))
        assert layers.blocks == BLOCKS[arch][:1]
        assert layers.head == HEAD[arch]
    t5 = find_layers(tiny_model("t5", num_layers=1))
    assert t5.blocks == ("transformer.encoder.block.0", "transformer.decoder.block.0")


@pytest.mark.parametrize("container", [nn.ModuleList, lambda blocks: nn.Sequential(*blocks)])
def test_custom_model_is_read_in_order_of_execution(container: Any) -> None:
    """A hand-written model's layers follow what runs when, not what was registered when."""
    layers = find_layers(Custom(container([Residual() for _ in range(3)])))
    assert layers.blocks == ("blocks.0", "blocks.1", "blocks.2")
    assert set(layers.embeddings) == {"table", "widen", "scale"}
    assert set(layers.head) == {"head", "last_norm"}
    assert layers.norms == ("blocks.0.norm", "blocks.1.norm", "blocks.2.norm", "last_norm")
    assert layers.plain == {"drop": 0}


def test_registration_decides_where_the_model_cannot_run() -> None:
    """If the tiny forward pass fails, what is registered before the blocks is below them, the rest above."""
    layers = find_layers(Custom(nn.ModuleList(Residual() for _ in range(3)), fails=True))
    assert layers.blocks == ("blocks.0", "blocks.1", "blocks.2")
    assert layers.depths["head.weight"] == 0
    assert layers.depths["last_norm.weight"] == 4
    assert layers.depths["table.weight"] == 0
    assert layers.plain == {}


def test_sharing_is_declared_where_the_model_cannot_run() -> None:
    """Without a forward pass, a configuration with more layers than there are blocks means shared weights."""
    model = tiny_model("albert")
    encoder = model.get_submodule("albert.encoder")
    encoder.embedding_hidden_mapping_in = nn.Linear(1, 32)  # fits no hidden state: the forward fails
    assert find_layers(model).shared


def test_one_block_listed_many_times_is_shared() -> None:
    """A block that a ModuleList repeats by reference counts once; all names of its weights have its depth."""

    class Loop(Custom):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            hidden = self.widen(self.table(ids))
            for block in self.blocks:  # type: ignore[attr-defined]
                hidden = block(hidden)
            logits: torch.Tensor = self.head(hidden)
            return logits

    block = Residual()
    layers = find_layers(Loop(nn.ModuleList([block] * 4)))
    assert layers.shared
    assert layers.blocks == ("blocks.0",)
    assert layers.tied["blocks.3.up.weight"] == layers.depths["blocks.0.up.weight"] == 1


def test_tied_output_embedding_is_listed_at_both_depths() -> None:
    """A weight that is both word embedding and output layer has depth 0, and `tied` names its two places."""
    config = AutoConfig.for_model("gpt2", n_embd=8, n_head=2, n_layer=2, vocab_size=20, n_positions=16)
    auto: Any = AutoModelForCausalLM
    layers = find_layers(auto.from_config(config))
    assert layers.depths["transformer.wte.weight"] == 0
    assert layers.tied == {"transformer.wte.weight": 0, "lm_head.weight": 3}


def test_masked_language_model_head_is_above_the_blocks() -> None:
    """The prediction head of a masked LM is the head; its tied bias stays there."""
    config = AutoConfig.for_model(
        "bert", hidden_size=8, num_attention_heads=2, num_hidden_layers=2, intermediate_size=8, vocab_size=20
    )
    auto: Any = AutoModelForMaskedLM
    layers = find_layers(auto.from_config(config))
    assert layers.head == ("cls",)
    assert layers.tied["cls.predictions.decoder.weight"] == 3


def _wrapped_data_parallel(model: PreTrainedModel) -> nn.Module:
    return nn.DataParallel(model)


def _wrapped_compile(model: PreTrainedModel) -> nn.Module:
    compiled = torch.compile(model)
    assert isinstance(compiled, nn.Module)
    return compiled


@pytest.mark.parametrize(("wrap", "prefix"), [(_wrapped_data_parallel, "module."), (_wrapped_compile, "_orig_mod.")])
def test_wrapped_models_keep_their_layers(wrap: Any, prefix: str) -> None:
    """A data-parallel or compiled model has the same depths under prefixed names."""
    model = tiny_model("bert")
    plain = find_layers(model)
    layers = find_layers(wrap(model))
    assert layers.depths == {f"{prefix}{name}": depth for name, depth in plain.depths.items()}


def test_a_copy_of_a_head_that_never_runs_stands_beside_the_one_that_does() -> None:
    """A parameter that the forward pass leaves out takes its neighbours' depth (PEFT keeps the old head)."""

    class Kept(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.original, self.active = inner, copy.deepcopy(inner)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.active(hidden)
            return out

    model = Custom(nn.ModuleList(Residual() for _ in range(2)))
    model.widen = Kept(model.widen)  # type: ignore[assignment]
    model.head = Kept(model.head)  # type: ignore[assignment]
    layers = find_layers(model)
    assert layers.depths["head.original.weight"] == 3
    assert layers.depths["widen.original.weight"] == 0


def test_the_heaviest_stack_is_the_blocks() -> None:
    """A list of small experts inside the blocks, or a deep head, is not mistaken for the blocks."""

    class Experts(Residual):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(Residual() for _ in range(3))

    model = Custom(nn.ModuleList(Experts() for _ in range(2)))
    deep = (nn.Linear(8, 8) for _ in range(20))
    model.head = nn.Sequential(*deep, nn.Linear(8, 2))  # type: ignore[assignment]
    layers = find_layers(model)
    assert layers.blocks == ("blocks.0", "blocks.1")
    assert layers.depths["head.3.weight"] == 3
    assert layers.depths["blocks.1.experts.2.up.bias"] == 2


def test_lists_of_lists_are_one_stack() -> None:
    """Blocks that stand in groups (a list of lists) are numbered through."""

    class Grouped(Custom):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            hidden = self.widen(self.table(ids))
            for group in self.blocks.children():
                for block in group.children():
                    hidden = block(hidden)
            logits: torch.Tensor = self.head(hidden)
            return logits

    groups = nn.ModuleList(nn.ModuleList(Residual() for _ in range(size)) for size in (1, 3, 2))
    layers = find_layers(Grouped(groups))
    assert layers.blocks == ("blocks.0.0", "blocks.1.0", "blocks.1.1", "blocks.1.2", "blocks.2.0", "blocks.2.1")
    assert not layers.shared


def test_no_blocks_is_an_error_that_says_what_is_there() -> None:
    """A model without repeated modules is refused with what it holds and what to do."""
    with pytest.raises(ModelError, match=r"no blocks.*It holds 1 Linear, 1 ReLU.*nn\.ModuleList"):
        find_layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    with pytest.raises(ModelError, match="ReLU has no parameters"):
        find_layers(nn.ReLU())


@pytest.mark.parametrize("depth", [-1, 5])
def test_depth_outside_the_model_is_an_error(depth: int) -> None:
    """`names_at` names the range of depths and the value received."""
    with pytest.raises(ConfigError, match=rf"0 \(embeddings\) to 4 \(head\).*3 blocks, not {depth}"):
        find_layers(tiny_model("bert")).names_at(depth)


@given(widths=st.lists(st.integers(1, 6), min_size=1, max_size=5), extra=st.integers(0, 3))
def test_any_stack_of_blocks_is_numbered_bottom_to_top(widths: list[int], extra: int) -> None:
    """However many blocks, and however unequal inside (pruned), they have depths 1 to L."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.down, self.up = nn.Linear(8, width), nn.Linear(width, 8)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            raised: torch.Tensor = self.up(self.down(hidden))
            return hidden + raised

    model = Custom(nn.ModuleList(Block(width) for width in widths))
    layers = find_layers(model)
    assert layers.num_blocks == len(widths)
    for depth in range(1, len(widths) + 1):
        assert all(name.startswith(f"blocks.{depth - 1}.") for name in layers.names_at(depth))
    assert set(layers.names_at(0)) == {"table.weight", "widen.weight", "widen.bias", "scale"}


def test_table_adds_up() -> None:
    """The table's last row holds the model's parameters, those that train, and their size."""
    model = tiny_model("bert")
    model.get_submodule("classifier").requires_grad_(False)
    lines = layer_table(model).splitlines()
    assert lines[0].split() == ["depth", "module", "parameters", "trainable", "size"]
    assert lines[-1].split() == ["total", "50.2", "k", "50.1", "k", "201", "kB"]
    assert next(line for line in lines if "classifier" in line).split() == [
        "4",
        "classifier",
        "66",
        "0",
        "264",
        "B",
    ]


def test_table_takes_known_layers() -> None:
    """Layers that are passed in are used as they are."""
    model = Custom(nn.ModuleList(Residual() for _ in range(2)))
    layers = find_layers(model)
    moved = Layers(**{**vars(layers), "depths": {**layers.depths, "scale": 3}})
    assert "\n3      scale" in layer_table(model, moved)
