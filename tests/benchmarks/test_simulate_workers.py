"""Simulated runs end when they must."""

import sys
from pathlib import Path

import pytest

from robustness.api import evaluate
from robustness.evaluation.store import Store
from robustness.evaluation.suite import Suite
from robustness.results.leaderboard import STORE_FILE, read_leaderboard

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from simulate_workers import Task, knee, main, parent_seconds, phases_of, phases_of_board, simulate


@pytest.mark.parametrize(
    ("workers", "seconds", "limit"),
    [(1, 14.0, "workers"), (2, 7.0, "workers"), (4, 6.0, "the longest task")],
)
def test_the_dear_are_begun_first_and_phases_wait_for_each_other(
    workers: int, seconds: float, limit: str
) -> None:
    phases = [[Task(2.0)] * 4 + [Task(4.0, dear=True)], [Task(1.0)] * 2]
    if workers == 4:
        phases[1] = [Task(2.0)]
    found = simulate(phases, workers, 0.0)
    assert (found.seconds, found.limit) == (seconds, limit)
    work = sum(task.seconds for tasks in phases for task in tasks)
    assert found.efficiency == pytest.approx(work / workers / seconds)


def test_a_parent_that_is_slower_than_all_workers_sets_the_pace() -> None:
    phases = [[Task(1.0, units=3)] * 100]
    found = simulate(phases, 100, 0.01)
    assert (found.seconds, found.limit) == (pytest.approx(3.0), "the parent")
    outcomes = [simulate(phases, workers, 0.01) for workers in (1, 10, 50, 100)]
    assert knee(outcomes).workers == 50


def test_a_committed_board_stands_for_a_large_run() -> None:
    board = read_leaderboard(Path(__file__).parents[2] / "reports/cifar-10")
    phases = phases_of_board(board, board.suite.samples, len(board.models))
    work = sum(task.seconds for tasks in phases for task in tasks)
    recorded = sum(s for name, s in board.timings.items() if name.startswith("compute seconds"))
    # Blocks of 128 images and batches of 64 are filled up.
    assert recorded <= work <= 1.15 * recorded
    assert {task.what for task in phases[1]} == {"worst-case", "audit"}


@pytest.mark.slow
def test_a_small_run_stands_for_a_large_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = Suite.model_validate(
        {
            "name": "small",
            "data": "digits",
            "samples": 32,
            "models": ["digits/lyanet-certified"],
            "threats": [{"norm": "Linf", "eps": [0.1]}],
            "attacks": [{"kind": "fgsm"}],
            "decay": False,
            "flow": False,
        }
    )
    monkeypatch.setattr("robustness.api.write_report", lambda *_: None)
    evaluate(suite, out=tmp_path, workers=1)
    with Store(tmp_path / STORE_FILE, must_exist=True) as store:
        first, second = phases_of(store, 1000, 3)
        assert 0 < parent_seconds(store, 0.01) < 1
    # 32 shards, two to a task, of predictions and of the attack.
    assert (len(first), second) == (3 * 2 * 16, [])
    assert sum(task.units for task in first) == 3 * 2 * 32
    monkeypatch.setattr(sys, "argv", ["simulate", str(tmp_path / STORE_FILE), "--images", "100"])
    main()
    said = capsys.readouterr().out
    assert "| 4,096 |" in said
    assert "knee: " in said
