"""Radii from margins that shrink at a proven rate."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustness.certificates.base import CertifiedRadius, Kind
from robustness.certificates.constants import Margins, failure, to_norm
from robustness.certificates.lyapunov import SHRINK
from robustness.threat import Norm

# A radius and, in words, what limits it.
Claim = tuple[float, str]


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
    why = f"behind an encoder of Lipschitz constant {constant:.3g}{detour}"
    claims = []
    for radius, rival in zip(radii.tolist(), rivals.tolist(), strict=True):
        if radius <= 0 or not math.isfinite(radius):
            claims.append((0.0, f"margin over class {rival} is within rounding"))
        else:
            claims.append((radius, f"bound of the margin over class {rival} {why}"))
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
        radius, reason = (0.0, failed) if failed else max(found, key=lambda claim: claim[0])
        results.append(CertifiedRadius(radius, norm, Kind.CERTIFIED, name, reason))
    return results
