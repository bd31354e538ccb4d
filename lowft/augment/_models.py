"""Models that augmenters ask: opened safely, and their vocabulary as words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lowft._settings import check_text
from lowft.augment._forms import NUMBERS
from lowft.augment._words import STOP_WORDS
from lowft.errors import ConfigError, ModelError
from lowft.masking import continuations

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["WordTokens", "check_source", "open_model", "open_source"]


def open_model(auto: Any, name: str, revision: str | None, *, purpose: str, kind: str) -> tuple[Any, Any, list[str]]:
    """Return a model in evaluation mode on the accelerator, if there is one, its tokenizer, and the weights it lacks.

    Args:
        auto: The class of transformers that reads such models.
        name: A hub id or a folder; with safetensors.
        revision: The revision of the hub model.
        purpose: Who asks, for messages.
        kind: What it asks for, for messages, such as "an encoder-decoder model".

    Raises:
        ModelError: It cannot be loaded, or not safely.
    """
    from lowft.models import load_tokenizer
    from lowft.models._quiet import quiet

    tokenizer = load_tokenizer(name, revision=revision)
    try:
        with quiet(bars=not Path(name).is_dir()):  # downloads show their progress
            model, report = auto.from_pretrained(
                name,
                revision=revision or "main",
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception as error:  # each class fails in its own way on files that are missing or damaged
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{purpose}: {name!r} cannot be loaded as {kind} with safetensors. {type(error).__name__}: {reason[:400]}"
        ) from error
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return model.to(accelerator or "cpu").eval(), tokenizer, sorted(report["missing_keys"])


def check_source(augmenter: Any) -> None:
    """Check the settings `model`, `tokenizer` and `revision`, and make folders the texts that recipes hold."""
    name = type(augmenter).__name__
    for setting in ("model", "tokenizer"):
        if isinstance(getattr(augmenter, setting), str | os.PathLike):
            object.__setattr__(augmenter, setting, os.fspath(getattr(augmenter, setting)))
    if not isinstance(augmenter.model, torch.nn.Module):
        check_text(f"{name}.model", augmenter.model)
    if augmenter.revision is not None:
        check_text(f"{name}.revision", augmenter.revision)


def open_source(augmenter: Any, auto: Any, *, kind: str) -> tuple[Any, Any, list[str]]:
    """Return the model that an augmenter names or holds, its tokenizer, and the weights that the model lacks."""
    from lowft._preparation import find_tokenizer

    model, tokenizer = augmenter.model, augmenter.tokenizer
    missing: list[str] = []
    if isinstance(model, str):
        purpose = type(augmenter).__name__
        model, own, missing = open_model(auto, model, augmenter.revision, purpose=purpose, kind=kind)
        tokenizer = own if tokenizer is None else tokenizer
    return model, find_tokenizer(tokenizer, model, augmenter.revision), missing


class WordTokens:
    """The words that a tokenizer has whole, as one token each.

    A word is written in small letters, of three or more, and no function word or number. Tokens that go on with a word
    ("##ing", or one without "Ġ" or "▁") are none.

    Args:
        tokenizer: A tokenizer of transformers: WordPiece, byte-level BPE or SentencePiece.
        tokens: Number of tokens that the model has embeddings of.

    Attributes:
        words: The words, in the order of their tokens.
        places: Where each stands among them.
        ids: The token of each, `[words]`.
        forms: All tokens that write one of them, capitals and beginnings of texts included, `[forms]`.
        word_of: Which word each form writes, `[forms]`.

    Raises:
        ConfigError: There are none.
    """

    def __init__(self, tokenizer: Any, tokens: int) -> None:
        """Read the vocabulary."""
        within = continuations(tokenizer).tolist()[:tokens]
        names = tokenizer.convert_ids_to_tokens(list(range(len(within))))
        special = set(tokenizer.all_special_ids)
        texts = {
            token: name if name.startswith("##") else tokenizer.convert_tokens_to_string([name]).strip()
            for token, name in enumerate(names)
            if token not in special
        }
        found: dict[str, int] = {}
        for token, text in texts.items():
            if not within[token] and _is_word(text):
                found.setdefault(text, token)
        if not found:
            raise ConfigError(
                f"this {type(tokenizer).__name__} has no whole words among its {len(names):,} tokens, of which others "
                f"could be taken: use a model with a vocabulary of words"
            )
        self.words = tuple(found)
        self.places = {word: place for place, word in enumerate(self.words)}
        self.ids = torch.tensor([found[word] for word in self.words])
        forms = [(token, self.places[text.lower()]) for token, text in texts.items() if text.lower() in self.places]
        self.forms, self.word_of = (torch.tensor(column) for column in zip(*forms, strict=True))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return how likely each word is, all its forms taken together, `[rows, words]`, from `[rows, tokens]`."""
        likely = logits.float().softmax(dim=1)
        found = likely.new_zeros(len(likely), len(self.words))
        return found.index_add_(1, self.word_of.to(likely.device), likely[:, self.forms.to(likely.device)])


def _is_word(text: str) -> bool:
    return len(text) > 2 and text.isalpha() and text.islower() and text not in STOP_WORDS | NUMBERS
