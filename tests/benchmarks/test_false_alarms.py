import sys
from pathlib import Path

import pytest

from robustness.results.leaderboard import read_leaderboard

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import false_alarms  # noqa: E402


def test_other_samples_of_equal_models_fail_by_size_and_not_by_significance() -> None:
    board = read_leaderboard(ROOT / "reports" / "digits")
    one = board.model_copy(update={"models": board.models[:1]})
    by_size, by_both = false_alarms.alarms(one, 6, 200, 0.05)
    assert by_size >= 3
    assert by_both == 0
    assert false_alarms.alarms(one, 2, 200, 0.05, broken=0.3) == (2, 2)


def test_what_it_measures_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["false_alarms.py", str(ROOT / "reports" / "digits"), "--repetitions", "1"]
    monkeypatch.setattr(sys, "argv", [*words, "--samples", "100"])
    false_alarms.main()
    printed = capsys.readouterr().out
    assert "4 models, 48 numbers, 100 samples a run" in printed
    assert "equal runs that fail: 0 of 2\n" in printed
    assert printed.count(" of 1 (") == 4
