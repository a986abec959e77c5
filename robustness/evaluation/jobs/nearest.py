"""The nearest adversarial image of each sample, however far: robust radii bounded from above."""

import base64
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from robustness.attacks import (
    Status,
    Verdict,
    climbed_view,
    nearest_adversarial,
    nearest_version,
)
from robustness.evaluation.jobs.attack import note_distances
from robustness.evaluation.jobs.base import (
    Asked,
    Findings,
    Kind,
    Work,
    register_kind,
    require_memory,
    said,
)
from robustness.evaluation.jobs.rows import SampleRow
from robustness.evaluation.plan import Job
from robustness.evaluation.records import SampleRecord
from robustness.results.leaderboard import Example, NearestRow
from robustness.threat import Norm

# Of a unit, and then of a model in one norm, so many of the nearest images are kept to be looked
# at: the nearest of all, where every image of the units counts.
SHOWN = 3


@dataclass(frozen=True)
class Row(SampleRow):
    """The judge's verdict on the nearest image that was found; see `Verdict`.

    Attributes:
        channels, height, width: of the image.
        original: its pixels as little-endian float32; None but for the nearest few of the unit.
        adversarial: pixels of the adversarial image, likewise.
    """

    status: Status
    prediction: int | None
    linf: float | None
    l2: float | None
    detail: str
    channels: int
    height: int
    width: int
    original: bytes | None
    adversarial: bytes | None

    def distance(self, norm: Norm) -> float | None:
        """Of the adversarial image; 0 where the prediction is wrong."""
        return self.linf if norm is Norm.LINF else self.l2


@register_kind
class Nearest(Kind[Row]):
    """A search in each norm of the suite, where it asks for one."""

    name = "nearest"
    version = 2
    row = Row
    seeded = True
    climbs = True

    def plan(self, asked: Asked) -> Iterator[Job]:
        """See `Kind.plan`."""
        if asked.suite.nearest is None:
            return
        version = nearest_version(asked.module)
        for group in asked.suite.threats:
            samples = asked.suite.nearest.samples
            yield self.job(asked, samples, name=self.name, version=version, norm=group.norm)

    def is_dear(self, job: Job) -> bool:
        """See `Kind.is_dear`."""
        del job
        return True

    def run(self, work: Work) -> list[Row]:
        """See `Kind.run`."""
        try:
            verdicts = nearest_adversarial(
                work.model,
                work.images,
                work.labels,
                work.norm,
                work.unit.seed,
                view=climbed_view(work.searched),
                climbed=work.searched,
            )
        except Exception as error:  # a user's model may do anything
            require_memory(error)
            return self.failed(work, said(error))
        return rows_of(work, verdicts)

    def failed(self, work: Work, reason: str) -> list[Row]:
        """See `Kind.failed`."""
        return rows_of(work, [Verdict(Status.ERROR, detail=reason) for _ in work.unit.indices])

    def note(self, job: Job, rows: list[Row], records: dict[int, SampleRecord]) -> None:
        """See `Kind.note`."""
        for row in rows:
            if row.status is Status.ADVERSARIAL:
                note_distances(records[row.sample], row.linf, row.l2, job.name)

    def summarise(self, findings: Findings[Row]) -> dict[str, Any]:
        """See `Kind.summarise`."""
        return {"nearest": [_summary(job, rows, findings) for job, rows in findings.done]}


def rows_of(work: Work, verdicts: Sequence[Verdict]) -> list[Row]:
    """The rows of a unit, of which the nearest few keep their images."""
    channels, height, width = work.images.shape[1:]
    kept = _nearest(verdicts, work.norm)
    return [
        Row(
            index,
            v.status,
            v.prediction,
            v.linf,
            v.l2,
            v.detail,
            channels,
            height,
            width,
            _bytes(image) if place in kept else None,
            _bytes(v.image) if place in kept and v.image is not None else None,
        )
        for place, (index, image, v) in enumerate(
            zip(work.unit.indices, work.images, verdicts, strict=True)
        )
    ]


def _nearest(verdicts: Sequence[Verdict], norm: Norm) -> list[int]:
    """Places of the nearest images of a unit that had to be changed at all, nearest first."""
    distances = [v.linf if norm is Norm.LINF else v.l2 for v in verdicts]
    found = {
        place: distance
        for place, (v, distance) in enumerate(zip(verdicts, distances, strict=True))
        if distance and v.image is not None
    }
    return sorted(found, key=lambda place: (found[place], place))[:SHOWN]


def _bytes(image: Tensor) -> bytes:
    return image.detach().numpy().astype("<f4").tobytes()


def _examples(rows: list[Row], norm: Norm, findings: Findings[Row]) -> list[Example]:
    """The nearest of all images that are kept, nearest first."""
    kept = [row for row in rows if row.adversarial is not None]
    kept.sort(key=lambda row: (row.distance(norm), row.sample))
    return [_example(row, norm, findings.records[row.sample].label) for row in kept[:SHOWN]]


def _example(row: Row, norm: Norm, label: int) -> Example:
    distance = row.distance(norm)
    assert row.original is not None
    assert row.adversarial is not None
    assert row.prediction is not None
    assert distance is not None
    original, adversarial = (
        np.frombuffer(pixels, dtype="<f4").astype(np.float64)
        for pixels in (row.original, row.adversarial)
    )
    change = adversarial - original
    largest = float(np.abs(change).max())
    return Example(
        index=row.sample,
        label=label,
        prediction=row.prediction,
        distance=distance,
        shape=(row.channels, row.height, row.width),
        original=_levels(255 * original),
        change=_levels(128 + 127 * change / largest),
        largest=largest,
    )


def _levels(values: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(values.round().astype(np.uint8).tobytes(), 9)).decode()


def _summary(job: Job, rows: list[Row], findings: Findings[Row]) -> NearestRow:
    norm = job.norm
    assert norm is not None
    known = [findings.records[row.sample] for row in rows]
    right = [record for record in known if record.correct]
    distance = float(np.median([r.distance.get(norm, math.inf) for r in right] or [math.inf]))
    return NearestRow(
        norm=norm,
        version=job.version,
        samples=len(rows),
        found=sum(row.status is Status.ADVERSARIAL for row in rows),
        errors=sum(row.status is Status.ERROR for row in rows),
        median=distance if math.isfinite(distance) else None,
        median_certified=float(np.median([r.radius(norm) for r in right] or [0.0])),
        examples=_examples(rows, norm, findings),
    )
