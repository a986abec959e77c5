"""Certificates: one file each, behind one interface."""

from robustness.certificates import (
    conv_norms,  # noqa: F401  (registers the bounds of convolutional flows)
    orthogonal_rules,  # noqa: F401  (registers the bounds of the orthogonal encoder)
)
from robustness.certificates.base import Certificate, CertifiedRadius, Kind, best
from robustness.certificates.comparison import ComparisonCertificate
from robustness.certificates.contraction import ContractionCertificate
from robustness.certificates.invariance import InvarianceCertificate
from robustness.certificates.lyapunov import LyapunovCertificate
from robustness.certificates.target_seeking import TargetSeekingCertificate

__all__ = ["CERTIFICATES", "Certificate", "CertifiedRadius", "Kind", "best"]

CERTIFICATES: dict[str, Certificate] = {
    certificate.name: certificate
    for certificate in (
        LyapunovCertificate(),
        ComparisonCertificate(),
        TargetSeekingCertificate(),
        ContractionCertificate(),
        InvarianceCertificate(),
    )
}
