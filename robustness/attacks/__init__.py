"""Attacks over views of a model, the harness that judges them, and audits of the harness."""

from robustness.attacks.ascent import Ascent
from robustness.attacks.base import Attack, Guided, LibraryAttack, Problem, Pursuit
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
from robustness.attacks.registry import ATTACKS, AttackKind, register_attack
from robustness.attacks.roundings import RoundingSearch
from robustness.attacks.stages import Effort, climbed_view, default_stages, shortened
from robustness.attacks.transfer import Transfer
from robustness.attacks.views import VIEWS, View, register_view, views_of

__all__ = [
    "APGD",
    "ATTACKS",
    "FAB",
    "FGSM",
    "MIFGSM",
    "PGD",
    "VIEWS",
    "Ascent",
    "Attack",
    "AttackKind",
    "AutoAttack",
    "CarliniWagner",
    "DeepFool",
    "Effort",
    "Flag",
    "Guided",
    "IteratedAscent",
    "LibraryAttack",
    "Outcome",
    "PaperProtocol",
    "Problem",
    "Pursuit",
    "RoundingSearch",
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
    "register_attack",
    "register_view",
    "shortened",
    "views_of",
    "worst_case",
    "worst_case_within",
]
