"""The contraction certificate: two trajectories that approach each other (theory.md, equation 6).

    r_{k+1} = a_k r_k + b_k |E(x') - E(x)|,   r_0 = 0,

with a_k and b_k proven suprema, over the tube of radius r_k around the trajectory that is solved,
of the norms of the one-step map's Jacobians in the state and in the features (`tubes`,
`relaxations`). Beside r_k, the change of the label's lead over each class is followed, which is at
most sqrt(2) r_k and mostly less. The prediction holds while every lead at the horizon is larger
than its change.

With bounds that hold everywhere the radius is in closed form; with bounds over the tube, which
depend on the radius, it is found by bisection. Any radius that passes is proved for all
perturbations up to it, so that the bisection is no part of the proof.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustness.certificates.base import (
    SHRINK,
    BaseCertificate,
    CertifiedRadius,
    Kind,
    register_certificate,
)
from robustness.certificates.flows import relaxed_flows
from robustness.certificates.flows.constants import failure, to_norm
from robustness.certificates.flows.relaxed_flows import Features
from robustness.certificates.limits import Limit
from robustness.certificates.sharing import shared
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.simplex import SimplexField
from robustness.threat import Norm

_BISECTIONS = 10
# A simplex field's tube is tightened by cutting cells in parts, which is dear: how often a cell is
# cut in two, and how much farther than without it is looked, in so many bisections.
_HALVINGS, _FARTHER, _FINE_BISECTIONS = 4, 1.5, 4
# A radius so small that the tube of nearly every image is still affine in it.
_PROBE = 1e-3
# Images whose tubes are followed at once: few enough for their matrices to stay in the cache.
_CHUNK = 64


@torch.no_grad()
def contraction_radius(
    model: NeuralODEClassifier,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    local: bool = True,
) -> Float[Tensor, " n"]:
    """The l2 radius of each image, shape (n,); 0 where none is proved.

    Args:
        model: a model that the certificate does not refuse.
        images: pixels in [0, 1].
        labels: classes that are to be predicted.
        local: whether to go on, from the closed form, to bounds over the tube.
    """
    chunks = zip(images.split(_CHUNK), labels.split(_CHUNK), strict=True)
    return torch.cat([_radius(model, some, labels_, local) for some, labels_ in chunks])


def _radius(model: NeuralODEClassifier, images: Tensor, labels: Tensor, local: bool) -> Tensor:
    features = relaxed_flows.perturbed_features(model, images)
    low = _closed_form(model, features, labels)
    if not local:
        return low
    high = torch.maximum(low, _affine_guess(model, features, labels, local))
    low = _bisected(model, features, labels, low, high, _BISECTIONS)
    if not isinstance(model.field, SimplexField):
        return low
    high = torch.where(low > 0, torch.minimum(_FARTHER * low, high), high)
    return _bisected(model, features, labels, low, high, _FINE_BISECTIONS, _HALVINGS)


def _bisected(
    model: NeuralODEClassifier,
    features: Features,
    labels: Tensor,
    low: Tensor,
    high: Tensor,
    times: int,
    halvings: int = 0,
) -> Tensor:
    """The largest radius that the local tube proves, found between `low`, which is, and `high`."""
    for _ in range(times):
        middle = (low + high) / 2
        proved = _holds(model, features, labels, middle, local=True, halvings=halvings)
        low, high = torch.where(proved, middle, low), torch.where(proved, high, middle)
    return low


def _closed_form(model: NeuralODEClassifier, features: Features, labels: Tensor) -> Tensor:
    """Where the bounds hold everywhere, each lead's least value is affine in the radius."""
    radius = _affine_guess(model, features, labels, local=False) * SHRINK
    return torch.where(_holds(model, features, labels, radius, local=False), radius, 0.0)


def _affine_guess(
    model: NeuralODEClassifier, features: Features, labels: Tensor, local: bool
) -> Tensor:
    """Where a lead would reach 0 if it fell on as it does at first; no farther than the box."""
    zero = torch.zeros(len(labels), dtype=torch.float64)
    still, moved = (
        relaxed_flows.solve(model, features, radius, labels, local).least_leads(labels)
        for radius in (zero, zero + _PROBE)
    )
    # The lead over the label itself is infinite, and sets no limit.
    limits = (_PROBE * still / (still - moved).clamp_min(1e-300)).nan_to_num(torch.inf)
    return limits.amin(dim=1).clamp(0, features.farthest)


def _holds(
    model: NeuralODEClassifier,
    features: Features,
    labels: Tensor,
    radius: Tensor,
    local: bool,
    halvings: int = 0,
) -> Tensor:
    final = relaxed_flows.solve(model, features, radius, labels, local, halvings)
    return (final.least_leads(labels) > 0).all(dim=1)


@shared
def _radii_where_right(model: NeuralODEClassifier, images: Tensor, labels: Tensor) -> Tensor:
    """The l2 radii, 0 where the deployed model is wrong or fails, shape (n,)."""
    radii = torch.zeros(len(images), dtype=torch.float64)
    right = torch.tensor([not failed for failed in failure(model, images, labels)])
    if bool(right.any()):
        radii[right] = contraction_radius(model, images[right], labels[right]) * SHRINK
    return radii


@register_certificate
@dataclass(frozen=True)
class ContractionCertificate(BaseCertificate):
    """Equation (6) of the theory, for the fixed steps that really run."""

    name: ClassVar[str] = "contraction"
    routine: ClassVar[bool] = True

    def refusal(self, model: nn.Module, norm: Norm) -> str | None:
        """Why no proof is known for this model: its field, its solver, or its encoder."""
        del norm
        return relaxed_flows.refusal(model)

    def radii(
        self, model: nn.Module, images: Tensor, labels: Tensor, norm: Norm
    ) -> list[CertifiedRadius]:
        """See `Certificate.certify`."""
        assert isinstance(model, NeuralODEClassifier)
        failures = failure(model, images, labels)
        radii = to_norm(_radii_where_right(model, images, labels), images[0].numel(), norm)
        detour = "" if norm is Norm.L2 else ", through the l2 ball around the l-infinity ball"
        results = []
        for radius, failed in zip(radii.tolist(), failures, strict=True):
            reason = f"growth of the tube around the solved trajectory{detour}"
            limit = Limit.FIELD if norm is Norm.L2 else Limit.NORM
            if failed:
                reason, limit = failed, Limit.PREDICTION
            elif radius <= 0:
                reason = "the lead at the horizon is within float32 rounding"
                limit = Limit.ROUNDING
            results.append(CertifiedRadius(radius, norm, Kind.CERTIFIED, self.name, reason, limit))
        return results
