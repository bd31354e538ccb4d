"""What a masked language model says of hidden words: which are hidden, what is taken, what it depends on."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from lowft.augment import ContextualReplacement
from lowft.errors import ConfigError, ModelError
from lowft.strategies import Augment
from tests.augment.tiny_masked import byte_level_tokenizer, masked_folder, masked_model
from tests.runs import tiny_trainer
from tests.test_strategies_table import assert_same, final_weights
from tests.tiny import ARCHITECTURES, VOCABULARY, tiny_model, tiny_tokenizer

TEXT = "A dull and lazy FILM; it wasn't Rome's best story."
READERS = [arch for arch in ARCHITECTURES if arch not in ("gpt2", "llama", "t5")]


class Oracle(torch.nn.Module):
    """Stands in for a masked language model: says of each place the scores of a table, and remembers what it read."""

    def __init__(self, scores: dict[str, float], tokenizer: Any) -> None:
        super().__init__()
        self.base_model = torch.nn.Identity()
        self.embeddings = torch.nn.Embedding(len(tokenizer), 1)
        self.scores = torch.full((len(tokenizer),), -20.0)
        for token, score in scores.items():
            self.scores[tokenizer.convert_tokens_to_ids(token)] = score
        self.read: list[str] = []
        self.tokenizer = tokenizer

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embeddings

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        self.read += [self.tokenizer.decode(row) for row in input_ids]
        (states,) = self.base_model((torch.zeros(*input_ids.shape, 1),))
        assert states.shape == (len(input_ids), 1, 1)  # the hidden places alone
        return type("Output", (), {"logits": self.scores.expand(len(input_ids), 1, -1)})


def asked(scores: dict[str, float], tokenizer: Any = None, **settings: Any) -> tuple[ContextualReplacement, Oracle]:
    """Return an augmenter and the stand-in that it asks."""
    tokenizer = tokenizer or tiny_tokenizer()
    oracle = Oracle(scores, tokenizer)
    return ContextualReplacement(oracle, tokenizer, **settings), oracle


def test_likely_whole_words_are_taken() -> None:
    """The likeliest come first; pieces, marks, function words, the word itself and what is too unlikely are not."""
    scores = {"the": 9.0, "##ing": 9.0, ";": 8.0, "film": 6.0, "movie": 5.0, "story": 4.0, "plot": -5.0, "joke": 3.0}
    augmenter, _ = asked(scores, top=2)
    assert augmenter.options("a dull film") == (
        (2, 6, ("film", "movie")), (7, 11, ("movie", "story")),
    )  # fmt: skip
    assert asked(scores, top=9)[0].options("film")[0][2] == ("movie", "story", "joke")
    assert asked(scores, top=9, min_probability=0.3)[0].options("film")[0][2] == ("movie",)


def test_each_word_is_hidden_in_turn_with_the_text_beside() -> None:
    """The model reads the text as it is, and with one word hidden; or that alone, and no more words than asked for."""
    augmenter, oracle = asked({"movie": 5.0})
    augmenter.options("Dull films , not the best")
    assert oracle.read[0].startswith("[CLS] dull films, not the best [SEP] [MASK] films, not the best [SEP]")
    assert "[MASK], not the best" in oracle.read[1]
    assert len(oracle.read) == 3
    alone, oracle = asked({"movie": 5.0}, show_word=False, context=1)
    alone.options("a dull and lazy story about love")
    assert [text.removesuffix(" [PAD]") for text in oracle.read] == [
        "[CLS] a [MASK] and [SEP]", "[CLS] and [MASK] story [SEP]", "[CLS] lazy [MASK] about [SEP]",
        "[CLS] about [MASK] [SEP]",
    ]  # fmt: skip


def test_a_mask_that_stands_in_the_text_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """The place that is asked about is that of the hidden word, whatever masks the text had before."""
    places: list[list[int]] = []
    augmenter, _ = asked({"movie": 5.0}, show_word=True)
    logits = type(augmenter._model)._logits

    def noted(self: Any, inputs: Any, at: list[int]) -> torch.Tensor:
        places.append(at)
        return logits(self, inputs, at)

    monkeypatch.setattr(type(augmenter._model), "_logits", noted)
    augmenter.options("[MASK] film [MASK]")
    # [CLS] [MASK] film [MASK] [SEP] [MASK] [MASK] [MASK] [SEP]
    assert places == [[6]]


def test_words_that_are_cut_off_are_left_alone() -> None:
    """Where the model's length ends before the hidden word, nothing is said of it."""
    augmenter, _ = asked({"movie": 5.0}, context=200)
    found = augmenter.options("film " * 150)
    assert 0 < len(found) < 150
    assert all(words == ("movie",) for _, _, words in found)


def test_forms_of_a_word_count_together() -> None:
    """With byte-level BPE, a word with and without its space and in capitals is one word."""
    tokenizer = byte_level_tokenizer("\u0120film", "film", "\u0120Film", "\u0120movie", "\u0120story", *(
        f"\u0120filler{number}" for number in range(60)
    ))  # fmt: skip
    scores = {"\u0120story": 2.0, "\u0120film": 1.5, "film": 1.5, "\u0120Film": 1.5, "\u0120movie": 1.9}
    augmenter, _ = asked(scores, tokenizer, top=3)
    assert augmenter.options("tale")[0][2] == ("film", "story", "movie")


@pytest.mark.parametrize("arch", READERS)
def test_scores_are_those_of_the_model(arch: str) -> None:
    """For every architecture, what is computed at the hidden place alone is what the whole model says there."""
    model, tokenizer = masked_model(arch), tiny_tokenizer(arch)
    augmenter = ContextualReplacement(model, tokenizer, show_word=False)
    encoded = tokenizer(["a [MASK] story", "dull [MASK]"], padding=True, return_tensors="pt")
    places = [(ids == tokenizer.mask_token_id).nonzero()[0, 0].item() for ids in encoded["input_ids"]]
    found = augmenter._model._logits(dict(encoded), places)
    with torch.no_grad():
        whole = model(**encoded).logits[[0, 1], places]
    torch.testing.assert_close(found, whole)
    assert not model.base_model._forward_hooks


def test_only_the_words_change() -> None:
    """Names, contractions, function words and all that is no word stay; capitals are taken over."""
    augmenter = ContextualReplacement(masked_folder(), share=1.0, min_probability=0.0, top=3)
    for seed in range(10):
        varied = augmenter([TEXT], random.Random(seed))[0]
        words = varied.replace(";", " ; ").replace(".", " .").split()
        assert [words[at] for at in (0, 2, 5, 6, 7, 8, 11)] == ["A", "and", ";", "it", "wasn't", "Rome's", "."]
        assert words[4].isupper()
        assert all(word.lower() in VOCABULARY for word in (words[1], words[3], words[4], words[9], words[10]))
        assert (words[1], words[4]) != ("dull", "FILM")


def test_answers_are_kept_and_depend_on_the_text_alone() -> None:
    """A text is asked about once; whatever stood beside it, whenever, its answers are the same bits."""
    texts = [TEXT, "a joy", "", "a story about love and a perfect film that never ends"]
    together, alone = (ContextualReplacement(masked_folder(), top=4, batch_size=3) for _ in range(2))
    together.prepare(texts)
    assert [together.options(text) for text in texts] == [alone.options(text) for text in reversed(texts)][::-1]
    kept = pickle.loads(pickle.dumps(together))  # noqa: S301 - our own bytes
    assert kept._known == together._known
    small = ContextualReplacement(masked_folder(), remembered=1)
    small.prepare(texts)
    assert list(small._known) == [TEXT]
    small.options("a joy")
    assert list(small._known) == ["a joy"]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_in_training_any_number_of_workers_makes_the_same_copies() -> None:
    """The Trainer has all texts asked about before it trains; workers only draw."""
    found = []
    for workers in (0, 2):
        augment = Augment([ContextualReplacement(masked_folder(), share=0.5, min_probability=0.0)])
        trainer = tiny_trainer(strategies=[augment], max_steps=4, dataloader_num_workers=workers)
        trainer.fit()
        found.append(final_weights(trainer))
    assert_same(found[0], found[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": None}, r"model must be a text that is not empty; received None"),
        ({"top": 0}, r"top must be a whole number of at least 1"),
        ({"context": 0}, r"context must be a whole number"),
        ({"batch_size": 0}, r"batch_size must be a whole number"),
        ({"remembered": 0}, r"remembered must be a whole number"),
        ({"min_probability": 1}, r"min_probability must be a finite number at least 0 and below 1"),
        ({"show_word": 1}, r"show_word must be True or False"),
        ({"share": 0}, r"share must be a finite number above 0 and at most 1"),
        ({"protect": ("(",)}, r"protect must hold regular expressions; '\(' is none"),
        ({"stop_words": "the"}, r"stop_words must be a tuple of texts"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    """A setting that cannot work is refused with the rule and the value."""
    with pytest.raises(ConfigError, match=rf"ContextualReplacement\.{message}"):
        ContextualReplacement(**({"model": "folder"} | settings))


def test_a_model_that_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    """One whose head was never trained, and a tokenizer without a mask token, are found before training."""
    tiny_model("bert").save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer("bert")
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"is no complete masked language model; it lacks cls\.predictions"):
        ContextualReplacement(tmp_path).prepare([])
    tokenizer.mask_token = None
    with pytest.raises(ConfigError, match=r"hides words behind a mask token, and this \w+ has none"):
        ContextualReplacement(masked_model(), tokenizer).prepare([])
