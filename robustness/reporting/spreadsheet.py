"""Comma-separated values that a spreadsheet takes for data."""

import csv
import io
from collections.abc import Iterable, Sequence

from robustness.errors import printable

# What a cell begins with that spreadsheets take for a formula.
_FORMULAS = ("=", "+", "-", "@")


def csv_of(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Comma-separated values of which no text is a formula."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(map(_harmless, columns))
    writer.writerows(map(_harmless, row) for row in rows)
    return buffer.getvalue()


def _harmless(cell: object) -> object:
    """Text that a spreadsheet would run, behind an apostrophe as OWASP advises; else the cell."""
    if not isinstance(cell, str):
        return cell
    return f"'{printable(cell)}" if cell.startswith(_FORMULAS) else printable(cell)
