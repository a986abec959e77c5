"""What starts from certificates waits for them, and its keys say what it started from."""

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import robustness.evaluation.runner as runner
from robustness.api import evaluate
from robustness.attacks import Flag, Status, worst_case
from robustness.certificates import CertifiedRadius, Kind, Limit, routine
from robustness.certificates.target_seeking import TargetSeekingCertificate
from robustness.data import load_images
from robustness.errors import DiedError, OperationalError, UsageError
from robustness.evaluation.executors.processes import Limits
from robustness.evaluation.jobs import Result, Work, audit, flags
from robustness.evaluation.jobs import worst_case as worst
from robustness.evaluation.jobs.base import run_unit
from robustness.evaluation.kept import InMemory
from robustness.evaluation.plan import Job, Unit
from robustness.evaluation.planning import make_plan
from robustness.evaluation.records import SampleRecord
from robustness.evaluation.schedule import Schedule
from robustness.evaluation.suite import Suite
from robustness.evaluation.summarise import summarise
from robustness.results.leaderboard import WORST_CASE
from robustness.threat import Norm, ThreatModel
from robustness.zoo import load_model

MODEL = "digits/lyanet-certified"
SUITE = {
    "name": "phases",
    "data": "digits",
    "samples": 32,
    "models": [MODEL],
    "certificates": ["target-seeking"],
    "decay": False,
    "audit": {"samples": 1, "largest": 1},
    "threats": [{"norm": "L2", "eps": [0.5]}],
    "attacks": [{"kind": "worst-case", "effort": "quick"}],
}


def run(out: Path, workers: int = 1, **changes: object):
    return evaluate(Suite.model_validate(SUITE | changes), out=out, workers=workers)


@pytest.fixture(autouse=True)
def no_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit is tested elsewhere; here it takes no time."""

    def nothing(model, images, labels, *rest):
        return worst_case(model, images, labels, THREAT, [])

    monkeypatch.setattr(audit, "audit", nothing)


THREAT = ThreatModel(Norm.L2, 0.1)


def test_the_worst_case_leaves_out_exactly_what_is_certified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacked, real = [], worst.worst_case

    def note(model, images, labels, threat, stages, certified=None, seed=0, climbed=None):
        if certified is not None:
            attacked.append(int((certified <= threat.eps).sum()))
        return real(model, images, labels, threat, stages, certified, seed, climbed)

    monkeypatch.setattr(worst, "worst_case", note)
    entry = run(tmp_path).models[0]
    (row,), radii = entry.attacks, entry.samples.norms[0].radius
    certified = sum(radius > 0.5 for radius in radii)
    assert 0 < certified < 32
    assert row.skipped == certified
    assert attacked == [32 - certified]
    assert row.robust.count >= certified
    broken = sum(row.found_by.values())
    assert broken == entry.clean.count - row.robust.count
    assert all("@" in stage for stage in row.found_by)
    # How many stood after how much work: all that were right at first, in the end what stands.
    (first, *_, last), passed = row.left_after, [n for n, _ in row.left_after]
    assert first == (1, entry.clean.count)
    assert last[1] == row.robust.count
    assert passed == [2**power for power in range(len(passed))]
    assert sorted(row.left_after, key=lambda pair: -pair[1]) == row.left_after


def test_what_stood_after_so_many_passes_counts_those_that_broke_later() -> None:
    broken = [
        worst.Row(i, Status.ADVERSARIAL, 1, 0.1, 0.1, 0, "", False, "pgd@deployed", forward, back)
        for i, (forward, back) in enumerate([(0, 1), (1, 2), (3, 1), (5, 0)])
    ]
    assert worst.left_after(broken, 10) == [(1, 13), (2, 13), (4, 11), (8, 10)]
    assert worst.left_after([], 10) == []


def test_what_is_skipped_is_part_of_the_key_and_other_radii_are_not() -> None:
    models, images = [load_model(MODEL)], load_images("digits", "test", None)
    plan = make_plan(Suite.model_validate(SUITE), images, models)
    jobs = {job.kind: job for job in plan.jobs}
    keys = []
    for scale in (1.0, 1.0 + 1e-9, 1.5):
        kept = InMemory()
        schedule = Schedule(plan, kept)
        certificate = jobs["certificate"]
        for unit in schedule.units(certificate):
            chosen = torch.tensor(unit.indices)
            work = Work(
                certificate,
                unit,
                plan.suite,
                models[0].module,
                images.images[chosen],
                images.labels[chosen],
                plan.suite.build_certificates("any"),
            )
            result = run_unit(work)
            rows = [replace(row, radius=scale * row.radius) for row in result.rows]
            kept.add(replace(result, rows=rows), certificate, MODEL)
        units, audits = schedule.units(jobs["worst-case"]), schedule.units(jobs["audit"])
        keys.append((units[0].key, {unit.key for unit in audits}))
    assert keys[0][0] == keys[1][0] != keys[2][0]
    assert keys[0][1].isdisjoint(keys[1][1])  # an audit attacks at the radius itself


def test_other_models_of_the_suite_are_part_of_the_key_where_their_images_are_tried() -> None:
    images = load_images("digits", "test", None)

    def key(transfer: bool, *names: str) -> str:
        attacks = [{"kind": "worst-case", "transfer": transfer}]
        suite = Suite.model_validate(
            SUITE | {"models": list(names), "attacks": attacks, "certificates": []}
        )
        plan = make_plan(suite, images, [load_model(name) for name in names])
        job = next(job for job in plan.jobs if job.kind == "worst-case")
        return Schedule(plan, InMemory()).units(job)[0].key

    assert key(True, MODEL) != key(True, MODEL, "digits/resnet")
    assert key(False, MODEL) == key(False, MODEL, "digits/resnet")


def test_a_plan_survives_the_store() -> None:
    models, images = [load_model(MODEL)], load_images("digits", "test", None)
    suite = Suite.model_validate(SUITE | {"flags": {"samples": 8}})
    plan = make_plan(suite, images, models)
    assert type(plan).from_json(plan.to_json()) == plan


@pytest.mark.slow
def test_second_phase_work_is_not_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(tmp_path)

    def refuse(*arguments: object) -> None:
        raise AssertionError("a stored unit was computed again")

    monkeypatch.setattr("robustness.evaluation.runner.run_unit", refuse)
    assert run(tmp_path).comparable() == first.comparable()


def test_flags_are_computed_on_the_first_samples_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def check(model, images, labels, threat, seed, sources):
        seen.update(images=len(images), threat=threat, sources=list(sources))
        return [Flag("toy", True, 0.5, 0.1, "half of it"), Flag("calm", False, 0.0, 0.1, "none")]

    monkeypatch.setattr(flags, "check", check)
    entry = run(tmp_path, flags={"samples": 8}, attacks=[]).models[0]
    assert [(f.name, f.raised, f.value) for f in entry.flags] == [
        ("calm", False, 0.0),
        ("toy", True, 0.5),
    ]
    assert (seen["images"], seen["sources"]) == (8, [])
    (page,) = (tmp_path / "models").iterdir()
    assert "attacks.md#toy" in page.read_text()


def test_checks_are_made_where_the_worst_case_runs_and_else_at_the_middle_radius() -> None:
    models, images = [load_model(MODEL)], load_images("digits", "test", None)
    radii = [{"norm": "L2", "eps": [0.1, 0.2, 0.3, 0.4]}]
    there = [{"norm": "Linf", "eps": [0.05]}, {"norm": "L2", "eps": [0.4]}]
    for attacks, expected in (
        ([{"kind": "worst-case", "threats": there}], (Norm.LINF, 0.05)),
        ([{"kind": "worst-case"}], (Norm.L2, 0.1)),
        ([], (Norm.L2, 0.2)),
    ):
        changes = {"threats": radii, "attacks": attacks, "flags": {"samples": 8}}
        plan = make_plan(Suite.model_validate(SUITE | changes), images, models)
        (job,) = (job for job in plan.jobs if job.kind == "flags")
        assert (job.norm, job.eps) == expected


def test_checks_of_before_are_not_taken_for_those_of_now() -> None:
    models, images = [load_model(MODEL)], load_images("digits", "test", None)
    plan = make_plan(Suite.model_validate(SUITE | {"flags": {"samples": 8}}), images, models)
    (job,) = (job for job in plan.jobs if job.kind == "flags")
    assert "PGD-20" in job.version
    assert "Auto-PGD targeted" in job.version
    before = replace(job, version="")
    assert plan.key(job, [1, 2]) != plan.key(before, [1, 2])


def test_checks_that_fail_raise_a_flag_and_do_not_lose_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> list[Flag]:
        raise ArithmeticError("no\nway")

    monkeypatch.setattr(flags, "check", fail)
    (flag,) = run(tmp_path, flags={"samples": 8}, attacks=[]).models[0].flags
    assert (flag.name, flag.raised) == ("checks-failed", True)
    assert flag.detail == "ArithmeticError: no way"


@pytest.mark.slow
def test_an_attack_that_comes_twice_runs_with_the_settings_of_its_radius(tmp_path: Path) -> None:
    """The stages that `quick` has not run where `standard` is asked for, and only there."""
    changes = {
        "models": ["digits/resnet"],
        "certificates": [],
        "samples": 3,
        "threats": [{"norm": "Linf", "eps": [0.07, 0.075]}],
    }
    efforts = {0.07: "quick", 0.075: "standard"}
    twice = [
        {"kind": "worst-case", "effort": effort, "threats": [{"norm": "Linf", "eps": [eps]}]}
        for eps, effort in efforts.items()
    ]
    for attacks in (twice, twice[::-1]):
        folder = tmp_path / str(attacks[0]["effort"])
        rows = run(folder, **changes, attacks=attacks).models[0].attacks
        assert {row.eps: row.version.split()[0] for row in rows} == efforts
        sums = "SELECT job, SUM(queries) FROM shards JOIN worst_case_2 USING (key) GROUP BY job"
        with closing(sqlite3.connect(folder / "results.sqlite")) as store:
            queries = {json.loads(job)["eps"]: count for job, count in store.execute(sums)}
        assert queries[0.075] > 3 * queries[0.07]  # many stages, and few


def test_the_largest_radius_wins_and_the_first_of_equals() -> None:
    names = ["lyapunov", "target-seeking"]
    suite = Suite.model_validate(SUITE | {"certificates": names, "attacks": []})
    kept = InMemory()
    with runner.Crew(suite, 1, None, Limits()) as crew:
        runner.run_plan(crew, kept, 64, True)
        board = summarise(Schedule(crew.plan, kept), {})
    rows = {row.certificate: row for row in board.models[0].certificates}
    positive = sum(radius > 0 for radius in board.models[0].samples.norms[0].radius)
    assert sum(row.won for row in rows.values()) == positive
    assert rows["target-seeking"].won == positive  # never below the other, and strictly above
    for row in rows.values():
        assert sum(row.limits.values()) == sum(row.reasons.values()) == 32
        assert row.curve == sorted(row.curve, reverse=True)
    assert {cost.certificate for cost in board.costs} == set(names)
    assert all(cost.milliseconds > 0 for cost in board.costs)


def test_audits_are_spread_over_the_workers_and_proofs_share_their_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks: list[list[str]] = []
    real = runner.Crew.run

    def noted(crew, found):
        tasks.extend([job.kind for job, _ in task.work] for task in found)
        return real(crew, found)

    monkeypatch.setattr(runner.Crew, "run", noted)
    run(tmp_path, audit={"samples": 6, "largest": 4}, attacks=[])
    assert [kinds for kinds in tasks if "audit" in kinds] == [["audit"]] * 3
    assert {"clean", "certificate"} in [set(kinds) for kinds in tasks]


@pytest.mark.slow
def test_a_star_stands_for_every_entry_with_weights(tmp_path: Path) -> None:
    board = run(tmp_path, models=["digits/*"], certificates=[], attacks=[], samples=1)
    names = [model.name for model in board.models]
    assert names == sorted(names)
    assert {"digits/lyanet", "digits/resnet"} <= set(names)
    with pytest.raises(UsageError, match="entries with weights"):
        run(tmp_path, models=["imagenet/*"])


def test_all_certificates_without_settings_are_meant_by_all() -> None:
    suite = Suite.model_validate(SUITE | {"certificates": "all"})
    assert suite.certificates == routine()
    assert TargetSeekingCertificate().name in suite.certificates


def test_a_proof_that_fails_proves_nothing_and_does_not_lose_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("no\nproof")

    monkeypatch.setattr(TargetSeekingCertificate, "certify", fail)
    entry = run(tmp_path, attacks=[]).models[0]
    (row,) = entry.certificates
    assert row.accuracy[0].count == 0
    assert list(row.reasons) == ["the proof failed: ValueError: no proof"]


def test_a_sample_that_failed_within_a_radius_is_not_certified_there() -> None:
    claim = CertifiedRadius(0.5, Norm.L2, Kind.CERTIFIED, "toy", "none", Limit.OTHER)
    record = SampleRecord(0, 1, 1, claims={Norm.L2: [claim]})
    assert record.certified(Norm.L2, 0.3)
    record.note_failure(Norm.L2, 0.2)
    assert record.certified(Norm.L2, 0.1)
    for eps in (0.2, 0.3):
        assert not record.certified(Norm.L2, eps)
        assert not record.stands(Norm.L2, eps)


def test_a_model_that_ends_the_process_is_left_out_of_attacks_on_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As what adversarial images are tried of; the unit is the other model's."""
    user = "torch.nn:Identity"
    left_out: list[list[str]] = []

    def once(crew: runner.Crew, job: Job, unit: Unit) -> Result:
        left_out.append(list(crew._absent))
        if not crew._absent:
            raise DiedError("its process ended with exit code 0")
        return Result(unit.key, job.kind, [], 0.0)

    monkeypatch.setattr(runner.Crew, "_once", once)
    suite = Suite.model_validate(SUITE | {"models": [MODEL, user]})
    crew = runner.Crew(suite, 1, None, Limits())
    alone = Job(WORST_CASE, 1, 0, 1, 32, WORST_CASE, Norm.LINF, 0.1)
    shared, unit = replace(alone, sources="digest of others"), Unit("key", [0], 0)
    assert crew._alone(shared, unit).key == "key"
    assert left_out == [[], [user]]
    assert crew._absent == {}
    with pytest.raises(OperationalError, match=r"worst-case.* of digits/.*exit code 0, twice"):
        crew._alone(alone, unit)
