"""How far a run is: estimates by numbers that can be checked by hand, lines, events, the end."""

import io
import json
import sqlite3
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import robustness.evaluation.progress as progress
from robustness import api, cli, terminal
from robustness.errors import Interruption, UsageError
from robustness.evaluation.plan import Job, ModelInfo, Plan, Unit
from robustness.evaluation.progress import CostModel, Forecast, Watch
from robustness.evaluation.store import Store
from robustness.evaluation.suite import Suite
from robustness.threat import Norm

SUITE = """
name = "tiny"
data = "digits"
samples = 40
models = ["digits/resnet"]
certificates = []
decay = false
[[threats]]
norm = "Linf"
eps = [0.05, 0.1]
[[attacks]]
kind = "fgsm"
"""


def job(kind: str = "attack", name: str = "pgd", eps: float | None = 0.1, **fields: Any) -> Job:
    return Job(kind, 1, 0, 1, 32, name, Norm.LINF, eps, **fields)


def test_a_unit_is_expected_to_take_what_those_most_like_it_took() -> None:
    costs = CostModel()
    assert costs.seconds(job(), "a") is None
    costs.add(job("prediction", "", None), "a", 3.0)
    assert costs.seconds(job(), "a") == 3.0  # nothing else was measured
    costs.add(job(name="fgsm"), "a", 1.0)
    assert costs.seconds(job(), "a") == 1.0  # the kind
    costs.add(job(), "b", 8.0, units=2)
    assert costs.seconds(job(), "a") == 4.0  # the attack, on all models
    costs.add(job(eps=0.2), "a", 6.0)
    assert costs.seconds(job(), "a") == 6.0  # the attack, on the model
    costs.add(job(version="other settings"), "a", 10.0)
    assert costs.seconds(job(), "a") == 8.0
    costs.add(job(), "a", 5.0)
    costs.add(job(), "a", 7.0)
    assert costs.seconds(job(), "a") == 6.0  # the same job, on the model
    assert costs.seconds(job("audit", ""), "c") == pytest.approx(40.0 / 8)  # everything


def test_a_dear_job_was_measured_where_it_was_on_the_same_model() -> None:
    costs = CostModel()
    costs.add(job(), "a", 8.0)
    assert [costs.of_its_like(job(), m, dear=True) for m in "ab"] == [8.0, None]
    assert costs.of_its_like(job(), "b") == 8.0
    assert costs.of_its_like(job(name="fgsm"), "a") is None


def test_the_time_left_is_the_compute_time_ahead_by_the_speed_of_the_phase() -> None:
    forecast = Forecast(CostModel(), 2, workers=4)
    forecast.expect(0, [(job(), "a")] * 4)
    forecast.expect(1, [(job("audit", ""), "a")] * 3)
    assert (forecast.done(), forecast.total()) == (0, 7)
    assert forecast.remaining(0.0) is forecast.share(0.0) is forecast.rate(0) is None

    forecast.begin(0, 100.0)
    forecast.note(0, job(), "a", 6.0, 103.0)
    forecast.note(0, job(), "a", 10.0, 105.0)
    # 16 compute seconds in 5 s; two units of 8 s are ahead, and three that are like them so far.
    assert forecast.remaining(105.0, 0) == pytest.approx(2 * 8 * 5 / 16)
    assert forecast.remaining(105.0) == pytest.approx((2 + 3) * 8 * 5 / 16)
    assert forecast.share(105.0) == pytest.approx(16 / (16 + 5 * 8))
    assert forecast.rate(0) == pytest.approx(2 / 5)
    forecast.note(0, job(), "a", 8.0, 108.0)
    forecast.note(0, job(), "a", 8.0, 110.0)
    assert forecast.remaining(110.0, 0) == 0

    # The second phase goes at its own speed once it has one, and has other units after all.
    forecast.expect(1, [(job("audit", ""), "a")] * 2)
    forecast.begin(1, 110.0)
    assert forecast.total() == 6
    assert forecast.remaining(110.0) == pytest.approx(2 * 8 * 10 / 32)
    forecast.note(1, job("audit", ""), "a", 30.0, 140.0)
    assert forecast.remaining(140.0) == pytest.approx(30)
    assert forecast.share(140.0) == pytest.approx(62 / 92)
    forecast.note(1, job("audit", ""), "a", 30.0, 170.0)
    assert (forecast.done(), forecast.remaining(170.0), forecast.share(170.0)) == (6, 0, 1)


def test_what_earlier_runs_measured_is_known_at_the_start() -> None:
    costs = CostModel()
    costs.add(job(), "a", 12.0, units=3)
    forecast = Forecast(costs, 1, workers=2)
    forecast.expect(0, [(job(), "a")] * 5)
    assert forecast.remaining(0.0) == 5 * 4 / 2


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def watched(units: int, seconds: float, **options: Any) -> tuple[list[str], list[float]]:
    """The lines that are said of units that are done one after the other, and when."""
    lines: list[str] = []
    times: list[float] = []
    clock = Clock()

    def say(line: str) -> None:
        lines.append(line)
        times.append(clock.now)

    plan = Plan(Suite.model_validate(PARSED), "", [], [ModelInfo("a", "", "", 0)], [])
    forecast = Forecast(CostModel(), 2, workers=1)
    work = [(job(), Unit(str(i), [i], 0)) for i in range(units)]
    forecast.expect(0, [(job(), "a")] * units)
    with Watch(plan, forecast, clock=clock, say=say, **options) as watch:
        watch.begin(0, work)
        for each, unit in work:
            clock.now += seconds
            watch.unit(each, unit, seconds)
        watch.begin(1, [])
    return lines, times


PARSED = {
    "name": "tiny",
    "data": "digits",
    "models": ["digits/resnet"],
    "threats": [{"norm": "Linf", "eps": [0.1]}],
    "attacks": [{"kind": "fgsm"}],
}


@pytest.mark.slow
def test_lines_are_few_where_nobody_watches_a_terminal() -> None:
    lines, times = watched(1000, 0.5, quiet=False)  # half a percent in 2.5 s
    assert all(later - time >= 10 for time, later in pairwise(times[:-1]))
    assert len(lines) == 51  # 500 s, and the end
    assert lines[0] == (
        "tiny: 20 of 1000 units, 2% of the work, about 0:08:10 left; "
        "phase 1 of 1: 20 of 1000 at 2 a second, about 0:08:10 left"
    )
    assert lines[-1] == "tiny: 1000 units in 0:08:20"
    lines, times = watched(10_000, 6.0, quiet=False)  # a percent takes ten minutes
    assert len(lines) <= 200 + 100 + 1  # one for each silence, for each percent, the end
    assert max(later - time for time, later in pairwise(times)) <= 300
    assert watched(10, 0.5, quiet=False)[0] == []  # over before there is anything to say
    assert watched(1000, 0.5, quiet=True)[0] == []


def test_a_terminal_shows_one_bar_and_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    console = terminal.Terminal(file=shown, force_terminal=True, width=160)
    monkeypatch.setattr(terminal, "remarks", console)
    monkeypatch.setattr(progress, "remarks", console)
    assert watched(100, 20.0, quiet=False)[0] == []
    assert "100%" in shown.getvalue()
    assert "100/100 units; phase 1 of 1: 100 of 100 at 0.05 a second" in shown.getvalue()
    shown.seek(0)
    shown.truncate()
    watched(100, 20.0, quiet=True)
    assert shown.getvalue() == ""


def events(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_an_interrupted_run_says_what_is_kept_and_its_events_add_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite, out, log = tmp_path / "tiny.toml", tmp_path / "out", tmp_path / "log.jsonl"
    suite.write_text(SUITE)
    line = ["evaluate", str(suite), "--out", str(out), "--workers", "1", "--batch-size", "32"]
    line += ["--quiet", "--log-json", str(log)]
    monkeypatch.setattr(progress, "_PAUSE", 0.0)
    monkeypatch.setattr(progress, "_SILENCE", 0.0)

    real, added = Store.add, []

    def interrupted(self: Store, *rest: Any) -> None:
        if len(added) == 2:
            raise KeyboardInterrupt
        added.append(rest)
        real(self, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "add", interrupted)
        assert cli.run(lambda: cli.app(line, standalone_mode=False)) == 130
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "interrupted; 2 of 6 units were done; the same command goes on from these and all of "
        f"before, kept in {out / 'results.sqlite'}\n"
    )
    assert [event["event"] for event in events(log)] == ["start", "unit", "unit", "end"]
    assert events(log)[-1].items() >= {"outcome": "interrupted", "done": 2, "total": 6}.items()

    assert cli.run(lambda: cli.app(line, standalone_mode=False)) == 0
    assert capsys.readouterr().err == ""  # of --quiet
    start, *units, end = events(log)[4:]
    # The second run knows from the store what units took.
    assert start.items() >= {"event": "start", "suite": "tiny", "share": None, "total": 4}.items()
    assert start["remaining"] > 0
    assert [unit["done"] for unit in units] == [1, 2, 3, 4]
    assert {unit["total"] for unit in units} == {4}
    assert units[-1]["remaining"] == 0
    assert end.items() >= {"event": "end", "outcome": "done", "done": 4, "total": 4}.items()

    both = [event for event in events(log) if event["event"] == "unit"]
    with closing(sqlite3.connect(out / "results.sqlite")) as store:
        stored = store.execute("SELECT kind, model, seconds, rows FROM shards").fetchall()
    told = [(e["kind"], e["model"], e["seconds"], e["images"]) for e in both]
    assert sorted(told) == sorted((k, m, round(s, 6), rows) for k, m, s, rows in stored)
    threats = [{"norm": "Linf", "eps": eps} for eps in (0.05, 0.1)]
    assert [e["threat"] for e in both if e["name"] == "fgsm"].count(threats[0]) == 2
    assert all(e["threat"] in threats for e in both if e["name"] == "fgsm")


def test_what_keeps_nothing_says_so_and_lines_go_to_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_PAUSE", 0.0)
    line = ["attack", "digits/resnet", "--eps", "0.1", "--attack", "fgsm", "--samples", "4"]
    line += ["--workers", "1"]
    assert cli.run(lambda: cli.app(line, standalone_mode=False)) == 0
    said = capsys.readouterr()
    assert "units" not in said.out
    assert "2 of 2 units, 100% of the work, about 0:00:00 left; phase 1 of 1" in said.err

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("robustness.evaluation.kept.InMemory.add", interrupted)
    log = tmp_path / "log.jsonl"
    with pytest.raises(Interruption, match="0 of 2 units were done; nothing is kept"):
        api.attack("digits/resnet", "Linf", 0.1, "fgsm", samples=4, workers=1, log_json=log)
    assert [event["event"] for event in events(log)] == ["start", "end"]


def test_events_are_written_over_no_other_file(tmp_path: Path) -> None:
    other = tmp_path / "thesis.txt"
    other.write_text("Chapter 1\n")
    for file in (other, tmp_path, tmp_path / "none" / "log.jsonl"):
        with pytest.raises(UsageError, match="expected"):
            api.certify("digits/lyanet-certified", samples=4, log_json=file)
    assert other.read_text() == "Chapter 1\n"
