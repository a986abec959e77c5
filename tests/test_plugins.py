"""What a package of another's adds, installed or named by --plugin, without an edit here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from robustness.results.leaderboard import Leaderboard, read_leaderboard

EXAMPLE = Path(__file__).parent / "plugin_example"
ROOT = Path(__file__).parent.parent
SUITE = """
name = "strange"
data = "sides"
samples = 3
models = ["robustness_example.model:halves"]
certificates = ["halves"]
jobs = ["brightness"]
decay = false
audit = { samples = 1, largest = 1 }
[[threats]]
norm = "Linf"
eps = [0.04]
[[attacks]]
kind = "fade"
shades = 2
"""
WORST_CASE = """
[[attacks]]
kind = "worst-case"
transfer = false
"""
# What stands in the help of which command.
HELPED = {
    "attack": ("fade: shades = 3", "sides", "doubled", "taking-turns"),
    "evaluate": (
        "fade",
        "halves",
        "sides",
        "doubled",
        "taking-turns",
        "brightness",
        "widest bracket",
    ),
    "certify": ("halves",),
    "report": ("widest bracket",),
}
# The help of some commands, in one process.
HELP = """
import sys
from robustness.cli import app
for command in sys.argv[1:]:
    app([command, "--help"], standalone_mode=False)
"""


def ran(folder: Path, path: list[Path], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in a folder, with packages of a path besides this one."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT])),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        },
        capture_output=True,
        text=True,
        check=False,
    )


def said(folder: Path, path: list[Path], *arguments: str) -> str:
    """What it writes to standard output, without the frames of tables."""
    found = ran(folder, path, *arguments)
    assert found.returncode == 0, found.stderr
    return " ".join(found.stdout.replace("│", " ").split())


def evaluated(folder: Path, path: list[Path], suite: str, *more: str) -> Leaderboard:
    (folder / "strange.toml").write_text(suite, encoding="utf-8")
    arguments = ["evaluate", "strange.toml", "--out", "out", "--executor", "taking-turns"]
    said(folder, path, "-m", "robustness", *arguments, *more)
    return read_leaderboard(folder / "out")


def check_report(folder: Path, board: Leaderboard, release: str) -> None:
    """All six are in the report, and whose they are is part of what results are filed under."""
    (entry,) = board.models
    fade, worst = entry.attacks
    assert fade.attack == "fade"
    assert fade.version == f"fading in 2 shades, {release}"
    assert "@doubled" in worst.version
    (certificate,) = entry.certificates
    assert (certificate.certificate, certificate.refusal) == ("halves", None)
    assert certificate.accuracy[0].count > 0
    assert [audit.pairs for audit in entry.audits] == [2]
    assert board.soundness.violations == []
    assert board.suite.data == "sides"
    assert list(entry.further) == ["brightness"]
    assert 0 <= entry.further["brightness"]["darkest"] <= 1
    width = max(bracket.width for bracket in entry.brackets)
    markdown = (folder / "out/leaderboard.md").read_text(encoding="utf-8")
    assert "| widest bracket |" in markdown
    assert f"| {width:.4g} |" in markdown
    assert '<th scope="col">widest bracket</th>' in (folder / "out/index.html").read_text(
        encoding="utf-8"
    )
    row = f"{entry.name},,,column,widest bracket,,,,{width!r},,"
    assert row in (folder / "out/leaderboard.csv").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which nothing but the example is installed, with its entry points."""
    target = tmp_path_factory.mktemp("site")
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *offline]
    subprocess.run([*pip, "--target", str(target), str(EXAMPLE)], check=True)
    return target


@pytest.mark.slow
def test_what_an_installed_package_adds_is_in_the_help(installed: Path, tmp_path: Path) -> None:
    text = said(tmp_path, [installed], "-c", HELP, *HELPED)
    parts = {part.split()[1]: part for part in text.split("Usage: ")[1:]}
    missing = {name: [w for w in words if w not in parts[name]] for name, words in HELPED.items()}
    assert missing == {name: [] for name in HELPED}


@pytest.mark.slow
def test_what_an_installed_package_adds_is_in_a_suite_and_in_its_report(
    installed: Path, tmp_path: Path
) -> None:
    release = "robustness-example 0.1.0"
    board = evaluated(tmp_path, [installed], SUITE + WORST_CASE)
    check_report(tmp_path, board, release)
    modules = (
        *("attack", "certificate", "column", "dataset", "executor", "job", "operation", "view"),
    )
    plugged = {f"plugin robustness_example.{module}": release for module in modules}
    assert plugged.items() <= board.environment.items()


@pytest.mark.slow
def test_what_is_not_installed_is_named_by_plugin(tmp_path: Path) -> None:
    suite = SUITE.replace('["halves"]', "[]")
    board = evaluated(tmp_path, [EXAMPLE], suite, "--plugin", "robustness_example")
    (release,) = {v for k, v in board.environment.items() if k == "plugin robustness_example"}
    assert release.startswith("robustness_example of SHA-256 ")
    version = board.models[0].attacks[0].version
    assert version.startswith("fading in 2 shades, robustness_example.attack of SHA-256 ")
    again = ran(tmp_path, [EXAMPLE], "-m", "robustness", "report", "out", "--out", "again")
    assert again.returncode == 2
    expected = "expected the plugins that the run was planned with, got no robustness_example;"
    assert expected in again.stderr
