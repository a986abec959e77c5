"""Certified radii: what each certificate says of each image."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from robustness.certificates import (
    CERTIFICATES,
    CertifiedRadius,
    Limit,
    proves,
    settings_of,
)
from robustness.certificates import (
    Kind as Claim,
)
from robustness.certificates.base import BaseCertificate
from robustness.evaluation.jobs.base import (
    Asked,
    Findings,
    Kind,
    Work,
    most_first,
    register_kind,
    require_memory,
    said,
)
from robustness.evaluation.jobs.rows import SampleRow
from robustness.evaluation.plan import Job
from robustness.evaluation.records import SampleRecord
from robustness.numerics.devices import beside
from robustness.results.leaderboard import CertificateRow, Proportion
from robustness.threat import Norm

NAME = "certificate"


@dataclass(frozen=True)
class Row(SampleRow):
    """One radius; see `CertifiedRadius`."""

    radius: float
    kind: Claim
    reason: str
    limited_by: Limit
    general: str

    def claim(self, job: Job) -> CertifiedRadius:
        """What the certificate of a job said."""
        assert job.norm is not None
        return CertifiedRadius(
            self.radius, job.norm, self.kind, job.name, self.reason, self.limited_by, self.general
        )


@register_kind
class Certifying(Kind[Row]):
    """Each certificate of the suite in each of its norms."""

    name = NAME
    version = 4
    row = Row
    shared = True

    def plan(self, asked: Asked) -> Iterator[Job]:
        """See `Kind.plan`."""
        spoken = False
        for name, certificate in asked.suite.build_certificates(asked.name).items():
            refusals = {
                group.norm: certificate.refusal(asked.module, group.norm)
                for group in asked.suite.threats
            }
            if spoken and name in asked.suite.last_resorts:
                continue
            spoken |= None in refusals.values()
            for norm, refusal in refusals.items():
                yield self.job(
                    asked, name=name, version=settings_of(certificate), norm=norm, refusal=refusal
                )

    def run(self, work: Work) -> list[Row]:
        """See `Kind.run`."""
        certificate = work.certificates[work.job.name]
        try:
            images, labels = work.images, work.labels
            if not isinstance(certificate, BaseCertificate):  # which sees to devices itself
                images, labels = beside(work.model, images, labels)
            radii = certificate.certify(work.model, images, labels, work.norm)
        except Exception as error:  # a user's model may do anything; nothing is proved of it then
            require_memory(error)
            return self.failed(work, said(error))
        return [
            Row(index, result.radius, result.kind, result.reason, result.limit, result.general)
            for index, result in zip(work.unit.indices, radii, strict=True)
        ]

    def failed(self, work: Work, reason: str) -> list[Row]:
        """See `Kind.failed`."""
        why = f"the proof failed: {reason}"
        return [Row(i, 0.0, Claim.CERTIFIED, why, Limit.OTHER, why) for i in work.unit.indices]

    def note(self, job: Job, rows: list[Row], records: dict[int, SampleRecord]) -> None:
        """See `Kind.note`."""
        assert job.norm is not None
        for row in rows:
            records[row.sample].claims.setdefault(job.norm, []).append(row.claim(job))

    def summarise(self, findings: Findings[Row]) -> dict[str, Any]:
        """See `Kind.summarise`."""
        rows = []
        for group in findings.plan.suite.threats:
            best = (record.best(group.norm) for record in findings.records.values())
            won = Counter(claim.certificate for claim in best if claim is not None)
            for job, found in findings.jobs:
                if job.norm is not group.norm:
                    continue
                if job.refusal is not None:
                    rows.append(_refused(job, group.eps, len(findings.records)))
                else:
                    rows.append(_summary(job, found, won[job.name], group.eps, findings))
        return {"certificates": rows}


def certified_norms(jobs: list[Job]) -> list[Norm]:
    """Norms in which something may be proved of the model of some jobs."""
    speaking = (
        job.norm
        for job in jobs
        if job.kind == NAME and proves(CERTIFICATES[job.name]) and job.refusal is None
    )
    return list(dict.fromkeys(norm for norm in speaking if norm is not None))


def largest_radii(rows: Iterable[Row]) -> dict[int, float]:
    """The largest certified radius of each sample of some rows; no zeros."""
    found: dict[int, float] = {}
    for row in rows:
        if row.kind is Claim.CERTIFIED and row.radius > found.get(row.sample, 0.0):
            found[row.sample] = row.radius
    return found


def _refused(job: Job, eps: list[float], samples: int) -> CertificateRow:
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


def _summary(
    job: Job, rows: list[Row], won: int, eps: list[float], findings: Findings[Row]
) -> CertificateRow:
    assert job.norm is not None
    # A wrong prediction is certain to have radius 0 whatever the certificate; the kind that
    # names the row is what the certificate claims for the images that are right.
    kinds = {row.kind for row in rows if findings.records[row.sample].correct}
    radii = np.array([row.radius for row in rows], dtype=float)
    grid = findings.grids[job.norm]
    return CertificateRow(
        certificate=job.name,
        norm=job.norm,
        kind=max(kinds, key=lambda kind: kind is not Claim.CERTIFIED) if kinds else Claim.CERTIFIED,
        refusal=None,
        eps=eps,
        accuracy=[Proportion.of(int((radii > e).sum()), len(radii)) for e in eps],
        median_radius=float(np.median(radii)),
        won=won,
        limits=most_first(Counter(row.limited_by for row in rows)),
        reasons=most_first(Counter(row.general for row in rows)),
        curve_eps=grid,
        curve=[float((radii > e).mean()) for e in grid],
    )
