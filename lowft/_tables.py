"""Figures and tables for people: every table that lowft prints is aligned here, every figure is worded here.

Plain text keeps to ASCII rules and spaces, so that a table survives a log file, a pipe and any terminal.
Sizes and counts are decimal (1 kB = 1000 bytes), with three significant digits.
"""

from __future__ import annotations

import html
import math
import unicodedata
from typing import TYPE_CHECKING

from lowft.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["format_table", "html_table", "human_bytes", "human_count", "human_seconds"]

_GAP = "  "
_CSS_ALIGN = {"l": "left", "r": "right", "c": "center"}
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, align: str = "") -> str:
    """Lay out a table in aligned columns of plain text, without a trailing newline.

    Args:
        headers: One name for each column.
        rows: The cells, as many in each row as there are headers. Line breaks in a cell become spaces.
        align: `l`, `r` or `c` for each column; by default the first is left and the others right.

    Raises:
        ConfigError: A row has more or fewer cells than there are headers, or `align` does not fit.

    >>> print(format_table(["layer", "parameters"], [["embeddings", "11.9 M"], ["head", "770"]]))
    layer       parameters
    ----------  ----------
    embeddings      11.9 M
    head               770
    """
    sides = _sides(headers, rows, align)
    lines = [[" ".join(cell.split()) for cell in row] for row in (headers, *rows)]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        _GAP.join(_pad(*cell) for cell in zip(line, widths, sides, strict=True)).rstrip() for line in lines
    )


def html_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    align: str = "",
    caption: str = "",
    notes: Iterable[str] = (),
) -> str:
    """Lay out the same table as HTML for a notebook; every text is escaped.

    Args:
        headers: One name for each column.
        rows: The cells, as many in each row as there are headers.
        align: `l`, `r` or `c` for each column; by default the first is left and the others right.
        caption: A line above the table.
        notes: Lines below the table.

    Raises:
        ConfigError: A row has more or fewer cells than there are headers, or `align` does not fit.

    >>> html_table(["a"], [["<b>"]]).count("&lt;b&gt;")
    1
    """
    sides = _sides(headers, rows, align)

    def line(tag: str, cells: Sequence[str]) -> str:
        marked = (
            f'<{tag} style="text-align:{_CSS_ALIGN[side]}">{html.escape(cell)}</{tag}>'
            for cell, side in zip(cells, sides, strict=True)
        )
        return f"<tr>{''.join(marked)}</tr>"

    top = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    body = "".join(line("td", row) for row in rows)
    below = "".join(f"<p><small>{html.escape(note)}</small></p>" for note in notes)
    return f"<table>{top}<thead>{line('th', headers)}</thead><tbody>{body}</tbody></table>{below}"


def human_bytes(size: float) -> str:
    """Word a size in `bytes` with a decimal unit.

    >>> human_bytes(90_900_000), human_bytes(512)
    ('90.9 MB', '512 B')
    """
    return _scaled(size, ("B", "kB", "MB", "GB", "TB", "PB"))


def human_count(count: float) -> str:
    """Word a number of things: `k` for thousands, `M` for millions, `G` for thousands of millions.

    >>> human_count(22_713_600), human_count(770)
    ('22.7 M', '770')
    """
    return _scaled(count, ("", "k", "M", "G", "T", "P")).rstrip()


def human_seconds(seconds: float) -> str:
    """Word a duration in `seconds` with the units that suit it.

    >>> human_seconds(0.0042), human_seconds(12.34), human_seconds(125), human_seconds(7320)
    ('4.20 ms', '12.3 s', '2 min 05 s', '2 h 02 min')
    """
    if seconds == 0 or not math.isfinite(seconds):
        return f"{seconds:.0f} s"
    if seconds < 0:
        return f"-{human_seconds(-seconds)}"
    # Each unit begins where rounding to it would show a whole one: 59.97 s is "1 min 00 s", never "60.0 s".
    if seconds < _MINUTE - 0.05:
        return _scaled(seconds * 1e6, ("us", "ms", "s"))
    if round(seconds) < _HOUR:
        return "{} min {:02d} s".format(*divmod(round(seconds), _MINUTE))
    if round(seconds / _MINUTE) < _DAY // _MINUTE:
        return "{} h {:02d} min".format(*divmod(round(seconds / _MINUTE), 60))
    return "{} d {:02d} h".format(*divmod(round(seconds / _HOUR), 24))


def _scaled(value: float, units: Sequence[str]) -> str:
    """Divide `value` by the power of 1000 that leaves at most three digits before the point."""
    if not math.isfinite(value):
        return f"{value} {units[0]}"
    power = 0
    while power < len(units) - 1 and abs(value) >= 999.5:  # 999.5 would be shown as 1000
        value /= 1000
        power += 1
    text = f"{value:.0f}" if power == 0 and float(value).is_integer() else _digits(value)
    return f"{text} {units[power]}"


def _digits(value: float) -> str:
    """Write three significant digits in fixed notation, more where they stand before the point."""
    if value == 0:
        return "0"
    exponent = int(f"{value:.2e}".partition("e")[2])
    return f"{value:.{max(0, 2 - exponent)}f}"


def _sides(headers: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """Return the alignment of each column, once headers, rows and `align` are known to fit each other."""
    columns = len(headers)
    if columns == 0:
        message = "A table needs at least one column; headers is empty."
        raise ConfigError(message)
    for index, row in enumerate(rows):
        if len(row) != columns:
            message = f"A row of this table needs {columns} cells, as many as headers; row {index} has {len(row)}."
            raise ConfigError(message)
    sides = align or "l" + "r" * (columns - 1)
    if len(sides) != columns or set(sides) - set(_CSS_ALIGN):
        message = f"align must be {columns} letters out of l, r and c, one for each column, not {align!r}."
        raise ConfigError(message)
    return sides


def _width(text: str) -> int:
    """Count terminal columns: two for a wide East Asian character, none for a combining mark."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def _pad(text: str, width: int, side: str) -> str:
    """Fill `text` with spaces to `width` terminal columns."""
    missing = width - _width(text)
    left = {"l": 0, "r": missing, "c": missing // 2}[side]
    return " " * left + text + " " * (missing - left)
