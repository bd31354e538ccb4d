"""Cut out what a model can do without: units that matter least, whole layers, or single weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lowft._alignment import align_
from lowft._settings import check_flag, check_whole
from lowft._tables import format_table, human_count
from lowft.compress.attention import find_heads, heads_in_config
from lowft.compress.budgets import CutPlan, Goal, Scope
from lowft.compress.costs import count_flops
from lowft.compress.depth import drop_layers_, layers_to_drop
from lowft.compress.feed_forward import find_neurons
from lowft.compress.importance import GRADIENTS, Importance, gate_gradients, importance_of, row_slopes
from lowft.compress.parts import Part, cut_part_
from lowft.compress.rearrangement import rearranged
from lowft.compress.sparsity import zero_smallest_
from lowft.compress.structure import record_, structure_of
from lowft.compress.tuning import tune_
from lowft.errors import ConfigError, ModelError
from lowft.models.layers import find_layers

__all__ = ["PruningReport", "Size", "check_prunable", "cut_", "prune_"]

_KINDS = {"heads": "heads", "neurons": "widths"}  # what the structure calls them
# What configurations of transformers call the width of the feed-forward layers.
_WIDTHS = ("intermediate_size", "d_ff", "n_inner", "hidden_dim", "ffn_dim")


@dataclass(frozen=True)
class PruningReport:
    """What a model lost.

    Attributes:
        before: Feed-forward neurons of each block that is left, by the block's name, where they can be told.
        after: Those that are left.
        parameters_before: Parameters of the whole model.
        parameters_after: Those that are left.
        plain: Whether the config says the new shape, so that plain transformers loads the model.
        heads_before: Attention heads of each block, where they can be told; of query heads that share keys and values,
            each such group counts as one.
        heads_after: Those that are left.
        flops_before: Operations of the whole model for one text of `tokens` tokens; None where it cannot be run on one.
        flops_after: Those that are left.
        tokens: The length for which they are counted.
        left_out: Names that the layers had which are gone.
        zeros: How many single weights are zero now.
        latency: The time of a forward pass, as a fraction of what it was, where that was the budget.

    >>> print(PruningReport({"layer.0": 64}, {"layer.0": 32}, 9000, 5000, plain=True))
    block    neurons  left
    -------  -------  ----
    layer.0       64    32
    <BLANKLINE>
    9.00 k parameters, 5.00 k left (56 %)
    """

    before: Mapping[str, int]
    after: Mapping[str, int]
    parameters_before: int
    parameters_after: int
    plain: bool
    heads_before: Mapping[str, int] = field(default_factory=dict)
    heads_after: Mapping[str, int] = field(default_factory=dict)
    flops_before: int | None = None
    flops_after: int | None = None
    tokens: int = 64
    left_out: tuple[str, ...] = ()
    zeros: int = 0
    latency: float | None = None

    def __str__(self) -> str:
        """Return a table of the blocks and a few lines on the whole."""
        columns = [("neurons", self.before), ("left", self.after)] if self.before else []
        columns += [("heads", self.heads_before), ("left", self.heads_after)] if self.heads_before else []
        blocks = self.before or self.heads_before
        rows = [(block, *(f"{counts[block]:,}" for _, counts in columns)) for block in blocks]
        lines = [format_table(("block", *(name for name, _ in columns)), rows), ""] if rows else []
        if self.left_out:
            lines.append(f"layers left out: {', '.join(self.left_out)}")
        if self.zeros:
            share = self.zeros / self.parameters_after
            lines.append(f"{human_count(self.zeros)} weights are zero ({100 * share:.0f} % of all parameters)")
        lines.append(_left(self.parameters_before, self.parameters_after, "parameters"))
        if self.flops_before and self.flops_after:
            lines.append(_left(self.flops_before, self.flops_after, "operations") + f" for {self.tokens} tokens")
        if self.latency is not None:
            lines.append(f"{100 * self.latency:.0f} % of the time")
        return "\n".join(lines)


def _left(before: int, after: int, what: str) -> str:
    return f"{human_count(before)} {what}, {human_count(after)} left ({100 * after / before:.0f} %)"


def prune_(  # noqa: PLR0913 - settings are keyword arguments, readable one by one
    model: nn.Module,
    neurons: float = 0.0,
    *,
    heads: float = 0.0,
    layers: int | Sequence[int] = 0,
    weights: float = 0.0,
    parameters: float | None = None,
    flops: float | None = None,
    latency: float | None = None,
    importance: Importance = "magnitude",
    scope: Scope = "layer",
    uniform: bool = False,
    batches: Iterable[Mapping[str, Any]] | None = None,
    tune: bool = False,
    multiple_of: int = 8,
    shape: tuple[int, int] = (1, 64),
    seed: int = 0,
) -> PruningReport:
    """Cut feed-forward neurons, attention heads or layers out of a model, so that it computes less; no retraining.

    Say what is to go by shares (`neurons`, `heads`, `layers`), or what is to be left by one budget (`parameters`,
    `flops` or `latency`, each a fraction of the whole model's), for which neurons and heads compete.

    With `scope="layer"` every layer keeps as many. A model's config can say that of neurons, so plain transformers
    loads what you save; of heads only T5's and Llama's can. With "global" the layers differ. What no config can say an
    exported folder does, and `lowft.load` rebuilds it.

    | importance | of a neuron or head |
    | --- | --- |
    | "magnitude" | the L2 norm of all its weights |
    | "taylor" | how the loss changes without it, to first order: the sum over batches of abs(∂loss ÷ ∂gate) |
    | "fisher" | the sum over rows of (∂ the row's loss ÷ ∂gate)²: the Fisher information of its gate |
    | "random" | a random number: what any other must beat |

    With "fisher", units of a layer then change places as long as those that go do less harm together: two that do the
    same are not both cut.

    Where all compete for a budget (`scope="global"`), "taylor" and "fisher" are taken per operation or parameter that
    the unit costs; norms mean nothing beyond their layer, and are taken relative to its mean.

    `weights` sets single weights of the blocks to zero. That saves neither time nor memory: the matrices are as large
    as before. It is for formats and devices that use such zeros, and for research.

    Taylor: Molchanov et al. 2019, https://arxiv.org/abs/1906.10771. Fisher, the search within a budget, exchange and
    tuning: Kwon et al. 2022, https://arxiv.org/abs/2204.09656, sections 4.1 to 4.3. Layers: Men et al. 2024,
    https://arxiv.org/abs/2403.03853, section 3.1.

    Args:
        model: A model whose blocks `lowft.find_layers` finds; it is changed in place.
        neurons: Share of the neurons to cut, from 0 up to but not 1.
        heads: Share of the attention heads to cut; each layer keeps one at least. Where query heads share keys and
            values, those go together. In T5 and MPNet, whose layers share one table of relative positions, the same
            heads go in all layers of a stack.
        layers: How many layers to leave out, or their numbers, rising from 0 at the bottom. With batches, those go that
            turn the hidden states least; without, those that stay are spread evenly.
        weights: Share of single weights to set to zero; goes alone.
        parameters: Fraction of the parameters to be left.
        flops: Fraction of the operations to be left, as `lowft.count_flops` counts them.
        latency: Fraction of the time of a forward pass to be left, measured on this machine with really cut copies.
        importance: What makes a unit worth keeping; see above.
        scope: Whether units compete within their layer or in the whole model.
        uniform: Refuse what the config cannot say; within a budget, cut neurons alone where it cannot say heads.
        batches: Inputs with labels, as the model's forward takes them, for "taylor", "fisher", `layers` and `tune`.
        tune: Rescale what is kept so that each layer gives what it gave before, by least squares over the batches.
        multiple_of: The neurons left in a layer are a multiple of this, as processors like it.
        shape: Rows and tokens of the batch for which operations and time are counted.
        seed: Decides what "random" draws.

    Raises:
        ConfigError: A setting out of its range, settings that contradict each other, batches that are missing or not
            needed, or a budget that cannot be met; the message says the least that can.
        ModelError: The neurons or heads cannot be told, the model is quantized already, or it returns no loss.

    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> config = BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=2, intermediate_size=32)
    >>> model = BertForSequenceClassification(config)
    >>> report = prune_(model, 0.5, heads=0.5)
    >>> report.after, report.heads_after
    ({'bert.encoder.layer.0': 16, 'bert.encoder.layer.1': 16}, {'bert.encoder.layer.0': 1, 'bert.encoder.layer.1': 1})
    >>> model.config.intermediate_size
    16
    """
    goal = Goal.of("prune_", locals())
    check_whole("prune_: seed", seed, least=0)
    check_flag("prune_: tune", tune)
    check_prunable(model)
    rows = _check_batches(goal, batches, importance=importance, layers=layers, tune=tune)
    whole = goal.find_parts(model)  # what cannot be told or measured is said before anything is left out
    if whole and layers and importance in GRADIENTS:
        next(gate_gradients(model, whole, rows))
    dropped = layers_to_drop("prune_", model, layers, rows or None) if layers else []
    before = Size.of(model, shape[1])
    left_out = drop_layers_(model, dropped) if dropped else ()
    zeros = zero_smallest_(model, weights, scope) if weights else 0
    parts = goal.find_parts(model)
    latency, kept = None, list[Tensor]()
    if parts:
        plan = CutPlan(model, goal, parts, importance)
        slopes = row_slopes(model, parts, rows) if importance == "fisher" else []
        scores = [slope.square().sum(dim=0) for slope in slopes] or importance_of(model, parts, importance, rows, seed)
        latency = plan.meet_latency(model, scores) if plan.what == "latency" else None
        kept = plan.kept(scores)
        if slopes:
            kept = [rearranged(slope, numbers) for slope, numbers in zip(slopes, kept, strict=True)]
        if tune:
            tune_(model, parts, kept, rows)
    return cut_(model, parts, kept, before=before, left_out=left_out, zeros=zeros, latency=latency)


def check_prunable(model: nn.Module) -> None:
    """Raise a ModelError if the model holds integers, which can neither be measured nor cut."""
    if any(entry["kind"] == "quantized" for entry in structure_of(model)):
        raise ModelError(
            f"this {type(model).__name__} is quantized already: prune the full-precision model, then quantize it"
        )


def _check_batches(
    goal: Goal, batches: Iterable[Mapping[str, Any]] | None, *, importance: str, layers: object, tune: bool
) -> list[Mapping[str, Any]]:
    """Return the batches, which several measurements go through, once it is clear what for."""
    if tune and not goal.kinds:
        raise ConfigError("prune_: tune rescales the neurons and heads that are kept, and none are cut")
    needed = "tune=True" if tune else f"importance={importance!r}"
    if batches is None and (tune or (importance in GRADIENTS and goal.kinds)):
        raise ConfigError(f"prune_: batches are needed with {needed}")
    if batches is not None and not (tune or importance in GRADIENTS or (isinstance(layers, int) and layers)):
        raise ConfigError(f"prune_: batches are of no use with {needed}")
    rows = list(batches or ())
    if batches is not None and not rows:
        raise ConfigError("prune_: batches holds no batch, so nothing could be measured")
    return rows


@dataclass(frozen=True)
class Size:
    """What a model costs.

    Attributes:
        parameters: Its parameters.
        flops: Its operations for one text; None where it cannot be run on one.
        tokens: The text's length.
    """

    parameters: int
    flops: int | None
    tokens: int

    @staticmethod
    def of(model: nn.Module, tokens: int) -> Size:
        """Return what a model costs as it is."""
        try:
            flops = count_flops(model, tokens)
        except ModelError:
            flops = None
        return Size(sum(parameter.numel() for parameter in model.parameters()), flops, tokens)


def cut_(
    model: nn.Module,
    parts: Sequence[Part],
    kept: Sequence[Tensor],
    *,
    before: Size,
    left_out: tuple[str, ...] = (),
    zeros: int = 0,
    latency: float | None = None,
) -> PruningReport:
    """Cut all but some units out of each part, and let the config, or the model's structure, say so.

    Args:
        model: The model.
        parts: Its units.
        kept: The numbers of those that stay, for each part.
        before: What the model cost, for the report; as the other arguments.
        left_out: Layers that are gone already.
        zeros: Weights that are zero.
        latency: The time reached.
    """
    neurons, heads = _units(model, find_neurons), _units(model, find_heads)
    left = {"neurons": dict(neurons), "heads": dict(heads)}
    for part, numbers in zip(parts, kept, strict=True):
        if len(numbers) < part.units:
            cut_part_(model, part, numbers)
            for site in part.sites:
                left[part.kind][site.block] -= part.units - len(numbers)
    align_(model)
    for kind in ("heads", "neurons"):
        own = [(part, len(numbers)) for part, numbers in zip(parts, kept, strict=True) if part.kind == kind]
        if any(count < part.units for part, count in own) and not _config_says(model, kind, own):
            word = _KINDS[kind]
            record_(model, word, {word: {site.name: count for part, count in own for site in part.sites}})
    after = Size.of(model, before.tokens)
    return PruningReport(
        before=neurons,
        after=left["neurons"],
        parameters_before=before.parameters,
        parameters_after=after.parameters,
        plain=not structure_of(model),
        heads_before=heads,
        heads_after=left["heads"],
        flops_before=before.flops,
        flops_after=after.flops,
        tokens=before.tokens,
        left_out=left_out,
        zeros=zeros,
        latency=latency,
    )


def _units(model: nn.Module, find: Callable[[nn.Module], tuple[Part, ...]]) -> dict[str, int]:
    """Return how many units each block has, of all its attentions together; none where they cannot be told."""
    counts: dict[str, int] = {}
    try:
        parts = find(model)
    except ModelError:
        return counts
    for block in find_layers(model).blocks:
        counts[block] = sum(part.units for part in parts for site in part.sites if site.block == block)
    return counts


def _config_says(model: Any, kind: str, parts: Sequence[tuple[Part, int]]) -> bool:
    """Write the one new number of units into the config; return whether it has a word for it."""
    config = getattr(model, "config", None)
    before, after = {part.units for part, _ in parts}, {left for _, left in parts}
    uneven_already = any(entry["kind"] == _KINDS[kind] for entry in structure_of(model))
    if config is None or len(before) > 1 or len(after) > 1 or uneven_already:
        return False
    (old,), (new,) = before, after
    if kind == "heads":
        words = heads_in_config(model, [part for part, _ in parts], new) or {}
    elif getattr(config, "n_inner", old) is None:  # GPT-2: four times the hidden size
        words = {"n_inner": new}
    else:
        words = {name: new for name in _WIDTHS if getattr(config, name, None) == old}
        words = dict(list(words.items())[:1])
    for name, value in words.items():
        setattr(config, name, value)
    return bool(words)
