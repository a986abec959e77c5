"""The protocol of the LyaNet paper, kept to be measured against: its units are not pixels."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustness.attacks.base import LibraryAttack, Problem
from robustness.errors import UsageError
from robustness.nets.encoders import Normalise
from robustness.numerics.devices import beside
from robustness.threat import Norm, ThreatModel


@dataclass(frozen=True)
class PaperProtocol(LibraryAttack):
    """PGD as in LyaNet's published script (arXiv 2202.02526): on images normalised beforehand.

    Radius and step are in units of normalised pixels, which makes a radius of 8/255 one of
    2.5/255 on MNIST; and the library clips normalised images to [0, 1], which by itself moves
    every pixel darker than the mean, by far more than the radius. Ten steps of 2/255 cannot
    reach the edge of its l2 ball of 127/255. Its candidates, turned back into pixels, mostly
    lie outside any ball, where the judge rejects them; `published_accuracy` counts as the paper
    did. The threat's eps is taken for one of normalised pixels, in both norms.

    Attributes:
        steps: gradient steps.
        step: size of a step, in normalised units.
    """

    steps: int = 10
    step: float = 2 / 255
    name: ClassVar[str] = "lyanet-paper"
    title: ClassVar[str] = "the protocol of the LyaNet paper"
    library: ClassVar[str] = "torchattacks"

    @property
    def described(self) -> str:
        """Steps, their size and their units."""
        return (
            f"PGD-{self.steps} as in arXiv 2202.02526: radius and clip to [0, 1] in "
            f"normalised units, step {self.step:.3g}"
        )

    @property
    def version(self) -> str:
        """Library and settings; of any release, since what is measured against is the paper's."""
        return f"{self.library} {self.described}"

    def search(self, problem: Problem) -> Tensor:
        """One candidate per image, in pixels, rarely inside the ball.

        Raises:
            UsageError: the model has no normalising first layer of this package.
        """
        import torchattacks

        threat = problem.threat
        normalise = _normalisation(problem.model)
        inner = _FromNormalised(problem.model, normalise)
        settings = {"eps": threat.eps, "alpha": self.step, "steps": self.steps}
        attack_type = torchattacks.PGD if threat.norm is Norm.LINF else torchattacks.PGDL2
        found = attack_type(inner, **settings)(normalise(problem.images), problem.labels)
        return (found * normalise.std + normalise.mean).unsqueeze(0)


def published_accuracy(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    threat: ThreatModel,
    seed: int = 0,
) -> float:
    """Robust accuracy as the paper's script counts it: wherever the images ended up."""
    images, labels = beside(model, images, labels)
    (candidates,) = PaperProtocol().propose(model, images, labels, threat, seed)
    with torch.no_grad():
        return float((model(candidates).argmax(dim=1) == labels).cpu().double().mean())


def _normalisation(model: nn.Module) -> Normalise:
    for module in model.modules():
        if isinstance(module, Normalise):
            return module
    raise UsageError(
        f"expected a model whose first layer is Normalise, got {type(model).__name__}; "
        "the paper's protocol attacks normalised images"
    )


class _FromNormalised(nn.Module):
    """The same model, fed with images that are normalised already."""

    def __init__(self, model: nn.Module, normalise: Normalise) -> None:
        super().__init__()
        self.model, self.normalise = model, normalise

    def forward(self, normalised: Tensor) -> Tensor:
        return self.model(normalised * self.normalise.std + self.normalise.mean)
