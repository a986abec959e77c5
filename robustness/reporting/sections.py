"""Tables as data: each is made once, and written as HTML, Markdown or CSV.

A cell says what is read (`text`), what it is sorted by and exported as (`value`), where it leads
and what stands beneath it. A page of a report renders tables with `templates/table.html.j2`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from re import compile as pattern

from robustness.errors import printable
from robustness.reporting import words
from robustness.reporting.marks import code, escaped, markdown_table
from robustness.reporting.spreadsheet import csv_of
from robustness.results.leaderboard import Proportion

_DECIMAL = pattern(r"-?\d+(\.\d+)?$")


@dataclass(frozen=True)
class Note:
    """Small words beneath a cell, which may lead somewhere."""

    text: str
    href: str = ""


@dataclass(frozen=True)
class Bar:
    """A bracket to be drawn: shares of all samples, certified <= attacked <= clean."""

    certified: float
    attacked: float
    clean: float


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: what is read.
        value: what is sorted by and exported; None where that is the text.
        href: where it leads, as seen from the report's folder.
        notes: small words beneath.
        badge: a class of `page.css` that the text is set in, such as `masked`.
        bar: drawn instead of the text.
        code: whether the text is a name to be set as it is typed.
    """

    text: str
    value: float | int | str | None = None
    href: str = ""
    notes: tuple[Note, ...] = ()
    badge: str = ""
    bar: Bar | None = None
    code: bool = False

    @property
    def sort_key(self) -> float | int | str:
        """What a reader's sorting compares; empty words come last."""
        if self.value is not None:
            return self.value
        return "" if self.text == words.ABSENT else self.text


@dataclass(frozen=True)
class Heading:
    """The heading of a column.

    Attributes:
        name: of the column.
        note: small words beneath, such as the unit.
        words: whether the column holds words, set from the left and free to wrap.
        picture: whether it is drawn, and so stands in HTML alone.
    """

    name: str
    note: str = ""
    words: bool = False
    picture: bool = False

    @property
    def full(self) -> str:
        """Name and note on one line."""
        return f"{self.name}, {self.note}" if self.note else self.name


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        cells: one per heading.
        anchor: its id on a page, without spaces; empty for none.
        facts: what a page filters by, as `data-` attributes.
        strong: whether it sums up the others.
    """

    cells: tuple[Cell, ...]
    anchor: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: its id on a page and its file's name; lower-case words with hyphens.
        caption: what it holds, in a sentence.
        headings: of its columns; the first column names the rows where `row_heading` is 0.
        rows: its lines, best or gravest first.
        row_heading: which column names the rows.
    """

    name: str
    caption: str
    headings: tuple[Heading, ...]
    rows: tuple[Row, ...]
    row_heading: int = 0

    @property
    def read_as_sorted(self) -> frozenset[int]:
        """Columns whose words, read as numbers, are in the order of what they are sorted by."""
        columns = enumerate(zip(*(row.cells for row in self.rows), strict=True))
        return frozenset(place for place, cells in columns if _same_order(cells))


def _same_order(cells: Sequence[Cell]) -> bool:
    filled = [cell for cell in cells if cell.text != words.ABSENT]
    if any(cell.sort_key == "" for cell in filled) or not all(map(_decimal, filled)):
        return False
    by_key = sorted(filled, key=lambda cell: cell.sort_key)
    read = [float(cell.text) for cell in by_key]
    return read == sorted(read)


def _decimal(cell: Cell) -> bool:
    drawn = cell.bar is not None
    return (
        not drawn
        and isinstance(cell.sort_key, float | int)
        and _DECIMAL.match(cell.text) is not None
    )


def number(value: float | int | None, absent: str = words.ABSENT) -> Cell:
    """A number with three digits."""
    return Cell(absent, "") if value is None else Cell(f"{value:.3g}", value)


def count(value: int) -> Cell:
    """A count."""
    return Cell(f"{value:,}", value)


def share(value: Proportion | None, *notes: Note, interval: bool = False) -> Cell:
    """A proportion in percent, with its 95% interval beneath where that is asked for."""
    if value is None:
        return Cell(words.ABSENT, "")
    between = (Note(words.interval(value)),) if interval else ()
    return Cell(words.percent(value.value), value.value, notes=(*between, *notes))


def table_csv(table: Table) -> str:
    """A table as comma-separated values, numbers with all their digits."""
    shown = [i for i, heading in enumerate(table.headings) if not heading.picture]
    rows = [[row.cells[i].sort_key for i in shown] for row in table.rows]
    return csv_of([table.headings[i].name for i in shown], rows)


def table_markdown(table: Table) -> str:
    """A table of Markdown."""
    shown = [i for i, heading in enumerate(table.headings) if not heading.picture]
    kept = [table.headings[i] for i in shown]
    return markdown_table(
        [escaped(heading.full) for heading in kept],
        [[_cell_markdown(row.cells[i], row.strong) for i in shown] for row in table.rows],
        [heading.words for heading in kept],
    )


def _cell_markdown(cell: Cell, strong: bool) -> str:
    said = code(cell.text) if cell.code else escaped(cell.text)
    if cell.badge in ("masked", "unsound"):
        said = f"**{said}**"
    if cell.href:
        said = f"[{said}]({cell.href})"
    if strong and said:
        said = f"**{said}**"
    notes = [f"[{escaped(n.text)}]({n.href})" if n.href else escaped(n.text) for n in cell.notes]
    return f"{said} ({'; '.join(notes)})" if notes else said


def readable(text: str) -> str:
    """Words of others without control characters."""
    return printable(text)


def listed(items: Sequence[str], last: str = " and ") -> str:
    """`a`, `a and b`, `a, b and c`."""
    return last.join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
