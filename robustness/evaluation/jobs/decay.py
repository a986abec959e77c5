"""The potential V(t) along the trajectories of a neural ODE."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from robustness.evaluation.jobs.base import Asked, Findings, Kind, Work, register_kind
from robustness.evaluation.jobs.rows import SampleRow
from robustness.evaluation.plan import Job
from robustness.nets.classifiers import NeuralODEClassifier, potential
from robustness.numerics.devices import beside
from robustness.results.leaderboard import Decay as Summary

# Times at which V(t) is recorded for solvers that have no grid of their own.
_POINTS = 21


@dataclass(frozen=True)
class Row(SampleRow):
    """One state of one trajectory.

    Attributes:
        step: number of the state.
        time: as a share of the horizon.
        potential: V_y of the label; None where it is not a number.
        right: whether the largest entry of the state is the label's.
    """

    IDENTITY: ClassVar[tuple[str, ...]] = ("sample", "step")

    step: int
    time: float
    potential: float | None
    right: bool


@register_kind
class Decay(Kind[Row]):
    """What the training of a LyaNet asks to fall."""

    name = "decay"
    version = 1
    row = Row

    def plan(self, asked: Asked) -> Iterator[Job]:
        """See `Kind.plan`."""
        if asked.suite.decay and isinstance(asked.module, NeuralODEClassifier):
            yield self.job(asked)

    @torch.no_grad()
    def run(self, work: Work) -> list[Row]:
        """See `Kind.run`."""
        model = work.model
        assert isinstance(model, NeuralODEClassifier)
        solution = model.solve(model.features(*beside(model, work.images)), points=_POINTS)
        states = solution.states.cpu()
        rows: list[Row] = []
        for step, time in enumerate((solution.times / model.solver.horizon).tolist()):
            state = states[step]
            values = potential(state, work.labels).tolist()
            right = (state.argmax(dim=1) == work.labels).tolist()
            rows += [
                Row(index, step, time, value, correct)
                for index, value, correct in zip(work.unit.indices, values, right, strict=True)
            ]
        return rows

    def failed(self, work: Work, reason: str) -> list[Row]:
        """See `Kind.failed`: of what was not solved there is nothing to say."""
        del work, reason
        return []

    def summarise(self, findings: Findings[Row]) -> dict[str, Any]:
        """See `Kind.summarise`."""
        if not findings.jobs:
            return {}
        by_step: dict[float, list[Row]] = {}
        for row in findings.rows:
            by_step.setdefault(row.time, []).append(row)
        times = sorted(by_step)
        values = [
            np.array([math.nan if r.potential is None else r.potential for r in by_step[t]])
            for t in times
        ]
        low, median, high = (
            [float(np.nanpercentile(v, q)) if np.isfinite(v).any() else math.nan for v in values]
            for q in (10, 50, 90)
        )
        accuracy = [float(np.mean([r.right for r in by_step[t]])) for t in times]
        return {"decay": Summary(time=times, median=median, low=low, high=high, accuracy=accuracy)}
