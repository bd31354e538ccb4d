"""The real WordNet and the real Apertium, from Debian's packages.

They are selected by `-m debian`, and fail where the packages are missing.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from lowft.augment import ApertiumTranslator, BackTranslation, RandomInsertion, SynonymReplacement
from lowft.augment import _wordnet as wordnet
from lowft.data.rows import Rows
from lowft.errors import MissingExtraError
from lowft.strategies import Augment

pytestmark = pytest.mark.debian

ODD = (
    "a [b] ^x$ <br />\n\n  {x} @home \\n ~\t7.5/10 *star #tag \u00e9 ",
    "",
    " ",
    "\x00a\x00",
    "50% off",
    "\\",
    "a\u2028b",
    "\xa0",
)


@pytest.fixture(scope="module")
def synonyms() -> SynonymReplacement:
    """Return the replacement by the WordNet that Debian installs."""
    assert wordnet.find_wordnet() == Path("/usr/share/wordnet")
    return SynonymReplacement(share=1.0)


def test_wordnet_is_whole(synonyms: SynonymReplacement) -> None:
    """More than twenty thousand words can be replaced."""
    assert len(wordnet.read_synonyms()) > 20_000


@pytest.mark.parametrize(
    ("word", "synonym"), [("movie", "film"), ("actor", "thespian"), ("really", "truly"), ("difficult", "hard")]
)
def test_synonyms_are_those_of_wordnet(word: str, synonym: str, synonyms: SynonymReplacement) -> None:
    """Well-known synonyms are found."""
    assert synonym in synonyms.synonyms(word)


@pytest.mark.parametrize(
    "word", ["mice", "went", "found", "left", "movies", "plays", "love", "the", "not", "e", "rome"]
)
def test_words_that_need_context_stay(word: str, synonyms: SynonymReplacement) -> None:
    """Inflected forms, words of several parts of speech, stop words, letters and names have none."""
    assert not synonyms.synonyms(word)


def test_only_words_change_in_real_reviews(
    synonyms: SynonymReplacement, rotten_tomatoes: tuple[list[str], list[int]]
) -> None:
    """Everything between words is equal, and a word that differs is one of its synonyms, in like capitals."""
    texts = [text.capitalize() if row % 2 else text.upper() for row, text in enumerate(rotten_tomatoes[0][:2000])]
    changed = 0
    for text, varied in zip(texts, synonyms(texts, random.Random(0)), strict=True):
        before, after = re.split(r"([^\W\d_]+)", text), re.split(r"([^\W\d_]+)", varied)
        assert before[::2] == after[::2]
        for old, new in zip(before[1::2], after[1::2], strict=True):
            if old != new:
                changed += 1
                assert new.lower() in synonyms.synonyms(old)
                assert (new.isupper(), new[0].isupper()) == (old.isupper(), old[0].isupper())
    assert changed > 1500


def test_insertion_takes_words_of_wordnet() -> None:
    """Synonyms of the text's own words are put in."""
    varied = RandomInsertion()(["an actor"], random.Random(0))[0]
    assert (
        varied.replace("thespian ", "").replace("histrion ", "").replace("player ", "").replace("role ", "")
        == "an actor"
    )
    assert varied != "an actor"


def test_apertium_makes_a_round_trip(rotten_tomatoes: tuple[list[str], list[int]]) -> None:
    """English goes to Spanish and back, mostly in other words, a text for each text."""
    texts = rotten_tomatoes[0][:300]
    spanish = ApertiumTranslator("eng-spa")(texts)
    assert sum(bool(re.search(r"\b(el|la|una?|de|que)\b", text)) for text in spanish) > 250
    trip = BackTranslation(ApertiumTranslator("eng-spa"), ApertiumTranslator("spa-eng"))
    varied = trip(texts, random.Random(0))
    assert sum(one != other for one, other in zip(texts, varied, strict=True)) > 270
    shared = [len({*one.lower().split()} & {*other.lower().split()}) for one, other in zip(texts, varied, strict=True)]
    assert sum(shared) / sum(len({*text.split()}) for text in texts) > 0.4


def test_a_text_is_translated_alike_alone_and_among_others(rotten_tomatoes: tuple[list[str], list[int]]) -> None:
    """Neighbours do not run into each other."""
    texts = ["red", "house", "I will", "sleep", *rotten_tomatoes[0][:8]]
    translate = ApertiumTranslator("eng-spa")
    assert translate(texts) == [translate([text])[0] for text in texts]


def test_odd_texts_keep_their_shape() -> None:
    """Apertium's own signs, control characters, tabs and line breaks go through."""
    varied = ApertiumTranslator("eng-spa")(ODD)
    assert [re.findall(r"[\x00-\x1f\u2028\[\]{}^$~\\]", text) for text in varied] == [
        re.findall(r"[\x00-\x1f\u2028\[\]{}^$~\\]", text) for text in ODD
    ]


def test_a_direction_that_is_not_installed_is_named() -> None:
    """The message lists what there is."""
    with pytest.raises(MissingExtraError, match=r"no direction 'eng-epo'; it has: .*eng-spa.*apertium-eng-epo"):
        ApertiumTranslator("eng-epo")(["a"])


def test_a_strategy_translates_all_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the preparation, batches need no Apertium any more."""
    trip = BackTranslation(ApertiumTranslator("eng-spa"), ApertiumTranslator("spa-eng"))
    texts = ("the film is superb", "a strong cast")
    Augment([trip]).prepare_data(Rows(texts))
    monkeypatch.setenv("PATH", "")
    assert len(trip(texts, random.Random(0))) == 2
