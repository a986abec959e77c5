"""Plain attacks: one attack at one threat, on images whatever is certified of them."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from robustness.attacks import Attack, Status, Verdict, judge
from robustness.evaluation.jobs.base import (
    KINDS,
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
from robustness.evaluation.records import NOT_FINITE, SampleRecord
from robustness.evaluation.suite import Samples, Suite
from robustness.evaluation.worst_case import WorstCase
from robustness.numerics.devices import beside
from robustness.registry import release_of
from robustness.results.leaderboard import AttackRow, Proportion
from robustness.threat import Norm, ThreatModel

# Those whose units take longest.
_DEAR = ("autoattack", "deepfool", "cw", "fab", "square")


@dataclass(frozen=True)
class Row(SampleRow):
    """The judge's verdict on one image; see `Verdict`."""

    status: Status
    prediction: int | None
    linf: float | None
    l2: float | None
    rejected: int
    detail: str


@register_kind
class PlainAttack(Kind[Row]):
    """Each attack of the suite but its worst case, at each of its threats."""

    name = "attack"
    version = 1
    row = Row
    seeded = True
    attacks = True
    climbs = True

    def plan(self, asked: Asked) -> Iterator[Job]:
        """See `Kind.plan`."""
        for listed in build_attacks(asked.suite):
            attack = listed.attack
            if isinstance(attack, WorstCase):
                continue
            # Settings alone do not tell the code of one release of a package from another's.
            release = release_of(type(attack).__module__)
            for threat in listed.threats:
                yield self.job(
                    asked,
                    listed.samples,
                    name=attack.name,
                    norm=threat.norm,
                    eps=threat.eps,
                    version=f"{attack.version}, {release}" if release else attack.version,
                    refusal=attack.refusal(threat, asked.images.classes),
                )

    def is_dear(self, job: Job) -> bool:
        """See `Kind.is_dear`."""
        return job.name in _DEAR

    def run(self, work: Work) -> list[Row]:
        """See `Kind.run`."""
        attack, threat = attack_of(work.suite, work.job), work.job.threat
        assert not isinstance(attack, WorstCase)
        model, images, labels = work.model, work.images, work.labels
        try:
            there, known = beside(work.searched, images, labels)
            candidates = attack.propose(work.searched, there, known, threat, work.unit.seed)
        except Exception as error:  # a third party's code on a user's model: any failure is data
            require_memory(error)
            return self.failed(work, said(error))
        verdicts = judge(model, images, labels, candidates.detach(), threat)
        return [_row(i, verdict) for i, verdict in zip(work.unit.indices, verdicts, strict=True)]

    def failed(self, work: Work, reason: str) -> list[Row]:
        """See `Kind.failed`."""
        verdict = Verdict(Status.ERROR, detail=reason)
        return [_row(index, verdict) for index in work.unit.indices]

    def note(self, job: Job, rows: list[Row], records: dict[int, SampleRecord]) -> None:
        """See `Kind.note`."""
        for row in rows:
            records[row.sample].attacked.setdefault(job.threat.norm, []).append(job.threat.eps)
            note_verdict(job, row, job.name, records)

    def summarise(self, findings: Findings[Row]) -> dict[str, Any]:
        """See `Kind.summarise`."""
        return {
            "attacks": [summary(job, rows, findings.records) for job, rows in findings.done],
        }


def _row(index: int, v: Verdict) -> Row:
    return Row(index, v.status, v.prediction, v.linf, v.l2, v.rejected, v.detail)


def note_verdict(job: Job, row: Row, found_by: str, records: dict[int, SampleRecord]) -> None:
    """Take account of a verdict within the ball of a job."""
    record = records[row.sample]
    if row.status is Status.ERROR:
        record.note_failure(job.threat.norm, job.threat.eps, row.detail)
    elif row.status is Status.ADVERSARIAL:
        note_distances(record, row.linf, row.l2, found_by)


def note_distances(
    record: SampleRecord, linf: float | None, l2: float | None, found_by: str
) -> None:
    """Take account of an adversarial image: what was found in one ball may lie in another."""
    assert linf is not None
    assert l2 is not None
    record.note_adversarial({Norm.LINF: linf, Norm.L2: l2}, found_by)


def summary(
    job: Job,
    rows: list[Row],
    records: Mapping[int, SampleRecord],
    skipped: int = 0,
    found_by: Counter[str] | None = None,
) -> AttackRow:
    """The row of an attack in the leaderboard; those that it skipped stand.

    Args:
        job: the attack at its threat.
        rows: its verdicts, of skipped samples too.
        records: of the samples.
        skipped: how many it did not attack.
        found_by: what broke how many, for an attack of several stages.
    """
    failed = [row for row in rows if row.status is Status.ERROR]
    stands = sum(row.status is Status.ROBUST and records[row.sample].correct for row in rows)
    return AttackRow(
        attack=job.name,
        version=job.version,
        norm=job.threat.norm,
        eps=job.threat.eps,
        robust=Proportion.of(stands, len(rows)),
        subset=len(rows),
        errors=len(failed),
        reasons=most_first(Counter(row.detail or NOT_FINITE for row in failed)),
        rejected=sum(row.rejected for row in rows),
        skipped=skipped,
        found_by=most_first(found_by or Counter()),
    )


@dataclass(frozen=True)
class Listed:
    """An attack of a suite, with the threats and the samples it is run on."""

    attack: Attack | WorstCase
    threats: list[ThreatModel]
    samples: Samples


def build_attacks(suite: Suite) -> list[Listed]:
    """The attacks of a suite, in its order."""
    return [
        Listed(
            config.build(),
            [threat for group in config.threats or suite.threats for threat in group.threats],
            config.samples,
        )
        for config in suite.attacks
    ]


def attack_of(suite: Suite, job: Job) -> Attack | WorstCase:
    """The attack of an attack job: of its kind, the one that is run at its threat."""
    for listed in build_attacks(suite):
        if listed.attack.name == job.name and job.threat in listed.threats:
            return listed.attack
    raise LookupError(f"no attack {job.name} at {job.norm} {job.eps} in suite {suite.name}")


def places(suite: Suite) -> dict[tuple[str, Norm, float], int]:
    """Where each attack at each threat stands in a suite."""
    runs = (
        (listed.attack.name, threat.norm, threat.eps)
        for listed in build_attacks(suite)
        for threat in listed.threats
    )
    return {run: place for place, run in enumerate(runs)}


def in_order(suite: Suite, jobs: list[Job]) -> list[Job]:
    """Jobs of one model with those of attacks, of whichever kind, in the suite's order."""
    place = places(suite)
    attacks = iter(
        sorted(
            (job for job in jobs if KINDS[job.kind].attacks),
            key=lambda job: place.get((job.name, job.threat.norm, job.threat.eps), len(place)),
        )
    )
    return [next(attacks) if KINDS[job.kind].attacks else job for job in jobs]
