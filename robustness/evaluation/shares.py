"""Shares of a plan, each computed by itself: on machines that know nothing of each other.

A share is some blocks of images under some models, with every unit of them. A block is as many
images as the largest unit that starts from the certified radii of its own images, so that these
radii are computed where they are needed. What starts from the radii of all images of a model, as
the audit does, is in one share, which certifies the images of the other shares once more: of all
the work, proofs alone are ever done twice, and at most that.
"""

from collections.abc import Iterable, Iterator

from robustness.certificates import CERTIFICATES, proves
from robustness.evaluation.jobs import KINDS
from robustness.evaluation.jobs.certificate import NAME as CERTIFICATE
from robustness.evaluation.plan import SHARD_SIZE, Job, Plan, Unit
from robustness.threat import Norm


class Share:
    """One of the equal shares of a plan.

    Args:
        plan: whose `share` says which it is.
    """

    def __init__(self, plan: Plan) -> None:
        assert plan.share is not None
        self.plan, (self.number, self.count) = plan, plan.share
        self._place = {index: place for place, index in enumerate(plan.order)}
        local = list(self._local_units())
        self._block = max((len(unit.indices) for _, unit in local), default=SHARD_SIZE)
        # The images whose radii are started from, by model and norm.
        self._needed: dict[tuple[int, Norm | None], set[int]] = {}
        for job, unit in local:
            if self.owns(job, unit):
                self._needed.setdefault((job.model, job.norm), set()).update(unit.indices)
        counted = plan.order[: plan.samples]
        for job in plan.jobs:
            if job.late and not KINDS[job.kind].local and self._owner(job, None) == self.number:
                self._needed.setdefault((job.model, job.norm), set()).update(counted)

    def wanted(self, work: Iterable[tuple[Job, Unit]]) -> list[tuple[Job, Unit]]:
        """Of some units those that are computed here: its own, and what they start from."""
        return [(job, unit) for job, unit in work if self.owns(job, unit) or self._needs(job, unit)]

    def owns(self, job: Job, unit: Unit) -> bool:
        """Whether a unit is in this share and in no other."""
        return self._owner(job, unit) == self.number

    def _needs(self, job: Job, unit: Unit) -> bool:
        if job.kind != CERTIFICATE or not proves(CERTIFICATES[job.name]):
            return False
        needed = self._needed.get((job.model, job.norm), set())
        return not needed.isdisjoint(unit.indices)

    def _owner(self, job: Job, unit: Unit | None) -> int:
        """The number of the share of a unit; of a job, where all its units are in one."""
        if unit is None or (job.late and not KINDS[job.kind].local):
            # From the last: the first shares are those that have a block more.
            return self.count - job.model % self.count
        blocks = -(-self.plan.samples // self._block)
        block = self._place[unit.indices[0]] // self._block
        return 1 + (job.model * blocks + block) % self.count

    def _local_units(self) -> Iterator[tuple[Job, Unit]]:
        """Units that start from their own images' radii, as they would be if there were none."""
        for job in self.plan.jobs:
            kind = KINDS[job.kind]
            if job.late and kind.local and job.refusal is None:
                for unit in kind.units(job, self.plan, {}):
                    yield job, unit
