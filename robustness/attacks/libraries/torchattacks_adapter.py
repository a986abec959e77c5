"""FGSM, MI-FGSM, PGD, Carlini-Wagner and DeepFool from torchattacks."""

from dataclasses import dataclass
from importlib.metadata import version

import torch
import torchattacks
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustness.attacks.base import isolated
from robustness.threat import Norm, ThreatModel

# torchattacks adds this to the norm of a gradient before dividing by it; the default, 1e-10,
# silences gradients of a saturated model that are small but not zero.
_L2_DIVISION = 1e-30


@dataclass(frozen=True)
class FGSM:
    """One step along the sign of the gradient (Goodfellow et al., arXiv 1412.6572); l-infinity."""

    name: str = "fgsm"

    @property
    def version(self) -> str:
        """Library, release and settings."""
        return f"torchattacks {version('torchattacks')} FGSM"

    def refusal(self, threat: ThreatModel, classes: int) -> str | None:
        """FGSM is an l-infinity attack."""
        del classes
        return None if threat.norm is Norm.LINF else "FGSM is an l-infinity attack"

    def propose(
        self,
        model: nn.Module,
        images: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        threat: ThreatModel,
        seed: int,
    ) -> Float[Tensor, "k n c h w"]:
        """One candidate per image; see `Attack.propose`."""
        with isolated(seed, model):
            return torchattacks.FGSM(model, eps=threat.eps)(images, labels).unsqueeze(0)


@dataclass(frozen=True)
class PGD:
    """Projected gradient descent from random starts (Madry et al., arXiv 1706.06083).

    Attributes:
        steps: gradient steps per start.
        restarts: random starts, each of which proposes one candidate.
        relative_step: step size in units of eps; 2.5 / steps lets a start cross the ball.
    """

    steps: int = 20
    restarts: int = 1
    relative_step: float | None = None
    name: str = "pgd"

    @property
    def version(self) -> str:
        """Library, release and settings."""
        starts = f", {self.restarts} starts" if self.restarts > 1 else ""
        return (
            f"torchattacks {version('torchattacks')} PGD-{self.steps}, "
            f"step {self._step:.3g} eps{starts}"
        )

    @property
    def _step(self) -> float:
        return self.relative_step if self.relative_step is not None else 2.5 / self.steps

    def refusal(self, threat: ThreatModel, classes: int) -> str | None:
        """PGD runs in both norms."""
        del threat, classes
        return None

    def propose(
        self,
        model: nn.Module,
        images: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        threat: ThreatModel,
        seed: int,
    ) -> Float[Tensor, "k n c h w"]:
        """One candidate per image and start; see `Attack.propose`."""
        settings = {"eps": threat.eps, "alpha": self._step * threat.eps, "steps": self.steps}
        if threat.norm is Norm.LINF:
            attack = torchattacks.PGD(model, **settings)
        else:
            attack = torchattacks.PGDL2(model, **settings, eps_for_division=_L2_DIVISION)
        with isolated(seed, model):
            return torch.stack([attack(images, labels) for _ in range(self.restarts)])


@dataclass(frozen=True)
class MIFGSM:
    """Signed gradients accumulated with momentum (Dong et al., arXiv 1710.06081); l-infinity.

    Attributes:
        steps: gradient steps.
        decay: what is kept of the accumulated gradient in each step.
    """

    steps: int = 20
    decay: float = 1.0
    name: str = "mi-fgsm"

    @property
    def version(self) -> str:
        """Library, release and settings."""
        return f"torchattacks {version('torchattacks')} MI-FGSM-{self.steps}, decay {self.decay:g}"

    def refusal(self, threat: ThreatModel, classes: int) -> str | None:
        """MI-FGSM is an l-infinity attack."""
        del classes
        return None if threat.norm is Norm.LINF else "MI-FGSM is an l-infinity attack"

    def propose(
        self,
        model: nn.Module,
        images: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        threat: ThreatModel,
        seed: int,
    ) -> Float[Tensor, "k n c h w"]:
        """One candidate per image; see `Attack.propose`.

        The library divides by the mean absolute gradient: where that is zero, the candidate is
        NaN, which the judge rejects.
        """
        attack = torchattacks.MIFGSM(
            model,
            eps=threat.eps,
            alpha=2.5 / self.steps * threat.eps,
            steps=self.steps,
            decay=self.decay,
        )
        with isolated(seed, model):
            return attack(images, labels).unsqueeze(0)


@dataclass(frozen=True)
class CarliniWagner:
    """The l2 attack of Carlini and Wagner (arXiv 1608.04644) for several weights of the margin.

    The library does not search for the weight c, so that each is tried and gives one candidate.
    It optimises in the space of atanh, where a pixel of 0 or 1 is infinite and never moves, and
    takes a margin in which a logit of 0 stands in for the true class. Here pixels start at
    `inset` inside the box, and logits are shifted to be positive, which changes no margin.

    Attributes:
        steps: steps of Adam for each weight.
        weights: the weights c.
        rate: Adam's learning rate.
        inset: distance from the ends of the box at which pixels start.
    """

    steps: int = 100
    weights: tuple[float, ...] = (0.1, 1.0, 10.0)
    rate: float = 0.05
    inset: float = 0.005
    name: str = "cw"

    @property
    def version(self) -> str:
        """Library, release and settings."""
        weights = ", ".join(f"{c:g}" for c in self.weights)
        return f"torchattacks {version('torchattacks')} CW-{self.steps}, c of {weights}"

    def refusal(self, threat: ThreatModel, classes: int) -> str | None:
        """Minimises the l2 distance."""
        del classes
        return None if threat.norm is Norm.L2 else "CW is an l2 attack"

    def propose(
        self,
        model: nn.Module,
        images: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        threat: ThreatModel,
        seed: int,
    ) -> Float[Tensor, "k n c h w"]:
        """One candidate per image and weight, in the ball or not; see `Attack.propose`."""
        del threat
        start = images.clamp(self.inset, 1 - self.inset)
        positive = _Positive(model)
        with isolated(seed, model):
            return torch.stack(
                [
                    torchattacks.CW(positive, c=c, steps=self.steps, lr=self.rate)(start, labels)
                    for c in self.weights
                ]
            )


class _Positive(nn.Module):
    """A model with its logits shifted by a constant of each sample so that the least is 0."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        logits = self.inner(images)
        return logits - logits.detach().amin(dim=1, keepdim=True)


@dataclass(frozen=True)
class DeepFool:
    """Steps to the nearest linearised boundary in l2 (Moosavi-Dezfooli et al., arXiv 1511.04599).

    Attributes:
        steps: at most so many linearisations.
    """

    steps: int = 30
    name: str = "deepfool"

    @property
    def version(self) -> str:
        """Library, release and settings."""
        return f"torchattacks {version('torchattacks')} DeepFool, {self.steps} steps"

    def refusal(self, threat: ThreatModel, classes: int) -> str | None:
        """Minimises the l2 distance."""
        del classes
        return None if threat.norm is Norm.L2 else "DeepFool is an l2 attack"

    def propose(
        self,
        model: nn.Module,
        images: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        threat: ThreatModel,
        seed: int,
    ) -> Float[Tensor, "k n c h w"]:
        """One candidate per image, in the ball or not; see `Attack.propose`."""
        del threat
        with isolated(seed, model):
            return torchattacks.DeepFool(model, steps=self.steps)(images, labels).unsqueeze(0)
