"""What is done to one shard, in this process or in a worker: pure, no store in sight."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from robustness.attacks import (
    Attack,
    Status,
    Verdict,
    climbed_view,
    judge,
    nearest_adversarial,
    predict_alone,
    worst_case,
)
from robustness.attacks import audit as check
from robustness.certificates import Certificate, CertifiedRadius, Kind, Limit
from robustness.certificates.flows.constants import deployed_logits
from robustness.errors import DiedError, in_words, is_exhausted, one_line
from robustness.evaluation.jobs.audit import audit
from robustness.evaluation.jobs.worst_case import WorstCase
from robustness.evaluation.plan import Job, Unit
from robustness.nets.classifiers import (
    NeuralODEClassifier,
    potential,
)
from robustness.nets.continuous import ContinuousNet
from robustness.nets.flow import course, without_flow
from robustness.nets.solvers import FixedStepSolver
from robustness.programs.trust import predicts_each_by_itself
from robustness.threat import ThreatModel

# Times at which V(t) is recorded for solvers that have no grid of their own.
_DECAY_POINTS = 21

# Status of a sample that an attack left out, being certified at its radius.
SKIPPED = "certified"

Row = tuple[Any, ...]


@dataclass(frozen=True)
class ShardResult:
    """Rows of one shard of one job, in the columns of its table in the store."""

    key: str
    kind: str
    rows: list[Row]
    seconds: float = field(compare=False)


@dataclass(frozen=True)
class Bench:
    """What a job is done with.

    Attributes:
        model: the deployed model.
        attack: the attack of an attack job; None for other jobs.
        certificate: the certificate of a certificate job; None for other jobs.
        sources: the suite's other models by name.
    """

    model: nn.Module
    attack: Attack | WorstCase | None
    certificate: Certificate | None
    sources: Mapping[str, nn.Module]


def run_unit(unit: Unit, job: Job, bench: Bench, images: Tensor, labels: Tensor) -> ShardResult:
    """Do `job` to one unit's images.

    Args:
        unit: which images, under which key and seed.
        job: what to do.
        bench: what it is done with.
        images: the unit's pixels, shape (n, c, h, w).
        labels: their classes, shape (n,).
    """
    started = time.perf_counter()
    if job.kind == "clean":
        rows = _clean(bench.model, images, labels, unit.indices)
    elif job.kind == "flow":
        rows = _without_flow(bench.model, images, labels, unit.indices)
    elif job.kind == "decay":
        rows = _decay(bench.model, images, labels, unit.indices)
    elif job.kind == "certificate":
        assert bench.certificate is not None
        rows = _certify(job, bench.certificate, bench.model, images, labels, unit.indices)
    elif job.kind == "audit":
        rows = _audit(job, bench.model, images, labels, unit)
    elif job.kind == "flags":
        rows = _flags(job, bench, images, labels, unit)
    elif job.kind == "nearest":
        rows = _nearest(job, bench.model, images, labels, unit)
    elif isinstance(bench.attack, WorstCase):
        rows = _worst_case(job, bench.attack, bench, images, labels, unit)
    else:
        assert bench.attack is not None
        rows = _attack(job, bench.attack, bench.model, images, labels, unit)
    return ShardResult(unit.key, job.kind, rows, time.perf_counter() - started)


def failed_unit(
    unit: Unit, job: Job, error: BaseException, images: Tensor, labels: Tensor
) -> ShardResult:
    """What is known of a unit whose model did not let it be done: that each sample failed, and why.

    Args:
        unit: which images.
        job: what was to be done.
        error: what the model's code raised.
        images: the unit's pixels, shape (n, c, h, w).
        labels: their classes, shape (n,).
    """
    said, failed = _said(error), Status.ERROR.value
    rows: list[Row] = []
    if job.kind == "flags":
        rows = [("checks-failed", 1, None, None, said)]
    for place, (index, label) in enumerate(zip(unit.indices, labels.tolist(), strict=True)):
        match job.kind:
            case "clean":
                rows.append((index, label, None, f"{failed}: {said}", None))
            case "attack":
                rows.append((index, failed, None, None, None, 0, said, job.name, 0))
            case "nearest":
                rows.append((index, failed, None, None, None, said))
            case "flow":
                rows.append((index, None))
            case "certificate":
                reason = f"the proof failed: {said}"
                rows.append((index, 0.0, Kind.CERTIFIED.value, reason, Limit.OTHER.value))
            case "audit":
                judged = (unit.radii[place], failed, None, None, None, said, "", unit.seed)
                rows.append((index, *judged, json.dumps(list(images.shape[1:])), None, None))
    return ShardResult(unit.key, job.kind, rows, 0.0)


def _clean(model: nn.Module, images: Tensor, labels: Tensor, indices: list[int]) -> list[Row]:
    predictions, sane = _predict(model, images, labels, predicts_each_by_itself(model))
    nfe = None
    if isinstance(model, NeuralODEClassifier | ContinuousNet):
        # Steps of a fixed size are as many for one image as for all.
        some = images[:1] if isinstance(model.solver, FixedStepSolver) else images
        with torch.no_grad():
            nfe = course(model, some).nfe
    return [
        (index, label, prediction if finite else None, "ok" if finite else "error", nfe)
        for index, label, prediction, finite in zip(
            indices, labels.tolist(), predictions.tolist(), sane.tolist(), strict=True
        )
    ]


def _without_flow(
    model: nn.Module, images: Tensor, labels: Tensor, indices: list[int]
) -> list[Row]:
    flowless = without_flow(model)
    assert flowless is not None
    trusted = predicts_each_by_itself(model)
    predictions, sane = _predict(flowless, images, labels, trusted)
    return [
        (index, prediction if finite else None)
        for index, prediction, finite in zip(
            indices, predictions.tolist(), sane.tolist(), strict=True
        )
    ]


@torch.no_grad()
def _predict(
    model: nn.Module, images: Tensor, labels: Tensor, trusted: bool
) -> tuple[Tensor, Tensor]:
    """Predictions, and whether the logits are finite.

    In one batch where the model is trusted to predict each image by itself and is right, and else
    of each image alone, as in `judge`.
    """
    if not trusted:
        return predict_alone(model, images)
    logits = deployed_logits(model, images)
    predictions, sane = logits.argmax(dim=1), logits.isfinite().all(dim=1)
    again = torch.nonzero(~sane | (predictions != labels)).squeeze(1)
    predictions[again], sane[again] = predict_alone(model, images[again])
    return predictions, sane


@torch.no_grad()
def _decay(model: nn.Module, images: Tensor, labels: Tensor, indices: list[int]) -> list[Row]:
    assert isinstance(model, NeuralODEClassifier)
    solution = model.solve(model.features(images), points=_DECAY_POINTS)
    rows: list[Row] = []
    for step, time_ in enumerate((solution.times / model.solver.horizon).tolist()):
        state = solution.states[step]
        values = potential(state, labels).tolist()
        right = (state.argmax(dim=1) == labels).tolist()
        rows += [
            (index, step, time_, value, int(correct))
            for index, value, correct in zip(indices, values, right, strict=True)
        ]
    return rows


def _certify(
    job: Job,
    certificate: Certificate,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    indices: list[int],
) -> list[Row]:
    assert job.norm is not None
    try:
        radii = certificate.certify(model, images, labels, job.norm)
    except Exception as error:  # a user's model may do anything; nothing is proved of it then
        _require_memory(error)
        reason = f"the proof failed: {_said(error)}"
        nothing = CertifiedRadius(0.0, job.norm, Kind.CERTIFIED, job.name, reason, Limit.OTHER)
        radii = [nothing for _ in indices]
    return [
        (index, result.radius, result.kind.value, result.reason, result.limit.value)
        for index, result in zip(indices, radii, strict=True)
    ]


def _attack(
    job: Job, attack: Attack, model: nn.Module, images: Tensor, labels: Tensor, unit: Unit
) -> list[Row]:
    threat = _threat(job)
    try:
        candidates = attack.propose(model, images, labels, threat, unit.seed)
    except Exception as error:  # a third party's code on a user's model: any failure is data
        _require_memory(error)
        verdicts = [Verdict(Status.ERROR, detail=_said(error)) for _ in unit.indices]
    else:
        verdicts = judge(model, images, labels, candidates.detach(), threat)
    return [
        (index, v.status.value, v.prediction, v.linf, v.l2, v.rejected, v.detail, job.name, 0)
        for index, v in zip(unit.indices, verdicts, strict=True)
    ]


def _worst_case(
    job: Job, attack: WorstCase, bench: Bench, images: Tensor, labels: Tensor, unit: Unit
) -> list[Row]:
    threat = _threat(job)
    stages = attack.stages(bench.model, threat, bench.sources)
    radii = torch.tensor(unit.radii, dtype=torch.float64)
    outcomes = worst_case(bench.model, images, labels, threat, stages, radii, unit.seed)
    return [
        (
            index,
            SKIPPED if o.certified else o.status.value,
            o.prediction,
            o.linf,
            o.l2,
            o.rejected,
            "; ".join(o.errors)[:500],
            f"{o.attack}@{o.view}" if o.view else o.attack or "",
            o.queries,
        )
        for index, o in zip(unit.indices, outcomes, strict=True)
    ]


def _audit(job: Job, model: nn.Module, images: Tensor, labels: Tensor, unit: Unit) -> list[Row]:
    assert job.norm is not None
    radii = torch.tensor(unit.radii, dtype=torch.float64)
    outcomes = audit(model, images, labels, job.norm, radii, unit.seed)
    rows: list[Row] = []
    for index, image, radius, o in zip(unit.indices, images, unit.radii, outcomes, strict=True):
        found = (None, None) if o.image is None else (_bytes(image), _bytes(o.image))
        judged = (o.status.value, o.prediction, o.linf, o.l2, "; ".join(o.errors)[:500])
        by = f"{o.attack}@{o.view}" if o.view else o.attack or ""
        rows.append((index, radius, *judged, by, unit.seed, json.dumps(list(image.shape)), *found))
    return rows


def _flags(job: Job, bench: Bench, images: Tensor, labels: Tensor, unit: Unit) -> list[Row]:
    try:
        flags = check(bench.model, images, labels, _threat(job), unit.seed, bench.sources)
    except Exception as error:  # a user's model may do anything
        _require_memory(error)
        return [("checks-failed", 1, None, None, _said(error))]
    return [(f.name, int(f.raised), f.value, f.threshold, f.detail) for f in flags]


def _nearest(job: Job, model: nn.Module, images: Tensor, labels: Tensor, unit: Unit) -> list[Row]:
    assert job.norm is not None
    try:
        view = climbed_view(model)
        verdicts = nearest_adversarial(model, images, labels, job.norm, unit.seed, view=view)
    except Exception as error:  # a user's model may do anything
        _require_memory(error)
        verdicts = [Verdict(Status.ERROR, detail=_said(error)) for _ in unit.indices]
    return [
        (index, v.status.value, v.prediction, v.linf, v.l2, v.detail)
        for index, v in zip(unit.indices, verdicts, strict=True)
    ]


def _threat(job: Job) -> ThreatModel:
    assert job.norm is not None
    assert job.eps is not None
    return ThreatModel(job.norm, job.eps)


def _require_memory(error: Exception) -> None:
    """Let nothing be stored as a fact of a model that was the machine's lack of memory."""
    if is_exhausted(error):
        raise error


def _said(error: BaseException) -> str:
    if isinstance(error, DiedError):
        return one_line(str(error), 500)
    if is_exhausted(error):
        return one_line(f"out of memory: {str(error) or 'none left'}", 500)
    return one_line(in_words(error), 500)


def _bytes(image: Tensor) -> bytes:
    """Pixels as little-endian float32, which is what the model was given."""
    return image.detach().numpy().astype("<f4").tobytes()
