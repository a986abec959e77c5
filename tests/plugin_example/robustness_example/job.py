"""A kind of job: the mean pixel of each image, a row of each in the store."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from robustness.evaluation.jobs import Asked, Findings, Kind, SampleRow, Work, register_kind
from robustness.evaluation.plan import Job


@dataclass(frozen=True)
class Brightness(SampleRow):
    """How bright an image is; None where the model fails."""

    mean: float | None


@register_kind
class Brightnesses(Kind[Brightness]):
    """Of every image of a suite that names it in `jobs`."""

    name = "brightness"
    version = 1
    row = Brightness

    def plan(self, asked: Asked) -> Iterator[Job]:
        yield self.job(asked)

    def run(self, work: Work) -> list[Brightness]:
        means = work.images.mean(dim=(1, 2, 3)).tolist()
        return [Brightness(i, mean) for i, mean in zip(work.unit.indices, means, strict=True)]

    def failed(self, work: Work, reason: str) -> list[Brightness]:
        return [Brightness(index, None) for index in work.unit.indices]

    def summarise(self, findings: Findings[Brightness]) -> dict[str, Any]:
        means = [row.mean for row in findings.rows if row.mean is not None]
        return {"further": {self.name: {"darkest": min(means, default=None)}}}
