"""Radii from margins that shrink at a proven rate."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustness.certificates.base import CertifiedRadius, Kind
from robustness.certificates.constants import Margins, failure, to_norm
from robustness.certificates.lyapunov import SHRINK
from robustness.threat import Norm


def certify_by_margins(
    name: str,
    margins: Margins,
    constant: float,
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    norm: Norm,
) -> list[CertifiedRadius]:
    """Radii within which every margin of the label stays positive.

    Args:
        name: of the certificate.
        margins: of the images.
        constant: Lipschitz constant of what is in front of the last layer, for the reason.
        model: a model that the margins are proved for.
        images: pixels in [0, 1], shape (n, c, h, w).
        labels: true classes, shape (n,).
        norm: the norm of the radii.
    """
    radii, rivals = (margins.margins / margins.slopes.clamp_min(1e-300)).min(dim=1)
    radii = to_norm(torch.minimum(radii, margins.reach) * SHRINK, images[0].numel(), norm)
    detour = "" if norm is Norm.L2 else ", through the l2 ball around the l-infinity ball"
    why = f"behind an encoder of Lipschitz constant {constant:.3g}{detour}"
    failures = failure(model, images, labels)
    results = []
    for radius, rival, failed in zip(radii.tolist(), rivals.tolist(), failures, strict=True):
        if failed:
            radius, reason = 0.0, failed
        elif radius <= 0 or not math.isfinite(radius):
            radius, reason = 0.0, f"margin over class {rival} is within float32 rounding"
        else:
            reason = f"bound of the margin over class {rival} {why}"
        results.append(CertifiedRadius(radius, norm, Kind.CERTIFIED, name, reason))
    return results
