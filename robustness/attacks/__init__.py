"""Attacks over views of a model, the harness that judges them, and audits of the harness."""

from robustness.attacks.ascent import Ascent
from robustness.attacks.base import Attack, Guided
from robustness.attacks.checks.attack_audits import audit_version
from robustness.attacks.checks.audits import audit
from robustness.attacks.checks.flag import Flag
from robustness.attacks.harness import Outcome, Stage, worst_case, worst_case_within
from robustness.attacks.historical import PaperProtocol, published_accuracy
from robustness.attacks.iterated import IteratedAscent
from robustness.attacks.judge import Status, Verdict, judge, predict_alone
from robustness.attacks.libraries.autoattack_adapter import APGD, FAB, AutoAttack, Square
from robustness.attacks.libraries.torchattacks_adapter import (
    FGSM,
    MIFGSM,
    PGD,
    CarliniWagner,
    DeepFool,
)
from robustness.attacks.nearest import nearest_adversarial, nearest_version
from robustness.attacks.stages import climbed_view, default_stages, shortened
from robustness.attacks.transfer import Transfer
from robustness.attacks.views import View, register_view, views_of

__all__ = [
    "APGD",
    "FAB",
    "FGSM",
    "MIFGSM",
    "PGD",
    "Ascent",
    "Attack",
    "AutoAttack",
    "CarliniWagner",
    "DeepFool",
    "Flag",
    "Guided",
    "IteratedAscent",
    "Outcome",
    "PaperProtocol",
    "Square",
    "Stage",
    "Status",
    "Transfer",
    "Verdict",
    "View",
    "audit",
    "audit_version",
    "climbed_view",
    "default_stages",
    "judge",
    "nearest_adversarial",
    "nearest_version",
    "predict_alone",
    "published_accuracy",
    "register_view",
    "shortened",
    "views_of",
    "worst_case",
    "worst_case_within",
]
