"""The plugin for those who test in Python, each run of pytest in this process."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from robustness.reporting import gate  # noqa: F401  what a run within a test imports is forgotten

sys.path.insert(0, str(Path(__file__).parent / "reporting"))
import boards

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent.parent
PLUGIN = "pytest_robustness"
NODE = "digits/node"
HELD = """
def test_held(robustness_gate):
    assert robustness_gate("run").exit_code == 0
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project with a baseline, a run that is as good, and one that is worse."""
    board = boards.leaderboard()
    small = board.model_copy(update={"models": board.models[1:2]})
    for place, content in (
        ("base/digits.json", small),
        ("run/leaderboard.json", small),
        ("bad/leaderboard.json", boards.shift(small, NODE, "clean", -30)),
    ):
        file = pytester.path / place
        file.parent.mkdir()
        file.write_text(content.to_json(), encoding="utf-8")
    pytester.makeini("[pytest]\nrobustness_baseline = base\naddopts = --strict-markers")
    return pytester


def run(project: pytest.Pytester, source: str, *options: str) -> pytest.RunResult:
    project.makepyfile(source)
    return project.runpytest_inprocess("-p", PLUGIN, "-p", "no:cacheprovider", *options)


def test_a_run_that_is_as_good_passes_and_a_worse_one_fails_with_what_fell(
    project: pytest.Pytester,
) -> None:
    worse = HELD + HELD.replace("test_held", "test_worse").replace('"run"', '"bad"')
    found = run(project, worse, "--junitxml", "pytest.xml")
    found.assert_outcomes(passed=1, failed=1)
    found.stdout.fnmatch_lines(
        ["robustness gate: regression", "REGRESSION digits/node, clean: 96.8 -> 91.8 *"]
    )
    found.stdout.no_fnmatch_line("*Traceback*")
    written = (project.path / "pytest.xml").read_text(encoding="utf-8")
    assert '<property name="robustness_gate" value="pass"' in written


def test_the_marker_goes_before_the_settings_and_the_call_before_the_marker(
    project: pytest.Pytester,
) -> None:
    (project.path / "gate.toml").write_text("[[limits]]\nfall = 0.2", encoding="utf-8")
    source = """
import pytest

@pytest.mark.robustness_gate(thresholds="gate.toml")
def test_marked(robustness_gate):
    robustness_gate("bad")

@pytest.mark.robustness_gate(baseline="bad")
def test_another_baseline(robustness_gate):
    robustness_gate("bad")

@pytest.mark.robustness_gate(baseline="bad", tolerance=0.5)
def test_called(robustness_gate):
    robustness_gate("bad", baseline="base", tolerance=0.01)
"""
    found = run(project, source)
    found.assert_outcomes(passed=2, failed=1)
    found.stdout.fnmatch_lines(["FAILED *test_called*"])


def test_leaderboards_of_the_test_itself_are_held(project: pytest.Pytester) -> None:
    source = """
from pathlib import Path
from robustness.results.leaderboard import read_leaderboard

def test_held(robustness_gate, request):
    board = read_leaderboard(request.config.rootpath / "bad")
    assert robustness_gate(board, baseline=board).findings == []
    robustness_gate(board)
"""
    found = run(project, source, "--robustness-thresholds", "none.toml")
    found.stdout.fnmatch_lines(["robustness gate: expected a TOML file at *none.toml*"])
    found = run(project, source)
    found.stdout.fnmatch_lines(["robustness gate: regression"])


def test_baselines_are_updated_where_that_is_asked_for(project: pytest.Pytester) -> None:
    source = HELD.replace('"run"', '"bad"')
    run(project, source, "--robustness-update").assert_outcomes(passed=1)
    updated = (project.path / "base/digits.json").read_text(encoding="utf-8")
    assert updated == (project.path / "bad/leaderboard.json").read_text(encoding="utf-8")
    run(project, source).assert_outcomes(passed=1)


def test_what_is_misspelt_or_missing_is_said_in_one_line(project: pytest.Pytester) -> None:
    source = """
import pytest

@pytest.mark.robustness_gate(basline="bad")
def test_misspelt(robustness_gate):
    robustness_gate("run")

def test_missing(robustness_gate):
    robustness_gate("gone")

def test_other_seed(robustness_gate):
    robustness_gate("run", revision="no-such-revision")
"""
    found = run(project, source)
    assert found.ret == pytest.ExitCode.TESTS_FAILED
    text = found.stdout.str()
    assert "got 'basline'; correct it" in text
    assert "expected a leaderboard of schema version" in text
    assert "robustness gate: expected a leaderboard at no-such-revision" in text


def test_it_is_an_entry_point_that_loads_nothing_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {PLUGIN: PLUGIN}
    loaded = f"import sys, {PLUGIN}; sys.exit('robustness' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], check=False, cwd=ROOT).returncode == 0
