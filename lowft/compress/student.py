"""Students built from a teacher: the same architecture with fewer layers, which begin as copies of the teacher's."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from lowft._alignment import align_
from lowft._placement import device_of
from lowft._settings import check_choice, check_whole
from lowft.errors import ConfigError, ModelError
from lowft.models.layers import find_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["choose_layers", "make_student", "say_layers_"]

_PATTERN_OF_LAYERS = ("layer_types", "mlp_layer_types")  # entries of a config with one value for each layer


def make_student(
    teacher: PreTrainedModel,
    layers: int | Sequence[int],
    *,
    keep: Literal["even", "top", "bottom"] = "even",
) -> PreTrainedModel:
    """Build a smaller model that keeps some of a teacher's layers, with their weights, its embeddings and its head.

    The student is an ordinary model of the teacher's class whose config says how many layers there are, so plain
    transformers loads what you save of it. A model with an encoder and a decoder keeps the same layers of both. That
    copied layers make a better start than random ones is from Sanh et al. 2019 (*DistilBERT*, section 2,
    https://arxiv.org/abs/1910.01108); Sajjad et al. 2023 (*On the Effect of Dropping Layers of Pre-trained Transformer
    Models*, https://arxiv.org/abs/2004.03844) found keeping the bottom layers best for most tasks.

    Args:
        teacher: A model of transformers; it is not changed.
        layers: How many layers to keep, or their numbers, from 0 at the bottom.
        keep: Which ones, where you gave their count: "even" takes the first, the last and those evenly between them.

    Raises:
        ConfigError: `layers` or `keep` is not one of those, or there are not so many layers.
        ModelError: The layers share their weights, as ALBERT's do, or the model cannot do without one that you left
            out.

    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> config = BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=6, intermediate_size=8)
    >>> student = make_student(BertForSequenceClassification(config), 3)
    >>> student.config.num_hidden_layers, len(student.bert.encoder.layer)
    (3, 3)
    """
    from transformers import PreTrainedModel

    if not isinstance(teacher, PreTrainedModel):
        raise ModelError(
            f"make_student needs a model of transformers, whose config says how many layers there are; received "
            f"{type(teacher).__name__}"
        )
    found = find_layers(teacher)
    if found.shared:
        raise ModelError(
            f"the layers of {type(teacher).__name__} share their weights: leaving some out makes the model faster but "
            f"no smaller, and is a matter of config.num_hidden_layers alone"
        )
    stacks = sorted({name.rpartition(".")[0] for name in found.blocks})
    total = min(sum(name.rpartition(".")[0] == stack for name in found.blocks) for stack in stacks)
    kept = choose_layers(layers, keep, total)
    config = copy.deepcopy(teacher.config)
    say_layers_(config, kept)
    with torch.random.fork_rng(devices=[]):  # the random weights are replaced: the caller's stream goes on unmoved
        student: Any = type(teacher)(config)
    student.load_state_dict(_weights(teacher, student, stacks, kept), strict=True)
    student.to(device_of(teacher)).train(teacher.training)
    align_(student)
    made: PreTrainedModel = student
    return made


def choose_layers(layers: int | Sequence[int], keep: str, total: int) -> list[int]:
    """Return the numbers of the layers to keep, in order."""
    check_choice("keep", keep, ("even", "top", "bottom"))
    if isinstance(layers, Sequence) and not isinstance(layers, str):
        kept = list(layers)
        whole = all(isinstance(number, int) and not isinstance(number, bool) for number in kept)
        if not kept or not whole or kept != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= total:
            raise ConfigError(f"layers must be rising numbers from 0 to {total - 1}, each once; received {layers!r}")
        return kept
    check_whole("layers", layers, least=1)
    count = int(layers)
    if count > total:
        raise ConfigError(f"layers must be at most {total}, the layers of the teacher; received {layers!r}")
    if keep == "top":
        return list(range(total - count, total))
    if keep == "bottom" or count == 1:
        return list(range(count))
    return [round(place * (total - 1) / (count - 1)) for place in range(count)]


def say_layers_(config: Any, kept: Sequence[int]) -> None:
    """Let a configuration say that only the layers with the numbers `kept` are left."""
    for name in _PATTERN_OF_LAYERS:
        pattern = getattr(config, name, None)
        if isinstance(pattern, list):
            setattr(config, name, [pattern[number] for number in kept])
    config.num_hidden_layers = len(kept)
    if getattr(config, "is_encoder_decoder", False):
        config.num_decoder_layers = len(kept)


def _weights(teacher: Any, student: Any, stacks: Sequence[str], kept: Sequence[int]) -> dict[str, torch.Tensor]:
    """Return the student's weights: those of the teacher, under the numbers that the layers now have."""
    theirs = teacher.state_dict()
    numbered = re.compile(rf"({'|'.join(map(re.escape, stacks))})\.(\d+)\.(.*)")
    weights = {}
    for name, own in student.state_dict().items():
        match = numbered.fullmatch(name)
        source = f"{match[1]}.{kept[int(match[2])]}.{match[3]}" if match else name
        if source not in theirs and match and name in theirs:
            source = name  # what only the lowest layer has and all use, such as T5's relative positions
        if source not in theirs or theirs[source].shape != own.shape:
            raise ModelError(
                f"{type(teacher).__name__} has {name!r} in its layer {match[2] if match else '?'}, and layer "
                f"{kept[int(match[2])] if match else '?'} has nothing to fill it with: keep layer 0"
            )
        weights[name] = theirs[source]
    unused = [name for name in theirs if (match := numbered.fullmatch(name)) and int(match[2]) in kept]
    placed = {f"{m[1]}.{kept[int(m[2])]}.{m[3]}" for name in weights if (m := numbered.fullmatch(name))}
    if lost := sorted(set(unused) - placed):
        raise ModelError(
            f"layer {numbered.fullmatch(lost[0])[2]} of {type(teacher).__name__} "  # type: ignore[index] # it matched
            f"cannot become the lowest one, which has no {lost[0]!r}: keep layer 0"
        )
    return weights
