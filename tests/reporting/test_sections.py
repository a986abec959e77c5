"""What a table leaves out of a page is what a reader's sorting can do without."""

import pytest

from robustness.reporting.sections import Cell, Heading, Row, Table, count, number

READ = [number(0.5), number(None), number(2.0), number(11.0)]
COLUMNS = {
    "numbers that read as they are": (READ, True),
    "a count with a comma, which reads as no number": ([count(12_345), count(9)], False),
    "words": ([Cell("one"), Cell("two")], False),
    "numbers beside words": ([Cell("3", 3), Cell("none of them")], False),
    "numbers that are sorted by something else": ([Cell("1", 2.0), Cell("2", 1.0)], False),
    "nothing at all, which comes last": ([Cell("1", 1.0), Cell("", "")], False),
    "nothing but the word for nothing": ([number(None)] * 2, True),
}


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_goes_without_keys_where_it_sorts_as_it_reads(column: str) -> None:
    cells, expected = COLUMNS[column]
    beside = [Cell(f"row {place}") for place in range(len(cells))]
    rows = tuple(Row(pair) for pair in zip(beside, cells, strict=True))
    table = Table("t", "t", (Heading("row", words=True), Heading("column")), rows)
    assert table.read_as_sorted == (frozenset([1]) if expected else frozenset())
