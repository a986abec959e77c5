"""What a run knows of each sample, gathered from the rows of all jobs."""

import math
from collections import Counter
from dataclasses import dataclass, field

from robustness.certificates import CertifiedRadius, Kind
from robustness.evaluation.jobs.work import SKIPPED, Row
from robustness.evaluation.plan import Job, JobKind
from robustness.evaluation.schedule import Schedule
from robustness.results.leaderboard import Distances, Samples
from robustness.threat import Norm

# Where no other is known.
NOT_FINITE = "non-finite logits"


@dataclass
class SampleRecord:
    """All that a run knows of one sample under one model.

    Attributes:
        index: in the data set.
        label: true class.
        prediction: of the deployed model; None where it failed.
        failed: smallest radius per norm at which the model or an attack failed; 0 in both norms
            where the model failed on the image itself.
        distance: per norm, distance of the nearest adversarial image found; 0 where the
            prediction is wrong.
        found_by: per norm, what found that image.
        claims: per norm, what each certificate says, in the order of the suite.
        attacked: per norm, the radii at which an attack ran.
        reason: why the model or an attack failed, the first time; empty where nothing did.
    """

    index: int
    label: int
    prediction: int | None
    failed: dict[Norm, float] = field(default_factory=dict)
    distance: dict[Norm, float] = field(default_factory=dict)
    found_by: dict[Norm, str] = field(default_factory=dict)
    claims: dict[Norm, list[CertifiedRadius]] = field(default_factory=dict)
    attacked: dict[Norm, list[float]] = field(default_factory=dict)
    reason: str = ""

    @property
    def correct(self) -> bool:
        """Whether the deployed model predicts the label."""
        return self.prediction == self.label

    def stands(self, norm: Norm, eps: float) -> bool:
        """Whether nothing known puts it off its label within eps."""
        distance = self.distance.get(norm, math.inf)
        return self.correct and distance > eps and self.failed.get(norm, math.inf) > eps

    def best(self, norm: Norm, kind: Kind = Kind.CERTIFIED) -> CertifiedRadius | None:
        """The largest positive radius of a kind, the first of equals; None without one."""
        radii = [c for c in self.claims.get(norm, []) if c.kind is kind and c.radius > 0]
        return max(radii, key=lambda claim: claim.radius, default=None)

    def radius(self, norm: Norm, kind: Kind = Kind.CERTIFIED) -> float:
        """The largest radius of a kind; 0 without one."""
        claim = self.best(norm, kind)
        return 0.0 if claim is None else claim.radius

    def certified(self, norm: Norm, eps: float) -> bool:
        """Whether it is proved to keep its label within eps, eps included, and nothing failed."""
        held = self.failed.get(norm, math.inf) > eps
        return self.correct and held and self.radius(norm) > eps

    def note_adversarial(self, distances: dict[Norm, float], found_by: str) -> None:
        """Take account of an adversarial image, in whichever norm it is the nearest."""
        for norm, found in distances.items():
            if found < self.distance.get(norm, math.inf):
                self.distance[norm], self.found_by[norm] = found, found_by

    def note_failure(self, norm: Norm, eps: float, reason: str = "") -> None:
        """Take account of a failure within a radius."""
        self.failed[norm] = min(self.failed.get(norm, math.inf), eps)
        self.reason = self.reason or reason or NOT_FINITE


def failures(records: list[SampleRecord]) -> dict[str, int]:
    """How many samples failed for which reason, the most frequent first."""
    counts = Counter(record.reason for record in records if record.failed)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


@dataclass(frozen=True)
class Reader:
    """The rows of a plan's jobs, for the samples that count.

    Attributes:
        schedule: of the plan, over the store that holds the rows.
    """

    schedule: Schedule

    def jobs(self, model: int, kind: JobKind) -> list[Job]:
        """The jobs of one kind on one model that were not refused."""
        return [
            job
            for job in self.schedule.plan.jobs
            if job.model == model and job.kind == kind and job.refusal is None
        ]

    def rows(self, job: Job) -> list[Row]:
        """The job's rows, in no particular order."""
        counted = set(self.schedule.plan.order[: job.samples])
        return [row for row in self.schedule.rows(job) if row[0] in counted]

    def records(self, model: int) -> list[SampleRecord]:
        """What is known of each sample under one model, in the suite's order."""
        plan = self.schedule.plan
        records: dict[int, SampleRecord] = {}
        for job in self.jobs(model, "clean"):
            for index, label, prediction, status, _ in self.rows(job):
                record = SampleRecord(index, label, prediction)
                failed, _, reason = status.partition(": ")
                if failed == "error":
                    for norm in Norm:
                        record.note_failure(norm, 0.0, reason)
                if not record.correct:
                    record.note_adversarial(dict.fromkeys(Norm, 0.0), "clean")
                records[record.index] = record
        for job in self.jobs(model, "attack"):
            self._note_attack(job, records)
        for job in self.jobs(model, "audit"):
            self._note_audit(job, records)
        for job in self.jobs(model, "nearest"):
            self._note_nearest(job, records)
        for norm in Norm:
            for _, claims in self.schedule.claims(model, norm):
                for index, claim in claims.items():
                    records[index].claims.setdefault(norm, []).append(claim)
        return [records[index] for index in plan.order[: plan.samples]]

    def _note_attack(self, job: Job, records: dict[int, SampleRecord]) -> None:
        assert job.norm is not None
        assert job.eps is not None
        for index, status, _, linf, l2, _, detail, found_by, _ in self.rows(job):
            record = records[index]
            if status != SKIPPED:
                record.attacked.setdefault(job.norm, []).append(job.eps)
            if status == "error":
                record.note_failure(job.norm, job.eps, detail)
            elif status == "adversarial":
                # Distances count in both norms: what was found in one ball may lie in another.
                record.note_adversarial({Norm.LINF: linf, Norm.L2: l2}, found_by)

    def _note_audit(self, job: Job, records: dict[int, SampleRecord]) -> None:
        for row in self.rows(job):
            index, status, linf, l2, found_by = row[0], row[2], row[4], row[5], row[7]
            if status == "adversarial":
                distances = {Norm.LINF: linf, Norm.L2: l2}
                records[index].note_adversarial(distances, f"{job.name}: {found_by}")

    def _note_nearest(self, job: Job, records: dict[int, SampleRecord]) -> None:
        for index, status, _, linf, l2, _ in self.rows(job):
            if status == "adversarial":
                records[index].note_adversarial({Norm.LINF: linf, Norm.L2: l2}, job.name)


def sample_table(records: list[SampleRecord], norms: list[Norm]) -> Samples:
    """The records as columns."""
    return Samples(
        index=[r.index for r in records],
        label=[r.label for r in records],
        prediction=[r.prediction for r in records],
        norms=[_distances(records, norm) for norm in norms],
    )


def _distances(records: list[SampleRecord], norm: Norm) -> Distances:
    best = [r.best(norm) for r in records]
    return Distances(
        norm=norm,
        radius=[0.0 if claim is None else claim.radius for claim in best],
        certificate=["" if claim is None else claim.certificate for claim in best],
        limit=["" if claim is None else claim.limit.value for claim in best],
        distance=[r.distance.get(norm) for r in records],
        found_by=[r.found_by.get(norm, "") for r in records],
        failed=[r.failed.get(norm) for r in records],
    )
