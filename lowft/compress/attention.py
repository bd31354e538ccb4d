"""The attention heads of a model: one table of the families of architectures says where they are.

The unit is what can go without the others noticing: a head, or, where several query heads share keys and values, those
together. The size of a head stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lowft.compress.linear import in_and_out, is_linear
from lowft.compress.parts import Counter, Part, Site, cut_part_
from lowft.errors import ModelError
from lowft.models.layers import find_layers

__all__ = ["find_heads", "heads_in_config", "rebuild_heads_"]


@dataclass(frozen=True)
class _Family:
    """How the attention of a family of architectures is built; names are relative to the attention module.

    Attributes:
        computes: The linear layers that compute the heads, and how many matrices each stacks. The last one tells how
            many units there are: it computes no more than one head for each.
        reads: The linear layer that reads the heads; `../` is the module around the attention.
        size: The attribute that holds the size of a head.
        heads: Attributes that hold the number of heads.
        widths: Attributes that hold heads times size.
        extras: Linear layers that compute something for each head too, where there are such.
        table: An embedding with one column for each head, which the lowest layer of a stack has for all of them.
        outer_table: The same, by its path from the module that holds the list of blocks.
    """

    computes: tuple[tuple[str, int], ...]
    reads: str
    size: str
    heads: tuple[str, ...] = ()
    widths: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    table: str = ""
    outer_table: str = ""


def _each(*names: str) -> tuple[tuple[str, int], ...]:
    return tuple((name, 1) for name in names)


_BERT = {"size": "attention_head_size", "heads": ("num_attention_heads",), "widths": ("all_head_size",)}
_FAMILIES: dict[str, _Family] = {
    "BERT, RoBERTa, ELECTRA": _Family(_each("query", "key", "value"), "../output.dense", **_BERT),  # type: ignore[arg-type]
    "ALBERT": _Family(_each("query", "key", "value"), "dense", **_BERT),  # type: ignore[arg-type]
    "DeBERTa": _Family(
        _each("query_proj", "key_proj", "value_proj"), "../output.dense", extras=("pos_key_proj", "pos_query_proj"),
        **_BERT,  # type: ignore[arg-type]
    ),
    "MPNet": _Family(_each("q", "k", "v"), "o", outer_table="relative_attention_bias", **_BERT),  # type: ignore[arg-type]
    "DistilBERT": _Family(_each("q_lin", "k_lin", "v_lin"), "out_lin", "attention_head_size", ("n_heads",)),
    "T5": _Family(
        _each("q", "k", "v"), "o", "key_value_proj_dim", ("n_heads",), ("inner_dim",), table="relative_attention_bias"
    ),
    "Llama": _Family(_each("q_proj", "k_proj", "v_proj"), "o_proj", "head_dim"),
    "ModernBERT": _Family((("Wqkv", 3),), "Wo", "head_dim"),
    "GPT-2": _Family((("c_attn", 3),), "c_proj", "head_dim", ("num_heads",), ("split_size",)),
}  # fmt: skip


def find_heads(model: nn.Module) -> tuple[Part, ...]:
    """Find the attention heads of each block, in the order in which a forward pass meets them.

    Raises:
        ModelError: There are no blocks, or one whose attention is of no family that is known.
    """
    modules = dict(model.named_modules())
    found: dict[str, list[tuple[Site, Part]]] = {}
    for block in find_layers(model).blocks:
        own = [part for name in modules if name.startswith(f"{block}.") for part in _part_of(modules, name, block)]
        if not own:
            linears = [name for name, module in modules.items() if name.startswith(f"{block}.") and is_linear(module)]
            raise ModelError(
                f"the attention heads of {block!r} cannot be told: lowft knows how attention is built in "
                f"{', '.join(_FAMILIES)} and their kin, and this block holds "
                f"{', '.join(linears) or 'no linear layers'}. Leave heads at 0, and cut neurons or layers instead"
            )
        for part in own:
            site = part.sites[0]
            # Of one stack, and of one kind within its blocks: an encoder's, or a decoder's looking at the encoder.
            place = f"{block.rpartition('.')[0]}|{site.name.removeprefix(block)}"
            found.setdefault(place, []).append((site, part))
    order = {name: number for number, name in enumerate(modules)}
    parts = [part for place in found.values() for part in _joined(modules, [part for _, part in place])]
    return tuple(sorted(parts, key=lambda part: order[part.sites[0].name]))


def _part_of(modules: Mapping[str, nn.Module], name: str, block: str) -> Iterator[Part]:
    """Yield the heads of a module, if it is an attention of a known family."""
    attention: Any = modules[name]
    for family in _FAMILIES.values():
        computes = [(f"{name}.{own}", stacked) for own, stacked in family.computes]
        computes += [(f"{name}.{own}", 1) for own in family.extras if f"{name}.{own}" in modules]
        _, up, path = family.reads.rpartition("../")
        reads = f"{name.rpartition('.')[0] if up else name}.{path}"
        linears = [modules.get(own) for own in (*dict(computes), reads)]
        if not hasattr(attention, family.size) or not all(own is not None and is_linear(own) for own in linears):
            continue
        size = int(getattr(attention, family.size))
        last, stacked = computes[len(family.computes) - 1]
        units = in_and_out(modules[last])[1] // stacked // size
        columns = in_and_out(modules[reads])[0]
        counters = [Counter(name, attribute, columns // units // size) for attribute in family.heads]
        counters += [Counter(name, attribute, columns // units) for attribute in family.widths]
        table = f"{name}.{family.table}" if family.table else ""
        if family.outer_table:
            table = f"{block.rpartition('.')[0].rpartition('.')[0]}.{family.outer_table}"
        site = Site(name, block, tuple(computes), reads, tuple(counters))
        yield Part("heads", (site,), units, columns // units, table)
        return


def _joined(modules: Mapping[str, nn.Module], parts: list[Part]) -> list[Part]:
    """Make one part of those of a stack that share a table; also where it is only zeros, as across T5's two stacks."""
    own = {part.table for part in parts if part.table in modules}
    if not parts[0].table or len(own) == len(parts) > 1:
        return parts
    sites = tuple(site for part in parts for site in part.sites)
    return [Part("heads", sites, parts[0].units, parts[0].size, next(iter(own), ""))]


def heads_in_config(model: Any, parts: Sequence[Part], left: int) -> dict[str, int] | None:
    """Return what a config must say where every layer has `left` units; None where it has no words for it.

    Most configs give the size of a head as the width of the model over the number of heads. Some say it by itself.
    """
    config = getattr(model, "config", None)
    part = parts[0]
    if getattr(config, "d_kv", None) == part.size:
        return {"num_heads": left}
    shared = getattr(config, "num_key_value_heads", None)
    if shared == part.units and isinstance(getattr(config, "head_dim", None), int):
        return {"num_attention_heads": left * config.num_attention_heads // shared, "num_key_value_heads": left}  # type: ignore[union-attr]
    return None


def rebuild_heads_(model: nn.Module, plan: Mapping[str, Any]) -> None:
    """Give the attention of a model of the config the numbers of heads of a plan; which are left does not matter."""
    parts = find_heads(model)
    heads = plan["heads"]
    known = {site.name for part in parts for site in part.sites}
    if unknown := heads.keys() - known:
        raise ValueError(f"{', '.join(sorted(unknown))} has no heads")
    for part in parts:
        counts = {heads[site.name] for site in part.sites if site.name in heads}
        if not counts:
            continue
        left = counts.pop()
        whole = isinstance(left, int) and not isinstance(left, bool)
        if counts or not whole or not 0 < left <= part.units:
            raise ValueError(f"{part.sites[0].name} has {part.units} heads, and cannot be cut to {left}")
        cut_part_(model, part, torch.arange(left))
