"""An attack: it proposes images, and never judges them."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from robustness.attacks import register_attack
from robustness.threat import Norm, ThreatModel


@register_attack("fade")
@dataclass(frozen=True)
class Fade:
    """Every pixel is moved towards grey, by a few shares of the radius; l-infinity.

    Attributes:
        shades: how many shares of the radius are tried.
    """

    shades: Annotated[int, Field(ge=1, le=100)] = 3
    name: ClassVar[str] = "fade"

    @property
    def version(self) -> str:
        """Everything that decides what is found; the release is added by `robustness`."""
        return f"fading in {self.shades} shades"

    def refusal(self, threat: ThreatModel, classes: int) -> str | None:
        """Fading is an l-infinity attack."""
        del classes
        return None if threat.norm is Norm.LINF else "fading is an l-infinity attack"

    def propose(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, seed: int
    ) -> Tensor:
        """As many candidates as shades, shape (shades, n, c, h, w)."""
        del model, labels, seed
        way = 0.5 - images
        shares = torch.arange(1, self.shades + 1) / self.shades
        return torch.stack([images + way.clamp(-share, share) for share in shares * threat.eps])
