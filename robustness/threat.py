"""Threat models: a norm and a radius in pixel units, images living in the box [0, 1]."""

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor

from robustness.errors import UsageError


class Norm(StrEnum):
    """The norm that a perturbation is measured in."""

    LINF = "Linf"
    L2 = "L2"

    @classmethod
    def parse(cls, text: str) -> "Norm":
        """Read a norm's name, in any case; `inf` and `2` are understood too.

        Raises:
            UsageError: the name is neither norm's.
        """
        aliases = {"linf": cls.LINF, "inf": cls.LINF, "l2": cls.L2, "2": cls.L2}
        try:
            return aliases[str(text).strip().lower()]
        except KeyError:
            raise UsageError(
                f"expected a norm, Linf or L2, got {text!r}; write --norm Linf or --norm L2"
            ) from None

    def distance(
        self, a: Float[Tensor, "n *shape"], b: Float[Tensor, "n *shape"]
    ) -> Float[Tensor, " n"]:
        """Distance of each pair of images, shape (n,), computed in float64."""
        difference = (a.double() - b.double()).flatten(1)
        if self is Norm.LINF:
            return difference.abs().amax(dim=1)
        return torch.linalg.vector_norm(difference, dim=1)

    def project(
        self,
        candidates: Float[Tensor, "n *shape"],
        centres: Float[Tensor, "n *shape"],
        eps: float,
    ) -> Float[Tensor, "n *shape"]:
        """Nearest float32 images whose float64 distance to `centres` is at most `eps`.

        Used to remove the rounding by which an attack overshoots its ball; the result
        is shrunk by one float32 unit where rounding back would leave the ball again.
        """
        centre, delta = centres.double(), candidates.double() - centres.double()
        shape = (-1,) + (1,) * (delta.dim() - 1)
        shrink = 1.0
        projected = candidates
        for _ in range(4):
            if self is Norm.LINF:
                inside = delta.clamp(-eps * shrink, eps * shrink)
            else:
                length = torch.linalg.vector_norm(delta.flatten(1), dim=1).view(shape)
                inside = delta * (eps * shrink / length.clamp_min(1e-300)).clamp(max=1.0)
            projected = (centre + inside).to(candidates.dtype)
            if bool((self.distance(projected, centres) <= eps).all()):
                break
            shrink -= 3e-7 / max(eps, 1e-6)
        return projected


def parse_eps(value: str | float | int) -> float:
    """Read a radius in pixel units: a number, or a fraction such as `8/255`.

    Raises:
        UsageError: not a number, not finite, or not positive.
    """
    expectation = "expected a radius above 0 in pixel units, such as 0.1 or 8/255"
    try:
        if isinstance(value, str) and "/" in value:
            numerator, denominator = value.split("/")
            eps = float(numerator) / float(denominator)
        else:
            eps = float(value)
    except (ValueError, ZeroDivisionError, TypeError):
        raise UsageError(f"{expectation}, got {value!r}; correct eps") from None
    if not math.isfinite(eps) or eps <= 0:
        raise UsageError(f"{expectation}, got {value!r}; correct eps")
    return eps


def format_eps(eps: float) -> str:
    """Write a radius as people in the field do: `8/255` where it is one, else decimal."""
    in_255ths = eps * 255
    if 1 <= round(in_255ths) <= 255 and abs(in_255ths - round(in_255ths)) < 1e-9:
        return f"{round(in_255ths)}/255" if round(in_255ths) < 255 else "1"
    return f"{eps:g}"


@dataclass(frozen=True, order=True)
class ThreatModel:
    """All images within `eps` of the original in `norm`, inside the pixel box [0, 1].

    Attributes:
        norm: the norm that distance is measured in.
        eps: the radius, in units of pixels that run from 0 to 1.
    """

    norm: Norm
    eps: float

    def __post_init__(self) -> None:
        parse_eps(self.eps)

    @classmethod
    def parse(cls, norm: str, eps: str | float) -> "ThreatModel":
        """Build from the words of a command line or a suite file.

        Raises:
            UsageError: the norm is unknown or the radius is not a positive number.
        """
        return cls(Norm.parse(norm), parse_eps(eps))

    def __str__(self) -> str:
        symbol = "ℓ∞" if self.norm is Norm.LINF else "ℓ2"
        return f"{symbol} {format_eps(self.eps)}"
