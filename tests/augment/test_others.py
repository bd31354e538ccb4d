from __future__ import annotations

import random
import re
from typing import Any

import nlpaug.augmenter.char as nac
import nlpaug.augmenter.word as naw
import nlpaug.flow as naf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowft.augment import NlpAug
from lowft.augment.others import _with_spacing_of
from lowft.errors import ConfigError
from lowft.registry import to_dict

TEXT = "It wasn't a 2-hour (dull)  film,\n7.5/10. Really!"


class Answers:
    """Stands in for an augmenter of nlpaug, and gives one answer."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def augment(self, text: str) -> Any:
        return self.answer


@pytest.mark.parametrize(
    "augmenter",
    [
        naw.RandomWordAug(action="delete"),
        naw.SplitAug(),
        nac.KeyboardAug(),
        naf.Sequential([naw.RandomWordAug(action="swap"), nac.RandomCharAug(action="delete")]),
    ],
)
def test_an_object_of_nlpaug_is_seeded(augmenter: Any) -> None:
    """The same source gives the same variant, another source others."""
    varied = [NlpAug(augmenter)([TEXT], random.Random(seed))[0] for seed in range(6)]
    assert varied == [NlpAug(augmenter)([TEXT], random.Random(seed))[0] for seed in range(6)]
    assert len(set(varied)) > 1


def test_spacing_is_put_back() -> None:
    """Where one word is replaced, nlpaug's own tokenizer leaves no trace elsewhere."""
    replace = NlpAug(naw.RandomWordAug(action="substitute", target_words=["FILM"], aug_max=1))
    for seed in range(20):
        varied = replace.vary(TEXT, random.Random(seed))
        assert varied in [TEXT[: word.start()] + "FILM" + TEXT[word.end() :] for word in re.finditer(r"\w+", TEXT)]


@given(text=st.text(alphabet="ab9 '-.,!\n", max_size=40), gaps=st.lists(st.sampled_from(["", " ", "  "]), max_size=40))
def test_the_same_words_get_the_same_spaces(text: str, gaps: list[str]) -> None:
    """If only spaces were changed, the original comes back, but for spaces around a text without words."""
    joined = " ".join(text.replace("'", " ' ").replace("-", " - ").replace(".", " . ").replace(",", " , ").split())
    respaced = joined.replace("!", " ! ")
    if text.strip():
        assert _with_spacing_of(text, respaced) == text


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("a dull,film", "a great , film", "a great,film"),
        ("(a dull film)", "( a film )", "(a film)"),
        ("it's a film", "it ' s a the film", "it's a the film"),
        ("film", "", ""),
        ("?", "film", "film"),
        (" two  words ", "one", "one"),
    ],
)
def test_spaces_beside_changed_words(before: str, after: str, expected: str) -> None:
    """Words replaced one by one keep the spaces; where words went or came, those of the variant stand."""
    assert _with_spacing_of(before, after) == expected


@pytest.mark.parametrize(
    ("answer", "expected"), [([], "a film"), (["A movie", "x"], "A movie"), ("A movie", "A movie")]
)
def test_answers_of_any_form_are_taken(answer: Any, expected: str) -> None:
    """A list gives its first text; an empty one leaves the text as it was."""
    assert NlpAug(Answers(answer)).vary("a film", random.Random(0)) == expected


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_blank_texts_are_not_handed_over(text: str) -> None:
    """A text without words comes back as it is."""
    assert NlpAug(Answers("something")).vary(text, random.Random(0)) == text


def test_other_answers_are_refused() -> None:
    """With include_detail, nlpaug returns tuples; the message says what to leave out."""
    with pytest.raises(ConfigError, match=r"must return texts; it returned \('a', \[\]\)\. Leave include_detail out"):
        NlpAug(Answers([("a", [])])).vary("a film", random.Random(0))


def test_an_object_cannot_be_saved() -> None:
    """A recipe takes the name and settings, not an object."""
    with pytest.raises(ConfigError, match=r"NlpAug\.augmenter is .* which cannot be saved"):
        to_dict(NlpAug(Answers("")))


def test_what_transformers_broke_is_refused() -> None:
    """ContextualWordEmbsAug fails inside nlpaug; it is refused before, by name, as an object and in a flow."""
    broken = type("ContextualWordEmbsAug", (Answers,), {})("")
    flow = naf.Sequential([naw.SplitAug()])
    flow.append(broken)
    for augmenter in ("ContextualWordEmbsAug", broken, flow):
        with pytest.raises(ConfigError, match=r"ContextualWordEmbsAug of nlpaug .* does not run with transformers 5"):
            NlpAug(augmenter)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (naw.SplitAug,),
            r"must be the name of a class of nlpaug, such as 'RandomWordAug', or an object with a method",
        ),
        ((3,), r"or an object with a method augment; received 3"),
        (("",), r"NlpAug\.augmenter must be a text that is not empty"),
        ((Answers(""), {"aug_p": 0.1}), r"the object Answers has its own already"),
        (("SplitAug", {"tokenizer": len}), r"settings must be a dictionary of JSON values; received .*Hand over an"),
        (("SplitAug", ["aug_p"]), r"settings must be a dictionary of JSON values"),
    ],
)
def test_settings_are_checked(arguments: tuple[Any, ...], message: str) -> None:
    """What is neither a name with JSON settings nor an augmenter is refused."""
    with pytest.raises(ConfigError, match=message):
        NlpAug(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("RandomWordAugg",), r"received 'RandomWordAugg'\. Did you mean 'RandomWordAug'\?"),
        (("os",), r"received 'os'\. There are: .*KeyboardAug.*SynonymAug"),
        (("RandomWordAug", {"action": "swap", "colour": 1}), r"RandomWordAug does not take the settings .*colour"),
    ],
)
def test_names_are_looked_up_before_training(arguments: tuple[Any, ...], message: str) -> None:
    """`prepare` finds a class or a setting that nlpaug does not know; only nlpaug's own classes are looked at."""
    with pytest.raises(ConfigError, match=message):
        NlpAug(*arguments).prepare([])
