"""The proved envelope of the potential V(t), over the ball of every threat."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from robustness.certificates.base import program_of, refusal_elsewhere
from robustness.certificates.decay import Envelope, envelope
from robustness.evaluation.jobs.base import (
    Asked,
    Findings,
    Kind,
    Work,
    most_first,
    proportion,
    register_kind,
    require_memory,
    said,
)
from robustness.evaluation.jobs.rows import SampleRow
from robustness.evaluation.plan import Job
from robustness.nets.classifiers import NeuralODEClassifier, potential
from robustness.nets.solvers import FixedStepSolver
from robustness.programs.graph import Refusal
from robustness.results.leaderboard import Envelope as Summary


@dataclass(frozen=True)
class Row(SampleRow):
    """What is proved at one state of one image's trajectories.

    Attributes:
        step: number of the state.
        time: as a share of the horizon.
        low: lower end of V_y over the ball.
        high: upper end, infinite where nothing is known.
        lead: lower end of the label's least lead.
        potential: V_y of the unperturbed image; None where it is not a number.
        reason: why nothing is proved; empty where something is.
    """

    IDENTITY: ClassVar[tuple[str, ...]] = ("sample", "step")

    step: int
    time: float
    low: float
    high: float
    lead: float
    potential: float | None
    reason: str


@register_kind
class Enveloping(Kind[Row]):
    """The Lyapunov function along every perturbed trajectory, rounding included."""

    name = "envelope"
    version = 2
    row = Row

    def plan(self, asked: Asked) -> Iterator[Job]:
        """See `Kind.plan`."""
        wanted = asked.suite.envelope
        if wanted is None or not isinstance(asked.module, NeuralODEClassifier):
            return
        fixed = isinstance(asked.module.solver, FixedStepSolver)
        refusal = None if fixed else "the solver chooses its steps by the image"
        refusal = refusal or refusal_elsewhere(asked.module)
        for group in wanted.threats or asked.suite.threats:
            for eps in group.eps:
                yield self.job(asked, wanted.samples, norm=group.norm, eps=eps, refusal=refusal)

    @torch.no_grad()
    def run(self, work: Work) -> list[Row]:
        """See `Kind.run`."""
        model, count = program_of(work.model), min(work.job.samples, len(work.images))
        assert isinstance(model, NeuralODEClassifier)
        images, labels = work.images[:count], work.labels[:count]
        radii = torch.full((count,), work.job.threat.eps, dtype=torch.float64)
        try:
            found = envelope(model, images, labels, work.norm, radii)
        except Refusal as refused:
            return self.failed(work, str(refused))
        except Exception as error:  # a user's model may do anything; nothing is proved of it then
            require_memory(error)
            return self.failed(work, said(error))
        rows = []
        for place, (image, label) in enumerate(zip(images, labels, strict=True)):
            states = model.solve(model.features(image.unsqueeze(0))).states.squeeze(1)
            measured = potential(states.double(), label.expand(len(states))).tolist()
            rows += _rows(work.unit.indices[place], found, place, measured)
        return rows

    def failed(self, work: Work, reason: str) -> list[Row]:
        """See `Kind.failed`."""
        return [Row(i, 0, 0.0, 0.0, math.inf, -math.inf, None, reason) for i in work.unit.indices]

    def summarise(self, findings: Findings[Row]) -> dict[str, Any]:
        """See `Kind.summarise`."""
        return {"envelopes": [_summary(job, rows) for job, rows in findings.jobs]}


def _rows(index: int, found: Envelope, place: int, measured: list[float]) -> list[Row]:
    ends = zip(
        found.times.tolist(),
        found.low[place].tolist(),
        found.high[place].tolist(),
        found.lead[place].tolist(),
        measured,
        strict=True,
    )
    return [Row(index, step, *values, reason="") for step, values in enumerate(ends)]


def _summary(job: Job, rows: list[Row]) -> Summary:
    assert job.norm is not None
    assert job.eps is not None
    if job.refusal is not None:
        return Summary(norm=job.norm, eps=job.eps, refusals={job.refusal: job.samples})
    if not rows:
        return Summary(norm=job.norm, eps=job.eps)
    by_sample: dict[int, list[Row]] = {}
    for row in rows:
        by_sample.setdefault(row.sample, []).append(row)
    refused = [rows[0].reason for rows in by_sample.values() if rows[0].reason]
    proved = [rows for rows in by_sample.values() if not rows[0].reason]
    steps = list(zip(*proved, strict=True))
    return Summary(
        norm=job.norm,
        eps=job.eps,
        refusals=most_first(Counter(refused)),
        time=[of[0].time for of in steps],
        potential=[_median([row.potential for row in of]) for of in steps],
        low=[_median([row.low for row in of]) for of in steps],
        high=[_median([row.high for row in of]) for of in steps],
        decays=proportion(r[-1].high < r[0].low for r in by_sample.values()),
        leads=proportion(r[-1].lead > 0 for r in by_sample.values()),
    )


def _median(values: list[float | None]) -> float:
    """Of some numbers; of an even number of them the upper one of the two in the middle."""
    known = [math.inf if value is None else value for value in values]
    return float(np.sort(known)[len(known) // 2])
