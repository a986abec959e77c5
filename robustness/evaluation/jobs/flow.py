"""Predictions of a neural ODE without its flow."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from robustness.evaluation.jobs.base import (
    Asked,
    Findings,
    Kind,
    Work,
    proportion,
    register_kind,
)
from robustness.evaluation.jobs.clean import predicted
from robustness.evaluation.jobs.rows import SampleRow
from robustness.evaluation.plan import Job
from robustness.nets.flow import without_flow
from robustness.programs.trust import predicts_each_by_itself
from robustness.results.leaderboard import WithoutFlow


@dataclass(frozen=True)
class Row(SampleRow):
    """One prediction; None where a logit is not finite or the model failed."""

    prediction: int | None


@register_kind
class Flow(Kind[Row]):
    """What a neural ODE predicts without its flow; `nets.flow.without_flow` says how."""

    name = "flow"
    version = 1
    row = Row

    def plan(self, asked: Asked) -> Iterator[Job]:
        """See `Kind.plan`."""
        if asked.suite.flow and without_flow(asked.module) is not None:
            yield self.job(asked)

    def run(self, work: Work) -> list[Row]:
        """See `Kind.run`."""
        flowless = without_flow(work.model)
        assert flowless is not None
        trusted = predicts_each_by_itself(work.model)
        predictions, sane = predicted(flowless, work.images, work.labels, trusted)
        return [
            Row(index, prediction if finite else None)
            for index, prediction, finite in zip(
                work.unit.indices, predictions.tolist(), sane.tolist(), strict=True
            )
        ]

    def failed(self, work: Work, reason: str) -> list[Row]:
        """See `Kind.failed`."""
        del reason
        return [Row(index, None) for index in work.unit.indices]

    def summarise(self, findings: Findings[Row]) -> dict[str, Any]:
        """See `Kind.summarise`."""
        rows, known = findings.rows, findings.records
        if not rows:
            return {}
        other = proportion(
            r.prediction is None or r.prediction != known[r.sample].prediction for r in rows
        )
        clean = proportion(r.prediction == known[r.sample].label for r in rows)
        return {"without_flow": WithoutFlow(other=other, clean=clean)}
