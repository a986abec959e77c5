"""What every certificate gives: a radius, its kind, and what limits it."""

import copy
import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustness.certificates.limits import Limit
from robustness.certificates.sharing import shared
from robustness.numerics.devices import CPU, device_of, refusal_of_device
from robustness.programs.operations.base import releases
from robustness.programs.trust import predicts_each_by_itself
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
        last_resort: whether `"all"` runs it, too, for a model that every routine one refuses.
        proves: whether its radii are proofs, which every run attacks.
        strict: whether `certify` raises where `refusal` has a reason.
        measures: whether it is told by the deployed program's predictions alone, wherever it runs.
    """

    name: ClassVar[str]
    routine: ClassVar[bool] = False
    last_resort: ClassVar[bool] = False
    proves: ClassVar[bool] = True
    strict: ClassVar[bool] = True
    measures: ClassVar[bool] = False

    def __init_subclass__(cls, **keywords: object) -> None:
        """Let `refusal` speak of programs on other devices, too; see `refusal_elsewhere`."""
        super().__init_subclass__(**keywords)
        if (own := vars(cls).get("refusal")) is not None:
            cls.refusal = _everywhere(own)  # type: ignore[method-assign]

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

        Of a program that runs on another device the bounds are computed on the CPU, with a copy of
        its weights. They hold for every order of its sums, and so for that device's, unless
        `refusal` says otherwise; the logits of the copy stand for the exact ones in the same way.

        Raises:
            ValueError: it is strict and refuses the model, or the images are of another precision,
                or nothing is known of the rounding on the model's device.
        """
        if len(images) == 0:
            return []
        try:
            elsewhere = _is_elsewhere(self, model)
            if self.strict or elsewhere:
                require_proof(self, model, images, norm)
            program = program_of(model) if elsewhere else model
            return self.radii(program, images.cpu(), labels.cpu(), norm)
        except NotImplementedError as error:
            nothing = CertifiedRadius(0.0, norm, Kind.CERTIFIED, self.name, str(error), Limit.OTHER)
            return [nothing for _ in labels]


def program_of(model: nn.Module) -> nn.Module:
    """What bounds are computed with: a model that is on the CPU, else a copy that is."""
    return model if device_of(model).type == CPU else _on_cpu(model)


@shared
def _on_cpu(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to(CPU)


# Layers that CUDA computes by other sums than those that the rules are about.
_OTHERWISE_ON_CUDA = (nn.GroupNorm, nn.LayerNorm)


def refusal_elsewhere(model: nn.Module) -> str | None:
    """Why rounding bounds do not hold for a program that does not run on the CPU.

    On CUDA they hold where its sums are sums (`devices.refusal_of_device`) and all its parts are
    known, so that it is the CPU's program but for the order of sums and for functions of one entry.
    The errors of these, by the CUDA C++ Programming Guide at most 2 units in the last place, are
    within what the bounds charge.
    """
    device = device_of(model)
    if device.type == CPU:
        return None
    if (lacking := refusal_of_device(device)) is not None:
        return lacking
    if any(isinstance(part, _OTHERWISE_ON_CUDA) for part in model.modules()):
        return f"no rounding bound is known for group norms on {device.type}"
    if not predicts_each_by_itself(model):
        return f"a part of the model may be another program on {device.type} than on the CPU"
    return None


def _is_elsewhere(certificate: "BaseCertificate", model: nn.Module) -> bool:
    return not certificate.measures and device_of(model).type != CPU


def _everywhere(refusal: Callable[..., str | None]) -> Callable[..., str | None]:
    @functools.wraps(refusal)
    def asked(self: BaseCertificate, model: nn.Module, norm: Norm) -> str | None:
        if not _is_elsewhere(self, model):
            return refusal(self, model, norm)
        return refusal_elsewhere(model) or refusal(self, program_of(model), norm)

    return asked


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


def last_resorts(asked: Collection[str]) -> list[str]:
    """Names of the certificates for models that every routine one refuses.

    None where not all routine ones are asked for, and none that is itself asked for by its name.
    """
    if not set(asked).issuperset(routine()):
        return []
    resorts = [name for name, each in CERTIFICATES.items() if getattr(each, "last_resort", False)]
    return [name for name in resorts if name not in asked]


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
    revision = getattr(certificate, "revision", "")
    return ", ".join([*settings, *filter(None, (revision, release)), *rules])


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
