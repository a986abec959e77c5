"""Randomised smoothing (Cohen et al., arXiv 1902.02918), for any model.

The smoothed classifier g(x) is the class that the model f gives most often to x + sigma N(0, I).
If it gives class A with probability p > 1/2, g is A at every image within

    sigma Phi^{-1}(p)

of x in l2 (their Theorem 1, with p_B = 1 - p_A). p is not known: a few noisy copies choose A, and
further ones give a lower confidence bound on p (their function Certify, Figure 1). The radius
therefore holds with a stated probability over the draw of the noise, and it is a radius of g, not
of f. Noise and sums are floating-point numbers, where the theorem speaks of real ones.
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor, nn

from robustness.certificates.base import (
    SHRINK,
    BaseCertificate,
    CertifiedRadius,
    Kind,
    register_certificate,
)
from robustness.certificates.flows.constants import to_norm
from robustness.certificates.limits import Limit
from robustness.certificates.sharing import shared
from robustness.errors import UsageError
from robustness.inputs import Count, Positive
from robustness.numerics.devices import beside
from robustness.programs.trust import predicts_each_by_itself
from robustness.threat import Norm

# Noisy copies per forward pass; a part of what is computed, since sums depend on a batch's shape.
_BATCH = 100


def lower_confidence(hits: int, draws: int, alpha: float) -> float:
    """A lower bound on a probability that holds with confidence 1 - alpha.

    Args:
        hits: how often the event was seen.
        draws: in how many independent draws.
        alpha: probability that the bound fails, at most.

    Returns:
        The one-sided exact bound of Clopper and Pearson (1934).
    """
    from scipy.stats import binomtest

    test = binomtest(hits, draws, alternative="greater")
    return float(test.proportion_ci(1 - alpha, method="exact").low)


@register_certificate
@dataclass(frozen=True)
class SmoothingCertificate(BaseCertificate):
    """A `probabilistic` radius of the smoothed classifier.

    Attributes:
        sigma: standard deviation of the noise, in pixel units.
        samples: noisy copies of an image that the bound is computed from.
        selection: noisy copies that choose the class beforehand.
        alpha: probability that the radius of an image is wrong, at most.
        seed: of the noise, together with the image's content.
    """

    sigma: Positive = 0.25
    samples: Count = 1000
    selection: Count = 100
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.001
    seed: int = 0
    name: ClassVar[str] = "smoothing"
    strict: ClassVar[bool] = False
    proves: ClassVar[bool] = False
    measures: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for setting in ("sigma", "samples", "selection"):
            if not getattr(self, setting) > 0:
                raise UsageError(
                    f"smoothing: expected {setting} above 0, got {getattr(self, setting)!r}; "
                    "correct it"
                )
        if not 0 < self.alpha < 1:
            raise UsageError(
                f"smoothing: expected alpha between 0 and 1, got {self.alpha!r}; correct it"
            )

    def refusal(self, model: nn.Module, norm: Norm) -> str | None:
        """Every model can be smoothed."""
        del model, norm
        return None

    @torch.no_grad()
    def radii(
        self, model: nn.Module, images: Tensor, labels: Tensor, norm: Norm
    ) -> list[CertifiedRadius]:
        """The radius of each image, 0 where g is wrong or abstains; see `Certificate.certify`."""
        pixels = images[0].numel()
        return [
            self._radius(chosen, hits, label, pixels, norm)
            for (chosen, hits), label in zip(
                self._tally(model, images), labels.tolist(), strict=True
            )
        ]

    @shared
    def _tally(self, model: nn.Module, images: Tensor) -> list[tuple[int, int]]:
        """The class that is chosen for each image, and how often it was seen thereafter."""
        tally = []
        for image in images:
            generator = self._generator(image)
            chosen = int(self._votes(model, image, self.selection, generator).argmax())
            tally.append((chosen, int(self._votes(model, image, self.samples, generator)[chosen])))
        return tally

    def _radius(
        self, chosen: int, hits: int, label: int, pixels: int, norm: Norm
    ) -> CertifiedRadius:
        from scipy.stats import norm as normal

        probability = lower_confidence(hits, self.samples, self.alpha)
        confidence = f"with confidence {1 - self.alpha:g}"
        radius, limit = 0.0, Limit.CONFIDENCE
        if probability <= 0.5:
            reason = f"abstained: no class has more than half of the noisy votes {confidence}"
        elif chosen != label:
            reason, limit = "the smoothed classifier's prediction is wrong", Limit.PREDICTION
        else:
            shrunk = self.sigma * float(normal.ppf(probability)) * SHRINK
            l2 = torch.tensor([shrunk], dtype=torch.float64)
            radius = float(to_norm(l2, pixels, norm)[0])
            what = "number" if hits == self.samples else "share of the votes"
            detour = "" if norm is Norm.L2 else ", through the l2 ball around the l-infinity ball"
            reason = (
                f"{what} of {self.samples} noisy copies, sigma {self.sigma:g}, {confidence} "
                f"per image, of the smoothed classifier and not the model itself{detour}"
            )
        return CertifiedRadius(radius, norm, Kind.PROBABILISTIC, self.name, reason, limit)

    def _generator(self, image: Tensor) -> torch.Generator:
        """The noise of an image, the same in every batch, order and run."""
        content = hashlib.sha256(f"{self.seed}:{tuple(image.shape)}:".encode())
        content.update(image.contiguous().numpy().tobytes())
        seed = int.from_bytes(content.digest()[:8], "big") >> 1
        return torch.Generator().manual_seed(seed)

    def _votes(
        self, model: nn.Module, image: Tensor, count: int, generator: torch.Generator
    ) -> Int[Tensor, " k"]:
        """How often each class is predicted; a copy that the model fails on votes for none."""
        together = _BATCH if predicts_each_by_itself(model) else 1
        votes = []
        for start in range(0, count, _BATCH):
            shape = (min(_BATCH, count - start), *image.shape)
            copies = image + self.sigma * torch.randn(shape, generator=generator)
            logits = torch.cat(
                [model(*beside(model, part)).cpu() for part in copies.split(together)]
            )
            sane = logits.isfinite().all(dim=1)
            votes.append(logits[sane].argmax(dim=1).bincount(minlength=logits.shape[1]))
        return torch.stack(votes).sum(dim=0)
