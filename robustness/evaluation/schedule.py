"""The units of work that answer a job: what is computed in one go and stored whole.

Which they are is said by the job's kind (`jobs/`). A job of the second phase starts from the
certified radii that the first one gave, and may start from what other jobs found of its images;
whatever a unit starts from is part of its key.
"""

from collections.abc import Iterable, Mapping, Set
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
        self._plain: dict[Job, tuple[list[Unit], dict[int, int]]] = {}
        self._settled: dict[str, Unit] = {}

    def units(self, job: Job) -> list[Unit]:
        """The units of one job; none where it is refused.

        Those that start from units that are not done are as they would be without these.
        """
        if job.refusal is not None:
            return []
        if not job.late:
            return KINDS[job.kind].units(job, self.plan, {})
        plain, _ = self._plain_units(job)
        if not self._sources(job):
            return plain
        done = self.kept.done()
        return [self._given(job, unit, done) or unit for unit in plain]

    def before(self, job: Job) -> list[Job]:
        """The jobs of the same phase that a job's units start from."""
        return [source for source in self._sources(job) if source.late]

    def given(self, job: Job, unit: Unit) -> Unit:
        """A unit of which all that it starts from is done by now."""
        found = self._given(job, unit, self.kept.done())
        assert found is not None
        return found

    def _sources(self, job: Job) -> list[Job]:
        if not job.late or job.refusal is not None:
            return []
        return KINDS[job.kind].starts_from(job, self.plan)

    def _plain_units(self, job: Job) -> tuple[list[Unit], dict[int, int]]:
        """The units of a late job without what others found, and in which of them images are."""
        if job not in self._plain:
            units = KINDS[job.kind].units(job, self.plan, self._certified_radii(job))
            self._plain[job] = units, {i: n for n, unit in enumerate(units) for i in unit.indices}
        return self._plain[job]

    def _given(self, job: Job, unit: Unit, done: Set[str]) -> Unit | None:
        """A late unit with what was found of its images; None while that is not all done.

        What was computed without that is as good.
        """
        if unit.key not in self._settled:
            if unit.key in done:
                return unit
            rows = self._rows_about(job, unit.indices, done)
            if rows is None:
                return None
            self._settled[unit.key] = KINDS[job.kind].given(job, self.plan, unit, rows)
        return self._settled[unit.key]

    def _rows_about(
        self, job: Job, images: list[int], done: Set[str]
    ) -> dict[Job, list[Any]] | None:
        """What the jobs found that a job starts from, of some images."""
        asked, found = set(images), {}
        for source in self._sources(job):
            if source.late:
                plain, place = self._plain_units(source)
                numbers = sorted({place[image] for image in images if image in place})
                units = [self._given(source, plain[number], done) for number in numbers]
            else:
                all_units = KINDS[source.kind].units(source, self.plan, {})
                units = [u for u in all_units if not asked.isdisjoint(u.indices)]
            keys = [unit.key for unit in units if unit is not None and unit.key in done]
            if len(keys) < len(units):
                return None
            rows = self.kept.rows(source, keys)
            found[source] = [row for row in rows if row.sample in asked]
        return found

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
