"""What is broken at a radius is broken at every larger one, and is not attacked there again."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from robustness import api
from robustness.attacks import Stage, Status, default_stages, harness
from robustness.data import load_images
from robustness.evaluation import runner
from robustness.evaluation.backlog import Backlog
from robustness.evaluation.broken import Broken
from robustness.evaluation.executors.processes import Limits
from robustness.evaluation.jobs import Result, worst_case
from robustness.evaluation.jobs.worst_case import holds
from robustness.evaluation.kept import InMemory
from robustness.evaluation.plan import Job, Unit
from robustness.evaluation.planning import make_plan
from robustness.evaluation.schedule import Schedule
from robustness.evaluation.suite import Suite
from robustness.evaluation.summarise import summarise
from robustness.evaluation.worst_case import WorstCase
from robustness.results.leaderboard import STORE_FILE, ModelEntry
from robustness.threat import Norm
from robustness.zoo import load_model

RADII = [0.04, 0.08, 0.12]
SUITE = {
    "name": "radii",
    "data": "digits",
    "samples": 32,
    "models": ["digits/resnet"],
    "decay": False,
    "flow": False,
    "threats": [{"norm": "Linf", "eps": RADII}],
    "attacks": [{"kind": "worst-case", "effort": "quick"}],
}
PGD_TOO = {"attacks": [{"kind": "pgd", "steps": 3}, *SUITE["attacks"]]}
WITH_PLAIN = PGD_TOO | {"nearest": {}}


@pytest.fixture(autouse=True)
def first_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worst case of one short stage, in units of a shard."""

    def stages(self: WorstCase, model: Any, threat: Any, sources: object) -> list[Stage]:
        return default_stages(model, threat, "quick")[:1]

    monkeypatch.setattr(WorstCase, "stages", stages)
    monkeypatch.setattr(worst_case, "SHARDS_AT_ONCE", 1)


def run(kept: Any = None, workers: int = 1, **changes: object) -> tuple[ModelEntry, Any, Schedule]:
    suite, kept = Suite.model_validate(SUITE | changes), kept or InMemory()
    with runner.Crew(suite, workers, None, Limits()) as crew:
        runner.run_plan(crew, kept, 64, True)
        board = summarise(Schedule(crew.plan, kept), {})
        return board.models[0], kept, Schedule(crew.plan, kept)


def rows(schedule: Schedule) -> dict[float, dict[int, worst_case.Row]]:
    jobs = [job for job in schedule.plan.jobs if job.kind == "worst-case"]
    return {job.threat.eps: {row.sample: row for row in schedule.rows(job)} for job in jobs}


def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every radius is searched by itself."""
    monkeypatch.setattr(worst_case.WorstCaseAttack, "starts_from", lambda *_: [])


def test_robust_accuracy_falls_with_the_radius_where_the_search_at_larger_ones_finds_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(self: WorstCase, model: Any, threat: Any, sources: object) -> list[Stage]:
        return default_stages(model, threat, "quick")[:1] if threat.eps == RADII[1] else []

    monkeypatch.setattr(WorstCase, "stages", fails)
    entry, _, schedule = run()
    clean, (first, second, third) = entry.clean.count, [a.robust.count for a in entry.attacks]
    assert first == clean > second == third
    # Taken over as it was found: the same adversarial image, at the same cost, attacked once.
    found = rows(schedule)
    broken = {sample: row for sample, row in found[RADII[1]].items() if row.linf}
    assert len(broken) == clean - second
    assert {sample: found[RADII[2]][sample] for sample in broken} == broken
    assert entry.attacks[2].found_by == entry.attacks[1].found_by
    alone(monkeypatch)
    assert run()[0].attacks[2].robust.count == clean


@pytest.mark.slow
def test_what_is_known_to_be_broken_is_not_attacked_again_and_no_verdict_is_better(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judged, real = [0], harness.judge_within

    def counted(model: Any, images: Tensor, labels: Tensor, candidates: Tensor, *rest: Any) -> Any:
        judged[0] += candidates.shape[:2].numel()
        return real(model, images, labels, candidates, *rest)

    monkeypatch.setattr(harness, "judge_within", counted)
    found, spent = [], []
    for changes in (WITH_PLAIN, {}, {}):
        found.append(rows(run(**changes)[2]))
        spent.append(judged[0])
        judged[0] = 0
        if len(found) == 2:
            alone(monkeypatch)
    assert spent[0] < spent[1] < spent[2]
    for eps in RADII:
        for sample, row in found[2][eps].items():
            for shared in (found[0][eps][sample], found[1][eps][sample]):
                assert row.status is Status.ROBUST or shared.status is Status.ADVERSARIAL
                assert shared.linf is None or shared.linf <= eps
    names = {row.found_by for of_radius in found[0].values() for row in of_radius.values()}
    assert {"pgd", "nearest"} <= names
    assert any("@" in name for name in names)


@pytest.mark.slow
def test_a_run_that_is_cut_off_goes_on_to_the_same_rows_under_the_same_keys() -> None:
    class CutOff(InMemory):
        left = 0

        def add(self, result: Any, job: Job, model: str) -> None:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            super().add(result, job, model)

    _, whole, expected = run(**PGD_TOO)
    units = len(whole.done())
    kept = CutOff()
    kept.left = units - 2  # the first of three radii is kept
    with pytest.raises(runner.Interruption):
        run(kept, **PGD_TOO)
    kept.left = 2
    _, _, schedule = run(kept, **PGD_TOO)
    assert kept.done() == whole.done()
    assert rows(schedule) == rows(expected)


@pytest.mark.slow
def test_workers_and_the_order_of_their_tasks_change_nothing(tmp_path: Path) -> None:
    found = []
    for workers in (1, 2):
        suite = Suite.model_validate(SUITE | {"threats": [{"norm": "Linf", "eps": RADII[1:]}]})
        out = tmp_path / str(workers)
        # Workers are processes, and have the stages of the suite.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(WorstCase, "stages", STAGES)
            api.evaluate(suite, out=out, workers=workers)
        with closing(sqlite3.connect(out / STORE_FILE)) as store:
            found.append(store.execute("SELECT * FROM worst_case_2 ORDER BY 1, 2").fetchall())
    assert found[0] == found[1]
    assert len(found[0]) == 2 * SUITE["samples"]


STAGES = WorstCase.stages


def test_results_of_radii_by_themselves_count_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.MonkeyPatch.context() as patch:
        alone(patch)
        _, kept, before = run()
        expected = rows(before)
    monkeypatch.setattr(runner, "run_unit", None)  # nothing is computed
    _, _, schedule = run(kept)
    assert rows(schedule) == expected


def test_what_is_said_of_an_adversarial_image_is_held_against_ball_and_label() -> None:
    job = Job("worst-case", 2, 0, 1, 32, "worst-case", Norm.LINF, 0.1)
    known = Broken(7, 3, 0.1, 0.5, "pgd")
    assert holds(known, 4, job)
    assert not holds(known, 3, job)  # not misclassified
    assert not holds(known, None, job)
    for linf in (0.1 + 1e-12, float("nan"), float("inf"), -0.1):
        assert not holds(replace(known, linf=linf), 4, job)
    assert not holds(known, 4, replace(job, norm=Norm.L2))
    assert holds(known, 4, replace(job, norm=Norm.L2, eps=0.5))


def test_a_lie_of_a_smaller_radius_is_refused_and_the_image_attacked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, kept, schedule = run()
    small, large = (
        next(j for j in schedule.plan.jobs if j.kind == "worst-case" and j.eps == eps)
        for eps in RADII[:2]
    )
    key = schedule.units(small)[0].key
    truth = kept.results[key]
    standing = [row for row in truth.rows if row.status is Status.ROBUST][:2]
    label = int(load_images("digits", "test", None).labels[standing[1].sample])
    outside = {"status": Status.ADVERSARIAL, "prediction": 99, "linf": 0.081, "l2": 0.1}
    lies = {
        standing[0].sample: replace(standing[0], **outside, found_by="a lie"),
        standing[1].sample: replace(
            standing[1], **outside | {"linf": 0.01, "prediction": label}, found_by="a lie"
        ),
    }
    kept.results[key] = replace(truth, rows=[lies.get(r.sample, r) for r in truth.rows])
    again = Schedule(schedule.plan, kept)
    unit = again.units(large)[0]
    assert unit == schedule.units(large)[0]
    assert lies.keys().isdisjoint(known.sample for known in unit.broken)


def test_the_dearest_is_begun_first_and_what_waits_as_soon_as_it_can_be() -> None:
    suite = Suite.model_validate(SUITE | WITH_PLAIN)
    images = load_images("digits", "test", None)
    plan = make_plan(suite, images, [load_model("digits/resnet")])
    first, second, third = (job for job in plan.jobs if job.kind == "worst-case")
    attack = next(job for job in plan.jobs if job.kind == "attack")
    work = [
        (job, Unit(f"{job.kind} {job.eps} {n}", [64 * n, 64 * n + 1], 0))
        for job in (attack, first, second, third)
        for n in range(2)
    ]

    class Known(Schedule):
        def given(self, job: Job, unit: Unit) -> Unit:
            return replace(unit, key=f"given {unit.key}")

    kept, costs, now = InMemory(), {}, [0.0]
    backlog = Backlog(Known(plan, kept), work, 2, lambda j: costs.get(j.kind), lambda: now[0])

    def ahead() -> list[Job]:
        return [task.work[0][0] for task in backlog]

    assert len(backlog) == 2 + 2 + 4
    assert ahead() == [first, first, attack, attack]  # not measured: the dear kind comes first
    costs |= {"attack": 160.0, "worst-case": 50.0}
    now[0] = 9.0
    assert ahead() == [attack, attack, first, first]  # 3 * 50 with what waits behind it
    costs["worst-case"], now[0] = 60.0, 18.0
    assert ahead() == [first, first, attack, attack]
    task = backlog.take()
    assert task is not None
    backlog.put_back(task)
    assert backlog.take() is task
    assert backlog.note(*task.work[0]) == []
    now[0] = 27.0
    assert ahead() == [first, attack, attack, second]  # the third waits for the second, too
    (released,) = (task for task in backlog if task.work[0][0] is second)
    assert released.work[0][1].key == f"given worst-case {second.eps} 0"
    # What it has become is kept already: it is spared, and what waited for it goes on.
    kept.results[f"given worst-case {second.eps} 1"] = Result("", "worst-case", [], 0.0)
    task = backlog.take()
    assert task is not None
    assert backlog.note(*task.work[0]) == [second]
    now[0] = 36.0
    assert ahead() == [attack, attack, second, third]
    assert len(backlog) == 4 + 1


def test_of_what_was_never_measured_the_longest_chain_is_begun_first() -> None:
    suite = Suite.model_validate(SUITE)
    plan = make_plan(suite, load_images("digits", "test", None), [load_model("digits/resnet")])
    first, second, third = plan.jobs[-3:]
    # Of the other images the smallest radius is done.
    work = [(job, Unit(str(job.eps), [5], 0)) for job in (second, third)]
    work += [(job, Unit(str(job.eps), [7], 0)) for job in (first, second, third)]
    backlog = Backlog(Schedule(plan, InMemory()), work, 2, lambda _: None)
    assert [task.work[0][0] for task in backlog] == [first, second]
    measured = {first: 1.0, third: 8.0}
    backlog = Backlog(Schedule(plan, InMemory()), work, 2, measured.get)
    assert [task.work[0][0] for task in backlog] == [first, second]  # one unknown each
