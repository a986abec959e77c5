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
        """Distance of each pair of images, shape (n,), computed in float64 on the CPU."""
        difference = (a.cpu().double() - b.cpu().double()).flatten(1)
        if self is Norm.LINF:
            return difference.abs().amax(dim=1)
        return torch.linalg.vector_norm(difference, dim=1)

    def clip(
        self, deltas: Float[Tensor, "n *shape"], radii: Float[Tensor, " n"], scale: float = 1.0
    ) -> Float[Tensor, "n *shape"]:
        """Differences moved into balls around zero, in their own precision and up to its rounding.

        Args:
            deltas: shape (n, ...).
            radii: of each one's ball, shape (n,).
            scale: share of the radius that an l2 difference is shortened to; those inside stay.
        """
        each = (-1,) + (1,) * (deltas.dim() - 1)
        if self is Norm.LINF:
            return deltas.clamp(-radii.view(each), radii.view(each))
        lengths = torch.linalg.vector_norm(deltas.flatten(1), dim=1)
        return deltas * torch.where(lengths <= radii, 1.0, radii * scale / lengths).view(each)

    def steepest(self, gradients: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
        """The direction of unit size in this norm in which each function grows fastest."""
        return gradients.sign() if self is Norm.LINF else unit(gradients)

    def project(
        self,
        candidates: Float[Tensor, "n *shape"],
        centres: Float[Tensor, "n *shape"],
        eps: float | Float[Tensor, " n"],
    ) -> Float[Tensor, "n *shape"]:
        """The candidates, moved to within `eps` of `centres` by a float64 measurement.

        `eps` is one radius for all, or one for each image. Removes the rounding by which an attack
        overshoots its ball. A pixel that rounding to float32 would put beyond its place in the
        ball is set one float32 unit nearer to its centre; what becomes of one image does not
        depend on the others. Computed on the CPU, and given back where the candidates lie.
        """
        device = candidates.device
        candidates, centres = candidates.cpu(), centres.cpu()
        centre, delta = centres.double(), candidates.double() - centres.double()
        radii = torch.as_tensor(eps, dtype=torch.float64, device="cpu").expand(len(centre))
        # The float64 norm of what is scaled must not round to more than eps again.
        inside = self.clip(delta, radii, 1 - 1e-12)
        rounded = (centre + inside).to(candidates.dtype)
        beyond = (rounded.double() - centre).abs() > inside.abs()
        held = torch.where(beyond, torch.nextafter(rounded, centres.to(rounded.dtype)), rounded)
        return held.to(device)


def unit(vectors: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
    """Vectors of l2 norm 1; zero stays zero. Scaled twice, so that tiny ones do not underflow."""
    each = (-1,) + (1,) * (vectors.dim() - 1)
    tiny = torch.finfo(vectors.dtype).tiny
    largest = vectors.flatten(1).abs().amax(dim=1).clamp_min(tiny)
    scaled = vectors / largest.view(each)
    lengths = torch.linalg.vector_norm(scaled.flatten(1), dim=1).clamp_min(tiny)
    return scaled / lengths.view(each)


def parse_eps(value: str | float | int) -> float:
    """Read a radius in pixel units: a number, or a fraction such as `8/255`.

    Raises:
        UsageError: not a number, not finite, or not positive.
    """
    expectation = "expected a radius above 0 in pixel units, such as 0.1 or 8/255"
    try:
        if isinstance(value, bool):
            raise TypeError
        if isinstance(value, str) and "/" in value:
            numerator, denominator = value.split("/")
            eps = float(numerator) / float(denominator)
        else:
            eps = float(value)
    except (ValueError, ZeroDivisionError, TypeError, OverflowError):
        raise UsageError(f"{expectation}, got {value!r}; correct eps") from None
    if not math.isfinite(eps) or eps <= 0:
        raise UsageError(f"{expectation}, got {value!r}; correct eps")
    return eps


def format_eps(eps: float) -> str:
    """Write a radius as people in the field do: a short decimal where exact, else `8/255`."""
    # 0.2 is also 51/255, but nobody who wrote 0.2 would look for it there.
    decimal, in_255ths = f"{eps:.4g}", round(eps * 255)
    if float(decimal) != eps and in_255ths >= 1 and abs(eps * 255 - in_255ths) < 1e-9:
        return f"{in_255ths}/255"
    return decimal if float(decimal) == eps else f"{eps:g}"


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
    def parse(cls, norm: str, eps: str | float | int) -> "ThreatModel":
        """Build from the words of a command line or a suite file.

        Raises:
            UsageError: the norm is unknown or the radius is not a positive number.
        """
        return cls(Norm.parse(norm), parse_eps(eps))

    def radii(self, count: int) -> Float[Tensor, " count"]:
        """The radius once for each of `count` images, in float64 on the CPU."""
        return torch.full((count,), self.eps, dtype=torch.float64)

    def __str__(self) -> str:
        symbol = "ℓ∞" if self.norm is Norm.LINF else "ℓ2"
        return f"{symbol} {format_eps(self.eps)}"
