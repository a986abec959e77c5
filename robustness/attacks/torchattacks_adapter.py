"""FGSM and PGD from torchattacks."""

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
        with isolated(seed):
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
        with isolated(seed):
            return torch.stack([attack(images, labels) for _ in range(self.restarts)])
