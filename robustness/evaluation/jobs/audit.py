"""The audit: the strongest attack there is, just inside what was certified.

Section "What makes a radius certified" of docs/theory.md, point 6. In every run, a random sample
of the certified images and those with the largest radii are attacked, each just inside its own
radius.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustness.attacks import (
    PGD,
    Ascent,
    Outcome,
    RoundingSearch,
    Stage,
    Status,
    climbed_view,
    default_stages,
    shortened,
    views_of,
    worst_case_within,
)
from robustness.attacks.lanes import LANE_OF_FEW
from robustness.evaluation.jobs.attack import note_distances
from robustness.evaluation.jobs.base import Asked, Findings, Kind, Work, joined, register_kind
from robustness.evaluation.jobs.certificate import certified_norms
from robustness.evaluation.jobs.rows import SampleRow
from robustness.evaluation.jobs.worst_case import found_by
from robustness.evaluation.plan import Job, Plan, Unit
from robustness.evaluation.records import SampleRecord
from robustness.evaluation.worst_case import describe
from robustness.results.leaderboard import AuditRow, Picture
from robustness.threat import Norm, ThreatModel

# A radius promises nothing at its own edge, so the attack stays this share below it.
INSIDE = 1 - 1e-6
NAME = "audit"
# Audits are of few images, whose units shall keep more than one worker busy.
AUDITED_AT_ONCE = 4
_STEPS, _STARTS = 50, 4


@dataclass(frozen=True)
class Row(SampleRow):
    """What became of one image; see `Outcome`.

    Attributes:
        radius: certified; the attack stayed `INSIDE` it.
        found_by: attack and view that broke it; empty where nothing did.
        seed: of the attack.
        channels, height, width: of the image.
        original: its pixels as little-endian float32, which is what the model was given; None
            where it was not broken.
        adversarial: pixels of the adversarial image, likewise.
    """

    radius: float
    status: Status
    prediction: int | None
    linf: float | None
    l2: float | None
    detail: str
    found_by: str
    seed: int
    channels: int
    height: int
    width: int
    original: bytes | None
    adversarial: bytes | None

    @property
    def broken(self) -> bool:
        """Whether an adversarial image was found."""
        return self.status is Status.ADVERSARIAL

    def distance(self, norm: Norm) -> float | None:
        """Of the adversarial image."""
        return self.linf if norm is Norm.LINF else self.l2

    @property
    def picture(self) -> Picture | None:
        """Both images of one that was broken."""
        if self.original is None or self.adversarial is None:
            return None
        return Picture(
            shape=(self.channels, self.height, self.width),
            original=_pixels(self.original),
            adversarial=_pixels(self.adversarial),
        )


@register_kind
class Audit(Kind[Row]):
    """Some certified images of each norm, each just inside its own radius."""

    name = NAME
    version = 1
    row = Row
    seeded = True
    late = True
    alone = True

    def plan(self, asked: Asked) -> Iterator[Job]:
        """See `Kind.plan`."""
        for norm in certified_norms(asked.jobs):
            version = describe(audit_stages(asked.module, ThreatModel(norm, 1.0)))
            yield self.job(asked, name=self.name, version=version, norm=norm)

    def units(self, job: Job, plan: Plan, radii: Mapping[int, float]) -> list[Unit]:
        """See `Kind.units`: a few chosen images, at their radii."""
        settings = plan.suite.audit
        salt = f"{plan.models[job.model].digest}:{job.norm}"
        chosen = choose(radii, settings.samples, settings.largest, plan.suite.seed, salt)
        units = []
        for start in range(0, len(chosen), AUDITED_AT_ONCE):
            part = chosen[start : start + AUDITED_AT_ONCE]
            given = tuple(radii[i] for i in part)
            units.append(plan.unit(job, part, given, given))
        return units

    def run(self, work: Work) -> list[Row]:
        """See `Kind.run`."""
        radii = torch.tensor(work.unit.radii, dtype=torch.float64)
        outcomes = audit(work.model, work.images, work.labels, work.norm, radii, work.unit.seed)
        return _rows(work, outcomes)

    def failed(self, work: Work, reason: str) -> list[Row]:
        """See `Kind.failed`."""
        return _rows(work, [Outcome(Status.ERROR, errors=(reason,)) for _ in work.unit.indices])

    def note(self, job: Job, rows: list[Row], records: dict[int, SampleRecord]) -> None:
        """See `Kind.note`."""
        for row in rows:
            if row.broken:
                what = f"{job.name}: {row.found_by}"
                note_distances(records[row.sample], row.linf, row.l2, what)

    def summarise(self, findings: Findings[Row]) -> dict[str, Any]:
        """See `Kind.summarise`."""
        return {"audits": [_summary(job, rows) for job, rows in findings.done]}


def _rows(work: Work, outcomes: list[Outcome]) -> list[Row]:
    channels, height, width = work.images.shape[1:]
    return [
        Row(
            index,
            radius,
            o.status,
            o.prediction,
            o.linf,
            o.l2,
            joined(o.errors),
            found_by(o),
            work.unit.seed,
            channels,
            height,
            width,
            None if o.image is None else _bytes(image),
            None if o.image is None else _bytes(o.image),
        )
        for index, image, radius, o in zip(
            work.unit.indices, work.images, work.unit.radii, outcomes, strict=True
        )
    ]


def _bytes(image: Tensor) -> bytes:
    return image.detach().numpy().astype("<f4").tobytes()


def _pixels(stored: bytes) -> list[float]:
    """Stored float32 pixels in the shortest decimals that read back as the same float32."""
    return [float(str(value)) for value in np.frombuffer(stored, dtype="<f4")]


def _summary(job: Job, rows: list[Row]) -> AuditRow:
    assert job.norm is not None
    radii = [row.radius for row in rows]
    return AuditRow(
        norm=job.norm,
        attack=job.version,
        pairs=len(rows),
        broken=sum(row.broken for row in rows),
        errors=sum(row.status is Status.ERROR for row in rows),
        smallest=min(radii, default=None),
        largest=max(radii, default=None),
    )


def audit_stages(model: nn.Module, threat: ThreatModel) -> list[Stage]:
    """The pipeline of a verdict, and behind it plain attacks without its views.

    One comes from another library, so that no slip of one implementation makes the audit blind.
    The last one searches roundings, which certificates have been broken by that no ascent breaks.
    """
    base, deployed = climbed_view(model), views_of(model)[0]
    plain = [
        Stage(Ascent("margin", _STEPS, _STARTS), base),
        Stage(Ascent("ce", _STEPS), base),
        Stage(PGD(_STEPS), deployed, copies=_STARTS),
        Stage(RoundingSearch(), deployed),
    ]
    return [shortened(stage, LANE_OF_FEW) for stage in [*default_stages(model, threat), *plain]]


def audit(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    norm: Norm,
    radii: Float[Tensor, " n"],
    seed: int,
) -> list[Outcome]:
    """Attack each image just inside its certified radius by every stage, until one breaks it.

    What comes out for one image depends on it, its radius and the seed, not on its company.
    """
    within = radii * INSIDE
    stages = audit_stages(model, ThreatModel(norm, float(within.max())))
    return worst_case_within(model, images, labels, norm, within, stages, seed=seed)


def choose(
    radii: Mapping[int, float], samples: int, largest: int, seed: int, salt: str
) -> list[int]:
    """The images to audit: those with the largest radii, and a random sample of the others.

    Args:
        radii: certified radius of each image; those without one are never chosen.
        samples: how many at random.
        largest: how many by their radius, ties by index.
        seed: of the suite.
        salt: what tells one draw of the suite from another.

    Returns:
        Indices in increasing order.
    """
    ranked = sorted((i for i in radii if radii[i] > 0), key=lambda i: (-radii[i], i))
    top, rest = ranked[:largest], sorted(ranked[largest:])
    digest = hashlib.sha256(f"{seed}:audit:{salt}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    drawn = torch.randperm(len(rest), generator=generator)[:samples].tolist()
    return sorted(top + [rest[i] for i in drawn])
