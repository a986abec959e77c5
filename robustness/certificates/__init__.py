"""Certificates: one file each, behind one interface."""

from robustness.certificates import conv_norms  # noqa: F401  (registers the convolutions' bounds)
from robustness.certificates.base import Certificate, CertifiedRadius, Kind, best
from robustness.certificates.comparison import ComparisonCertificate
from robustness.certificates.limits import Limit
from robustness.certificates.lyapunov import LyapunovCertificate
from robustness.certificates.target_seeking import TargetSeekingCertificate

__all__ = ["CERTIFICATES", "Certificate", "CertifiedRadius", "Kind", "Limit", "best"]

CERTIFICATES: dict[str, Certificate] = {
    certificate.name: certificate
    for certificate in (
        LyapunovCertificate(),
        ComparisonCertificate(),
        TargetSeekingCertificate(),
    )
}
