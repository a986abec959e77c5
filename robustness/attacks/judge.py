"""The harness: every proposed image is judged here, on the model as deployed.

An image counts as adversarial only if it is finite, lies in the box and the ball by a float64
measurement, and the deployed model, alone in its batch, gives it another class.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robustness.numerics.devices import beside
from robustness.programs.trust import predicts_each_by_itself
from robustness.threat import Norm, ThreatModel

# A proposal may overshoot its ball by float32 rounding and is then projected; one that
# overshoots by more is rejected, since an attack that cannot measure is not to be helped.
_OVERSHOOT = 1e-4

# Of an error, in its detail.
NOT_FINITE = "non-finite logits inside the ball"


class Status(StrEnum):
    """Outcome of one sample."""

    ROBUST = "robust"
    ADVERSARIAL = "adversarial"
    ERROR = "error"


@dataclass(frozen=True)
class Verdict:
    """The harness's judgement of one sample under one attack.

    Attributes:
        status: `adversarial` if some candidate fooled the deployed model, `error` if the model
            failed on one (a non-finite logit) or the attack did, `robust` otherwise.
        prediction: class of the adversarial image; None unless adversarial.
        linf: l-infinity distance of the nearest adversarial image found, in pixel units.
        l2: l2 distance of the same image.
        rejected: candidates that were not finite or lay outside the ball.
        detail: what failed, for an error.
        image: the adversarial image, shape (c, h, w).
    """

    status: Status
    prediction: int | None = None
    linf: float | None = None
    l2: float | None = None
    rejected: int = 0
    detail: str = ""
    image: Tensor | None = field(default=None, compare=False, repr=False)


@torch.no_grad()
def predict_alone(
    model: nn.Module, images: Float[Tensor, "n c h w"]
) -> tuple[Int[Tensor, " n"], Bool[Tensor, " n"]]:
    """Predict each image alone in its batch, as the definition of adversarial asks.

    Returns:
        Predicted classes, shape (n,), and whether all logits were finite, shape (n,); on the
        device of the images, wherever the model is.
    """
    if len(images) == 0:
        none = torch.empty(0, dtype=torch.int64, device=images.device)
        return none, none.bool()
    (there,) = beside(model, images)
    logits = torch.cat([model(there[i : i + 1]) for i in range(len(there))]).to(images.device)
    return logits.argmax(dim=1), logits.isfinite().all(dim=1)


@torch.no_grad()
def judge(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    candidates: Float[Tensor, "k n c h w"],
    threat: ThreatModel,
) -> list[Verdict]:
    """Judge all candidates of each image within one threat; see `judge_within`."""
    radii = threat.radii(len(images))
    return judge_within(model, images, labels, candidates, threat.norm, radii)


@torch.no_grad()
def judge_within(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    candidates: Float[Tensor, "k n c h w"],
    norm: Norm,
    radii: Float[Tensor, " n"],
    alone: bool = False,
) -> list[Verdict]:
    """Judge all candidates of each image and keep the nearest adversarial one.

    Where a model is known to predict each image of a batch by itself, candidates that a batched
    prediction calls right are taken at its word. All others, and every candidate of a model of
    which that is not known (one with any part of a user's own), are predicted alone. Wherever the
    images come from and the model is, everything but its logits is computed on the CPU.

    Args:
        model: the deployed model.
        images: originals in [0, 1], shape (n, c, h, w).
        labels: true classes, shape (n,).
        candidates: proposals, shape (k, n, c, h, w).
        norm: what distance is measured in.
        radii: of each image's ball, in float64, shape (n,).
        alone: whether every candidate is predicted alone, as those are that differ by rounding.

    Returns:
        One verdict per image.
    """
    verdicts = [Verdict(Status.ROBUST) for _ in labels]
    trusted = not alone and predicts_each_by_itself(model)
    images, labels, candidates = images.cpu(), labels.cpu(), candidates.cpu()
    for proposed in candidates:
        finite = proposed.flatten(1).isfinite().all(dim=1)
        boxed = torch.where(_wide(finite), proposed, images).clamp(0, 1)
        inside = finite & (norm.distance(boxed, images) <= radii * (1 + _OVERSHOOT))
        held = torch.where(_wide(inside), norm.project(boxed, images, radii), images)
        inside &= norm.distance(held, images) <= radii
        logits = model(*beside(model, held)).cpu()
        suspect = ~logits.isfinite().all(dim=1) | (logits.argmax(dim=1) != labels)
        again = torch.nonzero((suspect | (not trusted)) & inside).squeeze(1)
        predictions, sane = predict_alone(model, held[again])
        linf = Norm.LINF.distance(held[again], images[again])
        l2 = Norm.L2.distance(held[again], images[again])
        for row, i in enumerate(again.tolist()):
            if not sane[row]:
                found = Verdict(Status.ERROR, detail=NOT_FINITE)
            elif predictions[row] == labels[i]:
                continue
            else:
                found = Verdict(
                    Status.ADVERSARIAL,
                    int(predictions[row]),
                    float(linf[row]),
                    float(l2[row]),
                    image=held[i].clone(),
                )
            verdicts[i] = _worse(verdicts[i], found, norm)
        for i in torch.nonzero(~inside).squeeze(1).tolist():
            verdicts[i] = replace(verdicts[i], rejected=verdicts[i].rejected + 1)
    return verdicts


def _wide(mask: Tensor) -> Tensor:
    return mask.view(-1, 1, 1, 1)


def _worse(known: Verdict, found: Verdict, norm: Norm) -> Verdict:
    """A nearer adversarial image replaces a farther one; either outranks an error."""
    found = replace(found, rejected=known.rejected)
    if known.status is Status.ADVERSARIAL:
        if found.status is not Status.ADVERSARIAL:
            return known
        near, far = (v.linf if norm is Norm.LINF else v.l2 for v in (found, known))
        assert near is not None
        assert far is not None
        return found if near < far else known
    return found
