"""What became of a leaderboard's numbers, commit by commit."""

import io
import subprocess
from pathlib import Path

import boards
import pytest
from rich.console import Console

from robustness import cli
from robustness.errors import UsageError
from robustness.reporting.history import History, read_history, render, told

NODE = "digits/node"
FILE = Path("reports/x/leaderboard.json")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six states: of an old schema, two equal ones, a fall, other settings, another model."""
    place = tmp_path_factory.mktemp("repository")
    board = boards.leaderboard()
    two = board.model_copy(update={"models": board.models[:2]})
    fallen = boards.shift(two, NODE, "attacked", -60)
    settings = fallen.suite.model_copy(update={"settings": {"attacks": []}})
    measured = boards.shift(fallen, NODE, "clean", -6).model_copy(update={"suite": settings})
    later = measured.model_copy(update={"models": [*measured.models[1:], board.models[2]]})
    retimed = two.model_copy(update={"created": "2026-11-24T00:00:00+00:00"})
    states = {
        "an old schema": '{"schema_version": 1}',
        "the first run": two.to_json(),
        "the same again": retimed.to_json(),
        "a stronger attack": fallen.to_json(),
        "other settings": measured.to_json(),
        "a model came": later.to_json(),
    }

    def git(*words: str) -> None:
        named = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(place), *named, *words], check=True, capture_output=True)

    git("init", "-b", "main")
    for subject, content in states.items():
        (place / FILE).parent.mkdir(parents=True, exist_ok=True)
        (place / FILE).write_text(content, encoding="utf-8")
        git("add", ".")
        git("commit", "-m", subject)
    return place


@pytest.fixture(scope="module")
def history(repository: Path) -> History:
    return read_history(repository / FILE)


def test_every_commit_is_a_state_and_says_what_changed(history):
    states = {state.version.subject: state for state in history.states}
    assert [*states] == [
        "an old schema",
        "the first run",
        "the same again",
        "a stronger attack",
        "other settings",
        "a model came",
    ]
    assert states["an old schema"].board is None
    assert "schema version 2" in states["an old schema"].fault
    assert states["the same again"].moves == ()
    fell = states["a stronger attack"]
    assert {move.model for move in fell.moves} == {NODE}
    assert len(fell.moves) == 8
    assert fell.moves[0].size == pytest.approx(-60 / 599)
    assert states["other settings"].obstacles == ("other settings (attacks, certificates)",)
    assert [str(move) for move in states["other settings"].moves] == [
        "digits/node, clean: 96.8 -> 95.8"
    ]
    assert states["a model came"].new == ("digits/lyanet",)
    assert states["a model came"].gone == ("digits/resnet",)


def test_the_newest_states_are_read_where_that_is_asked_for(repository):
    found = read_history(repository / FILE.parent, last=2)
    assert [state.version.subject for state in found.states] == ["other settings", "a model came"]
    with pytest.raises(UsageError, match="--last"):
        read_history(repository / FILE, last=0)


def test_a_line_for_each_commit_the_newest_first(history):
    lines = told(history)
    assert len(lines) == 6
    assert lines[0].endswith("a model came: new digits/lyanet; gone digits/resnet")
    assert "other settings (attacks, certificates); digits/node, clean: 96.8 -> 95.8" in lines[1]
    assert "8 numbers moved, most of all digits/node" in lines[2]
    assert lines[3].endswith("the same again: no number moved")
    assert "an old schema: not read, " in lines[5]


def test_the_tables_fit_a_terminal_and_show_how_brackets_went(history):
    console = Console(file=io.StringIO(), width=80)
    for table in render(history):
        console.print(table)
    text = console.file.getvalue()
    assert all(len(line) <= 80 for line in text.splitlines())
    row = next(line.split() for line in text.splitlines() if "digits/resnet" in line)
    assert row[-1] == "-"
    row = next(line.split() for line in text.splitlines() if NODE in line)
    first, second = (float(cell.split("-")[1]) for cell in row[1:3])
    assert second == pytest.approx(first - 10, abs=0.11)
    assert "1 earlier commit" in text


def test_the_command_prints_both(repository, capsys):
    line = ["history", str(repository / FILE), "--last", "3"]
    assert cli.run(lambda: cli.app(line, standalone_mode=False)) == 0
    printed = capsys.readouterr().out
    assert "at Linf 0.1" in printed
    assert printed.count("numbers moved, most of all") == 0
    assert "the same again" not in printed
    assert "a model came: new digits/lyanet" in printed


@pytest.mark.parametrize("file", ["gone/leaderboard.json", "untracked.json"])
def test_what_is_in_no_commit_is_refused_in_one_line(repository, capsys, file):
    (repository / "untracked.json").write_text("{}", encoding="utf-8")
    line = ["history", str(repository / file)]
    assert cli.run(lambda: cli.app(line, standalone_mode=False)) == 2
    assert capsys.readouterr().err.count("\n") == 1
