"""Columns that installed packages add to reports."""

import pytest

from robustness.errors import UsageError
from robustness.reporting.columns import COLUMNS, Column, Value
from robustness.reporting.html import suite_page
from robustness.reporting.markdown import markdown_text
from robustness.reporting.tables import csv_text
from robustness.results.leaderboard import Leaderboard, ModelEntry


def test_a_column_stands_behind_those_of_this_package(board: Leaderboard) -> None:
    before = (csv_text(board), markdown_text(board), suite_page(board))

    def letters(entry: ModelEntry) -> Value:
        return "<b>|" if entry is board.models[0] else None

    with COLUMNS.having(Column("letters", letters)):
        rows, markdown, page = csv_text(board), markdown_text(board), suite_page(board)
    assert rows == f"{before[0]}{board.models[0].name},,,column,letters,,,,<b>|,,\n"
    assert r"| \<b\>\| |" in markdown
    assert '<th scope="col">letters</th>' in page
    assert 'data-h="letters">&lt;b&gt;|</td>' in page
    assert (csv_text(board), markdown_text(board), suite_page(board)) == before


@pytest.mark.parametrize(("value", "got"), [(1 / 1j, "a complex"), (None, "ZeroDivisionError")])
def test_a_column_that_gives_none_is_named_with_whose_it_is(
    board: Leaderboard, value: object, got: str
) -> None:
    def hopeless(entry: ModelEntry) -> object:
        return value or 1 / 0

    column = Column("hopeless", hopeless)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"column 'hopeless' of .*test_columns") as refused:
        column.of(board.models[0])
    assert got in str(refused.value)
