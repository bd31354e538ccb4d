"""Cut out what a model can do without: which neurons matter, how many stay, and the cut itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lowft._alignment import align_
from lowft._inference import evaluation_mode
from lowft._settings import check_choice, check_real, check_whole
from lowft._tables import format_table, human_count
from lowft.compress.feed_forward import FeedForward, column_sums, cut_neurons_, find_feed_forwards, magnitudes
from lowft.compress.structure import record_, structure_of
from lowft.errors import ConfigError

__all__ = ["Importance", "PruningReport", "Scope", "check_pruning", "choose_neurons", "cut_", "prune_"]

Importance = Literal["magnitude", "taylor", "fisher", "random"]
Scope = Literal["layer", "global"]

# What configurations of transformers call the width of the feed-forward layers.
_WIDTHS = ("intermediate_size", "d_ff", "n_inner", "hidden_dim", "ffn_dim")


@dataclass(frozen=True)
class PruningReport:
    """What a model lost.

    Attributes:
        before: Feed-forward neurons of each block, by the block's name.
        after: Those that are left.
        parameters_before: Parameters of the whole model.
        parameters_after: Those that are left.
        plain: Whether the config says the new widths, so that plain transformers loads the model.

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

    def __str__(self) -> str:
        """Return a table of the blocks and a line on the whole."""
        rows = [(block, f"{count:,}", f"{self.after[block]:,}") for block, count in self.before.items()]
        share = self.parameters_after / self.parameters_before
        return (
            f"{format_table(('block', 'neurons', 'left'), rows, align='lrr')}\n\n"
            f"{human_count(self.parameters_before)} parameters, {human_count(self.parameters_after)} left ({share:.0%})"
        ).replace("%)", " %)")


def prune_(
    model: nn.Module,
    neurons: float,
    *,
    importance: Importance = "magnitude",
    scope: Scope = "layer",
    batches: Iterable[Mapping[str, Any]] | None = None,
    multiple_of: int = 8,
    seed: int = 0,
) -> PruningReport:
    """Cut a share of the feed-forward neurons out of a model, so that it computes less; no retraining.

    With `scope="layer"` every block keeps as many, which the model's config can say: plain transformers then loads what
    you save. With "global" the blocks differ; an exported folder says how, and `lowft.load` rebuilds them.

    | importance | of a neuron |
    | --- | --- |
    | "magnitude" | the L2 norm of all its weights |
    | "taylor" | how the loss changes without it, to first order: the sum over batches of abs(∂loss ÷ ∂gate) |
    | "fisher" | the sum over batches of (∂loss ÷ ∂gate)²; with batches of one row, the Fisher information |
    | "random" | a random number: what any other must beat |

    Taylor: Molchanov et al. 2019, https://arxiv.org/abs/1906.10771. Fisher: Kwon et al. 2022,
    https://arxiv.org/abs/2204.09656, section 4.1.

    Args:
        model: A model whose blocks `lowft.find_layers` finds; it is changed in place.
        neurons: Share of the neurons to cut, from 0 up to but not 1.
        importance: What makes a neuron worth keeping; see above.
        scope: Whether neurons compete within their layer or in the whole model.
        batches: Inputs with labels, as the model's forward takes them, for "taylor" and "fisher".
        multiple_of: The neurons left in a layer are a multiple of this, as processors like it.
        seed: Decides what "random" draws.

    Raises:
        ConfigError: A setting out of its range, or batches that are missing or not needed.
        ModelError: The neurons cannot be told by the shapes of the layers, or the model returns no loss.

    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> config = BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=2, intermediate_size=32)
    >>> model = BertForSequenceClassification(config)
    >>> prune_(model, 0.5).after
    {'bert.encoder.layer.0': 16, 'bert.encoder.layer.1': 16}
    >>> model.config.intermediate_size
    16
    """
    check_pruning("prune_", neurons=neurons, importance=importance, scope=scope, multiple_of=multiple_of)
    check_whole("prune_: seed", seed, least=0)
    if (batches is None) == (importance in {"taylor", "fisher"}):
        raise ConfigError(
            f"prune_: batches {'are needed' if batches is None else 'are of no use'} with importance={importance!r}"
        )
    parts = find_feed_forwards(model)
    if importance == "magnitude":
        scores = [magnitudes(model, part) for part in parts]
    elif importance == "random":
        generator = torch.Generator().manual_seed(seed)
        scores = [torch.rand(part.width, generator=generator) for part in parts]
    else:
        scores = _gradient_scores(model, parts, batches or (), squared=importance == "fisher")
    if importance == "magnitude":
        scores = by_mean(scores)
    kept = choose_neurons(scores, neurons, scope=scope, multiple_of=multiple_of)
    return cut_(model, parts, kept)


def check_pruning(owner: str, *, neurons: float, importance: str, scope: str, multiple_of: int) -> None:
    """Raise a ConfigError unless the settings that `prune_` and `Prune` share are in their ranges."""
    check_real(f"{owner}: neurons", neurons, least=0, below=1)
    check_choice(f"{owner}: importance", importance, get_args(Importance))
    check_choice(f"{owner}: scope", scope, get_args(Scope))
    check_whole(f"{owner}: multiple_of", multiple_of, least=1)


def by_mean(scores: Sequence[Tensor]) -> list[Tensor]:
    """Return each layer's scores divided by their mean: weights of one layer may be larger than all of another's."""
    return [values / values.mean().clamp_min(1e-30) for values in scores]


def choose_neurons(
    scores: Sequence[Tensor], share: float, *, scope: Scope = "layer", multiple_of: int = 1
) -> list[Tensor]:
    """Return the numbers of the neurons to keep in each layer, rising.

    Args:
        scores: What each neuron of each layer is worth, `[width]` each.
        share: Share of all neurons to cut.
        scope: Whether they compete within their layer or in the whole model.
        multiple_of: Layers keep a multiple of this, and at least so many, where they are as wide.

    >>> choose_neurons([torch.tensor([3.0, 1.0, 2.0, 4.0])], 0.5)
    [tensor([0, 3])]
    """
    if scope == "layer":
        counts = [(1 - share) * len(values) for values in scores]
    else:
        every = torch.cat(list(scores))
        best = every.argsort(descending=True, stable=True)[: round((1 - share) * len(every))]
        chosen = torch.zeros(len(every), dtype=torch.bool)
        chosen[best] = True
        counts = [float(part.sum()) for part in torch.split(chosen, [len(values) for values in scores])]
    kept = []
    for values, count in zip(scores, counts, strict=True):
        step = min(multiple_of, len(values))
        number = min(len(values), max(step, round(count / step) * step))
        kept.append(values.argsort(descending=True, stable=True)[:number].sort().values)
    return kept


def cut_(model: nn.Module, parts: Sequence[FeedForward], kept: Sequence[Tensor]) -> PruningReport:
    """Cut all but some neurons out of each layer, and let the config, or the model's structure, say so."""
    before = {part.block: part.width for part in parts}
    after = {part.block: len(numbers) for part, numbers in zip(parts, kept, strict=True)}
    size = sum(parameter.numel() for parameter in model.parameters())
    for part, numbers in zip(parts, kept, strict=True):
        if len(numbers) < part.width:
            cut_neurons_(model, part, numbers)
    align_(model)
    plain = before == after or _config_says(model, set(before.values()), set(after.values()))
    if not plain:
        record_(model, "widths", {"widths": after})
    left = sum(parameter.numel() for parameter in model.parameters())
    return PruningReport(before, after, size, left, plain)


def _config_says(model: Any, before: set[int], after: set[int]) -> bool:
    """Write the one new width into the config; return whether it has a word for it."""
    config = getattr(model, "config", None)
    if config is None or len(before) > 1 or len(after) > 1 or structure_of(model):
        return False
    (old,), (new,) = before, after
    if getattr(config, "n_inner", old) is None:  # GPT-2: four times the hidden size
        config.n_inner = new
        return True
    for name in _WIDTHS:
        if getattr(config, name, None) == old:
            setattr(config, name, new)
            return True
    return False


def _gradient_scores(
    model: Any, parts: Sequence[FeedForward], batches: Iterable[Mapping[str, Any]], *, squared: bool
) -> list[Tensor]:
    """Return the neurons' scores from the gradients of some batches; the model's own gradients are not touched."""
    weights = [model.get_submodule(part.reads).weight for part in parts]
    trains = [weight.requires_grad for weight in weights]
    scores = [torch.zeros(part.width) for part in parts]
    count = 0
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with evaluation_mode(model), torch.enable_grad():
            for batch in batches:
                loss = getattr(model(**batch), "loss", None)
                if loss is None:
                    raise ConfigError(
                        f"prune_: batches must hold labels, for which the model returns a loss; received "
                        f"{', '.join(batch)}"
                    )
                count += 1
                for at, gradient in enumerate(torch.autograd.grad(loss, weights)):
                    slope = column_sums(model, parts[at], gradient)
                    scores[at] += slope.square() if squared else slope.abs()
    finally:
        for weight, trained in zip(weights, trains, strict=True):
            weight.requires_grad_(trained)
    if count == 0:
        raise ConfigError("prune_: batches holds no batch, so nothing could be measured")
    return scores
