"""The units of work that answer a job: what is computed in one go and stored whole.

A job of the first phase has one unit per shard. A job of the second phase starts from the
certified radii that the first one stored: an audit has units of a few chosen images, at their
radii; an attack that skips what is certified has one per few shards, given which of their images
those are. Whatever a unit starts from is part of its key.
"""

from collections.abc import Iterable
from functools import cached_property
from itertools import chain

from robustness.certificates import CertifiedRadius, Kind, Limit
from robustness.evaluation.jobs.audit import choose
from robustness.evaluation.jobs.work import Row
from robustness.evaluation.plan import SHARD_SIZE, Job, Plan, Unit
from robustness.evaluation.store import Store
from robustness.threat import Norm

# Few images still stand at the later stages of an attack that starts from certified radii, and its
# lanes of a fixed size are filled up: units of many images waste least. What is found for one
# image does not depend on the others of its unit. Audits are of few images, whose units shall
# keep more than one worker busy.
SHARDS_AT_ONCE = 4
AUDITED_AT_ONCE = 4


class Schedule:
    """The units of a plan's jobs, given what a store holds.

    Args:
        plan: what to do.
        store: where the certificates' results are; read once, when the first job of the second
            phase is asked for.
    """

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan, self.store = plan, store
        self._claims: dict[int, list[tuple[Job, dict[int, CertifiedRadius]]]] = {}

    def units(self, job: Job) -> list[Unit]:
        """The units of one job; none where it is refused."""
        if job.refusal is not None:
            return []
        if job.kind == "audit":
            return self._audits(job)
        if job.kind == "flags":
            first = self.plan.order[: job.samples]
            return [Unit(self.plan.key(job, first), first, self.plan.seed(first))]
        shards = self._shards[: job.shards]
        if job.needs_radii:
            runs = range(0, len(shards), SHARDS_AT_ONCE)
            shards = [list(chain(*shards[i : i + SHARDS_AT_ONCE])) for i in runs]
        return [self._shard(job, indices) for indices in shards]

    def missing(self, jobs: Iterable[Job]) -> list[tuple[Job, Unit]]:
        """The units of some jobs that the store has not."""
        done = self.store.done()
        return [(job, unit) for job in jobs for unit in self.units(job) if unit.key not in done]

    @cached_property
    def _shards(self) -> list[list[int]]:
        order = self.plan.order
        return [order[i : i + SHARD_SIZE] for i in range(0, len(order), SHARD_SIZE)]

    def _shard(self, job: Job, indices: list[int]) -> Unit:
        seed = self.plan.seed(indices)
        if not job.needs_radii:
            return Unit(self.plan.key(job, indices), indices, seed)
        assert job.norm is not None
        assert job.eps is not None
        radii = self.certified_radii(job.model, job.norm)
        # Only whether an image is skipped decides anything, so nothing else enters the key.
        skipped = [index for index in indices if radii.get(index, 0.0) > job.eps]
        given = tuple(float("inf") if index in skipped else 0.0 for index in indices)
        return Unit(self.plan.key(job, indices, skipped), indices, seed, given)

    def _audits(self, job: Job) -> list[Unit]:
        assert job.norm is not None
        radii = self.certified_radii(job.model, job.norm)
        settings = self.plan.suite.audit
        salt = f"{self.plan.models[job.model].digest}:{job.norm}"
        chosen = choose(radii, settings.samples, settings.largest, self.plan.suite.seed, salt)
        units = []
        for start in range(0, len(chosen), AUDITED_AT_ONCE):
            part = chosen[start : start + AUDITED_AT_ONCE]
            given = tuple(radii[i] for i in part)
            units.append(Unit(self.plan.key(job, part, given), part, self.plan.seed(part), given))
        return units

    def certified_radii(self, model: int, norm: Norm) -> dict[int, float]:
        """The largest certified radius of each sample that the suite reports; no zeros."""
        found: dict[int, float] = {}
        for _, radii in self.claims(model, norm):
            for index, claim in radii.items():
                if claim.kind is Kind.CERTIFIED and claim.radius > found.get(index, 0.0):
                    found[index] = claim.radius
        return found

    def claims(self, model: int, norm: Norm) -> list[tuple[Job, dict[int, CertifiedRadius]]]:
        """What each certificate says of each sample of one model, in the plan's order of jobs."""
        if model not in self._claims:
            jobs = [j for j in self.plan.jobs if j.kind == "certificate" and j.model == model]
            self._claims[model] = [(job, self._read(job)) for job in jobs]
        return [(job, claims) for job, claims in self._claims[model] if job.norm is norm]

    def _read(self, job: Job) -> dict[int, CertifiedRadius]:
        assert job.norm is not None
        counted = set(self.plan.order[: job.samples])
        return {
            index: CertifiedRadius(radius, job.norm, Kind(kind), job.name, reason, Limit(limit))
            for index, radius, kind, reason, limit in self.rows(job)
            if index in counted
        }

    def rows(self, job: Job) -> list[Row]:
        """All stored rows of a job, those of samples that do not count included."""
        return self.store.rows(job.kind, (unit.key for unit in self.units(job)))

    def seconds(self, jobs: Iterable[Job]) -> float:
        """Compute time of some jobs."""
        return self.store.seconds(unit.key for job in jobs for unit in self.units(job))
