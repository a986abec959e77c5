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

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustness.certificates.base import CertifiedRadius
from robustness.certificates.constants import pixel_slope, refusal_of_proof, target_margins
from robustness.certificates.margins import certify_by_margins
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
        margins, constant = target_margins(model, images, labels), pixel_slope(model).value
        return certify_by_margins(self.name, margins, constant, model, images, labels, norm)
