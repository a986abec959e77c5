"""What every certificate gives: a radius, its kind, and what limits it."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustness.certificates.limits import Limit
from robustness.threat import Norm

# Radii are computed in float64 and cut by this share, far above float64's rounding.
SHRINK = 1 - 1e-9


class Kind(StrEnum):
    """How much a radius claims. Only `certified` is summed as certified accuracy."""

    CERTIFIED = "certified"
    PROBABILISTIC = "probabilistic"
    ESTIMATE = "estimate"


@dataclass(frozen=True)
class CertifiedRadius:
    """A radius within which the deployed prediction provably (or supposedly) stays right.

    Attributes:
        radius: in pixel units; every image strictly closer is classified as the label. 0 where
            the prediction is wrong.
        norm: the norm of the radius.
        kind: what the radius claims.
        certificate: name of the certificate.
        reason: the assumption or step that limits the radius, in words.
        limit: the same as one word of a table.
    """

    radius: float
    norm: Norm
    kind: Kind
    certificate: str
    reason: str
    limit: Limit


@runtime_checkable
class Certificate(Protocol):
    """A method that turns a model, an image and its label into a radius."""

    @property
    def name(self) -> str:
        """Name in suites, tables and the store."""
        ...

    def refusal(self, model: nn.Module, norm: Norm) -> str | None:
        """Why the certificate says nothing about `model` in `norm`; None where it applies."""
        ...

    def certify(
        self,
        model: nn.Module,
        images: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        norm: Norm,
    ) -> list[CertifiedRadius]:
        """The radius of each image.

        Args:
            model: a model for which `refusal` is None.
            images: pixels in [0, 1], shape (n, c, h, w).
            labels: true classes, shape (n,).
            norm: the norm of the radii.
        """
        ...


_Certifier = TypeVar("_Certifier", bound=Certificate)
_Certify = Callable[[_Certifier, nn.Module, Tensor, Tensor, Norm], list[CertifiedRadius]]


def certifying(certify: _Certify[_Certifier]) -> _Certify[_Certifier]:
    """For the `certify` of every certificate: images that it says nothing of have radius 0.

    `Certificate.refusal` sees a model and no images. Where a bound is missing for images of a size
    that the model was not made for, `NotImplementedError` says so, and becomes the reason.
    """

    @functools.wraps(certify)
    def certified(
        self: _Certifier, model: nn.Module, images: Tensor, labels: Tensor, norm: Norm
    ) -> list[CertifiedRadius]:
        if len(images) == 0:
            return []
        try:
            return certify(self, model, images, labels, norm)
        except NotImplementedError as error:
            nothing = CertifiedRadius(0.0, norm, Kind.CERTIFIED, self.name, str(error), Limit.OTHER)
            return [nothing for _ in labels]

    return certified


def require_pixels(model: nn.Module, images: Float[Tensor, "n c h w"]) -> None:
    """Insist on the precision of pixels, and so of logits, that the rounding bounds allow for.

    Raises:
        ValueError: the images are neither float32, nor float64 like the model.
    """
    wide = images.dtype is torch.float64 and getattr(model, "dtype", None) is torch.float64
    if images.dtype is not torch.float32 and not wide:
        raise ValueError(f"expected images in float32, got {images.dtype}; convert them first")


def require_proof(
    certificate: Certificate, model: nn.Module, images: Float[Tensor, "n c h w"], norm: Norm
) -> None:
    """Insist that a certificate applies.

    Raises:
        ValueError: it refuses the model, or the images are of another precision.
    """
    require_pixels(model, images)
    refusal = certificate.refusal(model, norm)
    if refusal is not None:
        raise ValueError(f"expected a model with a proof, got one without: {refusal}")


def best(radii: Sequence[CertifiedRadius]) -> CertifiedRadius | None:
    """The largest radius of kind `certified`; None where nothing is certified."""
    proved = [radius for radius in radii if radius.kind is Kind.CERTIFIED]
    return max(proved, key=lambda r: r.radius, default=None)
