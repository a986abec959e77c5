"""What every certificate gives: a radius, its kind, and what limits it."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustness.certificates.limits import Limit
from robustness.programs.operations.base import releases
from robustness.registry import Registry, release_of
from robustness.threat import Norm

# Radii are computed in float64 and cut by this share, far above float64's rounding.
SHRINK = 1 - 1e-9

# A reason that several certificates give, for `with_rival`.
WITHIN_ROUNDING = "margin over {} is within rounding"


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
        general: the reason without what is this image's alone, such as the nearest class, by which
            like ones are counted; the reason itself where nothing is.
    """

    radius: float
    norm: Norm
    kind: Kind
    certificate: str
    reason: str
    limit: Limit
    general: str = ""

    def __post_init__(self) -> None:
        if not self.general:
            object.__setattr__(self, "general", self.reason)


def with_rival(words: str, rival: int) -> tuple[str, str]:
    """A reason about the nearest class, and the same in general.

    Args:
        words: the reason, with `{}` where it names the class.
        rival: the class.
    """
    return words.format(f"class {rival}"), words.format("another class")


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


class BaseCertificate(ABC):
    """What the `certify` of every certificate does: images that it says nothing of have radius 0.

    Its settings are the fields of a frozen dataclass, all of them part of the key of its results.
    One that draws random numbers has the field `seed`, which a suite fills in.

    Attributes:
        name: in suites, tables and the store.
        routine: whether it is cheap enough to be run with all others that are: `"all"` in a suite.
        proves: whether its radii are proofs, which every run attacks.
        strict: whether `certify` raises where `refusal` has a reason.
    """

    name: ClassVar[str]
    routine: ClassVar[bool] = False
    proves: ClassVar[bool] = True
    strict: ClassVar[bool] = True

    @abstractmethod
    def refusal(self, model: nn.Module, norm: Norm) -> str | None:
        """See `Certificate.refusal`."""

    @abstractmethod
    def radii(
        self, model: nn.Module, images: Tensor, labels: Tensor, norm: Norm
    ) -> list[CertifiedRadius]:
        """The radius of each image, of which there is at least one; see `Certificate.certify`.

        Raises:
            NotImplementedError: a bound is missing for images of a size that the model was not
                made for, which `refusal` could not see; the message becomes the reason.
        """

    def certify(
        self,
        model: nn.Module,
        images: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        norm: Norm,
    ) -> list[CertifiedRadius]:
        """The radius of each image; see `Certificate.certify` and `radii`.

        Raises:
            ValueError: it is strict and refuses the model, or the images are of another precision.
        """
        if len(images) == 0:
            return []
        try:
            if self.strict:
                require_proof(self, model, images, norm)
            return self.radii(model, images, labels, norm)
        except NotImplementedError as error:
            nothing = CertifiedRadius(0.0, norm, Kind.CERTIFIED, self.name, str(error), Limit.OTHER)
            return [nothing for _ in labels]


CERTIFICATES: Registry[Certificate] = Registry("a certificate", "robustness.certificates")

# The setting that is a suite's, not its table's.
SEED = "seed"

_Kind = TypeVar("_Kind", bound=type)


def register_certificate(kind: _Kind) -> _Kind:
    """Register a certificate, as it is with its default settings, under its name.

    Raises:
        UsageError: the name is taken.
    """
    CERTIFICATES.register(kind())
    return kind


def routine() -> list[str]:
    """Names of the certificates that are cheap enough to be run together."""
    return [name for name, each in CERTIFICATES.items() if getattr(each, "routine", False)]


def proves(certificate: Certificate) -> bool:
    """Whether its radii are proofs, which every run attacks; true unless it says otherwise."""
    return getattr(certificate, "proves", True)


def settings_fields(kind: type) -> list[str]:
    """Names of a certificate's settings."""
    return [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def settings_of(certificate: Certificate) -> str:
    """Everything that a certificate's radii depend on besides model and image, in words."""
    settings = [f"{name} {value}" for name, value in vars(certificate).items() if name != "name"]
    # Settings alone do not tell the code of one release of an installed package from another's.
    release = release_of(type(certificate).__module__)
    rules = releases() if getattr(certificate, "bounds_programs", False) else []
    return ", ".join([*settings, *([release] if release else []), *rules])


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
