"""Attacks over views of a model, the harness that judges them, and audits of the harness."""

from robustness.attacks.ascent import Ascent
from robustness.attacks.audits import Flag, audit
from robustness.attacks.autoattack_adapter import AutoAttack
from robustness.attacks.base import Attack, Guided
from robustness.attacks.cascade import Outcome, Stage, default_stages, worst_case
from robustness.attacks.judge import Status, Verdict, judge, predict_alone
from robustness.attacks.torchattacks_adapter import FGSM, PGD
from robustness.attacks.views import View, register_view, views_of

__all__ = [
    "FGSM",
    "PGD",
    "Ascent",
    "Attack",
    "AutoAttack",
    "Flag",
    "Guided",
    "Outcome",
    "Stage",
    "Status",
    "Verdict",
    "View",
    "audit",
    "default_stages",
    "judge",
    "predict_alone",
    "register_view",
    "views_of",
    "worst_case",
]
