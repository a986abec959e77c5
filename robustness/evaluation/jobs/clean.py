"""Predictions of the deployed model, and how often its ODE is evaluated for one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustness.attacks import predict_alone
from robustness.certificates.flows.constants import deployed_logits
from robustness.evaluation.jobs.base import Asked, Findings, Kind, Work, register_kind
from robustness.evaluation.jobs.rows import SampleRow
from robustness.evaluation.plan import Job
from robustness.evaluation.records import SampleRecord
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.continuous import StagedODE
from robustness.nets.flow import course
from robustness.nets.solvers import FixedStepSolver
from robustness.numerics.devices import beside
from robustness.programs.trust import predicts_each_by_itself
from robustness.threat import Norm


@dataclass(frozen=True)
class Row(SampleRow):
    """One prediction.

    Attributes:
        label: true class.
        prediction: None where the model failed.
        failed: whether it did.
        reason: why; empty for a logit that is not finite.
        nfe: evaluations of all vector fields; None without any.
    """

    label: int
    prediction: int | None
    failed: bool
    reason: str
    nfe: int | None


@register_kind
class Clean(Kind[Row]):
    """The first thing that is known of a sample."""

    name = "clean"
    version = 1
    row = Row
    shared = True

    def plan(self, asked: Asked) -> Iterator[Job]:
        """See `Kind.plan`."""
        yield self.job(asked)

    def run(self, work: Work) -> list[Row]:
        """See `Kind.run`."""
        trusted = predicts_each_by_itself(work.model)
        predictions, sane = predicted(work.model, work.images, work.labels, trusted)
        nfe = _evaluations(work.model, work.images)
        return [
            Row(index, label, prediction if finite else None, not finite, "", nfe)
            for index, label, prediction, finite in zip(
                work.unit.indices,
                work.labels.tolist(),
                predictions.tolist(),
                sane.tolist(),
                strict=True,
            )
        ]

    def failed(self, work: Work, reason: str) -> list[Row]:
        """See `Kind.failed`."""
        return [
            Row(index, label, None, True, reason, None)
            for index, label in zip(work.unit.indices, work.labels.tolist(), strict=True)
        ]

    def note(self, job: Job, rows: list[Row], records: dict[int, SampleRecord]) -> None:
        """See `Kind.note`."""
        del job
        for row in rows:
            record = SampleRecord(row.sample, row.label, row.prediction)
            if row.failed:
                for norm in Norm:
                    record.note_failure(norm, 0.0, row.reason)
            if not record.correct:
                record.note_adversarial(dict.fromkeys(Norm, 0.0), self.name)
            records[record.index] = record

    def summarise(self, findings: Findings[Row]) -> dict[str, Any]:
        """See `Kind.summarise`."""
        return {"nfe": max((r.nfe for r in findings.rows if r.nfe is not None), default=None)}


@torch.no_grad()
def predicted(
    model: nn.Module, images: Tensor, labels: Tensor, trusted: bool
) -> tuple[Tensor, Tensor]:
    """Predictions, and whether the logits are finite.

    In one batch where the model is trusted to predict each image by itself and is right, and else
    of each image alone, as in `judge`.
    """
    if not trusted:
        return predict_alone(model, images)
    logits = deployed_logits(model, *beside(model, images)).cpu()
    predictions, sane = logits.argmax(dim=1), logits.isfinite().all(dim=1)
    again = torch.nonzero(~sane | (predictions != labels)).squeeze(1)
    predictions[again], sane[again] = predict_alone(model, images[again])
    return predictions, sane


@torch.no_grad()
def _evaluations(model: nn.Module, images: Tensor) -> int | None:
    if not isinstance(model, NeuralODEClassifier | StagedODE):
        return None
    # Steps of a fixed size are as many for one image as for all.
    some = images[:1] if isinstance(model.solver, FixedStepSolver) else images
    return course(model, *beside(model, some)).nfe
