"""What is done to one shard, in this process or in a worker: pure, no store in sight."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from robustness.attacks import Attack, Status, Verdict, judge, predict_alone
from robustness.certificates import Certificate
from robustness.evaluation.plan import Job
from robustness.nets.classifiers import NeuralODEClassifier, potential
from robustness.threat import ThreatModel

# Times at which V(t) is recorded for solvers that have no grid of their own.
_DECAY_POINTS = 21

Row = tuple[Any, ...]


@dataclass(frozen=True)
class ShardResult:
    """Rows of one shard of one job, in the columns of its table in the store."""

    key: str
    kind: str
    rows: list[Row]
    seconds: float = field(compare=False)


def run_shard(
    key: str,
    job: Job,
    model: nn.Module,
    attack: Attack | None,
    certificate: Certificate | None,
    images: Tensor,
    labels: Tensor,
    indices: list[int],
    seed: int,
) -> ShardResult:
    """Do `job` to one shard.

    Args:
        key: the result's identity in the store.
        job: what to do.
        model: the deployed model.
        attack: the attack of an attack job.
        certificate: the certificate of a certificate job.
        images: the shard's pixels, shape (n, c, h, w).
        labels: their classes, shape (n,).
        indices: their indices in the data set.
        seed: of every random draw.
    """
    started = time.perf_counter()
    if job.kind == "clean":
        rows = _clean(model, images, labels, indices)
    elif job.kind == "decay":
        rows = _decay(model, images, labels, indices)
    elif job.kind == "certificate":
        assert certificate is not None
        rows = _certify(job, certificate, model, images, labels, indices)
    else:
        assert attack is not None
        rows = _attack(job, attack, model, images, labels, indices, seed)
    return ShardResult(key, job.kind, rows, time.perf_counter() - started)


def _clean(model: nn.Module, images: Tensor, labels: Tensor, indices: list[int]) -> list[Row]:
    predictions, sane = predict_alone(model, images)
    nfe = None
    if isinstance(model, NeuralODEClassifier):
        with torch.no_grad():
            nfe = model.solve(model.features(images)).nfe
    return [
        (index, label, prediction if finite else None, "ok" if finite else "error", nfe)
        for index, label, prediction, finite in zip(
            indices, labels.tolist(), predictions.tolist(), sane.tolist(), strict=True
        )
    ]


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
    radii = certificate.certify(model, images, labels, job.norm)
    return [
        (index, result.radius, result.kind.value, result.reason)
        for index, result in zip(indices, radii, strict=True)
    ]


def _attack(
    job: Job,
    attack: Attack,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    indices: list[int],
    seed: int,
) -> list[Row]:
    assert job.norm is not None
    assert job.eps is not None
    threat = ThreatModel(job.norm, job.eps)
    try:
        candidates = attack.propose(model, images, labels, threat, seed)
    except Exception as error:  # a third party's code on a user's model: any failure is data
        detail = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        verdicts = [Verdict(Status.ERROR, detail=detail) for _ in indices]
    else:
        verdicts = judge(model, images, labels, candidates.detach(), threat)
    return [
        (index, v.status.value, v.prediction, v.linf, v.l2, v.rejected, v.detail)
        for index, v in zip(indices, verdicts, strict=True)
    ]
