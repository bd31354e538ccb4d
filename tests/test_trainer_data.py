"""Faulty rows and labels, as they meet the Trainer: found before training, or defined and shown."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lowft
from lowft.errors import ConfigError, DataError, LabelError
from tests.runs import tiny_trainer, train_records, weights
from tests.strategy_cases import tiny_rows
from tests.test_strategies_table import assert_same
from tests.tiny import tiny_model

TEXTS, LABELS = tiny_rows()["text"], tiny_rows()["label"]
BAD: list[Any] = [None, math.nan, "", " \n", 7, ["a film"], "half \ud83d"]


def spoiled(values: list[Any], *, at: int = 3) -> list[Any]:
    """Return values with some of them replaced by bad ones."""
    result = list(values)
    result[at : at + len(BAD)] = BAD
    return result


@pytest.mark.parametrize("bad", BAD, ids=repr)
@pytest.mark.parametrize("side", ["train_dataset", "eval_dataset"])
def test_a_bad_text_is_an_error_with_its_row(side: str, bad: Any) -> None:
    """The message names the data set, the row and what is wrong, and offers to drop such rows."""
    texts: list[Any] = list(TEXTS)
    texts[5] = bad
    with pytest.raises(DataError, match=rf'{side}: 1 of 14 rows.*row 5: text .*on_bad_row="drop"'):
        tiny_trainer(**{side: (texts, LABELS)})


def test_up_to_five_bad_rows_are_named() -> None:
    """Seven bad rows: five numbers, and how many more there are."""
    with pytest.raises(
        DataError, match=r"7 of 14 rows cannot be used.*row 3:.*row 4:.*row 5:.*row 6:.*row 7:.*and 2 more"
    ):
        tiny_trainer(train_dataset=(spoiled(TEXTS), LABELS))


def test_bad_rows_are_dropped_and_counted_when_asked() -> None:
    """The run is that of the good rows alone; what was dropped is shown; the numbers stay the caller's."""
    good = [row for row in range(14) if not 3 <= row < 3 + len(BAD)]
    dropped = tiny_trainer(train_dataset=(spoiled(TEXTS), LABELS), on_bad_row="drop", epochs=1)
    clean = tiny_trainer(train_dataset=([TEXTS[row] for row in good], [LABELS[row] for row in good]), epochs=1)
    assert "7 training rows (7 bad dropped), 8 validation rows" in str(dropped)
    assert dropped._parts.train_rows.rows.numbers == tuple(good)
    dropped.fit()
    clean.fit()
    assert_same(weights(clean), weights(dropped))


@pytest.mark.parametrize("bad", [None, "", math.nan])
def test_a_missing_label_is_a_bad_row(bad: Any) -> None:
    """A label that is not there is named with its row, or the row is dropped."""
    labels: list[Any] = list(LABELS)
    labels[4] = bad
    with pytest.raises((DataError, LabelError), match=r"row 4"):
        tiny_trainer(train_dataset=(TEXTS, labels))
    trainer = tiny_trainer(train_dataset=(TEXTS, labels), on_bad_row="drop")
    assert "13 training rows (1 bad dropped)" in str(trainer)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (
            {"review": TEXTS, "label": LABELS},
            r"train_dataset has no text column.*\['review', 'label'\].*column_mapping",
        ),
        ({"text": TEXTS, "stars": LABELS}, r"train_dataset has no label column.*column_mapping=\{'stars': 'label'\}"),
        (TEXTS, r"train_dataset must have labels.*Pass \(texts, labels\)"),
        ({"text": TEXTS, "label": LABELS[:5]}, "'text' has 14, 'label' has 5"),
        ({"text": [], "label": []}, "train_dataset has no rows"),
        ([], "train_dataset has no rows"),
        (3, "train_dataset"),
        ("no-such-file.csv", "no-such-file.csv"),
    ],
)
def test_data_that_cannot_be_read_says_what_is_missing(data: Any, text: str) -> None:
    """Missing columns, unequal lengths, no rows, no file: each has its own message."""
    with pytest.raises(DataError, match=text):
        tiny_trainer(train_dataset=data)


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (("neg", "pos"), ("neg", "pos")),
        (("b", "a"), ("a", "b")),
        ((5, 0, 7), (0, 5, 7)),
        ((True, False), (False, True)),
        ((-1, 1), (-1, 1)),
    ],
)
def test_labels_are_mapped_shown_and_saved(values: tuple[Any, ...], classes: tuple[Any, ...], tmp_path: Path) -> None:
    """Strings, gaps and booleans become ids in sorted order, and predictions come back as the caller's values."""
    rows = tiny_rows(15, classes=values)
    model = tiny_model("bert", num_labels=len(values))
    trainer = tiny_trainer(model=model, train_dataset=rows, eval_dataset=None, epochs=1, output_dir=tmp_path / "run")
    assert trainer.labels.classes == classes
    assert f"{len(classes)} classes: " in str(trainer)
    assert model.config.id2label == dict(enumerate(map(str, classes)))
    trainer.fit()
    assert set(trainer.predict(TEXTS)) <= set(classes)
    assert [type(label) for label in trainer.predict(TEXTS)] == [type(values[0])] * 14
    saved = json.loads((tmp_path / "run" / "checkpoint-4" / "run.json").read_text())
    assert saved["labels"]["classes"] == list(classes)
    trainer.export(tmp_path / "exported", verify="here")
    assert lowft.load(tmp_path / "exported").predict(TEXTS) == trainer.predict(TEXTS)


def test_which_labels_stand_for_which_outputs_is_learned() -> None:
    """The mapping is the one that training uses: a model that has learned its rows says the right names."""
    rows = tiny_rows(16, classes=("zebra", "ant"))
    trainer = tiny_trainer(train_dataset=rows, eval_dataset=None, max_steps=100, learning_rate=3e-3)
    trainer.fit()
    right = sum(one == other for one, other in zip(trainer.predict(rows["text"]), rows["label"], strict=True))
    assert right >= 14
    assert trainer.evaluate(rows).metrics["accuracy"] == right / 16


def test_a_label_unseen_in_training_is_an_error_with_its_row() -> None:
    """Found when the Trainer is built, and in rows that are evaluated later."""
    rows = tiny_rows(8, seed=1)
    rows["label"][6] = "meh"
    with pytest.raises(LabelError, match=r"eval_dataset.*'meh'.*6"):
        tiny_trainer(eval_dataset=rows)
    with pytest.raises(LabelError, match=r"'meh'.*6"):
        tiny_trainer().evaluate(rows)


def test_labels_out_of_the_models_range_are_refused() -> None:
    """Three classes do not fit two outputs; a class too few is told as well."""
    with pytest.raises(LabelError, match=r"has 2 outputs, and the training labels need 3"):
        tiny_trainer(train_dataset=tiny_rows(15, classes=(0, 1, 2)), eval_dataset=None)
    with pytest.raises(LabelError, match=r"has 3 outputs, and the training labels need 2"):
        tiny_trainer(model=tiny_model("bert", num_labels=3))


@pytest.mark.parametrize(
    ("id2label", "labels", "classes"),
    [
        ({0: "POSITIVE", 1: "NEGATIVE"}, ("negative", "positive"), ("positive", "negative")),
        ({0: "LABEL_0", 1: "LABEL_1"}, ("neg", "pos"), ("neg", "pos")),
        ({0: "neg", 1: "pos"}, (0, 1), (0, 1)),
    ],
)
def test_the_order_of_a_models_own_classes_wins(
    id2label: dict[int, str], labels: tuple[Any, ...], classes: tuple[Any, ...]
) -> None:
    """Labels are matched with a trained head by name, whatever the letter case; made-up names say nothing."""
    model = tiny_model("bert")
    model.config.id2label, model.config.label2id = id2label, {name: at for at, name in id2label.items()}
    rows = tiny_rows(classes=labels)
    trainer = tiny_trainer(model=model, train_dataset=rows, eval_dataset=None)
    assert trainer.labels.classes == classes


@pytest.mark.parametrize("labels", [("good", "bad"), ("neg", "meh")])
def test_labels_in_conflict_with_the_models_are_refused(labels: tuple[str, ...]) -> None:
    """A head that was trained for other names would quietly mean something else."""
    model = tiny_model("bert")
    model.config.id2label, model.config.label2id = {0: "neg", 1: "pos"}, {"neg": 0, "pos": 1}
    with pytest.raises(LabelError, match=r"neg.*pos"):
        tiny_trainer(model=model, train_dataset=tiny_rows(classes=labels), eval_dataset=None)
    assert model.config.id2label == {0: "neg", 1: "pos"}


def test_floats_are_a_regression_unless_the_caller_says_otherwise() -> None:
    """Whole floats can be classes when asked; else the model's outputs tell that something is wrong."""
    rows = (TEXTS, [float(row % 2) for row in range(14)])
    with pytest.raises(LabelError, match=r"has 2 outputs, and the training labels need 1.*regression"):
        tiny_trainer(train_dataset=rows, eval_dataset=None)
    trainer = tiny_trainer(train_dataset=rows, eval_dataset=None, task="single_label_classification")
    assert trainer.labels.num_labels == 2
    with pytest.raises(LabelError, match=r"0\.5"):
        tiny_trainer(train_dataset=(TEXTS, [0.0, 0.5] * 7), eval_dataset=None, task="single_label_classification")


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e300])
def test_a_target_that_is_no_number_is_refused(bad: float) -> None:
    """A regression target must be finite, in float32 too; the message names its row."""
    labels = [row / 10 for row in range(14)]
    labels[9] = bad
    with pytest.raises((DataError, LabelError), match=r"9"):
        tiny_trainer(model=tiny_model("bert", num_labels=1), train_dataset=(TEXTS, labels), eval_dataset=None)


@pytest.mark.parametrize("label", ["neg", 0])
def test_one_class_is_refused(label: Any) -> None:
    """From rows of one class nothing can be learned; one row is always of one class."""
    with pytest.raises(LabelError, match="from one class nothing can be learned"):
        tiny_trainer(train_dataset=(TEXTS, [label] * 14), eval_dataset=None)
    with pytest.raises(LabelError, match=r"1 row and one label.*from one class nothing can be learned"):
        tiny_trainer(train_dataset=(TEXTS[:1], [label]), eval_dataset=None)


def test_one_row_is_enough_for_a_regression() -> None:
    """A single number can be fitted: one step an epoch, of one row."""
    rows = (["a dull film"], [0.5])
    trainer = tiny_trainer(model=tiny_model("bert", num_labels=1), train_dataset=rows, eval_dataset=None, epochs=3)
    trainer.fit()
    assert len(train_records(trainer, "loss")) == 3


def test_a_batch_larger_than_the_data_is_all_of_it() -> None:
    """One step an epoch, whose rows are all there are; accumulation spreads them as far as they go."""
    runs = [
        tiny_trainer(batch_size=batch_size, gradient_accumulation_steps=parts, epochs=2)
        for batch_size, parts in ((100, 1), (14, 1), (1, 30))
    ]
    for trainer in runs:
        trainer.fit()
        assert len(train_records(trainer, "loss")) == 2
    assert_same(weights(runs[0]), weights(runs[1]))


def test_a_metric_that_is_undefined_is_zero_with_a_warning() -> None:
    """Validation rows of one class leave correlations undefined: told, and never NaN."""
    rows = {"text": TEXTS[::2], "label": ["neg"] * 7}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the rows are those of training
        trainer = tiny_trainer(eval_dataset=rows, epochs=1)
    with pytest.warns(UserWarning, match="matthews cannot be computed on these 7 rows.*given as 0.0"):
        trainer.fit()
    (record,) = trainer.history.filter("evaluate")
    assert record["eval_matthews"] == 0.0
    assert all(math.isfinite(value) for name, value in record.items() if name.startswith("eval_"))


def test_validation_rows_that_are_training_rows_are_told() -> None:
    """The figures would look too good: a warning names the rows on both sides."""
    rows = tiny_rows(8, seed=1)
    rows["text"][2] = TEXTS[11]
    with pytest.warns(UserWarning, match=r"1 rows of eval_dataset are also in train_dataset.*rows 2 \(as 11\)"):
        tiny_trainer(eval_dataset=rows)


def test_long_texts_are_cut_at_the_models_limit_and_told(caplog: pytest.LogCaptureFixture) -> None:
    """No text is too long for the model; how many were cut is in the log."""
    rows = {"text": ["a film " * 500, *TEXTS], "label": ["pos", *LABELS]}
    with caplog.at_level("INFO", logger="lowft"):
        trainer = tiny_trainer(train_dataset=rows, max_length=16, epochs=1)
    assert trainer._parts.train_rows.lengths.max() == 16
    assert "train_dataset: 1 of 15 rows reach the limit of 16 tokens" in caplog.text
    trainer.fit()
    logits = trainer._predictor().predict_logits(["a film " * 500])
    assert np.isfinite(logits).all()
    with pytest.raises(ConfigError, match=r"max_length must be above 2, the number of special tokens"):
        tiny_trainer(max_length=2)
