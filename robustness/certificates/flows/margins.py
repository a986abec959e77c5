"""Radii from margins that shrink at a proven rate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustness.certificates.base import (
    SHRINK,
    WITHIN_ROUNDING,
    CertifiedRadius,
    Kind,
    with_rival,
)
from robustness.certificates.flows.constants import Margins, failure, to_norm
from robustness.certificates.limits import Limit
from robustness.threat import Norm


@dataclass(frozen=True)
class Claim:
    """A radius and what limits it; see `CertifiedRadius`."""

    radius: float
    reason: str
    limit: Limit
    general: str = ""

    @classmethod
    def within_rounding(cls, rival: int) -> "Claim":
        """No radius at all: the margin over class `rival` is no larger than rounding may be."""
        reason, general = with_rival(WITHIN_ROUNDING, rival)
        return cls(0.0, reason, Limit.ROUNDING, general)


def claims_by_margins(margins: Margins, constant: float, pixels: int, norm: Norm) -> list[Claim]:
    """Radii within which every margin of the label stays positive.

    Args:
        margins: of the images.
        constant: Lipschitz constant of what is in front of the last layer, for the reason.
        pixels: number of pixels of an image.
        norm: the norm of the radii.
    """
    radii, rivals = (margins.margins / margins.slopes.clamp_min(1e-300)).min(dim=1)
    radii = to_norm(torch.minimum(radii, margins.reach) * SHRINK, pixels, norm)
    detour = "" if norm is Norm.L2 else ", through the l2 ball around the l-infinity ball"
    limit = Limit.ENCODER if norm is Norm.L2 else Limit.NORM
    why = f"behind an encoder of Lipschitz constant {constant:.3g}{detour}"
    claims = []
    for radius, rival in zip(radii.tolist(), rivals.tolist(), strict=True):
        if radius <= 0 or not math.isfinite(radius):
            claims.append(Claim.within_rounding(rival))
        else:
            reason, general = with_rival(f"bound of the margin over {{}} {why}", rival)
            claims.append(Claim(radius, reason, limit, general))
    return claims


def certified(
    name: str,
    claims: Sequence[list[Claim]],
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    norm: Norm,
) -> list[CertifiedRadius]:
    """The largest of several proven claims per image; 0 where the prediction is wrong or fails.

    Args:
        name: of the certificate.
        claims: one list per method, each with a claim per image.
        model: the deployed model that the claims are proved for.
        images: pixels in [0, 1], shape (n, c, h, w).
        labels: true classes, shape (n,).
        norm: the norm of the radii.
    """
    results = []
    for failed, *found in zip(failure(model, images, labels), *claims, strict=True):
        best = Claim(0.0, failed, Limit.PREDICTION) if failed else max(found, key=_radius)
        results.append(
            CertifiedRadius(
                best.radius, norm, Kind.CERTIFIED, name, best.reason, best.limit, best.general
            )
        )
    return results


def _radius(claim: Claim) -> float:
    return claim.radius
