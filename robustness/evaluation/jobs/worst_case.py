"""The worst case: every view and attack in turn, on what still stands and is not certified.

An image that is known to be broken within the radius is not attacked again: at a smaller radius of
the norm, by a plain attack, or by the search for the nearest one. The row of one that is taken over
is that of the judge's verdict on the adversarial image, whose distances are in float64 and whose
prediction is the deployed program's, alone in its batch. So radii are worked on in their order.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import chain
from typing import Any

import torch

from robustness.attacks import Outcome, Status, worst_case
from robustness.evaluation.broken import Broken
from robustness.evaluation.jobs.attack import (
    PlainAttack,
    attack_of,
    build_attacks,
    note_verdict,
    summary,
)
from robustness.evaluation.jobs.attack import Row as VerdictRow
from robustness.evaluation.jobs.base import (
    Asked,
    Findings,
    Kind,
    Work,
    joined,
    register_kind,
)
from robustness.evaluation.jobs.clean import Clean
from robustness.evaluation.jobs.nearest import Nearest
from robustness.evaluation.plan import Job, Plan, Unit
from robustness.evaluation.records import SampleRecord
from robustness.evaluation.worst_case import WorstCase
from robustness.results.leaderboard import WORST_CASE

# Few images still stand at the later stages, and lanes of a fixed size are filled up: units of
# many images waste least. What is found for one image does not depend on the others of its unit.
SHARDS_AT_ONCE = 4


@dataclass(frozen=True)
class Row(VerdictRow):
    """The worst case of one image; see `Outcome`.

    Attributes:
        certified: whether it was not attacked, being certified.
        found_by: attack and view that found it, as `attack@view`; the name of a job of the first
            phase; empty where nothing did.
        queries: images passed forward through any model on its behalf, at the radius at which it
            was broken first.
        gradients: images passed forward and backward.
    """

    certified: bool
    found_by: str
    queries: int
    gradients: int


@register_kind
class WorstCaseAttack(Kind[Row]):
    """The suite's worst case, at each of its threats."""

    name = WORST_CASE
    version = 2
    row = Row
    seeded = True
    late = True
    local = True
    attacks = True
    climbs = True

    def plan(self, asked: Asked) -> Iterator[Job]:
        """See `Kind.plan`."""
        for listed in build_attacks(asked.suite):
            attack = listed.attack
            if not isinstance(attack, WorstCase):
                continue
            for threat in listed.threats:
                yield self.job(
                    asked,
                    listed.samples,
                    name=attack.name,
                    norm=threat.norm,
                    eps=threat.eps,
                    version=attack.version(asked.module, threat, asked.sources),
                    sources=asked.digest_of_sources() if attack.transfer else "",
                )

    def units(self, job: Job, plan: Plan, radii: Mapping[int, float]) -> list[Unit]:
        """See `Kind.units`: one per few shards, given which of their images are skipped."""
        shards, units = plan.shards(job), []
        for start in range(0, len(shards), SHARDS_AT_ONCE):
            images = list(chain(*shards[start : start + SHARDS_AT_ONCE]))
            # Only whether an image is skipped decides anything, so nothing else enters the key.
            skipped = [i for i in images if radii.get(i, 0.0) > job.threat.eps]
            given = tuple(float("inf") if i in skipped else 0.0 for i in images)
            units.append(plan.unit(job, images, skipped, given))
        return units

    def starts_from(self, job: Job, plan: Plan) -> list[Job]:
        """See `Kind.starts_from`: what else attacks, and itself at smaller radii of the norm."""
        early = (Clean.name, PlainAttack.name, Nearest.name)
        own = [other for other in plan.jobs if other.model == job.model and other.refusal is None]
        smaller = [
            other
            for other in own
            if (other.kind, other.norm) == (self.name, job.norm)
            and other.threat.eps < job.threat.eps
        ]
        smaller.sort(key=lambda other: other.threat.eps)
        return [*smaller, *(other for other in own if other.kind in early)]

    def given(self, job: Job, plan: Plan, unit: Unit, rows: Mapping[Job, list[Any]]) -> Unit:
        """See `Kind.given`: which images are broken, each by the first of the sources."""
        right = {
            row.sample: row.label
            for source, found in rows.items()
            if source.kind == Clean.name
            for row in found
            if row.prediction == row.label
        }
        skipped = [i for i, radius in zip(unit.indices, unit.radii, strict=True) if radius > 0]
        known: dict[int, Broken] = {}
        for source, found in rows.items():
            for row in found if source.kind != Clean.name else ():
                one, label = _known(source, row), right.get(row.sample)
                if one is not None and row.sample not in skipped and holds(one, label, job):
                    known.setdefault(row.sample, one)
        if not known:
            return unit
        broken = tuple(known[i] for i in unit.indices if i in known)
        given = {"skipped": skipped, "broken": [astuple(one) for one in broken]}
        return plan.unit(job, unit.indices, given, unit.radii, broken)

    def is_dear(self, job: Job) -> bool:
        """See `Kind.is_dear`."""
        del job
        return True

    def run(self, work: Work) -> list[Row]:
        """See `Kind.run`."""
        attack, threat = attack_of(work.suite, work.job), work.job.threat
        assert isinstance(attack, WorstCase)
        broken = {known.sample for known in work.unit.broken}
        places = [place for place, i in enumerate(work.unit.indices) if i not in broken]
        if not places:
            return _taken_over(work)
        stages = attack.stages(work.searched, threat, work.sources)
        radii = torch.tensor(work.unit.radii, dtype=torch.float64)
        outcomes = worst_case(
            work.model,
            work.images[places],
            work.labels[places],
            threat,
            stages,
            radii[places],
            work.unit.seed,
            work.searched,
        )
        attacked = [work.unit.indices[place] for place in places]
        rows = [_row(i, outcome) for i, outcome in zip(attacked, outcomes, strict=True)]
        return [*_taken_over(work), *rows]

    def failed(self, work: Work, reason: str) -> list[Row]:
        """See `Kind.failed`; what was broken before is none the less."""
        outcome, broken = Outcome(Status.ERROR, errors=(reason,)), _taken_over(work)
        known = {row.sample for row in broken}
        return [*broken, *(_row(i, outcome) for i in work.unit.indices if i not in known)]

    def note(self, job: Job, rows: list[Row], records: dict[int, SampleRecord]) -> None:
        """See `Kind.note`."""
        for row in rows:
            if not row.certified:
                radii = records[row.sample].attacked.setdefault(job.threat.norm, [])
                radii.append(job.threat.eps)
                note_verdict(job, row, row.found_by, records)

    def summarise(self, findings: Findings[Row]) -> dict[str, Any]:
        """See `Kind.summarise`."""
        attacks = []
        for job, rows in findings.done:
            # A misclassified image was found by nothing.
            broken = [
                row
                for row in rows
                if row.status is Status.ADVERSARIAL and findings.records[row.sample].correct
            ]
            found_by = Counter(row.found_by for row in broken)
            skipped = sum(row.certified for row in rows)
            row = summary(job, [*rows], findings.records, skipped, found_by)
            attack = attack_of(findings.plan.suite, job)
            assert isinstance(attack, WorstCase)
            left = left_after(broken, row.robust.count)
            attacks.append(row.model_copy(update={"effort": attack.effort, "left_after": left}))
        return {"attacks": attacks}


def holds(known: Broken, label: int | None, job: Job) -> bool:
    """Whether what is said of an adversarial image makes it one within the ball of a job.

    Args:
        known: what is said of it.
        label: of an image that is predicted right; None of any other.
        job: with a threat.
    """
    distances = (known.linf, known.l2)
    return (
        label is not None
        and known.prediction != label
        and all(math.isfinite(distance) and distance >= 0 for distance in distances)
        and known.distance(job.threat.norm) <= job.threat.eps
    )


def _known(source: Job, row: Any) -> Broken | None:
    """What a row of another job says of an adversarial image, if there is one."""
    if row.status is not Status.ADVERSARIAL or None in (row.prediction, row.linf, row.l2):
        return None
    found_by, queries, gradients = source.name, 0, 0
    if source.kind == WORST_CASE:
        found_by, queries, gradients = row.found_by, row.queries, row.gradients
    return Broken(row.sample, row.prediction, row.linf, row.l2, found_by, queries, gradients)


def _taken_over(work: Work) -> list[Row]:
    """Rows of what was broken before."""
    return [
        Row(
            known.sample,
            Status.ADVERSARIAL,
            known.prediction,
            known.linf,
            known.l2,
            rejected=0,
            detail="",
            certified=False,
            found_by=known.found_by,
            queries=known.queries,
            gradients=known.gradients,
        )
        for known in work.unit.broken
    ]


def left_after(broken: Sequence[Row], standing: int) -> list[tuple[int, int]]:
    """How many samples still stood after 1, 2, 4 ... images had been passed on behalf of each.

    Args:
        broken: rows of the samples that it broke; without any there is nothing to tell.
        standing: samples that stand in the end.
    """
    passed = [row.queries + row.gradients for row in broken]
    marks = [2**power for power in range(max(passed).bit_length() + 1)] if passed else []
    return [(mark, standing + sum(count > mark for count in passed)) for mark in marks]


def _row(index: int, o: Outcome) -> Row:
    return Row(
        index,
        o.status,
        o.prediction,
        o.linf,
        o.l2,
        o.rejected,
        joined(o.errors),
        o.certified,
        found_by(o),
        o.queries,
        o.gradients,
    )


def found_by(outcome: Outcome) -> str:
    """What found an adversarial image, in the words of reports; empty where nothing did."""
    if outcome.view:
        return f"{outcome.attack}@{outcome.view}"
    return outcome.attack or ""
