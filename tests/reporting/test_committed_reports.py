"""A committed report is what the code at hand makes of its leaderboard."""

import pytest

from robustness.api import committed_leaderboards
from robustness.cards.measure import whole_test_set
from robustness.reporting.figures import FIGURES
from robustness.reporting.html import html_text
from robustness.reporting.markdown import markdown_text
from robustness.reporting.tables import csv_text
from robustness.zoo import zoo_folder

BOARDS = committed_leaderboards()


@pytest.mark.parametrize("folder", list(BOARDS))
def test_a_committed_report_is_what_its_leaderboard_gives(folder: str) -> None:
    """All but the figures, which are slow to draw."""
    board, page = BOARDS[folder], zoo_folder().parent / folder
    again = f"run `robustness report {folder} --out {folder}`"
    assert board == whole_test_set(board), again
    drawn = {
        name: file.read_bytes()
        for name in FIGURES
        if (file := page / f"figures/{name}.svg").is_file()
    }
    for name, text in (
        ("leaderboard.md", markdown_text(board, list(drawn))),
        ("leaderboard.csv", csv_text(board)),
        ("index.html", html_text(board, drawn)),
    ):
        assert (page / name).read_text(encoding="utf-8") == text, again
