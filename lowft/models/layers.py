"""Where a model's embeddings, blocks and head are, found by structure and never by the architecture's name.

Depth is the one coordinate: embeddings are 0, blocks 1 to L from bottom to top, the head L + 1. The blocks
are the repeated modules that hold most parameters. What lies below, between or above them is read off one
tiny forward pass that watches which parameter is used when; if the model cannot run it, the order of
registration decides. What lies between two blocks has the depth of the lower one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from torch import nn

from lowft._tables import format_table, human_bytes, human_count
from lowft.errors import ConfigError, ModelError
from lowft.models._trace import Trace

__all__ = ["Layers", "find_layers", "layer_table", "layers_if_any"]

_NORM = re.compile(r"norm(1d|2d|3d)?$", re.IGNORECASE)
# A second stack of blocks, of another class (BART's decoder), holds at least this share of the largest one.
_SECOND_STACK = 0.25


@dataclass(frozen=True)
class Layers:
    """The layers of a model, by the names of `model.named_modules()` and `model.named_parameters()`.

    Attributes:
        embeddings: Modules at depth 0: all that runs before the first block, and position tables that all
            blocks share.
        blocks: The blocks, bottom to top; depth 1 to L. An encoder's come before its decoder's.
        head: Modules at depth L + 1: all that runs after the last block (final norm, pooler, classifier).
        norms: Normalisation modules, at any depth.
        shared: Blocks run more than once in a forward pass, because they share weights (ALBERT).
        depths: The depth of every parameter.
        tied: Where one parameter has several names, the depth at which each of these names is used.
        plain: The depth at which modules that hold no parameters and run outside the blocks (dropout, activations)
            first run: T5's dropout runs below the blocks and above them. Empty if the model could not be run.

    A parameter that hangs directly on a module which spans several depths is listed by its own name in
    `embeddings` or `head`.
    """

    embeddings: tuple[str, ...]
    blocks: tuple[str, ...]
    head: tuple[str, ...]
    norms: tuple[str, ...]
    shared: bool
    depths: Mapping[str, int] = field(hash=False)
    tied: Mapping[str, int] = field(hash=False)
    plain: Mapping[str, int] = field(hash=False)

    @property
    def num_blocks(self) -> int:
        """L, the number of distinct blocks: 1 where all blocks share their weights."""
        return len(self.blocks)

    def names_at(self, depth: int) -> tuple[str, ...]:
        """Return the names of the parameters at `depth`.

        Raises:
            ConfigError: `depth` is not in 0 to L + 1.
        """
        if not 0 <= depth <= self.num_blocks + 1:
            raise ConfigError(
                f"depth must be from 0 (embeddings) to {self.num_blocks + 1} (head) for a model of "
                f"{self.num_blocks} blocks, not {depth!r}."
            )
        return tuple(name for name, at in self.depths.items() if at == depth)


def find_layers(model: nn.Module) -> Layers:
    """Find the embeddings, the blocks and the head of any model.

    Blocks are looked for in `nn.ModuleList` and `nn.Sequential`. The model is left as it was: training flags,
    hooks, gradients and the random state.

    Args:
        model: A transformers model, a custom module, or either of them wrapped by PEFT,
            `DistributedDataParallel` or `torch.compile`.

    Raises:
        ModelError: The model has no parameters, or no repeated blocks.

    >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    >>> find_layers(model).blocks, find_layers(model).depths["3.bias"]
    (('1', '2'), 3)
    """
    structure = _structure(model)
    known = _found.get(model)
    if known is None or known[0] != structure:
        known = _found[model] = (structure, _find(model))
    return known[1]


def layers_if_any(model: nn.Module) -> Layers | None:
    """Return the model's layers; None for one without blocks, which can still be trained as a whole."""
    try:
        return find_layers(model)
    except ModelError:
        return None


# What was found in a model and how it was built then: each strategy asks anew, and a look costs a forward pass.
_found: WeakKeyDictionary[nn.Module, tuple[list[tuple[object, ...]], Layers]] = WeakKeyDictionary()


def _structure(model: nn.Module) -> list[tuple[object, ...]]:
    """Return what its layers follow from: names, classes, what has several names, a `forward` put in by hand."""
    modules = model.named_modules(remove_duplicate=False)
    return [  # numbers, because an object could keep the model from being freed
        *((name, id(m), type(m), id(m.__dict__.get("forward"))) for name, m in modules),
        *((name, id(p), p.shape) for name, p in model.named_parameters(remove_duplicate=False)),
    ]


def _find(model: nn.Module) -> Layers:
    if not any(True for _ in model.parameters()):
        raise ModelError(f"{type(model).__name__} has no parameters, so it has no layers to find.")
    blocks = _find_blocks(model)
    trace = Trace(model, blocks)
    blocks = {name: blocks[name] for name in dict.fromkeys(trace.order)} or blocks
    places = _place_depths(model, blocks, trace)

    top = len(blocks) + 1
    aliases: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(parameter, []).append(name)
    depths = {names[0]: min(places[name] for name in names) for names in aliases.values()}
    owners = _owners(depths, blocks)
    parts = {depth: tuple(dict.fromkeys(owners[n] for n in depths if depths[n] == depth)) for depth in (0, top)}
    return Layers(
        embeddings=parts[0],
        blocks=tuple(blocks),
        head=parts[top],
        norms=tuple(name for name, module in model.named_modules() if _is_norm(module)),
        shared=(len(trace.order) or _declared_blocks(model)) > len(blocks),
        depths=depths,
        tied={name: places[name] for names in aliases.values() if len(names) > 1 for name in names},
        plain={name: trace.depth(entered) for name, entered in trace.plain.items()},
    )


def layer_table(model: nn.Module, layers: Layers | None = None) -> str:
    """Lay out what each layer holds and what of it trains now, as text to print.

    Columns: depth, module, parameters, trainable parameters, size in memory; the last row is the total.

    Args:
        model: The model.
        layers: Its layers, if they are known already.

    Raises:
        ModelError: The model has no parameters, or no repeated blocks.

    >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    >>> print(layer_table(model))
    depth  module  parameters  trainable  size
    -----  ------  ----------  ---------  -----
    0      0               36         36  144 B
    1      1               20         20   80 B
    2      2               20         20   80 B
    3      3               10         10   40 B
           total           86         86  344 B
    """
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return table_of(model, layers or find_layers(model), trainable)


def table_of(model: nn.Module, layers: Layers, trainable: Collection[str]) -> str:
    """Lay out the layer table as it reads when exactly the parameters named in `trainable` train."""
    owners = _owners(layers.depths, layers.blocks)
    rows: dict[tuple[str, str], list[int]] = {}
    total = [0, 0, 0]
    for name, parameter in model.named_parameters():
        count = parameter.numel()
        row = rows.setdefault((str(layers.depths[name]), owners[name]), [0, 0, 0])
        for figures in (row, total):
            figures[0] += count
            figures[1] += count * (name in trainable)
            figures[2] += count * parameter.element_size()
    ordered = sorted(rows.items(), key=lambda item: int(item[0][0]))  # stable: as registered within a depth
    return format_table(
        ["depth", "module", "parameters", "trainable", "size"],
        [
            [depth, module, human_count(count), human_count(some), human_bytes(size)]
            for (depth, module), (count, some, size) in [*ordered, (("", "total"), total)]
        ],
        align="llrrr",
    )


def within(name: str, module: str) -> bool:
    """Tell whether `name` is the module of that name or something in it.

    >>> within("layer.1.bias", "layer.1"), within("layer.10.bias", "layer.1")
    (True, False)
    """
    return name == module or name.startswith(f"{module}.")


def prefixes(name: str) -> Iterator[str]:
    """Yield the modules around `name`, the outermost first, then `name` itself."""
    parts = name.split(".")
    yield from (".".join(parts[: i + 1]) for i in range(len(parts)))


def _owners(depths: Mapping[str, int], blocks: Collection[str]) -> dict[str, str]:
    """Map each parameter to its block, or to the largest module that lies at its depth as a whole."""
    spans: dict[str, set[int]] = {}
    for name, depth in depths.items():
        for prefix in prefixes(name):
            spans.setdefault(prefix, set()).add(depth)
    at_depth = dict(enumerate(blocks, start=1))
    return {
        name: at_depth[depth]
        if within(name, at_depth.get(depth, ""))
        else next(prefix for prefix in prefixes(name) if len(spans[prefix]) == 1)
        for name, depth in depths.items()
    }


def _is_norm(module: nn.Module) -> bool:
    """Tell whether `module` normalises: its class says so (LlamaRMSNorm), and it holds no modules."""
    return _NORM.search(type(module).__name__) is not None and not any(True for _ in module.children())


@dataclass(frozen=True)
class _Stack:
    """Children of one container that have the same class, hence may be a model's blocks."""

    name: str
    kind: object
    blocks: Mapping[str, nn.Module]
    composite: bool  # built of smaller modules, as a transformer block is and a bare Linear is not
    size: int


def _find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the repeated modules that hold most parameters, in the order of registration."""
    stacks = [
        stack
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        for stack in _stacks(name, module)
    ]
    if not stacks:
        held = Counter(type(module).__name__ for module in model.modules() if module is not model)
        listed = ", ".join(f"{count} {kind}" for kind, count in held.most_common(8)) or "no submodules"
        raise ModelError(
            f"{type(model).__name__} has no blocks that lowft can find: no nn.ModuleList with parameters "
            f"and no nn.Sequential with two modules of one class and shape. It holds {listed}. Put the "
            f"repeated blocks into an nn.ModuleList."
        )
    main = max(stacks, key=lambda stack: (stack.composite, stack.size))
    chosen: list[_Stack] = []
    for stack in stacks:  # outer containers come first
        alike = stack.kind == main.kind or (stack.composite and stack.size >= _SECOND_STACK * main.size)
        nested = within(main.name, stack.name) or any(
            within(stack.name, block) for other in (main, *chosen) for block in other.blocks
        )
        if stack is main or (alike and not nested):
            chosen.append(stack)
    return {name: block for stack in chosen for name, block in stack.blocks.items()}


def _stacks(name: str, container: nn.ModuleList | nn.Sequential) -> Iterator[_Stack]:
    """Group the children of `container` by class; leaf modules, by class and shapes."""
    groups: dict[object, list[tuple[str, nn.Module]]] = {}
    for child_name, child in container._modules.items():  # noqa: SLF001 - named_children() hides repeated ones
        if child is None or not any(True for _ in child.parameters()) or isinstance(child, nn.ModuleList):
            continue  # a list within a list never runs itself: its own children are the blocks
        composite = any(True for _ in child.children())
        kind: object = type(child) if composite else (type(child), *(p.shape for p in child.parameters()))
        groups.setdefault(kind, []).append((f"{name}.{child_name}" if name else child_name, child))
    for kind, members in groups.items():
        # A ModuleList of one is a stack of one block; in a Sequential, one of a kind is just a step.
        if len(members) > 1 or isinstance(container, nn.ModuleList):
            distinct = {id(child): (child_name, child) for child_name, child in reversed(members)}
            blocks = dict(reversed(distinct.values()))
            size = sum(p.numel() for block in blocks.values() for p in block.parameters())
            yield _Stack(name, kind, blocks, composite=not isinstance(kind, tuple), size=size)


def _place_depths(model: nn.Module, blocks: Mapping[str, nn.Module], trace: Trace) -> dict[str, int]:
    """Return the depth at which each parameter name is used; a tied parameter has several names."""
    modules = dict(model.named_modules(remove_duplicate=False))
    index = {block: depth for depth, block in enumerate(blocks.values(), start=1)}
    named = dict(model.named_parameters(remove_duplicate=False))
    names_of = Counter(named.values())
    places: dict[str, int] = {}
    unseen: dict[str, int] = {}
    latest = 0  # the depth of the last block registered so far
    for name, parameter in named.items():
        block = next((prefix for prefix in prefixes(name) if modules.get(prefix) in index), None)
        embeds = isinstance(modules[name.rpartition(".")[0]], nn.Embedding)
        if block is not None:
            latest = index[modules[block]]
            places[name] = 0 if embeds and _is_shared_table(name, block, blocks, modules) else latest
        elif embeds or parameter in trace.inside:
            places[name] = 0  # looked up before the blocks, or handed to them
        elif parameter in trace.outside:
            pick = max if names_of[parameter] > 1 else min
            places[name] = trace.depth(pick(trace.outside[parameter]))
        else:
            unseen[name] = latest if latest < len(blocks) else latest + 1
    for name, registered in unseen.items():
        places[name] = _near(name, places, blocks, registered)
    return places


def _is_shared_table(name: str, block: str, blocks: Collection[str], modules: Mapping[str, nn.Module]) -> bool:
    """Tell whether the embedding `name` in `block` serves the other blocks, which lack their own (T5)."""
    stack = block.rpartition(".")[0]
    path = name.removeprefix(f"{block}.").rpartition(".")[0]
    return any(f"{other}.{path}" not in modules for other in blocks if other.rpartition(".")[0] == stack)


def _near(name: str, places: Mapping[str, int], blocks: Collection[str], otherwise: int) -> int:
    """Return the depth of the parameters around `name`, or `otherwise` once the blocks are among them."""
    for module in reversed(list(prefixes(name))):
        if any(within(block, module) for block in blocks):
            break
        for other, depth in places.items():
            if within(other, module):
                return depth
    return otherwise


def _declared_blocks(model: nn.Module) -> int:
    """Return the number of blocks that the model's configuration speaks of, 0 if it does not."""
    declared = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    return declared if isinstance(declared, int) else 0
