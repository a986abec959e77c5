"""From stored rows to the leaderboard."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from platform import python_version
from typing import get_args

import numpy as np

from robustness.certificates import CertifiedRadius, Kind
from robustness.evaluation.jobs.work import SKIPPED
from robustness.evaluation.plan import Job, JobKind, Plan, resolve_samples
from robustness.evaluation.records import NOT_FINITE, Reader, SampleRecord, failures, sample_table
from robustness.evaluation.schedule import Schedule
from robustness.evaluation.soundness import confront
from robustness.evaluation.store import Store
from robustness.registry import plugins
from robustness.results.leaderboard import (
    AttackRow,
    AuditRow,
    Bracket,
    CertificateRow,
    Cost,
    Curve,
    Decay,
    Flag,
    Leaderboard,
    ModelEntry,
    NearestRow,
    Proportion,
    SuiteSummary,
    WithoutFlow,
)
from robustness.threat import Norm, ThreatModel

_CURVE_POINTS = 81
_SETTINGS = {"threats", "attacks", "certificates", "models", "audit", "flags", "nearest"}
_PACKAGES = (
    "lyanet-robustness",
    "torch",
    "torchdiffeq",
    "torchattacks",
    "pyautoattack",
    "numpy",
    "scipy",
    "scikit-learn",
)


def environment() -> dict[str, str]:
    """Versions of everything that results may depend on."""
    own = {"python": python_version()} | {name: version(name) for name in _PACKAGES}
    return own | {f"plugin {module}": release for module, release in plugins().items()}


def summarise(plan: Plan, store: Store, versions: dict[str, str]) -> Leaderboard:
    """The leaderboard of a plan whose units are all stored.

    Args:
        plan: what was run.
        store: where its rows are.
        versions: the environment that computed them.
    """
    reader = Reader(Schedule(plan, store))
    suite = plan.suite
    records = [reader.records(model) for model in range(len(plan.models))]
    subsets: dict[str, list[int]] = {
        config.kind: plan.order[: resolve_samples(config.samples, plan.samples)]
        for config in suite.attacks
        if resolve_samples(config.samples, plan.samples) < plan.samples
    }
    return Leaderboard(
        suite=SuiteSummary(
            name=suite.name,
            data=suite.data,
            split=suite.split,
            data_digest=plan.data_digest,
            samples=plan.samples,
            seed=suite.seed,
            settings=suite.model_dump(
                mode="json",
                include=_SETTINGS,
            )
            | {"order": "random" if plan.samples < len(plan.order) else "all"},
            subsets=subsets,
        ),
        models=_entries(reader, records),
        soundness=confront(reader, records),
        environment=versions,
        timings=_timings(reader),
        costs=_costs(reader),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _timings(reader: Reader) -> dict[str, float]:
    plan, seconds = reader.schedule.plan, {}
    for kind in get_args(JobKind):
        if jobs := [job for job in plan.jobs if job.kind == kind]:
            seconds[f"compute seconds, {kind}"] = round(reader.schedule.seconds(jobs), 2)
    return seconds


def _costs(reader: Reader) -> list[Cost]:
    plan, costs = reader.schedule.plan, []
    for job in plan.jobs:
        if job.kind == "certificate" and job.refusal is None:
            assert job.norm is not None
            images = sum(len(unit.indices) for unit in reader.schedule.units(job))
            spent = 1000 * reader.schedule.seconds([job]) / images
            name = plan.models[job.model].name
            costs.append(
                Cost(
                    model=name,
                    norm=job.norm,
                    certificate=job.name,
                    images=images,
                    milliseconds=round(spent, 3),
                )
            )
    return costs


def _entries(reader: Reader, records: list[list[SampleRecord]]) -> list[ModelEntry]:
    grids = {
        group.norm: _grid(group.norm, max(group.eps), records)
        for group in reader.schedule.plan.suite.threats
    }
    return [_entry(reader, model, known, grids) for model, known in enumerate(records)]


def _grid(norm: Norm, largest: float, records: list[list[SampleRecord]]) -> list[float]:
    """Radii to draw certificates at: up to the last one that is attacked or claimed in earnest."""
    claimed = (
        record.radius(norm, kind)
        for known in records
        for record in known
        for kind in (Kind.CERTIFIED, Kind.PROBABILISTIC)
    )
    return np.linspace(0, max(largest, *claimed), _CURVE_POINTS).tolist()


def _entry(
    reader: Reader, model: int, records: list[SampleRecord], grids: dict[Norm, list[float]]
) -> ModelEntry:
    plan = reader.schedule.plan
    info, suite = plan.models[model], plan.suite
    clean = [row for job in reader.jobs(model, "clean") for row in reader.rows(job)]
    smoothed = {
        norm: any(c.kind is Kind.PROBABILISTIC for r in records for c in r.claims.get(norm, []))
        for norm in Norm
    }
    brackets = [
        Bracket(
            norm=threat.norm,
            eps=threat.eps,
            certified=_proportion(r.certified(threat.norm, threat.eps) for r in records),
            attacked=_proportion(r.stands(threat.norm, threat.eps) for r in records),
            probabilistic=_proportion(
                r.radius(threat.norm, Kind.PROBABILISTIC) > threat.eps for r in records
            )
            if smoothed[threat.norm]
            else None,
        )
        for threat in _threats(reader, model)
    ]
    known = {record.index: record for record in records}
    return ModelEntry(
        name=info.name,
        description=info.description,
        digest=info.digest,
        unidentified=info.unidentified,
        parameters=info.parameters,
        nfe=max((row[4] for row in clean if row[4] is not None), default=None),
        clean=_proportion(record.correct for record in records),
        without_flow=_without_flow(reader, model, known),
        errors=sum(bool(record.failed) for record in records),
        failures=failures(records),
        brackets=brackets,
        attacks=[_attack_row(reader, job, known) for job in reader.jobs(model, "attack")],
        certificates=[
            row
            for group in suite.threats
            for row in _certificate_rows(reader, model, group.norm, known, grids[group.norm])
        ],
        curves=[
            _curve(group.norm, grids[group.norm], brackets, records) for group in suite.threats
        ],
        decay=_decay(reader, model),
        audits=[_audit_row(reader, job) for job in reader.jobs(model, "audit")],
        flags=[
            Flag(name=name, raised=bool(raised), value=value, threshold=threshold, detail=detail)
            for job in reader.jobs(model, "flags")
            for name, raised, value, threshold, detail in reader.schedule.rows(job)
        ],
        nearest=[_nearest_row(reader, job, known) for job in reader.jobs(model, "nearest")],
        samples=sample_table(records, [group.norm for group in suite.threats]),
    )


def _without_flow(
    reader: Reader, model: int, records: dict[int, SampleRecord]
) -> WithoutFlow | None:
    instead = [row for job in reader.jobs(model, "flow") for row in reader.rows(job)]
    if not instead:
        return None
    return WithoutFlow(
        other=_proportion(c is None or c != records[i].prediction for i, c in instead),
        clean=_proportion(c == records[i].label for i, c in instead),
    )


def _threats(reader: Reader, model: int) -> list[ThreatModel]:
    """The suite's threats and every further one that an attack was run at."""
    suite = reader.schedule.plan.suite
    threats = {t for group in suite.threats for t in group.threats}
    for job in reader.jobs(model, "attack"):
        if job.norm is not None and job.eps is not None:
            threats.add(ThreatModel(job.norm, job.eps))
    first = [group.norm for group in suite.threats]
    return sorted(threats, key=lambda t: ((*first, *Norm).index(t.norm), t.eps))


def _proportion(outcomes: Iterable[bool]) -> Proportion:
    flags = list(outcomes)
    return Proportion.of(sum(flags), len(flags))


def _attack_row(reader: Reader, job: Job, records: dict[int, SampleRecord]) -> AttackRow:
    assert job.norm is not None
    assert job.eps is not None
    rows = reader.rows(job)
    stands = sum(row[1] in ("robust", SKIPPED) and records[row[0]].correct for row in rows)
    # An attack of one stage is found by itself, and a misclassified image by nothing.
    stages = Counter(
        str(row[7])
        for row in rows
        if row[1] == "adversarial" and row[7] != job.name and records[row[0]].correct
    )
    return AttackRow(
        attack=job.name,
        version=job.version,
        norm=job.norm,
        eps=job.eps,
        robust=Proportion.of(stands, len(rows)),
        subset=len(rows),
        errors=sum(row[1] == "error" for row in rows),
        reasons=_most_first(Counter(row[6] or NOT_FINITE for row in rows if row[1] == "error")),
        rejected=sum(row[5] for row in rows),
        skipped=sum(row[1] == SKIPPED for row in rows),
        found_by=_most_first(stages),
    )


def _nearest_row(reader: Reader, job: Job, records: dict[int, SampleRecord]) -> NearestRow:
    assert job.norm is not None
    rows = reader.rows(job)
    right = [records[row[0]] for row in rows if records[row[0]].correct]
    distance = float(np.median([r.distance.get(job.norm, math.inf) for r in right] or [math.inf]))
    return NearestRow(
        norm=job.norm,
        version=job.version,
        samples=len(rows),
        found=sum(row[1] == "adversarial" for row in rows),
        errors=sum(row[1] == "error" for row in rows),
        median=distance if math.isfinite(distance) else None,
        median_certified=float(np.median([r.radius(job.norm) for r in right] or [0.0])),
    )


def _certificate_rows(
    reader: Reader, model: int, norm: Norm, records: dict[int, SampleRecord], grid: list[float]
) -> list[CertificateRow]:
    plan = reader.schedule.plan
    eps = next(group.eps for group in plan.suite.threats if group.norm is norm)
    best = (record.best(norm) for record in records.values())
    won = Counter(claim.certificate for claim in best if claim is not None)
    return [
        _refused_row(job, eps, len(records))
        if job.refusal is not None
        else _certificate_row(job, claims, won[job.name], eps, records, grid)
        for job, claims in reader.schedule.claims(model, norm)
    ]


def _refused_row(job: Job, eps: list[float], samples: int) -> CertificateRow:
    assert job.norm is not None
    return CertificateRow(
        certificate=job.name,
        norm=job.norm,
        kind=None,
        refusal=job.refusal,
        eps=eps,
        accuracy=[Proportion.of(0, samples) for _ in eps],
        median_radius=0.0,
        limits={},
    )


def _certificate_row(
    job: Job,
    claims: dict[int, CertifiedRadius],
    won: int,
    eps: list[float],
    records: dict[int, SampleRecord],
    grid: list[float],
) -> CertificateRow:
    assert job.norm is not None
    # A wrong prediction is certain to have radius 0 whatever the certificate; the kind that
    # names the row is what the certificate claims for the images that are right.
    kinds = {claim.kind for index, claim in claims.items() if records[index].correct}
    radii = np.array([claim.radius for claim in claims.values()], dtype=float)
    return CertificateRow(
        certificate=job.name,
        norm=job.norm,
        kind=max(kinds, key=lambda kind: kind is not Kind.CERTIFIED) if kinds else Kind.CERTIFIED,
        refusal=None,
        eps=eps,
        accuracy=[Proportion.of(int((radii > e).sum()), len(radii)) for e in eps],
        median_radius=float(np.median(radii)),
        won=won,
        limits=_most_first(Counter(claim.limit for claim in claims.values())),
        reasons=_most_first(Counter(_in_general(claim.reason) for claim in claims.values())),
        curve_eps=grid,
        curve=[float((radii > e).mean()) for e in grid],
    )


def _in_general(reason: str) -> str:
    """A reason without the class it speaks of, so that like ones are counted together."""
    return re.sub(r"\bclass \d+\b", "another class", reason)


def _most_first(counts: Counter) -> dict:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _curve(
    norm: Norm, grid: list[float], brackets: list[Bracket], records: list[SampleRecord]
) -> Curve:
    attacked = [b for b in brackets if b.norm is norm]
    right = np.array([record.correct for record in records])
    return Curve(
        norm=norm,
        certified_eps=grid,
        certified=[float(np.mean([r.certified(norm, eps) for r in records])) for eps in grid],
        attacked_eps=[0.0] + [b.eps for b in attacked],
        attacked=[float(right.mean())] + [b.attacked.value for b in attacked],
    )


def _audit_row(reader: Reader, job: Job) -> AuditRow:
    assert job.norm is not None
    rows = reader.rows(job)
    radii = [row[1] for row in rows]
    return AuditRow(
        norm=job.norm,
        attack=job.version,
        pairs=len(rows),
        broken=sum(row[2] == "adversarial" for row in rows),
        errors=sum(row[2] == "error" for row in rows),
        smallest=min(radii, default=None),
        largest=max(radii, default=None),
    )


def _decay(reader: Reader, model: int) -> Decay | None:
    jobs = reader.jobs(model, "decay")
    if not jobs:
        return None
    rows = [row for job in jobs for row in reader.rows(job)]
    by_step: dict[float, list[tuple[float, int]]] = {}
    for _, _, time, value, right in rows:
        potential = math.nan if value is None else float(value)
        by_step.setdefault(float(time), []).append((potential, int(right)))
    times = sorted(by_step)
    values = [np.array([v for v, _ in by_step[t]]) for t in times]
    low, median, high = (
        [float(np.nanpercentile(v, q)) if np.isfinite(v).any() else math.nan for v in values]
        for q in (10, 50, 90)
    )
    return Decay(
        time=times,
        median=median,
        low=low,
        high=high,
        accuracy=[float(np.mean([r for _, r in by_step[t]])) for t in times],
    )
