"""A classification head on pooled token states: what a sentence embedding model was trained to give."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from lowft._settings import check_choice
from lowft.compress.structure import record_, structure_of
from lowft.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowft.models._pooled_output import PooledOutput

__all__ = ["POOLED", "Pooling", "is_pooled", "pool_states", "pooled_head_", "rebuild_pooled_"]

Pooling = Literal["mean", "cls", "attention", "last"]

POOLED = "pooled head"  # the kind of its entry in a model's structure
_DROPOUT = ("classifier_dropout", "seq_classif_dropout", "cls_dropout", "hidden_dropout_prob", "dropout_rate")
_DROPOUT_DEFAULT = 0.1
# Beyond any text. The number of columns would be no constant, as ONNX asks for; a larger one OpenVINO cannot hold.
_NOWHERE = 2**23


def pool_states(states: Tensor, mask: Tensor, pooling: Pooling = "mean", scores: Tensor | None = None) -> Tensor:
    """Make one vector of each row's token states; padding, on whichever side, has no part in it.

    Args:
        states: `[batch, tokens, width]`.
        mask: 1 for tokens and 0 for padding, `[batch, tokens]`.
        pooling: "mean" over the tokens, "cls" the first token, "last" the last one, "attention" a mean weighted by
            the softmax of `scores`.
        scores: `[batch, tokens]`, for "attention".

    Returns:
        `[batch, width]`, in the dtype of `states`.

    Raises:
        ConfigError: Another pooling, shapes that do not fit, or "attention" without scores.

    >>> states = torch.tensor([[[1.0], [3.0], [8.0]]])
    >>> mask = torch.tensor([[1, 1, 0]])
    >>> [pool_states(states, mask, pooling).item() for pooling in ("mean", "cls", "last")]
    [2.0, 1.0, 3.0]
    """
    check_choice("pooling", pooling, get_args(Pooling))
    if states.ndim != 3 or states.shape[:2] != mask.shape:
        raise ConfigError(
            f"pool_states needs states [batch, tokens, width] and a mask [batch, tokens]; received "
            f"{list(states.shape)} and {list(mask.shape)}"
        )
    if pooling in {"cls", "last"}:
        places = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
        real = mask != 0
        chosen = places.masked_fill(~real, _NOWHERE).amin(1) if pooling == "cls" else (places * real).amax(1)
        # A row without any token has no first one; its first column stands in.
        index = chosen.masked_fill(chosen == _NOWHERE, 0)[:, None, None].expand(-1, 1, states.shape[2])
        return states.gather(1, index).squeeze(1)
    if pooling == "attention":
        if scores is None:
            raise ConfigError("pool_states(pooling='attention') needs scores [batch, tokens]; received none")
        weights = scores.float().masked_fill(mask == 0, torch.finfo(torch.float32).min).softmax(1)
    else:
        weights = mask.float() / mask.float().sum(1, keepdim=True).clamp(min=1)
    return (states * weights.to(states.dtype).unsqueeze(2)).sum(1)


class _Head(nn.Module):
    """Pools, drops out, and maps to the outputs."""

    def __init__(self, width: int, outputs: int, pooling: Pooling, dropout: float) -> None:
        super().__init__()
        self.pooling = pooling
        # Zeros weigh all tokens alike: training starts from the mean.
        self.attention = nn.Linear(width, 1, bias=False) if pooling == "attention" else None
        if self.attention is not None:
            nn.init.zeros_(self.attention.weight)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, outputs)

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and pooled states."""
        scores = self.attention(states).squeeze(2) if self.attention is not None else None
        pooled = pool_states(states, mask, self.pooling, scores)
        return self.output(self.dropout(pooled)), pooled


class _Pooled:
    """What takes the place of an architecture's own way from token states to logits."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **settings: Any,
    ) -> PooledOutput:
        """Return logits and pooled states of a batch."""
        model: Any = self
        given = input_ids if input_ids is not None else inputs_embeds
        if given is None:
            raise ConfigError(f"{type(self).__name__} needs input_ids or inputs_embeds; received neither")
        if attention_mask is None:
            attention_mask = torch.ones(given.shape[:2], dtype=torch.long, device=given.device)
        inputs = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "token_type_ids": token_type_ids, **settings}
        body = _states_of(model)
        named = inspect.signature(body.forward).parameters
        if "use_cache" in named:
            inputs["use_cache"] = False  # keys and values of a decoder, which nothing here asks for again
        inputs = {name: value for name, value in inputs.items() if value is not None and name != "return_dict"}
        outputs = body(attention_mask=attention_mask, **inputs)
        logits, pooled = model.pooled_head(outputs[0], attention_mask)
        answer: PooledOutput = model.output_class(
            logits=logits,
            hidden_states=getattr(outputs, "hidden_states", None),
            attentions=getattr(outputs, "attentions", None),
            pooled=pooled,
        )
        return answer


def is_pooled(model: nn.Module) -> bool:
    """Tell whether `pooled_head_` has given the model its head."""
    return any(entry["kind"] == POOLED for entry in structure_of(model))


def pooled_head_(model: nn.Module, pooling: Pooling = "mean") -> None:
    """Give a transformers classifier one linear layer on its pooled token states, in the place of its own head.

    Sentence embedding models (MiniLM, MPNet) are trained so that the mean over the tokens carries the meaning, while
    the head that their architecture brings reads the first token through a layer that the checkpoint lacks: with few
    labels it has to be learnt first. Of an encoder-decoder (T5, BART) the encoder is kept and the decoder dropped, as
    in Sentence-T5 (Ni et al. 2022, https://arxiv.org/abs/2108.08877).

    The new layer is drawn from torch's random state. Plain transformers cannot express the shape: export the model
    with `Trainer.export`, and load it with `lowft.load`. A model that has this head already is left as it is.

    Args:
        model: A `...ForSequenceClassification` of transformers, changed in place.
        pooling: "mean" over the tokens, "cls" the first one, "last" the last one (decoders), or "attention", a
            weighted mean whose weights are learnt, and begin alike.

    Raises:
        ConfigError: Another pooling.
        ModelError: The model is not a classifier of transformers, is quantized, or has another pooled head.

    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> config = BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8)
    >>> model = BertForSequenceClassification(config)
    >>> pooled_head_(model, "mean")
    >>> model.pooled_head.output, model.bert.pooler
    (Linear(in_features=8, out_features=2, bias=True), None)
    """
    check_choice("pooled_head_: pooling", pooling, get_args(Pooling))
    kinds = {entry["kind"]: entry["plan"] for entry in structure_of(model)}
    if POOLED in kinds:
        has = kinds[POOLED]["pooling"]
        if has != pooling:
            raise ModelError(
                f"this {type(model).__name__} has a head on pooling={has!r} already, and pooling={pooling!r} was asked "
                f"for: start from the model as it was before, or keep pooling={has!r}"
            )
        return
    if "quantized" in kinds:
        raise ModelError(f"this {type(model).__name__} is quantized: give the full-precision model its pooled head")
    _rebuild_(model, pooling)
    record_(model, POOLED, {"pooling": pooling})


def rebuild_pooled_(model: nn.Module, plan: Mapping[str, Any]) -> None:
    """Give a model of the config the pooled head of a plan; its weights are then still to be filled in."""
    if plan["pooling"] not in get_args(Pooling):
        raise ValueError(f"unknown pooling {plan['pooling']!r}")
    _rebuild_(model, plan["pooling"])


def _rebuild_(module: nn.Module, pooling: Pooling) -> None:
    from transformers import PreTrainedModel

    from lowft.models._pooled_output import PooledOutput

    kind = type(module)
    body = str(getattr(module, "base_model_prefix", ""))
    if not isinstance(module, PreTrainedModel) or not kind.__name__.endswith("ForSequenceClassification"):
        raise ModelError(
            f"a pooled head takes the place of that of a ...ForSequenceClassification of transformers; received a "
            f"{kind.__name__}"
        )
    model: Any = module
    if not body or not isinstance(getattr(model, body, None), nn.Module):
        raise ModelError(f"{kind.__name__} does not say which of its parts is the pre-trained body")
    width = model.config.get_text_config().hidden_size
    rates = (getattr(model.config, name, None) for name in _DROPOUT)
    dropout = next((rate for rate in rates if isinstance(rate, int | float)), _DROPOUT_DEFAULT)
    first = next(model.parameters())
    head = _Head(width, model.config.num_labels, pooling, dropout).to(first.device, first.dtype)
    model._init_weights(head.output)  # noqa: SLF001 - the only place that knows the architecture's initialisation
    for name, _ in [*model.named_children()]:
        if name != body:
            delattr(model, name)
    inner = getattr(model, body)
    if isinstance(getattr(inner, "pooler", None), nn.Module):
        inner.pooler = None  # the layer on the first token, which nothing reads any more
    if model.config.is_encoder_decoder and isinstance(getattr(inner, "decoder", None), nn.Module):
        del inner.decoder
    model.pooled_head = head
    model.config.architectures = [kind.__name__]
    named = inspect.signature(_states_of(model).forward).parameters
    model.input_names = tuple(n for n in ("input_ids", "attention_mask", "token_type_ids") if n in named)
    model.__class__ = type(
        f"Pooled{kind.__name__}", (_Pooled, kind), {"__module__": __name__, "output_class": PooledOutput}
    )
    model.train(model.training)


def _states_of(model: Any) -> Any:
    """Return the part that gives the token states."""
    body = getattr(model, model.base_model_prefix)
    return body.get_encoder() if model.config.is_encoder_decoder else body
