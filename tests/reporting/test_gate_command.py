"""The gate's commands: where baselines come from, what is written, and how they end."""

import json
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import boards
import pytest

from robustness import cli
from robustness.errors import UsageError
from robustness.reporting import gate
from robustness.reporting.regression import Outcome
from robustness.results.leaderboard import Leaderboard, read_leaderboard
from robustness.results.revisions import read_version, versions

NODE = "digits/node"


def run(line: str) -> int:
    return cli.run(lambda: cli.app(line.split(), standalone_mode=False))


def write(board: Leaderboard, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(board.to_json(), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def small() -> Leaderboard:
    """One model: quick to write and read."""
    board = boards.leaderboard()
    return board.model_copy(update={"models": [m for m in board.models if m.name == NODE]})


@pytest.fixture(scope="module")
def fallen(small: Leaderboard) -> Leaderboard:
    return boards.shift(small, NODE, "clean", -30)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # Git sets its own for hooks, which would be another repository than the test's.
    told = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", *told):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def git(place: Path, small: Leaderboard, fallen: Leaderboard):
    """A repository whose main has the better run, and whose working tree the worse one."""

    def call(*words: str) -> None:
        named = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *named, *words], check=True, capture_output=True)

    call("init", "-b", "main")
    write(small, place / "reports/x/leaderboard.json")
    call("add", ".")
    call("commit", "-m", "the first run")
    call("checkout", "-b", "later")
    write(fallen, place / "reports/x/leaderboard.json")
    call("commit", "-am", "a worse run")
    return call


def refused(capsys: pytest.CaptureFixture[str], line: str) -> str:
    assert run(line) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert len(said) <= 301
    return said


@pytest.mark.parametrize(
    "where",
    [
        "base/leaderboard.json",
        "base/digits.json",
        "base/digits/leaderboard.json",
    ],
)
def test_a_folder_is_a_report_or_holds_the_baselines_of_suites(place, small, fallen, where):
    write(small, place / where)
    write(fallen, place / "run/leaderboard.json")
    assert run("check run --baseline base") == 1
    assert run(f"check run --baseline {where}") == 1
    assert run(f"check {where} --baseline base") == 0


def test_a_folder_without_this_suites_baseline_is_refused(place, small, capsys):
    write(small, place / "run/leaderboard.json")
    write(small, place / "base/cifar.json")
    assert "base/digits.json" in refused(capsys, "check run --baseline base")


def test_a_suite_whose_name_is_a_path_does_not_leave_the_folder(place):
    (place / "base").mkdir()
    with pytest.raises(UsageError, match="whose name can be that of a file"):
        gate.baseline_file(place / "base", "../digits")


@pytest.mark.parametrize("revision", ["main:reports/x/leaderboard.json", "main", "HEAD~1"])
def test_the_baseline_may_be_in_git(git, revision, capsys):
    assert run(f"check reports/x --baseline-rev {revision}") == 1
    assert "REGRESSION digits/node, clean" in capsys.readouterr().out
    assert run("check reports/x --baseline-rev HEAD") == 0


def test_a_revision_alone_is_looked_for_beside_the_results_wherever_one_stands(
    git, place, monkeypatch
):
    monkeypatch.chdir(place.parent)
    assert run(f"check {place / 'reports/x'} --baseline-rev main") == 1


@pytest.mark.parametrize(
    ("revision", "said"),
    [
        ("gone", "gone"),
        ("main:reports/y.json", "reports/y.json"),
        ("main:reports", "reports"),
        ("--output=x", "expected a git revision"),
        (":reports/x/leaderboard.json", "expected a git revision"),
    ],
)
def test_what_git_does_not_have_is_said_in_one_line(git, capsys, revision, said):
    assert said in refused(capsys, f"check reports/x --baseline-rev={revision}")


def test_outside_of_a_repository_and_without_git_it_is_said(place, small, capsys, monkeypatch):
    write(small, place / "run/leaderboard.json")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(place.parent))
    assert "not a git repository" in refused(capsys, "check run --baseline-rev main")
    monkeypatch.setenv("PATH", str(place))
    assert "no git on the PATH" in refused(capsys, "check run --baseline-rev main")


def test_one_baseline_is_given_and_not_two_or_none(place, small, capsys):
    write(small, place / "run/leaderboard.json")
    assert "got both" in refused(capsys, "check run --baseline run --baseline-rev main")
    assert "expected a baseline" in refused(capsys, "check run")


def test_thresholds_hold_a_run_without_a_baseline(place, small, capsys):
    write(small, place / "run/leaderboard.json")
    limit = '[[limits]]\nmetric = "clean"\nfloor = '
    (place / "gate.toml").write_text(f"{limit} 0.99", encoding="utf-8")
    assert run("check run --thresholds gate.toml") == 1
    assert "is below its floor of 99" in capsys.readouterr().out
    (place / "gate.toml").write_text(f"{limit} 0.9", encoding="utf-8")
    assert run("check run --thresholds gate.toml") == 0
    (place / "gate.toml").write_text("limts = 1", encoding="utf-8")
    assert "unknown key 'limts'" in refused(capsys, "check run --thresholds gate.toml")


def test_every_file_is_written_and_shows_the_regression(place, small, fallen, capsys):
    write(small, place / "base.json")
    write(fallen, place / "run/leaderboard.json")
    files = "--junit j.xml --code-quality q.json --metrics m.txt"
    trackers = "--bigger-is-better b.json --smaller-is-better s.json"
    assert run(f"check run --baseline base.json {files} {trackers}") == 1
    assert ET.parse(place / "j.xml").find(".//failure") is not None
    [issue] = json.loads((place / "q.json").read_text(encoding="utf-8"))
    assert issue["location"]["path"] == "run/leaderboard.json"
    assert "0.918197" in (place / "m.txt").read_text(encoding="utf-8")
    [clean, *_] = json.loads((place / "b.json").read_text(encoding="utf-8"))
    assert clean["extra"] == "550 of 599 samples"
    assert json.loads((place / "s.json").read_text(encoding="utf-8"))[0]["unit"] == "samples"
    printed = capsys.readouterr().out
    assert "::error" not in printed
    assert printed.endswith("regression\n")


@pytest.mark.parametrize(
    "option",
    ["--junit", "--code-quality", "--metrics", "--bigger-is-better", "--smaller-is-better"],
)
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_read(place, capsys, option):
    assert "gone/x" in refused(capsys, f"check nothing --baseline nothing {option} gone/x")


def test_githubs_jobs_are_told_by_annotations_and_a_summary(
    place, small, fallen, capsys, monkeypatch
):
    write(small, place / "base.json")
    write(fallen, place / "run/leaderboard.json")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(place / "summary.md"))
    (place / "summary.md").write_text("of an earlier step\n", encoding="utf-8")
    assert run("check run --baseline base.json") == 1
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("::error file=run/leaderboard.json,title=robustness%3A regression::")
    summary = (place / "summary.md").read_text(encoding="utf-8")
    assert summary.startswith("of an earlier step\n## Robustness of digits: regression")
    assert "digits/node, clean: 96.8" in summary


def test_a_better_run_becomes_the_baseline_and_a_worse_one_only_if_accepted(
    place, small, fallen, capsys
):
    write(small, place / "good/leaderboard.json")
    write(fallen, place / "bad/leaderboard.json")
    (place / "base").mkdir()
    assert run("update-baseline bad base") == 0
    assert read_leaderboard(place / "base/digits.json") == fallen
    assert run("update-baseline good base") == 0
    assert read_leaderboard(place / "base/digits.json") == small
    capsys.readouterr()
    assert run("update-baseline bad base") == 1
    assert "--accept makes this run the baseline" in capsys.readouterr().out
    assert read_leaderboard(place / "base/digits.json") == small
    assert run("update-baseline bad base --tolerance 0.1") == 0
    assert run("update-baseline good base/digits.json") == 0
    assert run("update-baseline bad base --accept") == 0
    assert read_leaderboard(place / "base/digits.json") == fallen
    assert run("check bad --baseline base") == 0


def test_the_thresholds_of_the_gate_hold_for_its_update(place, small, fallen):
    write(small, place / "base.json")
    write(fallen, place / "bad/leaderboard.json")
    (place / "gate.toml").write_text("[[limits]]\nfall = 0.2", encoding="utf-8")
    assert run("update-baseline bad base.json") == 1
    assert run("update-baseline bad base.json --thresholds gate.toml") == 0


def test_a_run_on_other_terms_replaces_the_baseline_only_if_accepted(place, small):
    other = boards.leaderboard(seed=5)
    write(small, place / "base.json")
    write(other, place / "run/leaderboard.json")
    assert run("update-baseline run base.json") == 2
    assert run("update-baseline run base.json --accept") == 0
    assert read_leaderboard(place / "base.json") == other


def test_an_unsound_run_is_nobodys_baseline(place, small, capsys):
    write(boards.broken(small, boards.violation()), place / "run/leaderboard.json")
    assert "broken certificates" in refused(capsys, "update-baseline run base.json --accept")
    assert not (place / "base.json").exists()


def test_a_file_of_another_origin_is_not_written_over(place, small, capsys):
    write(small, place / "run/leaderboard.json")
    (place / "notes.txt").write_text("mine", encoding="utf-8")
    assert "move it away" in refused(capsys, "update-baseline run notes.txt --accept")
    assert (place / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_the_gate_in_python_takes_boards_and_files(place, small, fallen):
    file = write(small, place / "base.json")
    assert gate.hold(fallen, small).verdict.outcome is Outcome.REGRESSION
    assert gate.hold(fallen, file).verdict.outcome is Outcome.REGRESSION
    assert gate.hold(small, file).verdict.outcome is Outcome.PASS


def test_the_states_of_a_file_are_told_oldest_first_through_renames(git, place, small, fallen):
    (place / "reports/y").mkdir()
    git("mv", "reports/x/leaderboard.json", "reports/y/leaderboard.json")
    git("commit", "-m", "moved")
    found = versions(place / "reports/y")
    assert [version.subject for version in found] == ["the first run", "a worse run", "moved"]
    assert [version.path for version in found][1:] == [
        "reports/x/leaderboard.json",
        "reports/y/leaderboard.json",
    ]
    read = [read_version(version, place / "reports/y") for version in found]
    assert read == [small, fallen, fallen]
