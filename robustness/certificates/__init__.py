"""Certificates: one file each, behind one interface."""

from robustness.certificates.base import Certificate, CertifiedRadius, Kind, best
from robustness.certificates.comparison import ComparisonCertificate
from robustness.certificates.contraction import ContractionCertificate
from robustness.certificates.invariance import InvarianceCertificate
from robustness.certificates.layers import (
    contractive_rules,  # noqa: F401  (registers the bounds of convolutional flows)
    layer_rules,  # noqa: F401  (registers the bounds of ordinary layers)
    orthogonal_rules,  # noqa: F401  (registers the bounds of the orthogonal encoder)
)
from robustness.certificates.limits import Limit
from robustness.certificates.lipschitz_margin import LipschitzMarginCertificate
from robustness.certificates.lyapunov import LyapunovCertificate
from robustness.certificates.program import ProgramCertificate
from robustness.certificates.smoothing import SmoothingCertificate
from robustness.certificates.target_seeking import TargetSeekingCertificate

__all__ = [
    "CERTIFICATES",
    "DETERMINISTIC",
    "PROVING",
    "Certificate",
    "CertifiedRadius",
    "Kind",
    "Limit",
    "ProgramCertificate",
    "SmoothingCertificate",
    "best",
    "settings_of",
]

# Those that have no settings and draw no random numbers: cheap enough to be run together.
DETERMINISTIC: dict[str, Certificate] = {
    certificate.name: certificate
    for certificate in (
        LyapunovCertificate(),
        ComparisonCertificate(),
        TargetSeekingCertificate(),
        LipschitzMarginCertificate(),
        ContractionCertificate(),
        InvarianceCertificate(),
    )
}

CERTIFICATES: dict[str, Certificate] = {
    **DETERMINISTIC,
    ProgramCertificate.name: ProgramCertificate(),
    SmoothingCertificate.name: SmoothingCertificate(),
}

# Those whose radii are proofs, which every run attacks: all but the one that draws random numbers.
PROVING = tuple(name for name in CERTIFICATES if name != SmoothingCertificate.name)


def settings_of(certificate: Certificate) -> str:
    """Everything that a certificate's radii depend on besides model and image, in words."""
    fields = vars(certificate).items()
    return ", ".join(f"{name} {value}" for name, value in fields if name != "name")
