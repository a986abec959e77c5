"""Adversarial robustness evaluation for neural ODEs: attacks, certificates, and the bracket."""

from robustness.api import attack, certify, evaluate
from robustness.errors import OperationalError, SoundnessError, UsageError
from robustness.zoo import load_model

__all__ = [
    "OperationalError",
    "SoundnessError",
    "UsageError",
    "attack",
    "certify",
    "evaluate",
    "load_model",
]
