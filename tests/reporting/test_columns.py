"""Columns that installed packages add to reports."""

import base64
import hashlib
import re

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
    assert ">&lt;b&gt;|</td></tr>" in page
    assert '.ranking td:nth-child(11){--h:"letters"}' in page
    assert (csv_text(board), markdown_text(board), suite_page(board)) == before


def test_the_name_of_a_column_cannot_leave_the_style_sheet(board: Leaderboard) -> None:
    name = '"}</style><script>\\22 \n'
    with COLUMNS.having(Column(name, lambda _: "1")):
        page = suite_page(board)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert page.count("<script>") == 1
    assert r'{--h:"\22 \7d \3c \2f style\3e \3c script\3e \5c 22 ' in style
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"sha256-{digest}" in page


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
