"""Checks of whether the attacks on a model can be believed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from robustness.attacks import audit as check
from robustness.attacks import audit_version
from robustness.evaluation.jobs.attack import build_attacks
from robustness.evaluation.jobs.base import (
    Asked,
    Findings,
    Kind,
    Work,
    register_kind,
    require_memory,
    said,
)
from robustness.evaluation.jobs.rows import Row as BaseRow
from robustness.evaluation.plan import Job, Plan, Unit
from robustness.evaluation.suite import Suite
from robustness.evaluation.worst_case import WorstCase
from robustness.results.leaderboard import Flag
from robustness.threat import ThreatModel


@dataclass(frozen=True)
class Row(BaseRow):
    """The answer of one check; see `Flag` of a leaderboard."""

    IDENTITY: ClassVar[tuple[str, ...]] = ("name",)

    name: str
    raised: bool
    value: float | None
    threshold: float | None
    detail: str


@register_kind
class Flags(Kind[Row]):
    """The checks of `attacks.checks`, on the first samples of the suite in one batch."""

    name = "flags"
    version = 1
    row = Row
    seeded = True
    climbs = True

    def plan(self, asked: Asked) -> Iterator[Job]:
        """See `Kind.plan`."""
        if asked.suite.flags is None:
            return
        threat = _checked_threat(asked.suite)
        yield self.job(
            asked,
            asked.suite.flags.samples,
            name=self.name,
            version=audit_version(),
            norm=threat.norm,
            eps=threat.eps,
            sources=asked.digest_of_sources(),
        )

    def units(self, job: Job, plan: Plan, radii: Mapping[int, float]) -> list[Unit]:
        """See `Kind.units`: all samples at once."""
        del radii
        return [plan.unit(job, plan.order[: job.samples])]

    def is_dear(self, job: Job) -> bool:
        """See `Kind.is_dear`."""
        del job
        return True

    def run(self, work: Work) -> list[Row]:
        """See `Kind.run`."""
        try:
            flags = check(
                work.searched,
                work.images,
                work.labels,
                work.job.threat,
                work.unit.seed,
                work.sources,
            )
        except Exception as error:  # a user's model may do anything
            require_memory(error)
            return self.failed(work, said(error))
        return [Row(f.name, f.raised, f.value, f.threshold, f.detail) for f in flags]

    def failed(self, work: Work, reason: str) -> list[Row]:
        """See `Kind.failed`."""
        del work
        return [Row("checks-failed", True, None, None, reason)]

    def summarise(self, findings: Findings[Row]) -> dict[str, Any]:
        """See `Kind.summarise`."""
        return {
            "flags": [
                Flag(
                    name=r.name,
                    raised=r.raised,
                    value=r.value,
                    threshold=r.threshold,
                    detail=r.detail,
                )
                for r in findings.rows
            ]
        }


def _checked_threat(suite: Suite) -> ThreatModel:
    """Where the checks are made: the first threat of the worst case, whose word they concern.

    Without a worst case, the middle radius of the first norm.
    """
    for listed in build_attacks(suite):
        if isinstance(listed.attack, WorstCase):
            return listed.threats[0]
    radii = suite.threats[0].threats
    return radii[(len(radii) - 1) // 2]
