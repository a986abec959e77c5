"""The sharper Lyapunov radius: the disturbance fades as V falls.

|grad V| <= sqrt(2) (1 - exp(-V)), so V stays below the solution of

    v' = -kappa v + s + sqrt(2) L eps (1 - exp(-v)),   v(0) = V(0),

which is never worse than equation (2). The radius is a bisection over eps.

The steps of a target-seeking field stay below the same curve. Let F(v) be s / kappa plus
sqrt(2) (L / kappa) eps (1 - exp(-v)), and w the largest v with v <= F(v). On the segment from the
target g to the perturbed g', V is largest at an end, so V(g') <= max(V(g), F(V(g'))), and so
V(g') <= w. A step then gives V <= rho V + (1 - rho) w, that is u' = kappa (w - u) at the grid; and
u <= v, since F increases and v' = kappa (F(v) - v) >= kappa (w - v) as long as v >= w.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustness.certificates.base import BaseCertificate, CertifiedRadius, register_certificate
from robustness.certificates.flows.constants import LyapunovConstants
from robustness.certificates.lyapunov import (
    LyapunovCertificate,
    certify_by_constants,
    lyapunov_radius,
)
from robustness.threat import Norm

_CELLS = 500
# Any radius that passes is proved: more of them would find a billionth more.
_BISECTIONS = 30


def reaches_half(constants: LyapunovConstants, eps: Float[Tensor, " n"]) -> Tensor:
    """Whether v provably falls below ln 2 within the horizon under a disturbance of eps.

    The time to fall from V(0) to ln 2 is the integral of dv / h(v) with
    h(v) = kappa v - s - sqrt(2) L eps (1 - exp(-v)). h is convex, and so on each cell of a
    partition above its tangent at the middle m. A cell of width w takes at most the time of the
    tangent, w / h(m) atanh(x) / x with x = w h'(m) / (2 h(m)). The sum over cells is an upper
    bound on the time, not an approximation of it; rounding is given a millionth.

    Returns:
        Booleans, shape (n,).
    """
    if constants.initial < math.log(2):
        raise ValueError("expected V(0) >= ln 2, as for an undecided initial state")
    edges = torch.linspace(math.log(2), constants.initial, _CELLS + 1, dtype=torch.float64)
    middle, width = (edges[:-1] + edges[1:]) / 2, edges[1:] - edges[:-1]
    push = (math.sqrt(2) * constants.lipschitz * eps).unsqueeze(1)
    rate, slack = constants.rate.unsqueeze(1), constants.slack.unsqueeze(1)
    fall = rate * middle - slack - push * (1 - torch.exp(-middle))
    bend = width * (rate - push * torch.exp(-middle)) / (2 * fall)
    stretch = torch.where(bend.abs() < 1e-6, 1 + bend**2, torch.atanh(bend) / bend)
    falls = (fall > 0) & (bend.abs() < 1 - 1e-9)
    time = torch.where(falls, width / fall * stretch, torch.inf).sum(dim=1)
    return time < constants.horizon * (1 - 1e-6)


def comparison_radius(constants: LyapunovConstants) -> Float[Tensor, " n"]:
    """The l2 radius of equation (3) of docs/theory.md, shape (n,), never below equation (2)'s."""
    floor = lyapunov_radius(constants)
    # Beyond kappa V(0) / (sqrt(2) L (1 - exp(-V(0)))) not even the start decreases.
    ceiling = (
        constants.rate
        * constants.initial
        / (math.sqrt(2) * constants.lipschitz * (1 - math.exp(-constants.initial)))
    ).nan_to_num(0.0)
    low, high = floor.clone(), torch.maximum(ceiling, floor)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        holds = reaches_half(constants, middle)
        low, high = torch.where(holds, middle, low), torch.where(holds, high, middle)
    return low


@register_certificate
@dataclass(frozen=True)
class ComparisonCertificate(BaseCertificate):
    """Equation (3): `certified` for target-seeking flows, an `estimate` for other neural ODEs."""

    name: ClassVar[str] = "lyapunov-sharp"
    strict: ClassVar[bool] = False
    routine: ClassVar[bool] = True

    def refusal(self, model: nn.Module, norm: Norm) -> str | None:
        """As for equation (2)."""
        return LyapunovCertificate().refusal(model, norm)

    def radii(
        self, model: nn.Module, images: Tensor, labels: Tensor, norm: Norm
    ) -> list[CertifiedRadius]:
        """The radius of each image; see `Certificate.certify`."""
        return certify_by_constants(self.name, comparison_radius, model, images, labels, norm)
