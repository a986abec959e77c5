"""LyaNet's certified radius, by the comparison lemma (arXiv 2202.02526).

With V' <= -kappa V + s + sqrt(2) L eps along every perturbed trajectory,

    V(T) <= exp(-kappa T) V(0) + (s + sqrt(2) L eps) (1 - exp(-kappa T)) / kappa,

and V(T) < ln 2 means that the label has more than half of the probability. Solved for eps.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustness.certificates.base import (
    SHRINK,
    BaseCertificate,
    CertifiedRadius,
    Kind,
    register_certificate,
    require_pixels,
)
from robustness.certificates.flows.constants import (
    LyapunovConstants,
    failure,
    proved_constants,
    refusal_of_proof,
    sampled_constants,
    to_norm,
)
from robustness.certificates.limits import Limit
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.threat import Norm


def lyapunov_radius(constants: LyapunovConstants) -> Float[Tensor, " n"]:
    """The l2 radius of equation (2) of docs/theory.md, shape (n,); 0 where there is none."""
    rate, slack = constants.rate, constants.slack
    decay = torch.exp(-rate * constants.horizon)
    room = rate * (math.log(2) - decay * constants.initial) / (1 - decay) - slack
    return (room / (math.sqrt(2) * constants.lipschitz)).clamp_min(0).nan_to_num(0.0, 0.0, 0.0)


def limits(constants: LyapunovConstants, norm: Norm) -> list[Limit]:
    """What takes the largest share of the room for a perturbation, of each image.

    Of kappa ln 2, the room that (2) leaves where V(0) is forgotten and nothing is lost, the horizon
    takes kappa (V(0) - ln 2) / (exp(kappa T) - 1) and the field its slack. The rest is spent on
    the perturbation, at the rate of the encoder's and the field's Lipschitz constant.
    """
    rate, slack = constants.rate, constants.slack
    horizon = rate * (constants.initial - math.log(2)) / torch.expm1(rate * constants.horizon)
    rest = rate * math.log(2) - horizon - slack
    shares = torch.stack([slack, horizon, rest], dim=1).nan_to_num(torch.inf)
    spent = Limit.ENCODER if norm is Norm.L2 else Limit.NORM
    names = (Limit.FIELD, Limit.HORIZON, spent)
    return [names[i] for i in shares.argmax(dim=1).tolist()]


def certify_by_constants(
    name: str,
    radius_of: Callable[[LyapunovConstants], Tensor],
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    norm: Norm,
) -> list[CertifiedRadius]:
    """Radii of a certificate that is a function of the Lyapunov constants alone."""
    assert isinstance(model, NeuralODEClassifier)
    require_pixels(model, images)
    if model.solver.couples_batch and len(images) > 1:
        # Alone in its batch, as everywhere: nothing that is said may depend on the neighbours.
        singles = zip(images.split(1), labels.split(1), strict=True)
        return [certify_by_constants(name, radius_of, model, x, y, norm)[0] for x, y in singles]
    unproved = refusal_of_proof(model)
    find = proved_constants if unproved is None else sampled_constants
    constants = find(model, images, labels)
    radii = torch.minimum(radius_of(constants), constants.reach) * SHRINK
    radii = to_norm(radii, images[0].numel(), norm)
    how = constants.how if unproved is None else f"{constants.how}, since {unproved}"
    results = []
    failures = failure(model, images, labels)
    for radius, limit, failed in zip(
        radii.tolist(), limits(constants, norm), failures, strict=True
    ):
        kind, reason = constants.kind, how
        if failed:
            radius, kind, reason, limit = 0.0, Kind.CERTIFIED, failed, Limit.PREDICTION
        elif radius <= 0 or not math.isfinite(radius):
            radius, reason = 0.0, f"the slack alone exceeds the threshold; {how}"
        results.append(CertifiedRadius(radius, norm, kind, name, reason, limit))
    return results


@register_certificate
@dataclass(frozen=True)
class LyapunovCertificate(BaseCertificate):
    """Equation (2): `certified` for target-seeking flows, an `estimate` for other neural ODEs."""

    name: ClassVar[str] = "lyapunov"
    strict: ClassVar[bool] = False
    routine: ClassVar[bool] = True

    def refusal(self, model: nn.Module, norm: Norm) -> str | None:
        """Only neural ODEs have a Lyapunov function of their class state."""
        del norm
        if not isinstance(model, NeuralODEClassifier):
            return "the model is not a neural ODE"
        # The threshold ln 2 of the potential is that of a lead over another class.
        return "of one class nothing is left to prove" if model.classes < 2 else None

    def radii(
        self, model: nn.Module, images: Tensor, labels: Tensor, norm: Norm
    ) -> list[CertifiedRadius]:
        """The radius of each image; see `Certificate.certify`."""
        return certify_by_constants(self.name, lyapunov_radius, model, images, labels, norm)
