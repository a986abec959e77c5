"""The nearest adversarial image of each sample, however far: robust radii bounded from above."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from robustness.attacks import (
    Status,
    Verdict,
    climbed_view,
    nearest_adversarial,
    nearest_version,
)
from robustness.evaluation.jobs.attack import note_distances
from robustness.evaluation.jobs.base import (
    Asked,
    Findings,
    Kind,
    Work,
    register_kind,
    require_memory,
    said,
)
from robustness.evaluation.jobs.rows import SampleRow
from robustness.evaluation.plan import Job
from robustness.evaluation.records import SampleRecord
from robustness.results.leaderboard import NearestRow


@dataclass(frozen=True)
class Row(SampleRow):
    """The judge's verdict on the nearest image that was found; see `Verdict`."""

    status: Status
    prediction: int | None
    linf: float | None
    l2: float | None
    detail: str


@register_kind
class Nearest(Kind[Row]):
    """A search in each norm of the suite, where it asks for one."""

    name = "nearest"
    version = 1
    row = Row
    seeded = True

    def plan(self, asked: Asked) -> Iterator[Job]:
        """See `Kind.plan`."""
        if asked.suite.nearest is None:
            return
        version = nearest_version(asked.module)
        for group in asked.suite.threats:
            samples = asked.suite.nearest.samples
            yield self.job(asked, samples, name=self.name, version=version, norm=group.norm)

    def is_dear(self, job: Job) -> bool:
        """See `Kind.is_dear`."""
        del job
        return True

    def run(self, work: Work) -> list[Row]:
        """See `Kind.run`."""
        try:
            verdicts = nearest_adversarial(
                work.model,
                work.images,
                work.labels,
                work.norm,
                work.unit.seed,
                view=climbed_view(work.model),
            )
        except Exception as error:  # a user's model may do anything
            require_memory(error)
            return self.failed(work, said(error))
        return [_row(i, verdict) for i, verdict in zip(work.unit.indices, verdicts, strict=True)]

    def failed(self, work: Work, reason: str) -> list[Row]:
        """See `Kind.failed`."""
        verdict = Verdict(Status.ERROR, detail=reason)
        return [_row(index, verdict) for index in work.unit.indices]

    def note(self, job: Job, rows: list[Row], records: dict[int, SampleRecord]) -> None:
        """See `Kind.note`."""
        for row in rows:
            if row.status is Status.ADVERSARIAL:
                note_distances(records[row.sample], row.linf, row.l2, job.name)

    def summarise(self, findings: Findings[Row]) -> dict[str, Any]:
        """See `Kind.summarise`."""
        return {"nearest": [_summary(job, rows, findings) for job, rows in findings.done]}


def _row(index: int, v: Verdict) -> Row:
    return Row(index, v.status, v.prediction, v.linf, v.l2, v.detail)


def _summary(job: Job, rows: list[Row], findings: Findings[Row]) -> NearestRow:
    norm = job.norm
    assert norm is not None
    known = [findings.records[row.sample] for row in rows]
    right = [record for record in known if record.correct]
    distance = float(np.median([r.distance.get(norm, math.inf) for r in right] or [math.inf]))
    return NearestRow(
        norm=norm,
        version=job.version,
        samples=len(rows),
        found=sum(row.status is Status.ADVERSARIAL for row in rows),
        errors=sum(row.status is Status.ERROR for row in rows),
        median=distance if math.isfinite(distance) else None,
        median_certified=float(np.median([r.radius(norm) for r in right] or [0.0])),
    )
