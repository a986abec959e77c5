"""FGSM, MI-FGSM, PGD, Carlini-Wagner and DeepFool from torchattacks."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustness.attacks.base import LibraryAttack, Problem
from robustness.attacks.registry import register_attack
from robustness.inputs import Iterations, NonNegative, Positive
from robustness.threat import Norm

# torchattacks adds this to the norm of a gradient before dividing by it; the default, 1e-10,
# silences gradients of a saturated model that are small but not zero.
_L2_DIVISION = 1e-30


class _OfTorchattacks(LibraryAttack):
    library = "torchattacks"


@register_attack("fgsm")
@dataclass(frozen=True)
class FGSM(_OfTorchattacks):
    """One step along the sign of the gradient (Goodfellow et al., arXiv 1412.6572); l-infinity."""

    name: ClassVar[str] = "fgsm"
    title: ClassVar[str] = "FGSM"
    norm: ClassVar[Norm | None] = Norm.LINF

    @property
    def described(self) -> str:
        """It has no settings."""
        return "FGSM"

    def search(self, problem: Problem) -> Tensor:
        """One candidate per image."""
        import torchattacks

        attack = torchattacks.FGSM(problem.model, eps=problem.threat.eps)
        found: Tensor = attack(problem.images, problem.labels)
        return found.unsqueeze(0)


@register_attack("pgd")
@dataclass(frozen=True)
class PGD(_OfTorchattacks):
    """Projected gradient descent from random starts (Madry et al., arXiv 1706.06083).

    Attributes:
        steps: gradient steps per start.
        restarts: random starts, each of which proposes one candidate.
        relative_step: step size in units of eps; 2.5 / steps lets a start cross the ball.
    """

    steps: Iterations = 20
    restarts: Iterations = 1
    relative_step: Positive | None = None
    name: ClassVar[str] = "pgd"
    title: ClassVar[str] = "PGD"

    @property
    def described(self) -> str:
        """Steps, their size and the starts."""
        starts = f", {self.restarts} starts" if self.restarts > 1 else ""
        return f"PGD-{self.steps}, step {self._step:.3g} eps{starts}"

    @property
    def _step(self) -> float:
        return self.relative_step if self.relative_step is not None else 2.5 / self.steps

    def search(self, problem: Problem) -> Tensor:
        """One candidate per image and start."""
        import torchattacks

        eps = problem.threat.eps
        settings = {"eps": eps, "alpha": self._step * eps, "steps": self.steps}
        if problem.threat.norm is Norm.LINF:
            attack = torchattacks.PGD(problem.model, **settings)
        else:
            attack = torchattacks.PGDL2(problem.model, **settings, eps_for_division=_L2_DIVISION)
        starts = [attack(problem.images, problem.labels) for _ in range(self.restarts)]
        return torch.stack(starts)


@register_attack("mi-fgsm")
@dataclass(frozen=True)
class MIFGSM(_OfTorchattacks):
    """Signed gradients accumulated with momentum (Dong et al., arXiv 1710.06081); l-infinity.

    The library divides by the mean absolute gradient: where that is zero, the candidate is NaN,
    which the judge rejects.

    Attributes:
        steps: gradient steps.
        decay: what is kept of the accumulated gradient in each step.
    """

    steps: Iterations = 20
    decay: NonNegative = 1.0
    name: ClassVar[str] = "mi-fgsm"
    title: ClassVar[str] = "MI-FGSM"
    norm: ClassVar[Norm | None] = Norm.LINF

    @property
    def described(self) -> str:
        """Steps and decay."""
        return f"MI-FGSM-{self.steps}, decay {self.decay:g}"

    def search(self, problem: Problem) -> Tensor:
        """One candidate per image."""
        import torchattacks

        eps = problem.threat.eps
        attack = torchattacks.MIFGSM(
            problem.model,
            eps=eps,
            alpha=2.5 / self.steps * eps,
            steps=self.steps,
            decay=self.decay,
        )
        found: Tensor = attack(problem.images, problem.labels)
        return found.unsqueeze(0)


@register_attack("cw")
@dataclass(frozen=True)
class CarliniWagner(_OfTorchattacks):
    """The l2 attack of Carlini and Wagner (arXiv 1608.04644) for several weights of the margin.

    The library does not search for the weight c, so that each is tried and gives one candidate.
    It optimises in the space of atanh, where a pixel of 0 or 1 is infinite and never moves, and
    takes a margin in which a logit of 0 stands in for the true class. Here pixels start a little
    inside the box, and logits are shifted to be positive, which changes no margin.

    Attributes:
        steps: steps of Adam for each weight.
    """

    steps: Iterations = 100
    name: ClassVar[str] = "cw"
    title: ClassVar[str] = "CW"
    norm: ClassVar[Norm | None] = Norm.L2
    # The weights c, Adam's learning rate, and the distance from the ends of the box.
    weights: ClassVar[tuple[float, ...]] = (0.1, 1.0, 10.0)
    rate: ClassVar[float] = 0.05
    inset: ClassVar[float] = 0.005

    @property
    def described(self) -> str:
        """Steps and weights."""
        return f"CW-{self.steps}, c of {', '.join(f'{c:g}' for c in self.weights)}"

    def search(self, problem: Problem) -> Tensor:
        """One candidate per image and weight, in the ball or not."""
        import torchattacks

        start = problem.images.clamp(self.inset, 1 - self.inset)
        positive = _Positive(problem.model)
        attacks = (
            torchattacks.CW(positive, c=c, steps=self.steps, lr=self.rate) for c in self.weights
        )
        return torch.stack([attack(start, problem.labels) for attack in attacks])


class _Positive(nn.Module):
    """A model with its logits shifted by a constant of each sample so that the least is 0."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        return logits - logits.detach().amin(dim=1, keepdim=True)


@register_attack("deepfool")
@dataclass(frozen=True)
class DeepFool(_OfTorchattacks):
    """Steps to the nearest linearised boundary in l2 (Moosavi-Dezfooli et al., arXiv 1511.04599).

    Attributes:
        steps: at most so many linearisations.
    """

    steps: Iterations = 30
    name: ClassVar[str] = "deepfool"
    title: ClassVar[str] = "DeepFool"
    norm: ClassVar[Norm | None] = Norm.L2

    @property
    def described(self) -> str:
        """The most linearisations."""
        return f"DeepFool, {self.steps} steps"

    def search(self, problem: Problem) -> Tensor:
        """One candidate per image, in the ball or not."""
        import torchattacks

        attack = torchattacks.DeepFool(problem.model, steps=self.steps)
        found: Tensor = attack(problem.images, problem.labels)
        return found.unsqueeze(0)
