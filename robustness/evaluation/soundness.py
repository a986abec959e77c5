"""Certified radii confronted with every adversarial image that a run found."""

import math

from robustness.evaluation.jobs.audit import NAME as AUDIT
from robustness.evaluation.jobs.audit import Row
from robustness.evaluation.reader import Reader
from robustness.evaluation.records import SampleRecord
from robustness.results.leaderboard import Soundness, Violation
from robustness.threat import Norm

# Counter-examples of which a report shows the images; the store keeps those of all.
PICTURED = 12


def confront(reader: Reader, records: list[list[SampleRecord]]) -> Soundness:
    """Hold each certified radius against the nearest adversarial image known, audit included.

    Args:
        reader: of the run's rows.
        records: of each model's samples.
    """
    pairs = inside = audited = 0
    violations: list[Violation] = []
    for model, known in enumerate(records):
        audits: dict[tuple[Norm, int], Row] = {}
        for job in reader.jobs(model, AUDIT):
            assert job.norm is not None
            rows = reader.rows(job)
            audits |= {(job.norm, row.sample): row for row in rows}
            audited += len(rows)
        for record in known:
            for norm in Norm:
                radius, radii = record.radius(norm), record.attacked.get(norm, [])
                if radius <= 0:
                    continue
                pairs += bool(radii)
                inside += any(eps < radius for eps in radii)
                if record.distance.get(norm, math.inf) < radius:
                    found = audits.get((norm, record.index))
                    violations.append(_violation(reader, model, record, norm, found))
    shown = 0
    for number, violation in enumerate(violations):
        shown += violation.picture is not None
        if shown > PICTURED:
            violations[number] = violation.model_copy(update={"picture": None})
    return Soundness(pairs=pairs, attacked_inside=inside, audited=audited, violations=violations)


def _violation(
    reader: Reader, model: int, record: SampleRecord, norm: Norm, found: Row | None
) -> Violation:
    plan = reader.schedule.plan
    claim = record.best(norm)
    assert claim is not None
    violation = Violation(
        model=plan.models[model].name,
        digest=plan.models[model].digest,
        certificate=claim.certificate,
        norm=norm,
        index=record.index,
        label=record.label,
        prediction=None,
        radius=claim.radius,
        distance=record.distance[norm],
        attack=record.found_by[norm],
        seed=plan.suite.seed,
    )
    if found is None or not found.broken:
        return violation
    audited = {
        "prediction": found.prediction,
        "distance": found.distance(norm),
        "attack": f"the audit, {found.found_by}",
        "seed": found.seed,
        "picture": found.picture,
    }
    return violation.model_copy(update=audited)
