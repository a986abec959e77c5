"""Certified radii confronted with every adversarial image that a run found."""

import json
import math

import numpy as np

from robustness.evaluation.jobs.work import Row
from robustness.evaluation.records import Reader, SampleRecord
from robustness.results.leaderboard import Picture, Soundness, Violation
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
        for job in reader.jobs(model, "audit"):
            assert job.norm is not None
            rows = reader.rows(job)
            audits |= {(job.norm, row[0]): row for row in rows}
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
    if found is None or found[2] != "adversarial":
        return violation
    prediction, linf, l2, _, by, seed, shape, original, adversarial = found[3:]
    audited = {
        "prediction": prediction,
        "distance": linf if norm is Norm.LINF else l2,
        "attack": f"the audit, {by}",
        "seed": seed,
        "picture": Picture(
            shape=json.loads(shape),
            original=_pixels(original),
            adversarial=_pixels(adversarial),
        ),
    }
    return violation.model_copy(update=audited)


def _pixels(stored: bytes) -> list[float]:
    """Stored float32 pixels in the shortest decimals that read back as the same float32."""
    return [float(str(value)) for value in np.frombuffer(stored, dtype="<f4")]
