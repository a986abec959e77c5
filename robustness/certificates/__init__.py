"""Certificates: one file each, behind one interface."""

# ruff: isort: off
# In the order of reports, which decides between equal radii.
from robustness.certificates.lyapunov import LyapunovCertificate
from robustness.certificates.comparison import ComparisonCertificate
from robustness.certificates.target_seeking import TargetSeekingCertificate
from robustness.certificates.lipschitz_margin import LipschitzMarginCertificate
from robustness.certificates.contraction import ContractionCertificate
from robustness.certificates.invariance import InvarianceCertificate
from robustness.certificates.program import ProgramCertificate
from robustness.certificates.smoothing import SmoothingCertificate
# ruff: isort: on

from robustness.certificates.base import (
    CERTIFICATES,
    SEED,
    BaseCertificate,
    Certificate,
    CertifiedRadius,
    Kind,
    best,
    last_resorts,
    proves,
    register_certificate,
    routine,
    settings_fields,
    settings_of,
)
from robustness.certificates.layers import (
    contractive_rules,  # noqa: F401  (registers the bounds of convolutional flows)
    layer_rules,  # noqa: F401  (registers the bounds of ordinary layers)
    orthogonal_rules,  # noqa: F401  (registers the bounds of the orthogonal encoder)
)
from robustness.certificates.limits import Limit

__all__ = [
    "CERTIFICATES",
    "SEED",
    "BaseCertificate",
    "Certificate",
    "CertifiedRadius",
    "ComparisonCertificate",
    "ContractionCertificate",
    "InvarianceCertificate",
    "Kind",
    "Limit",
    "LipschitzMarginCertificate",
    "LyapunovCertificate",
    "ProgramCertificate",
    "SmoothingCertificate",
    "TargetSeekingCertificate",
    "best",
    "last_resorts",
    "proves",
    "register_certificate",
    "routine",
    "settings_fields",
    "settings_of",
]
