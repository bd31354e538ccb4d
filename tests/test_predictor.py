"""Tests of predicting from texts with a trained model."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowft.data.labels import Labels
from lowft.errors import ConfigError, DataError, LabelError
from lowft.predictor import Predictor
from tests.tiny import WORDS, tiny_model, tiny_tokenizer

TEXTS = [" ".join(WORDS[index * 5 :][: 2 + index % 6]) for index in range(9)]
SEED = 8  # of a random model that predicts both classes on these texts
PAIRS = [(text, other) for text, other in zip(TEXTS, TEXTS[::-1], strict=True)]


def made(labels: Labels, **settings: Any) -> Predictor:
    """Return a predictor over a tiny model with a head for the labels."""
    return Predictor(tiny_model("bert", labels.num_labels, seed=SEED), tiny_tokenizer(), labels, 32, **settings)


@pytest.fixture(scope="module")
def sentiment() -> Predictor:
    """Return a predictor of two classes."""
    return made(Labels.infer(["neg", "pos"]))


@pytest.fixture(scope="module")
def topics() -> Predictor:
    """Return a predictor of several labels a text."""
    return made(Labels.infer([["war"], ["love", "war"], ["family"]]))


@pytest.fixture(scope="module")
def stars() -> Predictor:
    """Return a predictor of a number."""
    return made(Labels.infer([1.5, 2.0, 4.25]))


def test_one_label_a_text_in_order(sentiment: Predictor) -> None:
    """Predictions are the training data's own values, one a text, and follow the largest probability."""
    predicted = sentiment.predict(TEXTS)
    probabilities = sentiment.predict_proba(TEXTS)
    assert predicted == [("neg", "pos")[row.argmax()] for row in probabilities]
    assert set(predicted) == {"neg", "pos"}
    assert [sentiment.predict([text])[0] for text in TEXTS] == predicted


def test_probabilities_of_classes_add_up_to_one(sentiment: Predictor) -> None:
    """Each row is a distribution over the classes, the softmax of its logits."""
    probabilities = sentiment.predict_proba(TEXTS)
    assert probabilities.shape == (9, 2)
    assert probabilities.dtype == np.float32
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    powers = np.exp(sentiment.predict_logits(TEXTS).astype(float))
    assert np.allclose(probabilities, powers / powers.sum(axis=1, keepdims=True), atol=1e-6)


@pytest.mark.filterwarnings("error")
def test_large_logits_do_not_overflow(topics: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probabilities of very sure models are 0 and 1, not undefined, and nothing warns."""
    extreme = np.array([[1e4, -1e4, 0.0]], dtype=np.float32)
    for predictor, expected in ((topics, [1, 0, 0.5]), (made(Labels.infer(["a", "b", "c"])), [1, 0, 0])):
        monkeypatch.setattr(Predictor, "predict_logits", lambda self, texts, column_mapping=None: extreme)
        assert predictor.predict_proba(TEXTS).tolist() == [expected]


def test_several_labels_stand_for_themselves(topics: Predictor) -> None:
    """Each class has a probability of its own, the sigmoid of its logit."""
    probabilities = topics.predict_proba(TEXTS)
    logits = topics.predict_logits(TEXTS)
    assert probabilities[3][1] == pytest.approx(1 / (1 + math.exp(-float(logits[3][1]))), abs=1e-6)
    assert not np.allclose(probabilities.sum(axis=1), 1, atol=1e-2)


@pytest.mark.parametrize("threshold", [0, 0.3, 0.5, 0.9, 1])
def test_a_threshold_decides_which_labels_are_given(threshold: float, topics: Predictor) -> None:
    """A class is given from the threshold on; at 0 all are."""
    names = topics.labels.classes
    expected = [
        [name for name, value in zip(names, row, strict=True) if value >= threshold]
        for row in topics.predict_proba(TEXTS)
    ]
    assert topics.predict(TEXTS, threshold=threshold) == expected


def test_a_probability_at_the_threshold_is_enough(topics: Predictor) -> None:
    """A class whose probability is the threshold itself is given."""
    value = float(topics.predict_proba(TEXTS)[0, 1])
    assert topics.labels.classes[1] in topics.predict(TEXTS, threshold=value)[0]


@pytest.mark.parametrize("threshold", [-0.1, 1.5, "0.5", True, math.nan])
def test_a_threshold_is_a_probability(threshold: Any, topics: Predictor) -> None:
    """Anything else is refused before the model runs."""
    message = re.escape(f"threshold must be a finite number at least 0 and at most 1; received {threshold!r}")
    with pytest.raises(ConfigError, match=message):
        topics.predict(TEXTS, threshold=threshold)


def test_a_regression_gives_numbers_and_no_probabilities(stars: Predictor) -> None:
    """Predictions are plain floats; probabilities are refused with what to use."""
    predicted = stars.predict(TEXTS)
    assert all(type(value) is float for value in predicted)
    assert predicted == stars.predict_logits(TEXTS)[:, 0].tolist()
    with pytest.raises(ConfigError, match="a regression predicts numbers and has no probabilities: use predict"):
        stars.predict_proba(TEXTS)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_logits"])
def test_a_single_text_is_refused(method: str, sentiment: Predictor) -> None:
    """A string would be a list of letters; the message says what to write."""
    with pytest.raises(DataError, match=re.escape("received one text: write ['a warm film']")):
        getattr(sentiment, method)("a warm film")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "texts has no rows"),
        (["a", None], "row 1: text is missing"),
        (["a", "  "], "row 1: text is blank"),
        ([1], "row 0: text is 1, of type int"),
        (None, "texts must be a list of texts"),
        (iter(["a"]), "texts must be a list of texts"),
        ({"review": ["a"]}, "texts has no text column that lowft recognises"),
    ],
)
def test_texts_are_checked(texts: Any, message: str, sentiment: Predictor) -> None:
    """What is no list of texts is refused, with the rows at fault."""
    with pytest.raises(DataError, match=message):
        sentiment.predict(texts)


def test_tables_are_read_by_their_columns(sentiment: Predictor, tmp_path: Path) -> None:
    """A table is read as training data is; its labels, if any, are not looked at."""
    expected = sentiment.predict(TEXTS)
    mapping = {"review": "text"}
    assert sentiment.predict({"review": TEXTS}, column_mapping=mapping) == expected
    assert sentiment.predict({"text": TEXTS, "label": ["?"] * 9}) == expected
    assert sentiment.predict([(text, 1) for text in TEXTS]) == expected
    file = tmp_path / "reviews.csv"
    file.write_text("review\n" + "\n".join(TEXTS) + "\n")
    assert sentiment.predict(file, column_mapping=mapping) == expected


@pytest.mark.parametrize("mapping", ["text", ["review"], 3])
@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_logits", "evaluate"])
def test_a_column_mapping_is_a_dictionary(method: str, mapping: Any, sentiment: Predictor) -> None:
    """Anything else is refused by its name, with an example."""
    with pytest.raises(ConfigError, match=re.escape(f"such as {{'review': 'text'}}; got {mapping!r}")):
        getattr(sentiment, method)({"review": TEXTS}, column_mapping=mapping)


def test_a_model_of_pairs_takes_pairs() -> None:
    """Pairs come as tuples, lists or columns, and both texts count."""
    predictor = made(Labels.infer(["no", "yes"]), takes_pairs=True)
    logits = predictor.predict_logits(PAIRS)
    assert np.array_equal(predictor.predict_logits([list(pair) for pair in PAIRS]), logits)
    columns = {"text": TEXTS, "text_pair": TEXTS[::-1]}
    assert np.array_equal(predictor.predict_logits(columns), logits)
    assert not np.allclose(predictor.predict_logits([(text, "other") for text in TEXTS]), logits, atol=1e-3)
    with pytest.raises(DataError, match="trained on pairs of texts; received single texts"):
        predictor.predict(TEXTS)
    with pytest.raises(DataError, match="row 0: text_pair is missing"):
        predictor.predict([("a", None)])


def test_a_model_of_single_texts_takes_no_pairs(sentiment: Predictor) -> None:
    """Pairs are refused, however they come, for predicting and for evaluating."""
    for pairs in (PAIRS, {"premise": TEXTS, "hypothesis": TEXTS}):
        with pytest.raises(DataError, match="trained on single texts; received pairs of texts"):
            sentiment.predict(pairs)
    with pytest.raises(DataError, match="trained on single texts; received pairs of texts"):
        sentiment.evaluate({"premise": TEXTS, "hypothesis": TEXTS, "label": ["pos"] * 9})


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_batch_size_does_not_matter(batch_size: int, sentiment: Predictor) -> None:
    """Logits agree to float tolerance whatever batches they are computed in."""
    other = made(sentiment.labels, batch_size=batch_size)
    assert np.allclose(other.predict_logits(TEXTS), sentiment.predict_logits(TEXTS), atol=1e-5)


def test_texts_are_cut_at_the_limit(sentiment: Predictor) -> None:
    """What lies beyond `max_length` tokens does not count."""
    short = Predictor(sentiment.model, sentiment.tokenizer, sentiment.labels, 5)
    one, other, shorter = short.predict_logits(["a film of joy", "a film of war and more", "a film"])
    assert np.allclose(one, other, atol=1e-6)
    assert not np.allclose(one, shorter, atol=1e-3)


def test_evaluation_compares_with_the_labels(sentiment: Predictor) -> None:
    """Labels equal to the predictions give an accuracy of 1, all others 0; the caller's rows stay as they are."""
    predicted = sentiment.predict(TEXTS)
    data = {"text": list(TEXTS), "label": list(predicted)}
    assert sentiment.evaluate(data).metrics["accuracy"] == 1
    assert data == {"text": TEXTS, "label": predicted}
    turned = [{"neg": "pos", "pos": "neg"}[label] for label in predicted]
    assert sentiment.evaluate((TEXTS, turned)).metrics["accuracy"] == 0


def test_evaluation_needs_known_labels(sentiment: Predictor) -> None:
    """Rows without labels, and labels that the model has never seen, are refused with their rows."""
    with pytest.raises(DataError, match="evaluation data must have labels"):
        sentiment.evaluate(TEXTS)
    with pytest.raises(LabelError, match=r"evaluation data.*'maybe'"):
        sentiment.evaluate((["a", "b"], ["pos", "maybe"]))
