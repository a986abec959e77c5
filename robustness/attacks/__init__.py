"""Attacks: one thin adapter per library, and the harness that judges what they propose."""

from robustness.attacks.autoattack_adapter import AutoAttack
from robustness.attacks.base import Attack
from robustness.attacks.judge import Status, Verdict, judge, predict_alone
from robustness.attacks.torchattacks_adapter import FGSM, PGD

__all__ = [
    "FGSM",
    "PGD",
    "Attack",
    "AutoAttack",
    "Status",
    "Verdict",
    "judge",
    "predict_alone",
]
