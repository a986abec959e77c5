"""The end of a run, simulated from what is committed."""

import sys
from pathlib import Path

import pytest

from robustness.evaluation.packing import store_of
from robustness.evaluation.store import Store

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from end_of_a_run import Recorded, main, simulate

REPORTS = Path(__file__).parents[2] / "reports"


@pytest.fixture(scope="module")
def run() -> Recorded:
    with store_of(REPORTS / "cifar-100") as file, Store(file, must_exist=True) as store:
        return Recorded.of(store)


@pytest.mark.slow
def test_no_order_beats_the_sum_of_the_work_and_one_worker_does_it_all(run: Recorded) -> None:
    alone, work = simulate(run, 1, 2, 0.5)
    assert alone == pytest.approx(work)
    two, same = simulate(run, 2)
    assert same == pytest.approx(work)
    assert work / 2 <= two < 0.6 * work


def test_units_are_cut_only_where_workers_would_be_idle(run: Recorded) -> None:
    whole, work = simulate(run, 500)
    halves, same = simulate(run, 500, 2, 0.5)
    assert same == pytest.approx(work)
    assert 0.4 * whole < halves < 0.8 * whole


def test_a_table_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["end", str(REPORTS / "peers/mnist"), "--workers", "2"])
    main()
    assert capsys.readouterr().out.splitlines()[-1].startswith("| 2 | ")
