"""The Lipschitz margin of a discrete network (Tsuzuku et al., arXiv 1802.04034).

The logits of class y lead those of class j by a margin whose l2 slope in pixels is at most
|w_y - w_j|_2 L, with w the rows of the last layer and L a proven Lipschitz constant of what is in
front of it (for the last layer this is their Proposition 1, per pair of classes). The radius is
the least ratio of margin and slope. For ordinary networks L is a product of norms that nothing kept
small, and the radius is next to nothing: it is reported as it is.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustness.certificates.base import (
    BaseCertificate,
    CertifiedRadius,
    register_certificate,
)
from robustness.certificates.flows.constants import Margins, margins_of_scores, reach_of
from robustness.certificates.flows.margins import certified, claims_by_margins
from robustness.certificates.layers import bounds
from robustness.certificates.layers.layer_rules import lipschitz_at
from robustness.nets.classifiers import NeuralODEClassifier, ResidualClassifier
from robustness.nets.continuous import ContinuousNet, ConvODENet
from robustness.nets.convolutions import ConvResidualClassifier
from robustness.numerics import arithmetic, norms
from robustness.numerics.arithmetic import ALLOWANCE_ROOM
from robustness.programs.trust import unaltered
from robustness.threat import Norm


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers that a discrete network is the composition of.

    Raises:
        ValueError: it is not known to be one; the message says why.
    """
    if isinstance(model, NeuralODEClassifier):
        raise ValueError("the model is a neural ODE, which the certificates of flows are for")
    if isinstance(model, ContinuousNet):
        raise ValueError(
            "its fields divide by the spread of the state (group norm), so that no useful "
            "Lipschitz constant holds for every image"
        )
    if isinstance(model, ConvODENet):
        raise ValueError("the layers of its flow are no sequence; certificate program bounds it")
    for known in (ResidualClassifier, ConvResidualClassifier):
        if unaltered(model, known):
            assert isinstance(model, known)
            return [model.normalise, *layers_of(model.body)]
    if unaltered(model, nn.Sequential) and type(model) is nn.Sequential:
        return [
            layer
            for part in model
            for layer in (layers_of(part) if type(part) is nn.Sequential else [part])
        ]
    raise ValueError(f"nothing is known of what a {type(model).__name__} computes")


@register_certificate
@dataclass(frozen=True)
class LipschitzMarginCertificate(BaseCertificate):
    """Margin over slope, for networks that are a sequence of layers with known bounds."""

    name: ClassVar[str] = "lipschitz-margin"
    routine: ClassVar[bool] = True

    def refusal(self, model: nn.Module, norm: Norm) -> str | None:
        """Why no constant is proved for this model: its kind, a layer, or its arithmetic."""
        del norm
        try:
            layers = layers_of(model)
        except ValueError as error:
            return str(error)
        lacking = bounds.refusal_of_arithmetic(model)
        if lacking is not None:
            return lacking
        for layer in layers:
            if bounds.lipschitz(layer) is None:
                return f"no Lipschitz constant is proved for its {type(layer).__name__}"
        return None

    @torch.no_grad()
    def radii(
        self, model: nn.Module, images: Tensor, labels: Tensor, norm: Norm
    ) -> list[CertifiedRadius]:
        """See `Certificate.certify`."""
        margins, constant = _margins(model, images, labels)
        claims = claims_by_margins(margins, constant, images[0].numel(), norm)
        return certified(self.name, [claims], model, images, labels, norm)


def _margins(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Margins, float]:
    """The margins, and the Lipschitz constant of what is in front of the last layer."""
    *layers, last = layers_of(model)
    if isinstance(last, nn.Linear):
        weight, bias = last.weight.double(), last.bias
        offset = weight.new_zeros(len(weight)) if bias is None else bias.double()
    else:
        layers.append(last)
        classes = model(images[:1]).shape[1]
        weight = torch.eye(classes, dtype=torch.float64)
        offset = weight.new_zeros(classes)
    front = nn.Sequential(*layers)
    constant = lipschitz_at(front, tuple(images.shape[1:]))
    assert constant is not None
    rival_slopes = norms.pairwise_slopes(weight)[labels]
    slopes = rival_slopes * constant.value

    still = bounds.Tube.around(images, torch.zeros(len(images)))
    scores = bounds.propagate(front, still).centre @ weight.T + offset
    exact = margins_of_scores(scores, labels)
    reach = reach_of(exact, slopes, images)

    tube = bounds.propagate(front, bounds.Tube.around(images, reach))
    row = float(weight.norm(dim=1).max())
    length = torch.linalg.vector_norm(tube.centre, dim=1) + tube.spread
    score = row * length + float(offset.abs().max())
    head = 2 * arithmetic.rounding(score, (1, weight.shape[1] + 1), row + length)
    allowance = rival_slopes * tube.error.unsqueeze(1) + head.unsqueeze(1)
    allowance = allowance * (1 + ALLOWANCE_ROOM)
    return Margins(exact - allowance, slopes, allowance, reach), constant.value
