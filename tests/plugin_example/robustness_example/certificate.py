"""A certificate: it proves a radius, or says why not."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustness.certificates import (
    BaseCertificate,
    CertifiedRadius,
    Kind,
    Limit,
    register_certificate,
)
from robustness.threat import Norm
from robustness_example.model import Halves

# Far above what float32 rounding changes in a mean of some dozens of pixels from 0 to 1.
_ROUNDING = 1e-4


@register_certificate
@dataclass(frozen=True)
class HalvesCertificate(BaseCertificate):
    """The distance to the plane on which both halves are equally bright."""

    name: ClassVar[str] = "halves"

    def refusal(self, model: nn.Module, norm: Norm) -> str | None:
        """Only the model of this package is known to be linear."""
        del norm
        return None if type(model) is Halves else "the model does not compare two halves"

    def radii(
        self, model: nn.Module, images: Tensor, labels: Tensor, norm: Norm
    ) -> list[CertifiedRadius]:
        """The lead of the label, less rounding, by the dual norm of the lead's gradient."""
        logits = model(images)
        lead = logits.gather(1, labels.unsqueeze(1)) - logits.gather(1, 1 - labels.unsqueeze(1))
        pixels = images[0].numel()
        # The gradient is 2 / pixels at each pixel of one half, and less that at those of the other.
        slope = torch.tensor(2.0 if norm is Norm.LINF else 2.0 / pixels**0.5)
        radii = ((lead.double() - _ROUNDING) / slope.double()).clamp_min(0).squeeze(1)
        return [
            CertifiedRadius(
                radius,
                norm,
                Kind.CERTIFIED,
                self.name,
                "how much brighter one half is",
                Limit.OTHER if radius > 0 else Limit.PREDICTION,
            )
            for radius in radii.tolist()
        ]
