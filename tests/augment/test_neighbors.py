"""Words that embeddings put beside each other: which tokens are words, which words are forms of one, which are near."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from lowft.augment import EmbeddingNeighbors, RandomInsertion, SynonymReplacement
from lowft.augment import neighbors as module
from lowft.errors import ConfigError, ModelError
from tests.augment.tiny_masked import byte_level_tokenizer, sentencepiece_tokenizer
from tests.tiny import VOCABULARY, tiny_model, tiny_tokenizer


def embedded(angles: dict[str, float], tokenizer: Any) -> Any:
    """Return a model in which these tokens lie on a circle at these angles (degrees), and all others elsewhere."""
    model = tiny_model("bert", num_layers=1, vocab_size=len(tokenizer))
    weight: Any = model.get_input_embeddings().weight
    with torch.no_grad():
        weight[:, :2] = 0.0
        for token, angle in angles.items():
            at = torch.deg2rad(torch.tensor(angle))
            weight[tokenizer.convert_tokens_to_ids(token)] = 0.0
            weight[tokenizer.convert_tokens_to_ids(token), :2] = torch.stack([at.cos(), at.sin()])
    return model


ANGLES: dict[str, float] = {
    "film": 0, "movie": 10, "cinema": 25, "story": 120, "stories": 121, "tale": 130, "laughs": 240, "laugh": 242,
    "jokes": 250, "good": 300,
}  # fmt: skip
WORDPIECE = {name: angle for name, angle in ANGLES.items() if name in VOCABULARY}


def test_the_nearest_come_first_and_forms_are_left_out() -> None:
    """Neighbours are in order of their angle; what begins alike or ends otherwise in -s is none."""
    tokenizer = tiny_tokenizer()
    nearest = EmbeddingNeighbors(embedded(WORDPIECE, tokenizer), tokenizer, min_similarity=0.97)
    assert nearest("film") == ("movie",)
    assert nearest("MOVIE") == ("film",)
    assert nearest("story") == ("tale",)
    assert nearest("laughs") == ("jokes",)  # "laugh" is nearer
    assert nearest("good") == ()
    assert nearest("nowhere") == nearest("the") == nearest("filmography") == ()


def test_settings_decide_how_many_and_how_near() -> None:
    """A lower bound takes in more, and no more than asked for."""
    names = ("film", "movie", "cinema", "picture")
    tokenizer = byte_level_tokenizer(
        *(f"\u0120{name}" for name in names),
        *(f"\u0120{'abcdefghij'[n // 10]}{'klmnopqrst'[n % 10]}z" for n in range(100)),
    )
    angles = {f"\u0120{name}": 10.0 * place for place, name in enumerate(names)}
    model = embedded(angles, tokenizer)
    assert EmbeddingNeighbors(model, tokenizer, min_similarity=0.5)("film") == ("movie", "cinema", "picture")
    assert EmbeddingNeighbors(model, tokenizer, 2, min_similarity=0.5)("film") == ("movie", "cinema")
    assert EmbeddingNeighbors(model, tokenizer, min_similarity=0.97)("film") == ("movie",)


@pytest.mark.parametrize(("mark", "make"), [("\u0120", byte_level_tokenizer), ("\u2581", sentencepiece_tokenizer)])
def test_tokens_that_begin_a_word_are_words(mark: str, make: Any) -> None:
    """With byte-level BPE and SentencePiece a word has its mark; pieces, capitals, numbers and short ones are none."""
    coded = "caf\u00c3\u00a9" if mark == "\u0120" else "caf\u00e9"  # bytes are letters of their own
    words = ("film", "movie", coded, "Film", "the", "3d", "of", "up")
    tokenizer = make(*(f"{mark}{word}" for word in words), *(f"{mark}filler{n}" for n in range(60)), "movies", "ing")
    angles: dict[str, float] = {f"{mark}film": 0, f"{mark}movie": 5, f"{mark}{coded}": 8, f"{mark}Film": 1, "movies": 2}
    nearest = EmbeddingNeighbors(embedded(angles, tokenizer), tokenizer, min_similarity=-1)
    assert nearest("film") == ("movie", "caf\u00e9")
    assert nearest("CAF\u00c9") == ("movie", "film")


def test_every_part_of_the_vocabulary_is_compared_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is computed together changes no answer, and each part is computed once."""
    tokenizer = tiny_tokenizer()
    model = tiny_model("bert")
    words = [word for word in VOCABULARY if word.isalpha()]
    whole = EmbeddingNeighbors(model, tokenizer, min_similarity=0.0)
    expected = [whole(word) for word in words]
    assert sum(map(bool, expected)) > 100
    monkeypatch.setattr(module, "_TOGETHER", 7)
    parts = EmbeddingNeighbors(model, tokenizer, min_similarity=0.0)
    assert [parts(word) for word in reversed(words)] == expected[::-1]
    held = parts._found[0]._parts
    assert len(held) > 10
    assert all(len(values) <= 7 for values, _ in held.values())
    before = dict(held)
    parts("film")
    assert before == held


def test_it_is_read_from_a_folder_and_travels(tmp_path: Path) -> None:
    """A folder, a model that is held, and a pickled copy give the same; names of folders are texts."""
    tiny_model("distilbert").save_pretrained(tmp_path)
    tiny_tokenizer("distilbert").save_pretrained(tmp_path)
    named = EmbeddingNeighbors(tmp_path, min_similarity=0.1)
    assert named.model == str(tmp_path)
    held = EmbeddingNeighbors(tiny_model("distilbert"), tmp_path, min_similarity=0.1)
    fresh = pickle.dumps(named)
    words = [word for word in VOCABULARY if word.isalpha()]
    answers = [named(word) for word in words]
    assert any(answers)
    for other in (held, pickle.loads(fresh), pickle.loads(pickle.dumps(named))):  # noqa: S301 - our own bytes
        assert [other(word) for word in words] == answers


def test_a_folder_is_opened_once_for_all_texts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`prepare` finds all neighbours, so that a worker process, or one without the model, needs it no more."""
    tiny_model("bert").save_pretrained(tmp_path)
    tiny_tokenizer("bert").save_pretrained(tmp_path)
    insert = RandomInsertion(SynonymReplacement(EmbeddingNeighbors(tmp_path, min_similarity=0.0)))
    insert.prepare(["a dull film", "a lovely story"])
    monkeypatch.setattr(EmbeddingNeighbors, "_vectors", None)
    found = insert.synonyms.options("a dull story")
    assert [start for start, _, _ in found] == [2, 7]
    assert all(words for _, _, words in found)


def test_real_neighbours_of_a_real_model(minilm_path: Path) -> None:
    """MiniLM's embeddings know words of like meaning, and none of them is a form of the word."""
    nearest = EmbeddingNeighbors(minilm_path)
    for word, neighbour in (("movie", "film"), ("movies", "films"), ("hard", "difficult"), ("really", "actually")):
        assert neighbour in nearest(word), (word, nearest(word))
    for word in ("films", "movies", "story", "excellent", "happy"):
        assert not any(other.startswith(word[:4]) or word in other for other in nearest(word))
    for word in ("made", "took", "man", "two", "three"):  # else their own forms, or other numbers
        assert nearest(word) == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": 3}, r"model must be a text that is not empty; received 3"),
        ({"model": ""}, r"model must be a text"),
        ({"neighbors": 0}, r"neighbors must be a whole number of at least 1"),
        ({"min_similarity": 1.0}, r"min_similarity must be a finite number at least -1 and below 1"),
        ({"revision": ""}, r"revision must be a text"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    """A setting that cannot work is refused with the rule and the value."""
    with pytest.raises(ConfigError, match=rf"EmbeddingNeighbors\.{message}"):
        EmbeddingNeighbors(**({"model": "folder"} | settings))


def test_a_model_without_words_is_refused(tmp_path: Path) -> None:
    """Neither a module without embeddings nor a vocabulary of pieces has words to take; a folder must be a model's."""
    with pytest.raises(ModelError, match=r"'Linear' has no trained input embeddings of words"):
        EmbeddingNeighbors(torch.nn.Linear(2, 2), tiny_tokenizer())("film")
    tokenizer = byte_level_tokenizer()
    with pytest.raises(ConfigError, match=r"has no whole words among its 261 tokens"):
        EmbeddingNeighbors(tiny_model("bert", vocab_size=len(tokenizer)), tokenizer)("film")
    with pytest.raises(ConfigError, match="tokenizer is missing"):
        EmbeddingNeighbors(tiny_model("bert"))("film")
    with pytest.raises(ModelError, match="is not a folder"):
        EmbeddingNeighbors(str(tmp_path / "nothing"))("film")
