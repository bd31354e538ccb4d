"""Tokens hidden from a model that is to say what they were."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from lowft._settings import check_real, check_whole
from lowft.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["continuations", "mask_tokens", "masked_token_loss"]

_LEAVE = -100


def mask_tokens(
    input_ids: Tensor,
    maskable: Tensor,
    *,
    mask_id: int,
    vocabulary: int,
    continues: Tensor | None = None,
    share: float = 0.15,
    longest_span: int = 1,
    rng: random.Random | None = None,
) -> tuple[Tensor, Tensor]:
    """Hide some tokens of each row, and return the rows and what to predict.

    Of the hidden tokens 80 % become the mask, 10 % a token drawn at random and 10 % stay as they are, as in Devlin et
    al. 2019, *BERT*, section 3.1, https://arxiv.org/abs/1810.04805. Spans: Joshi et al. 2020, *SpanBERT*,
    https://arxiv.org/abs/1907.10529.

    Args:
        input_ids: `[batch, tokens]`.
        maskable: Which places may be hidden, `[batch, tokens]`: no padding, no separators.
        mask_id: The mask token.
        vocabulary: Number of tokens to draw from.
        continues: Whether a token goes on with the word before it, `[vocabulary]` (`continuations`), to hide whole
            words; None hides single tokens.
        share: Share of each row's words (tokens) to hide, at least one.
        longest_span: They are hidden in runs of neighbours whose length is drawn from 1 to this.
        rng: The source to draw from; a fresh one if None.

    Returns:
        The rows with tokens hidden, and labels: the token that stood there, −100 in every other place.

    Raises:
        ConfigError: A setting outside its range, or shapes that do not agree.

    >>> ids, free = torch.tensor([[2, 7, 8, 9, 3]]), torch.tensor([[False, True, True, True, False]])
    >>> hidden, labels = mask_tokens(ids, free, mask_id=4, vocabulary=10, rng=random.Random(1))
    >>> hidden.tolist(), labels.tolist()
    ([[2, 4, 8, 9, 3]], [[-100, 7, -100, -100, -100]])
    """
    check_real("share", share, above=0, most=1)
    check_whole("longest_span", longest_span, least=1)
    if input_ids.ndim != 2 or maskable.shape != input_ids.shape:
        raise ConfigError(
            f"mask_tokens needs input_ids and maskable of one shape, [batch, tokens]; received "
            f"{list(input_ids.shape)} and {list(maskable.shape)}"
        )
    rng = rng or random.Random()
    ids, free = input_ids.tolist(), maskable.tolist()
    within = (continues[input_ids.cpu()] if continues is not None else torch.zeros_like(maskable)).tolist()
    hidden = [list(row) for row in ids]
    labels = [[_LEAVE] * len(row) for row in ids]
    for row, tokens in enumerate(ids):
        words: list[list[int]] = []
        for place in range(len(tokens)):
            if not free[row][place]:
                continue
            if words and within[row][place] and words[-1][-1] == place - 1:
                words[-1].append(place)
            else:
                words.append([place])
        for word in _chosen(len(words), share, longest_span, rng):
            for place in words[word]:
                labels[row][place] = tokens[place]
                draw = rng.random()
                if draw < 0.8:
                    hidden[row][place] = mask_id
                elif draw < 0.9:
                    hidden[row][place] = rng.randrange(vocabulary)
    device = input_ids.device
    return torch.tensor(hidden, device=device), torch.tensor(labels, device=device)


def _chosen(count: int, share: float, longest_span: int, rng: random.Random) -> list[int]:
    """Return which of so many words to hide."""
    wanted = min(max(1, round(share * count)), count)
    chosen: set[int] = set()
    for start in rng.sample(range(count), count):
        if len(chosen) >= wanted:
            break
        length = min(rng.randint(1, longest_span), wanted - len(chosen))
        chosen.update(range(start, min(start + length, count)))
    return sorted(chosen)


def masked_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of the hidden tokens: the mean over rows of the mean over what is hidden in each.

    So every row counts alike, and the loss is the same for any size of micro-batch. A row with nothing hidden costs 0.

    Args:
        logits: Of the hidden tokens alone, in order, `[hidden tokens, vocabulary]`.
        labels: `[batch, tokens]`, −100 where nothing is hidden.

    >>> logits = torch.tensor([[9.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    >>> masked_token_loss(logits, torch.tensor([[0, -100, 1], [-100, 1, -100]]))
    tensor(0.5199)
    """
    places = labels != _LEAVE
    each = F.cross_entropy(logits.float(), labels[places], reduction="none")
    in_row = places.sum(dim=1).clamp(min=1)[places.nonzero()[:, 0]]
    return (each / in_row).sum() / len(labels)


def continuations(tokenizer: Any) -> Tensor:
    """Return whether each token goes on with the word before it, `[vocabulary]`: "##ing", or one without "Ġ" or "▁".

    Args:
        tokenizer: A tokenizer of transformers.
    """
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    for mark in ("\u0120", "\u2581"):  # of byte-level BPE, of SentencePiece
        if sum(token.startswith(mark) for token in tokens) * 10 > len(tokens):
            return torch.tensor([not token.startswith(mark) for token in tokens])
    return torch.tensor([token.startswith("##") for token in tokens])
