"""Which tokens a tokenizer cannot do without, and the same tokenizer with fewer: read and written as tokenizer.json.

A text whose tokens all stay is cut into the same tokens as before, whatever else goes:

- WordPiece takes the longest token that fits, and the longest of all is still there;
- BPE joins the pair that was learned first, and every pair that was joined is still there, with its rank;
- Unigram takes the likeliest tokens, and what was likeliest of many is so of fewer.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from lowft.errors import ModelError

__all__ = ["Pieces"]

_BYTES = frozenset(f"<0x{value:02X}>" for value in range(256))
_SPACE = "▁"  # SentencePiece writes spaces so; decoders make them spaces before they join bytes to characters


class Pieces:
    """The vocabulary of a tokenizer.json.

    Attributes:
        vocabulary: The model's tokens with their ids, without those that were only added.
        added: The added tokens with their ids: special ones, and words that no model cuts.
        special: Tokens that are there for the model's sake and not for the text's.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        """Read what `tokenizers.Tokenizer.to_str` wrote.

        Raises:
            ModelError: The tokenizer is of a kind that cannot spell what is missing in its vocabulary.
        """
        self._content = content
        self._model: Mapping[str, Any] = content["model"]
        self.kind: str = self._model.get("type", "")
        if self.kind not in ("WordPiece", "BPE", "Unigram"):
            raise ModelError(
                f"the vocabulary of a {self.kind or 'nameless'} tokenizer cannot be pruned: only WordPiece, BPE and "
                f"Unigram can spell a word that is gone"
            )
        if self.kind == "BPE" and self._model.get("dropout"):
            raise ModelError(
                f"this tokenizer joins pairs at random (BPE dropout {self._model['dropout']}), so no text has tokens "
                f"of its own: set its dropout to None first"
            )
        vocabulary = self._model["vocab"]
        if self.kind == "Unigram":
            vocabulary = {piece: number for number, (piece, _) in enumerate(vocabulary)}
        self.vocabulary: dict[str, int] = dict(vocabulary)
        self.added: dict[str, int] = {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
        named = {str(name) for name in (self._model.get("unk_token"),) if name}
        if self.kind == "Unigram" and self._model.get("unk_id") is not None:
            named.add(self._model["vocab"][self._model["unk_id"]][0])
        if content.get("padding"):
            named.add(content["padding"]["pad_token"])
        named.update(name for names, _ in _inserted(content.get("post_processor")) for name in names)
        self.special = frozenset(self.added) | (named & set(self.vocabulary))

    @property
    def ids(self) -> dict[str, int]:
        """Every token with its id."""
        return self.vocabulary | self.added

    def needed(self, used: Collection[str]) -> set[str]:
        """Return tokens that must stay for the used ones to be found, and for any text still to be spelled."""
        spell = {"WordPiece": self._word_piece, "BPE": self._bpe, "Unigram": self._unigram}[self.kind]
        return set(used) | self.special | spell(used)

    def _word_piece(self, _: Collection[str]) -> set[str]:
        """Return all single characters, and the tokens that they cannot spell."""
        prefix = self._model.get("continuing_subword_prefix") or ""
        kept = set()
        for token in self.vocabulary:
            starts = not (prefix and token.startswith(prefix) and len(token) > len(prefix))
            characters = token if starts else token.removeprefix(prefix)
            spelled = [char if starts and at == 0 else prefix + char for at, char in enumerate(characters)]
            if len(characters) == 1 or not all(piece in self.vocabulary for piece in spelled):
                kept.add(token)
        return kept

    def _bpe(self, used: Collection[str]) -> set[str]:
        """Return what no pair makes, and all that the used tokens are made of."""
        ranks = {pair: rank for rank, pair in enumerate(self._merges())}
        products = {self._joined(*pair) for pair in ranks}
        kept = set(self._letters(token for token in self.vocabulary if token not in products))
        for token in used:
            if token in products:
                kept.update(self._parts(token, ranks))
        return kept

    def _parts(self, token: str, ranks: Mapping[tuple[str, str], int]) -> set[str]:
        """Return every token on the way from a token's characters to the token itself."""
        prefix, suffix = (self._model.get(key) or "" for key in ("continuing_subword_prefix", "end_of_word_suffix"))
        body = token.removesuffix(suffix) if suffix else token
        continues = bool(prefix) and body.startswith(prefix)
        body = body.removeprefix(prefix) if continues else body
        parts = [prefix + char if at or continues else char for at, char in enumerate(body)]
        if suffix and token.endswith(suffix):
            parts[-1] += suffix
        met = set(parts)
        while len(parts) > 1:
            pairs = list(itertools.pairwise(parts))
            at = min(range(len(pairs)), key=lambda place: ranks.get(pairs[place], len(ranks)))
            if pairs[at] not in ranks:
                break  # taken from the vocabulary as a whole, not made of pairs
            parts[at : at + 2] = [self._joined(*pairs[at])]
            met.add(parts[at])
        return met & set(self.vocabulary)

    def _unigram(self, _: Collection[str]) -> set[str]:
        """Return single characters, and the least likely token: what is unknown is rated by it."""
        least = min(self._model["vocab"], key=lambda entry: float(entry[1]))[0]
        return {least, *self._letters(token for token in self.vocabulary if len(token) == 1 or token in _BYTES)}

    def _letters(self, tokens: Iterator[str]) -> Iterator[str]:
        """Leave out single characters where the tokenizer spells what it does not know in bytes."""
        bytewise = self._model.get("byte_fallback") and set(self.vocabulary) >= _BYTES
        return (token for token in tokens if not bytewise or len(token) > 1 or token == _SPACE)

    def _merges(self) -> list[tuple[str, str]]:
        return [(first, second) for first, second in self._model.get("merges") or ()]

    def _joined(self, first: str, second: str) -> str:
        prefix = self._model.get("continuing_subword_prefix") or ""
        return first + (second.removeprefix(prefix) if prefix else second)

    def without_others(self, kept: Collection[str], fixed: Collection[int]) -> tuple[dict[str, Any], dict[int, int]]:
        """Return the tokenizer.json with the kept tokens only, and each kept token's new id by its old one.

        Tokens keep their order, and those of the fixed ids their number where there still is one: models count
        positions from the number of the pad token, and tokenizers are written with that of the unknown one.
        """
        own = sorted((number, token) for token, number in self.vocabulary.items() if token in kept)
        stays = {number for number, token in own if number < len(own) and (number in fixed or token in self.special)}
        free = iter(sorted(set(range(len(own))) - stays))
        new = {number: number if number in stays else next(free) for number, _ in own}
        only_added = sorted(number for token, number in self.added.items() if token not in self.vocabulary)
        new |= {number: len(own) + at for at, number in enumerate(only_added)}

        content = copy.deepcopy({key: value for key, value in self._content.items() if key != "model"})
        model = {key: value for key, value in self._model.items() if key not in ("vocab", "merges")}
        placed = sorted((new[number], token) for number, token in own)
        if self.kind == "Unigram":
            scores = dict(self._model["vocab"])
            model["vocab"] = [[token, scores[token]] for _, token in placed]
            if self._model.get("unk_id") is not None:
                model["unk_id"] = new[self._model["unk_id"]]
        else:
            model["vocab"] = {token: number for number, token in placed}
        if self.kind == "BPE":
            model["merges"] = [
                list(pair) for pair in self._merges() if {*pair, self._joined(*pair)} <= model["vocab"].keys()
            ]
        content["model"] = model
        for token in content.get("added_tokens") or ():
            token["id"] = new[token["id"]]
        if content.get("added_tokens"):
            content["added_tokens"].sort(key=lambda token: token["id"])
        if content.get("padding"):
            content["padding"]["pad_id"] = new[content["padding"]["pad_id"]]
        for _, place in _inserted(content.get("post_processor")):
            place[:] = [new[part] if isinstance(part, int) else part for part in place]
        return content, new


def _inserted(processor: Mapping[str, Any] | None) -> Iterator[tuple[list[str], list[Any]]]:
    """Yield tokens that a post-processor inserts, with the list in which their ids stand."""
    if processor is None:
        return
    for part in processor.get("processors") or ():
        yield from _inserted(part)
    for key in ("sep", "cls"):  # of BERT and RoBERTa: a token and its id
        if isinstance(processor.get(key), list):
            yield processor[key][:1], processor[key]
    if isinstance(processor.get("special_tokens"), dict):  # of a template: several ids for each name
        for entry in processor["special_tokens"].values():
            yield entry["tokens"], entry["ids"]
