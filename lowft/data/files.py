"""Read a file of rows exactly as it was written: CSV, TSV, JSON, JSON lines or Parquet.

Nothing is guessed about cells: the text "NA", "null" or "None" stays that text, and a row whose
fields do not fit the header is an error with its line number, never a shifted or a missing row.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

from lowft.data._values import count_of, near, shown
from lowft.errors import DataError

__all__ = ["read_file"]


def read_file(path: str | Path) -> Any:
    r"""Read the rows of a .csv, .tsv, .json, .jsonl or .parquet file.

    CSV and TSV must begin with a header line; blank lines are skipped and every cell is a string. Text is
    UTF-8, with or without a byte order mark. A .json file that holds one object on each line is read as JSON
    lines.

    Args:
        path: The file. Its ending says how it is read.

    Returns:
        A dict of columns for CSV and TSV, what the file holds for JSON (a list of dicts for JSON lines), a
        `pyarrow.Table` for Parquet.

    Raises:
        DataError: There is no such file, its ending is unknown, or its content is damaged.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "reviews.csv"
    ...     _ = file.write_text("text,label\nNA,0\n", encoding="utf-8")
    ...     read_file(file)
    {'text': ['NA'], 'label': ['0']}
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{shown(str(path))} is read as the path of a file, and its ending must be one of "
            f"{sorted(_READERS)}; got {path.suffix!r}. To pass one text, put it into a list: [text]. Load "
            "any other format yourself and pass its columns as a dict or a DataFrame."
        )
    if not path.is_file():
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"there is no file {str(path)!r}.{near(path.name, beside)} Check the path.")
    try:
        return reader(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8 text: {error}. Save the file as UTF-8 and try again.") from error


def _read_csv(path: Path) -> dict[str, list[str]]:
    # The module's limit of 128 KiB on a cell is shorter than many documents; it can only be set globally.
    limit = csv.field_size_limit(sys.maxsize)
    try:
        return _read_separated(path, "\t" if path.suffix.lower() == ".tsv" else ",")
    finally:
        csv.field_size_limit(limit)


def _read_separated(path: Path, separator: str) -> dict[str, list[str]]:
    records: list[list[str]] = []
    header: list[str] = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, delimiter=separator, strict=True)
        try:
            header = next(lines, [])
            for record in lines:
                # Under the strict reader a tab inside a cell can only come from a quotation mark that opens
                # one row's text and is closed in another's: two rows would silently become one.
                if record and (len(record) != len(header) or (separator == "\t" and "\t" in "".join(record))):
                    raise DataError(
                        f"{path.name}: the row that ends in line {lines.line_num} has "
                        f"{count_of(len(record), 'field')}, and the header has {len(header)} {header}. Put "
                        "texts that hold the separator, quotation marks or line breaks into quotation marks."
                    )
                if record:
                    records.append(record)
        except csv.Error as error:
            raise DataError(
                f"{path.name}, line {lines.line_num}: {error}. A quotation mark is not closed or not "
                "doubled. Correct it, or load the file with your own settings and pass its columns as a dict."
            ) from error
    if len(set(header)) < len(header):
        raise DataError(f"{path.name}: the column names in the header must differ; got {header}.")
    return {column: [record[at] for record in records] for at, column in enumerate(header)}


def _read_json(path: Path) -> Any:
    text = path.read_text(encoding="utf-8-sig")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # a whole value, then more: JSON lines under the name .json
            return _parse_lines(path, text)
        raise DataError(f"{path.name} is not JSON: {error}. Correct the file.") from error


def _read_json_lines(path: Path) -> Any:
    return _parse_lines(path, path.read_text(encoding="utf-8-sig"))


def _parse_lines(path: Path, text: str) -> list[Any]:
    rows = []
    # Not `splitlines`: JSON strings may hold U+2028 and its like, which end no line here.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise DataError(f"{path.name}, line {number} is not JSON: {error}. Correct the line.") from error
    return rows


def _read_parquet(path: Path) -> Any:
    import pyarrow as pa  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        return parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path.name} is not a sound Parquet file: {error}. Write the file again.") from error


_READERS = {
    ".csv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
    ".tsv": _read_csv,
}
