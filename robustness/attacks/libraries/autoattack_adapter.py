"""AutoAttack (Croce and Hein, arXiv 2003.01690) and its parts from pyautoattack."""

import logging
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pyautoattack import AutoAttack as Ensemble
from pyautoattack.autopgd_base import APGDAttack
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor

from robustness.attacks.base import LibraryAttack, Problem, too_few
from robustness.attacks.registry import register_attack
from robustness.inputs import Count, Iterations, Width
from robustness.threat import Norm, ThreatModel

# The targeted DLR loss compares the third and fourth largest logits.
_LEAST_CLASSES = 4
# The untargeted DLR loss compares the first and third largest logits.
_LEAST_CLASSES_DLR = 3
# Square in l2 starts from tiles of a fifth of the image's height, and divides by their sum.
_LEAST_SIDE = 5


class _OfAutoAttack(LibraryAttack):
    library = "pyautoattack"

    def refusal(self, threat: ThreatModel, classes: int) -> str | None:
        """Runs in both norms, on any number of classes above one."""
        del threat
        return too_few(classes)


@register_attack("autoattack")
@dataclass(frozen=True)
class AutoAttack(_OfAutoAttack):
    """The standard ensemble: APGD-CE and targeted APGD-DLR of 100 steps, targeted FAB, Square.

    With fewer than ten classes there are fewer targets than the nine of the standard version,
    and every other class is targeted. With fewer than four the DLR loss does not exist.
    """

    name: ClassVar[str] = "autoattack"
    title: ClassVar[str] = "AutoAttack standard"

    @property
    def described(self) -> str:
        """The standard version, which has no settings."""
        return "standard (100 steps, 5000 queries)"

    def refusal(self, threat: ThreatModel, classes: int) -> str | None:
        """The standard version needs at least four classes."""
        del threat
        if classes >= _LEAST_CLASSES:
            return None
        return f"AutoAttack standard needs at least {_LEAST_CLASSES} classes, got {classes}"

    def search(self, problem: Problem) -> Tensor:
        """One candidate per image, the original where nothing was found."""
        images, threat = problem.images, problem.threat
        classes = problem.model(images[:1]).shape[1]
        logging.getLogger("auto-attack").addHandler(logging.NullHandler())
        logging.getLogger("auto-attack").propagate = False
        # torch accepts seeds below 2^64; pyautoattack passes this one on as it is.
        ensemble = Ensemble(
            problem.model,
            norm=threat.norm.value,
            eps=threat.eps,
            seed=problem.seed,
            version="standard",
            device=str(images.device),
        )
        ensemble.apgd_targeted.n_target_classes = min(9, classes - 1)
        ensemble.fab.n_target_classes = min(9, classes - 1)
        candidates: Tensor
        candidates, _ = ensemble.run_standard_evaluation(
            images, problem.labels, batch_size=len(images)
        )
        return candidates.unsqueeze(0)


@register_attack("apgd")
@dataclass(frozen=True)
class APGD(_OfAutoAttack):
    """Auto-PGD of cross-entropy or of the difference of logits ratio.

    Attributes:
        loss: `ce`, or `dlr`, which needs three classes.
        steps: gradient steps per start.
        restarts: random starts.
    """

    loss: Literal["ce", "dlr"] = "ce"
    steps: Iterations = 100
    restarts: Iterations = 1
    title: ClassVar[str] = "APGD"

    @property
    def name(self) -> str:  # type: ignore[override]
        """`apgd-ce` or `apgd-dlr`."""
        return f"apgd-{self.loss}"

    @property
    def described(self) -> str:
        """Loss, steps and starts."""
        return f"APGD-{self.loss.upper()}, {self.steps} steps, {self.restarts} starts"

    def refusal(self, threat: ThreatModel, classes: int) -> str | None:
        """The DLR loss needs at least three classes."""
        del threat
        if self.loss == "ce" or classes >= _LEAST_CLASSES_DLR:
            return None
        return f"APGD-DLR needs at least {_LEAST_CLASSES_DLR} classes, got {classes}"

    def search(self, problem: Problem) -> Tensor:
        """One candidate per image, the original where nothing was found."""
        attack = APGDAttack(
            problem.model,
            n_iter=self.steps,
            norm=problem.threat.norm.value,
            n_restarts=self.restarts,
            eps=problem.threat.eps,
            seed=problem.seed,
            loss=self.loss,
            device=str(problem.images.device),
            logger=logging.getLogger("auto-attack"),
        )
        found: Tensor = attack.perturb(problem.images, problem.labels)
        return found.unsqueeze(0)


@register_attack("fab")
@dataclass(frozen=True)
class FAB(_OfAutoAttack):
    """The fast adaptive boundary attack, targeted (Croce and Hein, arXiv 1907.02044).

    It looks for the nearest adversarial image. What the library keeps of it lies in the ball.

    Attributes:
        steps: steps per target.
        targets: likely targets, at most the number of wrong classes.
    """

    steps: Iterations = 100
    targets: Width = 9
    name: ClassVar[str] = "fab"
    title: ClassVar[str] = "FAB"

    @property
    def described(self) -> str:
        """Steps and targets of the targeted version."""
        return f"FAB-T, {self.steps} steps, {self.targets} targets"

    def search(self, problem: Problem) -> Tensor:
        """One candidate per image, the original where nothing was found."""
        attack = FABAttack_PT(
            problem.model,
            norm=problem.threat.norm.value,
            n_restarts=1,
            n_iter=self.steps,
            eps=problem.threat.eps,
            seed=problem.seed,
            targeted=True,
            device=str(problem.images.device),
            n_target_classes=min(self.targets, problem.model(problem.images[:1]).shape[1] - 1),
        )
        found: Tensor = attack.perturb(problem.images, problem.labels)
        return found.unsqueeze(0)


@register_attack("square")
@dataclass(frozen=True)
class Square(_OfAutoAttack):
    """Random search over squares, without gradients (Andriushchenko et al., arXiv 1912.00049).

    Attributes:
        queries: forward passes per image.
    """

    queries: Count = 5000
    name: ClassVar[str] = "square"
    title: ClassVar[str] = "Square"

    @property
    def described(self) -> str:
        """The forward passes."""
        return f"Square, {self.queries} queries"

    def search(self, problem: Problem) -> Tensor:
        """One candidate per image, the original where nothing was found.

        Raises:
            ValueError: in l2, an image of fewer than 5 pixels a side.
        """
        height, width = problem.images.shape[2:]
        if problem.threat.norm is Norm.L2 and min(height, width) < _LEAST_SIDE:
            raise ValueError(
                f"Square in l2 needs images of {_LEAST_SIDE} pixels a side or more, "
                f"got {height} x {width}"
            )
        with torch.no_grad():
            attack = SquareAttack(
                problem.model,
                norm=problem.threat.norm.value,
                n_queries=self.queries,
                eps=problem.threat.eps,
                seed=problem.seed,
                resc_schedule=True,
                device=str(problem.images.device),
            )
            found: Tensor = attack.perturb(problem.images, problem.labels)
            return found.unsqueeze(0)
