"""From stored rows to the leaderboard."""

from datetime import UTC, datetime
from typing import Any

import numpy as np

from robustness.certificates import Kind
from robustness.evaluation.jobs import KINDS
from robustness.evaluation.jobs.attack import places
from robustness.evaluation.jobs.base import proportion
from robustness.evaluation.jobs.certificate import NAME as CERTIFICATE
from robustness.evaluation.plan import Plan, resolve_samples
from robustness.evaluation.reader import Reader
from robustness.evaluation.records import SampleRecord, failures, sample_table
from robustness.evaluation.schedule import Schedule
from robustness.evaluation.soundness import confront
from robustness.results.leaderboard import (
    Bracket,
    Cost,
    Curve,
    Leaderboard,
    ModelEntry,
    SuiteSummary,
)
from robustness.threat import Norm, ThreatModel

_CURVE_POINTS = 81
_SETTINGS = {"threats", "attacks", "certificates", "models", "audit", "flags", "nearest"}


def summarise(schedule: Schedule, versions: dict[str, str]) -> Leaderboard:
    """The leaderboard of a plan whose units are all stored.

    Args:
        schedule: of what was run, and where its rows are.
        versions: the environment that computed them.
    """
    reader, plan = Reader(schedule), schedule.plan
    records = [reader.records(model) for model in range(len(plan.models))]
    return Leaderboard(
        suite=suite_summary(plan),
        models=_entries(reader, records),
        soundness=confront(reader, records),
        environment=versions,
        timings=_timings(reader),
        costs=_costs(reader),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def suite_summary(plan: Plan) -> SuiteSummary:
    """What a plan asks for, as its report says it."""
    suite = plan.suite
    subsets: dict[str, list[int]] = {
        config.kind: plan.order[: resolve_samples(config.samples, plan.samples)]
        for config in suite.attacks
        if resolve_samples(config.samples, plan.samples) < plan.samples
    }
    return SuiteSummary(
        name=suite.name,
        data=suite.data,
        split=suite.split,
        data_digest=plan.data_digest,
        samples=plan.samples,
        seed=suite.seed,
        settings=suite.model_dump(
            mode="json",
            include=_SETTINGS | {name for name in ("added", "jobs") if getattr(suite, name)},
        )
        | {"order": "random" if plan.samples < len(plan.order) else "all"},
        subsets=subsets,
    )


def _timings(reader: Reader) -> dict[str, float]:
    plan, seconds = reader.schedule.plan, {}
    for kind in KINDS:
        if jobs := [job for job in plan.jobs if job.kind == kind]:
            seconds[f"compute seconds, {kind}"] = round(reader.schedule.seconds(jobs), 2)
    return seconds


def _costs(reader: Reader) -> list[Cost]:
    plan, costs = reader.schedule.plan, []
    for job in plan.jobs:
        if job.kind == CERTIFICATE and job.refusal is None:
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
    smoothed = {
        norm: any(c.kind is Kind.PROBABILISTIC for r in records for c in r.claims.get(norm, []))
        for norm in Norm
    }
    brackets = [
        Bracket(
            norm=threat.norm,
            eps=threat.eps,
            certified=proportion(r.certified(threat.norm, threat.eps) for r in records),
            attacked=proportion(r.stands(threat.norm, threat.eps) for r in records),
            probabilistic=proportion(
                r.radius(threat.norm, Kind.PROBABILISTIC) > threat.eps for r in records
            )
            if smoothed[threat.norm]
            else None,
        )
        for threat in _threats(plan, model)
    ]
    told = _told(reader, model, records, grids)
    place = places(suite)
    attacks = told.pop("attacks", [])
    attacks.sort(key=lambda row: place.get((row.attack, row.norm, row.eps), len(place)))
    return ModelEntry(
        name=info.name,
        description=info.description,
        digest=info.digest,
        unidentified=info.unidentified,
        parameters=info.parameters,
        clean=proportion(record.correct for record in records),
        errors=sum(bool(record.failed) for record in records),
        failures=failures(records),
        brackets=brackets,
        attacks=attacks,
        curves=[
            _curve(group.norm, grids[group.norm], brackets, records) for group in suite.threats
        ],
        samples=sample_table(records, [group.norm for group in suite.threats]),
        **{"nfe": None, "certificates": [], "decay": None} | told,
    )


def _told(
    reader: Reader, model: int, records: list[SampleRecord], grids: dict[Norm, list[float]]
) -> dict[str, Any]:
    """What every kind of job says of a model, lists and tables joined."""
    known = {record.index: record for record in records}
    told: dict[str, Any] = {}
    for kind in KINDS.values():
        findings = reader.findings(model, kind.name, known, grids)
        for name, value in (kind.summarise(findings) if findings.jobs else {}).items():
            if isinstance(value, list):
                told[name] = told.get(name, []) + value
            elif isinstance(value, dict):
                told[name] = told.get(name, {}) | value
            else:
                told[name] = value
    return told


def _threats(plan: Plan, model: int) -> list[ThreatModel]:
    """The suite's threats and every further one that an attack was run at."""
    threats = {t for group in plan.suite.threats for t in group.threats}
    threats |= {
        job.threat
        for job in plan.jobs
        if job.model == model and KINDS[job.kind].attacks and job.refusal is None
    }
    first = [group.norm for group in plan.suite.threats]
    return sorted(threats, key=lambda t: ((*first, *Norm).index(t.norm), t.eps))


def _curve(
    norm: Norm, grid: list[float], brackets: list[Bracket], records: list[SampleRecord]
) -> Curve:
    attacked = [b for b in brackets if b.norm is norm]
    right = np.array([record.correct for record in records])
    proved = np.array([record.certified_below(norm) for record in records])
    return Curve(
        norm=norm,
        certified_eps=grid,
        certified=[float(np.mean(proved > eps)) for eps in grid],
        attacked_eps=[0.0] + [b.eps for b in attacked],
        attacked=[float(right.mean())] + [b.attacked.value for b in attacked],
    )
