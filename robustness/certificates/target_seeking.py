"""The exact discrete certificate of a target-seeking flow.

Let W_y(eta) = max_j eta_j - eta_y over j != y, which is convex and 0 at an initial state with
equal entries. A step of the solver that runs is a convex combination of the state and of targets
g(eta, z) = gain (W z + b) + coupling softmax(eta), so

    W_y(eta_{k+1}) <= rho W_y(eta_k) + (1 - rho) max over its stages of W_y(g(., E(x'))).

While the label leads, the coupling adds to its margins. By induction over steps and stages the
label leads at every step, and so at the horizon, as soon as the margins of gain (W E(x') + b) are
positive for every image x' within the radius. This is as tight as a certificate of the target
network alone: the flow costs nothing. Two routes bound these margins:

- the l2 ball, where a Lipschitz constant of the encoder is proved: a margin shrinks by at most
  its slope times |x' - x|; an l-infinity ball is covered by the l2 ball around it;
- the l-infinity box, where the encoder is a sequence of affine layers and rectifiers: boxes of its
  recorded program, and lines through it (see `target_boxes`).

Where both apply, the larger radius counts.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustness.certificates.base import (
    SHRINK,
    BaseCertificate,
    CertifiedRadius,
    register_certificate,
    with_rival,
)
from robustness.certificates.flows.constants import (
    pixel_slope,
    refusal_of_flow,
    refusal_of_proof,
    target_margins,
)
from robustness.certificates.flows.margins import Claim, certified, claims_by_margins
from robustness.certificates.flows.target_boxes import box_radii, refusal_of_boxes
from robustness.certificates.limits import Limit
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.numerics import arithmetic
from robustness.threat import Norm

# Share of a margin from which rounding is named as what limits a radius.
_MUCH_ROUNDING = 0.1


@register_certificate
@dataclass(frozen=True)
class TargetSeekingCertificate(BaseCertificate):
    """The margin potential's certificate, for the Euler or SSP steps that really run."""

    name: ClassVar[str] = "target-seeking"
    routine: ClassVar[bool] = True
    bounds_programs: ClassVar[bool] = True

    def refusal(self, model: nn.Module, norm: Norm) -> str | None:
        """Why no proof is known for this model: its field, its solver, or its encoder."""
        by_ball = refusal_of_proof(model)
        if by_ball is None or norm is Norm.L2:
            return by_ball
        flow = refusal_of_flow(model)
        if flow is not None:
            return flow
        assert isinstance(model, NeuralODEClassifier)
        by_box = refusal_of_boxes(model)
        return by_box and f"{by_ball}, and {by_box}"

    @torch.no_grad()
    def radii(
        self, model: nn.Module, images: Tensor, labels: Tensor, norm: Norm
    ) -> list[CertifiedRadius]:
        """See `Certificate.certify`."""
        assert isinstance(model, NeuralODEClassifier)
        routes = []
        if refusal_of_proof(model) is None:
            margins, constant = target_margins(model, images, labels), pixel_slope(model).value
            routes.append(claims_by_margins(margins, constant, images[0].numel(), norm))
        if norm is Norm.LINF and refusal_of_boxes(model) is None:
            routes.append(_by_box(model, images, labels))
        return certified(self.name, routes, model, images, labels, norm)


def _by_box(model: NeuralODEClassifier, images: Tensor, labels: Tensor) -> list[Claim]:
    """Each image's l-infinity radius by interval and linear bounds, and what limits it."""
    with arithmetic.computed_in(model.dtype):
        box = box_radii(model, images, labels)
    found = []
    for radius, rival, linear, share in zip(
        (box.radii * SHRINK).tolist(),
        box.rival.tolist(),
        box.linear.tolist(),
        box.rounding.tolist(),
        strict=True,
    ):
        if radius <= 0:
            found.append(Claim.within_rounding(rival))
            continue
        bound = "linear" if linear else "interval"
        words, limit = f"{bound} bound of the margin over {{}}", Limit.ENCODER
        if share > _MUCH_ROUNDING:
            words += f", of which rounding takes {share:.0%}"
            limit = Limit.ROUNDING
        reason, general = with_rival(words, rival)
        found.append(Claim(radius, reason, limit, general))
    return found
