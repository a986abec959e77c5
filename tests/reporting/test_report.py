import boards
import pytest

from robustness.errors import UsageError
from robustness.reporting import report
from robustness.reporting.report import write_report
from robustness.results.leaderboard import read_leaderboard

pytestmark = pytest.mark.slow

DRAWN = ["brackets", "certificates", "distances", "decay", "horizon"]
FILES = {
    "leaderboard.json",
    "leaderboard.csv",
    "leaderboard.md",
    "index.html",
    "samples.csv",
    *(f"figures/{name}.svg" for name in DRAWN),
}


@pytest.fixture(autouse=True)
def drawn_once(drawn, monkeypatch):
    """Of a board with all models, the figures that were drawn for it."""

    def figures(board):
        return {name: drawn.figures[name] for name in (DRAWN if board.models[1:] else DRAWN[:1])}

    monkeypatch.setattr(report, "figures", figures)


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_report_is_all_its_files_and_no_leftovers(board, tmp_path):
    paths = write_report(board, tmp_path / "reports" / "digits")
    folder = tmp_path / "reports" / "digits"
    assert {path.relative_to(folder).as_posix() for path in paths} == FILES
    assert set(contents(folder)) == FILES


def test_a_second_writing_gives_the_same_bytes(board, tmp_path):
    write_report(board, tmp_path / "a")
    first = contents(tmp_path / "a")
    write_report(board.model_copy(deep=True), tmp_path / "a")
    assert contents(tmp_path / "a") == first


def test_the_leaderboard_can_be_read_back(board, tmp_path):
    write_report(board, tmp_path)
    assert read_leaderboard(tmp_path) == board


def test_a_figure_of_an_earlier_run_does_not_stay_behind(board, tmp_path):
    write_report(board, tmp_path)
    (tmp_path / "figures" / "mine.svg").write_text("mine")
    write_report(board.model_copy(update={"models": board.models[:1]}), tmp_path)
    left = {path.name for path in (tmp_path / "figures").iterdir()}
    assert left == {"brackets.svg", "mine.svg"}


def test_the_pictures_of_an_earlier_violation_do_not_stay_behind(board, tmp_path):
    write_report(boards.broken(board, boards.violation(pictured=True)), tmp_path)
    pictures = tmp_path / "counterexamples"
    (pictures / "mine.png").write_text("mine")
    assert len(list(pictures.iterdir())) == 4
    write_report(board, tmp_path)
    assert [path.name for path in pictures.iterdir()] == ["mine.png"]


def test_a_place_that_cannot_hold_a_report_is_refused_in_one_line(board, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="expected a folder") as refusal:
        write_report(board, tmp_path / "file")
    assert "\n" not in str(refusal.value)
