"""Which parameters train: chosen by depth, kind and name pattern, applied in place, or only previewed.

Frozen means `requires_grad=False` and no gradient, so that an optimizer leaves the parameter byte-identical
and keeps no state for it. Its module also belongs in eval mode: there dropout and norms stand still.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack

from torch import nn

from lowft._settings import check_flag
from lowft.errors import ConfigError, ModelError
from lowft.models.layers import Layers, find_layers, prefixes, table_of

__all__ = [
    "Selection",
    "freeze_",
    "preview",
    "set_train_mode_",
    "set_trainable_",
    "similar",
    "trainable_names",
]


class Selection(TypedDict, total=False):
    """The settings of `trainable_names` that choose what trains, all of them optional and JSON values."""

    top: int | None
    embeddings: bool | None
    head: bool
    biases_only: bool
    train: Sequence[str]
    freeze: Sequence[str]


def trainable_names(
    model: nn.Module,
    *,
    top: int | None = None,
    embeddings: bool | None = None,
    head: bool = True,
    biases_only: bool = False,
    train: Sequence[str] = (),
    freeze: Sequence[str] = (),
    layers: Layers | None = None,
) -> frozenset[str]:
    """Return the names of the parameters that a selection trains; the model is not changed.

    | to train | write |
    | --- | --- |
    | everything | nothing |
    | the head only | `top=0` |
    | the two top blocks and the head | `top=2` |
    | everything but the embeddings | `embeddings=False` |
    | biases and the head (BitFit) | `biases_only=True` |
    | all attention, and the head | `train=("*.attention.*",)` |
    | the two top blocks and the head, without their norms | `top=2, freeze=("*LayerNorm*",)` |

    Args:
        model: The model to choose from.
        top: Train this many of the uppermost blocks, 0 to L, instead of all parameters.
        embeddings: Train the embeddings. By default they train where neither `top` nor `train` narrows the
            choice.
        head: Train everything after the last block.
        biases_only: Of what is chosen below the head, train only the biases (Ben Zaken et al. 2022,
            https://arxiv.org/abs/2106.10199).
        train: Glob patterns of parameters that train besides the head and what the other settings choose.
            Without `top` and `biases_only`, nothing else below the head trains.
        freeze: Glob patterns of parameters that do not train, whatever else is said.
        layers: The model's layers, if they are known already.

    A pattern is matched against whole names, case-sensitively, of parameters (`*.bias`) and of modules
    (`bert.encoder.layer.1`: all in it). `freeze`, `embeddings=False` and `head=False` win over the rest.

    Raises:
        ConfigError: `top` is not in 0 to L, a setting is of another type, a pattern matches nothing, nothing is
            left to train, or two settings contradict each other.
        ModelError: The layers cannot be found, or a tied weight would train in one place and not in another.

    >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    >>> sorted(trainable_names(model, top=1, freeze=["3.weight"]))
    ['2.bias', '2.weight', '3.bias']
    """
    check_flag("head", head)
    check_flag("biases_only", biases_only)
    if embeddings is not None:
        check_flag("embeddings", embeddings)
    layers = layers or find_layers(model)
    blocks = layers.num_blocks
    _check_top(top, blocks)
    places = _places(model, layers)
    added = {f"train={p!r}": _matches("train", p, places) for p in _patterns("train", train)}
    removed = {f"freeze={p!r}": _matches("freeze", p, places) for p in _patterns("freeze", freeze)}

    narrowed = top is not None or (bool(train) and not biases_only)
    lowest = blocks + 1 - (top or 0) if narrowed else 1
    bottom = {place for place in places if place.depth == 0}
    middle = {place for place in places if lowest <= place.depth <= blocks}
    upper = {place for place in places if place.depth > blocks}

    if embeddings is False:
        removed["embeddings=False"] = bottom
    if not head:
        removed["head=False"] = upper
    asked = dict(added)
    if embeddings:
        asked["embeddings=True"] = bottom
    if top:
        asked[f"top={top}"] = middle
    body = middle | bottom if (not narrowed if embeddings is None else embeddings) else middle
    if biases_only:
        body = {place for place in body if place.is_bias}
        if not body:
            raise ConfigError(
                f"biases_only=True finds no bias in what the other settings choose below the head of "
                f"{type(model).__name__}. Choose more blocks, or leave it out: T5, Llama and ModernBERT have none."
            )
        asked["biases_only=True"] = body
    frozen = set().union(*removed.values())
    _check_contradictions(asked, removed, frozen)
    chosen = (body | upper).union(*added.values()) - frozen
    if not chosen:
        raise ConfigError(
            f"The selection leaves nothing to train in {type(model).__name__}: what top and train choose is "
            f"frozen by {', '.join(removed)}. Let the head train, or give top=1 or more."
        )
    _check_ties(places, chosen)
    return frozenset(place.parameter for place in chosen)


def freeze_(model: nn.Module, *, layers: Layers | None = None, **selection: Unpack[Selection]) -> frozenset[str]:
    """Train what `selection` chooses and freeze the rest, in place.

    Args:
        model: The model to edit: `requires_grad` is set everywhere, gradients of frozen parameters dropped.
        layers: Its layers, if they are known already.
        **selection: The settings of `trainable_names`.

    Returns:
        The names of the parameters that train.

    Raises:
        ConfigError: As `trainable_names`; the model is then unchanged.
        ModelError: As `trainable_names`; the model is then unchanged.

    >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    >>> sorted(freeze_(model, top=0)), model[2].weight.requires_grad
    (['3.bias', '3.weight'], False)
    """
    names = trainable_names(model, layers=layers, **selection)
    set_trainable_(model, names)
    return names


def preview(model: nn.Module, *, layers: Layers | None = None, **selection: Unpack[Selection]) -> str:
    """Show what `freeze_` would train, as the table of `layer_table`; the model is not changed.

    Args:
        model: The model to look at.
        layers: Its layers, if they are known already.
        **selection: The settings of `trainable_names`.

    Raises:
        ConfigError: As `trainable_names`.
        ModelError: As `trainable_names`.

    >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    >>> print(preview(model, top=1))
    depth  module  parameters  trainable  size
    -----  ------  ----------  ---------  -----
    0      0               36          0  144 B
    1      1               20          0   80 B
    2      2               20         20   80 B
    3      3               10         10   40 B
           total           86         30  344 B
    """
    layers = layers or find_layers(model)
    return table_of(model, layers, trainable_names(model, layers=layers, **selection))


def set_trainable_(model: nn.Module, names: Collection[str]) -> None:
    """Train exactly the named parameters, in place; the gradients of all others are dropped.

    Args:
        model: The model to edit.
        names: Names of `model.named_parameters()`; a tied parameter trains if any of its names is given.

    Raises:
        ConfigError: `names` is empty.
        ModelError: A name is not a parameter of the model, or its values are integers, which cannot train.

    >>> model = nn.Linear(2, 2)
    >>> set_trainable_(model, {"bias"})
    >>> model.weight.requires_grad, model.bias.requires_grad
    (False, True)
    """
    if not names:
        raise ConfigError("names is empty, so nothing would train. Give at least one parameter's name.")
    named = dict(model.named_parameters(remove_duplicate=False))
    for name in names:
        if name not in named:
            raise ModelError(f"{type(model).__name__} has no parameter {name!r}.{similar(name, named)}")
        if not _can_train(named[name]):
            raise ModelError(f"{name} holds {named[name].dtype} and cannot train: leave it out of names.")
    training = {named[name] for name in names}
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in training)
        if parameter not in training:
            parameter.grad = None


def set_train_mode_(model: nn.Module, layers: Layers | None = None) -> None:
    """Put `model` in training mode, but its frozen modules in eval mode: their dropout and norms stand still.

    A module is frozen if it has parameters and none of them trains; everything in it follows. With `layers`,
    so do modules without parameters below the lowest layer that trains (dropout after GPT-2's embeddings).

    Args:
        model: The model to edit; call this wherever a loop calls `model.train()`.
        layers: Its layers, from `find_layers`.

    >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    >>> _ = freeze_(model, top=0)
    >>> set_train_mode_(model)
    >>> [module.training for module in model]
    [False, False, False, True]
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
    if layers is None:
        return
    lowest = min((layers.depths[n] for n, p in model.named_parameters() if p.requires_grad), default=0)
    for name, depth in layers.plain.items():
        if depth < lowest:
            model.get_submodule(name).eval()


@dataclass(frozen=True)
class _Place:
    """A parameter where it is used: a weight that is tied across depths has several places."""

    parameter: str
    depth: int
    names: tuple[str, ...]

    @property
    def is_bias(self) -> bool:
        """Tell whether this is a bias (`bias`, `in_proj_bias`, `bias_ih_l0`)."""
        own = self.parameter.rpartition(".")[2]
        return own.startswith("bias") or own.endswith("bias")


def _places(model: nn.Module, layers: Layers) -> list[_Place]:
    """List where each parameter that can train is used."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if _can_train(parameter):
            names.setdefault(parameter, []).append(name)
    places = []
    for first, *others in names.values():
        depths: dict[int, list[str]] = {}
        for name in (first, *others):
            depths.setdefault(layers.tied[name] if others else layers.depths[name], []).append(name)
        places += [_Place(first, depth, tuple(group)) for depth, group in depths.items()]
    return places


def _can_train(parameter: nn.Parameter) -> bool:
    return parameter.is_floating_point() or parameter.is_complex()


def _patterns(setting: str, patterns: Sequence[str]) -> Sequence[str]:
    """Return `patterns` once they are known to be a sequence of texts."""
    if isinstance(patterns, str):
        raise ConfigError(f"{setting} must be a sequence of patterns, not a text: write {setting}=({patterns!r},).")
    if not isinstance(patterns, Collection):
        raise ConfigError(f"{setting} must be a sequence of glob patterns, not {patterns!r}.")
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern:
            raise ConfigError(f"{setting} must hold non-empty glob patterns, not {pattern!r}.")
    return patterns


def _matches(setting: str, pattern: str, places: Iterable[_Place]) -> set[_Place]:
    """Return the places whose parameter, or a module around it, is called as `pattern` says."""
    fits = re.compile(fnmatch.translate(pattern)).match
    found = {p for p in places if any(fits(prefix) for name in p.names for prefix in prefixes(name))}
    if not found:
        names = [name for place in places for name in place.names]
        raise ConfigError(f"{setting}={pattern!r} matches no parameter and no module.{similar(pattern, names)}")
    return found


def similar(wanted: str, names: Iterable[str]) -> str:
    """Word the names that come near `wanted`, as a whole or in one of their parts."""
    known = {prefix.lower(): prefix for name in names for prefix in prefixes(name)}
    part_of = {part: name for name in reversed(known) for part in name.split(".")}
    near = difflib.get_close_matches(wanted.lower(), known, n=3, cutoff=0.7)
    for word in re.split(r"[^a-z0-9_]+", wanted.lower()):
        near += [part_of[part] for part in difflib.get_close_matches(word, part_of, n=2, cutoff=0.7)]
    listed = list(dict.fromkeys(known[name] for name in near)) or [known[name] for name in list(known)[:5]]
    return f" Names that come near: {', '.join(listed[:6])}. find_layers(model).depths has them all."


def _check_top(top: int | None, blocks: int) -> None:
    if top is None:
        return
    if isinstance(top, bool) or not isinstance(top, int) or not 0 <= top <= blocks:
        raise ConfigError(f"top must be a whole number from 0 (head only) to {blocks} (all blocks here), not {top!r}.")


def _check_contradictions(
    asked: Mapping[str, set[_Place]], removed: Mapping[str, set[_Place]], frozen: set[_Place]
) -> None:
    """Refuse a setting whose every parameter another setting freezes."""
    for wish, places in asked.items():
        if places and places <= frozen:
            against = [setting for setting, gone in removed.items() if gone & places]
            raise ConfigError(
                f"{wish} contradicts {' and '.join(against)}: all that the first chooses, the other freezes. "
                "Leave one of them out."
            )


def _check_ties(places: Iterable[_Place], chosen: set[_Place]) -> None:
    """Refuse a selection under which one weight trains in one place and is frozen in another."""
    trains = {place.parameter: place for place in chosen}
    for place in places:
        other = trains.get(place.parameter)
        if other is not None and place not in chosen:
            raise ModelError(
                f"{place.names[0]} and {other.names[0]} are one tied weight, but the selection freezes the "
                f"first and trains the second. Train both (train=({place.names[0]!r},)) or freeze both "
                f"(freeze=({place.names[0]!r}, {other.names[0]!r}))."
            )
