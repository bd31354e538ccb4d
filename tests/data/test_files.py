"""Tests of reading files of rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowft.data.files import read_file
from lowft.data.rows import read_rows
from lowft.errors import DataError


def _write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def test_csv_keeps_words_that_other_readers_take_for_missing(tmp_path: Path) -> None:
    """The texts NA, null, None and nan are texts, and a class may be called so too."""
    path = _write(tmp_path, "a.csv", "text,label\nNA,None\nnull,NA\nnan,None\n")
    rows = read_rows(path)
    assert rows.texts == ("NA", "null", "nan")
    assert rows.labels == ("None", "NA", "None")


def test_csv_empty_cells_are_bad_rows(tmp_path: Path) -> None:
    """An empty text or label is bad, and its row can be dropped."""
    path = _write(tmp_path, "a.csv", 'text,label\ngood,1\n"",0\nbad,\nfine,1\n')
    with pytest.raises(DataError, match=r"2 of 4 rows .*row 1: text is blank.*row 2: label is missing"):
        read_rows(path)
    rows = read_rows(path, on_bad_row="drop")
    assert (rows.texts, rows.labels, rows.dropped) == (("good", "fine"), (1, 1), (1, 2))


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["0", " 1", "-2"], (0, 1, -2)),
        (["+1", "1.", ".5"], (1.0, 1.0, 0.5)),
        (["0", "1.5", "2e1"], (0.0, 1.5, 20.0)),
        (["0", "1", "x"], ("0", "1", "x")),
        (["007", "1", "2"], ("007", "1", "2")),
        (["True", "False", "True"], ("True", "False", "True")),
    ],
)
def test_csv_labels_are_numbers_where_all_of_them_are(
    tmp_path: Path, cells: list[str], labels: tuple[object, ...]
) -> None:
    """A CSV label column becomes integers or floats only as a whole; texts always stay strings."""
    path = _write(tmp_path, "a.csv", "text,label\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(cells)))
    rows = read_rows(path)
    assert rows.texts == ("0", "1", "2")
    assert repr(rows.labels) == repr(labels)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=1))
def test_csv_gives_back_every_text_that_was_written(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    """Whatever Python's own writer puts into a CSV file comes back unchanged."""
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["text"], *([text] for text in texts)])
    assert read_file(path) == {"text": texts}


def test_csv_marks_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    """A byte order mark, Windows line ends and blank lines change nothing."""
    path = _write(tmp_path, "a.csv", "\ufefftext,label\r\n\r\ngood,1\r\n\r\n")
    assert read_file(path) == {"text": ["good"], "label": ["1"]}


def test_csv_reads_a_text_longer_than_the_usual_limit_and_restores_it(tmp_path: Path) -> None:
    """A document of 200,000 characters is read, and the limit of the csv module is as before."""
    limit = csv.field_size_limit()
    long = "word " * 40_000
    assert read_file(_write(tmp_path, "a.csv", f"text\n{long}\n"))["text"] == [long]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "text,label\nwell, really,1\n", r"line 2 has 3 fields, and the header has 2"),
        ("a.csv", "text,label\ngood\n", r"line 2 has 1 field, and the header has 2"),
        ("a.csv", 'text,label\n"good,1\nbad,0\n', r"line 3: .*quotation mark is not closed"),
        ("a.tsv", 'text\tlabel\n"good\t1\nend"\t0\n', r"line 3 has 2 fields"),
        ("a.csv", "text,text\na,b\n", r"column names in the header must differ"),
        ("a.json", "{oops", r"a\.json is not JSON"),
        ("a.json", '{"text": "a"}\n{oops\n', r"a\.json, line 2 is not JSON"),
        ("a.jsonl", '{"text": "a"}\nnonsense\n', r"a\.jsonl, line 2 is not JSON"),
        ("a.parquet", "nonsense", r"a\.parquet is not a sound Parquet file"),
        ("a.xlsx", "nonsense", r"ending must be one of .*'\.csv'.*got '\.xlsx'"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    """A file whose rows cannot be told for sure is an error that says where and what to do."""
    with pytest.raises(DataError, match=message):
        read_file(_write(tmp_path, name, text))


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    """A Latin-1 file is refused, not read as garbage."""
    path = tmp_path / "a.csv"
    path.write_bytes("text\ncafé\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.csv is not UTF-8 text.*Save the file as UTF-8"):
        read_file(path)


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    """A misspelt path is told with the file that was perhaps meant."""
    _write(tmp_path, "reviews.csv", "text\na\n")
    with pytest.raises(DataError, match=r"there is no file .*Did you mean 'reviews\.csv'"):
        read_file(tmp_path / "review.csv")


def test_a_text_instead_of_a_list_is_told_so() -> None:
    """One bare string is no table: the message shows how to pass one text."""
    with pytest.raises(DataError, match=r"put it into a list: \[text\]"):
        read_rows("A wonderful film.")


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_json_lines_are_read_under_both_endings(tmp_path: Path, name: str) -> None:
    """One object on each line is read, also where a text holds a line separator of Unicode."""
    rows = [{"text": "one\u2028two", "label": 1}, {"text": "NA", "label": 0}]
    path = _write(tmp_path, name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert read_file(path) == rows


@pytest.mark.parametrize("content", [{"text": ["a", "b"], "label": [0, 1]}, [["a", 0], ["b", 1]]])
def test_json_holds_what_python_holds(tmp_path: Path, content: object) -> None:
    """A JSON file may hold a dict of columns or a list of rows."""
    rows = read_rows(_write(tmp_path, "a.json", json.dumps(content)))
    assert (rows.texts, rows.labels) == (("a", "b"), (0, 1))


def test_parquet_keeps_the_class_names_of_datasets(tmp_path: Path) -> None:
    """Class names that `datasets` stored in a Parquet file are found."""
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    table.to_parquet(str(tmp_path / "a.parquet"))
    rows = read_rows(tmp_path / "a.parquet")
    assert (rows.texts, rows.labels, rows.label_names) == (("a", "b"), (1, 0), ("neg", "pos"))


def test_parquet_of_pandas_is_read(tmp_path: Path) -> None:
    """A Parquet file without stored class names has none."""
    import pandas as pd

    pd.DataFrame({"text": ["a", "b"], "label": [1, 0]}).to_parquet(tmp_path / "a.parquet")
    rows = read_rows(tmp_path / "a.parquet")
    assert (rows.texts, rows.labels, rows.label_names) == (("a", "b"), (1, 0), None)
