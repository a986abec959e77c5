"""The exact discrete certificate of a target-seeking flow.

Let W_y(eta) = max_j eta_j - eta_y over j != y, which is convex and 0 at an initial state with
equal entries. A step of the solver that runs is a convex combination of the state and of targets
g(eta, z) = gain (W z + b) + coupling softmax(eta), so

    W_y(eta_{k+1}) <= rho W_y(eta_k) + (1 - rho) max over its stages of W_y(g(., E(x'))).

While the label leads, the coupling adds to its margins. By induction over steps and stages the
label leads at every step, and so at the horizon, as soon as the margins of gain (W E(x') + b) are
positive; each of them shrinks by at most its slope times |x' - x|. This is as tight as a
certificate of the target network alone: the flow costs nothing.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustness.certificates.base import CertifiedRadius, Kind
from robustness.certificates.constants import (
    failure,
    refusal_of_proof,
    target_margins,
    to_norm,
)
from robustness.certificates.lyapunov import SHRINK
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.threat import Norm


@dataclass(frozen=True)
class TargetSeekingCertificate:
    """The margin potential's certificate, for the Euler or SSP steps that really run."""

    name: str = "target-seeking"

    def refusal(self, model: nn.Module, norm: Norm) -> str | None:
        """Why no proof is known for this model: its field, its solver, or its encoder."""
        del norm
        return refusal_of_proof(model)

    @torch.no_grad()
    def certify(
        self,
        model: nn.Module,
        images: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        norm: Norm,
    ) -> list[CertifiedRadius]:
        """The radius of each image; see `Certificate.certify`.

        Raises:
            ValueError: the certificate refuses the model.
        """
        refusal = self.refusal(model, norm)
        if refusal is not None:
            raise ValueError(f"expected a model with a proof, got one without: {refusal}")
        assert isinstance(model, NeuralODEClassifier)
        target = target_margins(model, images, labels)
        per_class = target.margins / target.slopes.clamp_min(1e-300)
        radii, rivals = per_class.min(dim=1)
        radii = torch.minimum(radii, target.reach) * SHRINK
        radii = to_norm(radii, images[0].numel(), norm)
        failures = failure(model, images, labels)
        detour = "" if norm is Norm.L2 else ", through the l2 ball around the l-infinity ball"
        results = []
        for radius, rival, failed in zip(radii.tolist(), rivals.tolist(), failures, strict=True):
            if failed:
                radius, reason = 0.0, failed
            elif radius <= 0 or not math.isfinite(radius):
                radius, reason = 0.0, f"margin over class {rival} is within rounding"
            else:
                reason = f"Lipschitz bound of the margin over class {rival}{detour}"
            results.append(CertifiedRadius(radius, norm, Kind.CERTIFIED, self.name, reason))
        return results
