"""The units of work that answer a job: what is computed in one go and stored whole.

Which they are is said by the job's kind (`jobs/`). A job of the second phase starts from the
certified radii that the first one gave; whatever a unit starts from is part of its key.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from robustness.evaluation.jobs import KINDS
from robustness.evaluation.jobs.certificate import NAME as CERTIFICATE
from robustness.evaluation.jobs.certificate import largest_radii
from robustness.evaluation.kept import Kept
from robustness.evaluation.plan import Job, Plan, Unit
from robustness.threat import Norm


class Schedule:
    """The units of a plan's jobs, given what is done of them.

    Args:
        plan: what to do.
        kept: where the results are; the certificates' are read once, when the first job of the
            second phase is asked for.

    A plan's share has not all of them: images without a certificate there have no radius, and
    units that would start from one are not what they are in the whole plan, nor in the share.
    """

    def __init__(self, plan: Plan, kept: Kept) -> None:
        self.plan, self.kept = plan, kept
        self._radii: dict[tuple[int, Norm], dict[int, float]] = {}

    def units(self, job: Job) -> list[Unit]:
        """The units of one job; none where it is refused."""
        if job.refusal is not None:
            return []
        radii = self._certified_radii(job) if job.late else {}
        return KINDS[job.kind].units(job, self.plan, radii)

    def missing(self, jobs: Iterable[Job]) -> list[tuple[Job, Unit]]:
        """The units of some jobs that are not done."""
        done = self.kept.done()
        return [(job, unit) for job in jobs for unit in self.units(job) if unit.key not in done]

    def _certified_radii(self, job: Job) -> Mapping[int, float]:
        """The largest certified radius of each image that the suite reports; no zeros."""
        assert job.norm is not None
        if (job.model, job.norm) not in self._radii:
            counted = set(self.plan.order[: self.plan.samples])
            found = largest_radii(
                row
                for other in self.plan.jobs
                if (other.kind, other.model, other.norm) == (CERTIFICATE, job.model, job.norm)
                for row in self.rows(other)
                if row.sample in counted
            )
            self._radii[job.model, job.norm] = found
        return self._radii[job.model, job.norm]

    def rows(self, job: Job) -> list[Any]:
        """All rows of a job, those of samples that do not count included."""
        keys = [unit.key for unit in self.units(job)]
        if self.plan.share is not None:
            done = self.kept.done()
            keys = [key for key in keys if key in done]
        return self.kept.rows(job, keys)

    def seconds(self, jobs: Iterable[Job]) -> float:
        """Compute time of some jobs."""
        return self.kept.seconds(unit.key for job in jobs for unit in self.units(job))
