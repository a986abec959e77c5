"""AutoAttack (Croce and Hein, arXiv 2003.01690) and its parts from pyautoattack."""

import logging
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import torch
from jaxtyping import Float, Int
from pyautoattack import AutoAttack as Ensemble
from pyautoattack.autopgd_base import APGDAttack
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from robustness.attacks.base import isolated
from robustness.threat import Norm, ThreatModel

# The targeted DLR loss compares the third and fourth largest logits.
_LEAST_CLASSES = 4
# The untargeted DLR loss compares the first and third largest logits.
_LEAST_CLASSES_DLR = 3
# Square in l2 starts from tiles of a fifth of the image's height, and divides by their sum.
_LEAST_SIDE = 5


@dataclass(frozen=True)
class AutoAttack:
    """The standard ensemble: APGD-CE and targeted APGD-DLR of 100 steps, targeted FAB, Square.

    With fewer than ten classes there are fewer targets than the nine of the standard version,
    and every other class is targeted. With fewer than four the DLR loss does not exist.
    """

    name: str = "autoattack"

    @property
    def version(self) -> str:
        """Library, release and settings."""
        return f"pyautoattack {version('pyautoattack')} standard (100 steps, 5000 queries)"

    def refusal(self, threat: ThreatModel, classes: int) -> str | None:
        """The standard version needs at least four classes."""
        del threat
        if classes >= _LEAST_CLASSES:
            return None
        return f"AutoAttack standard needs at least {_LEAST_CLASSES} classes, got {classes}"

    def propose(
        self,
        model: nn.Module,
        images: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        threat: ThreatModel,
        seed: int,
    ) -> Float[Tensor, "k n c h w"]:
        """One candidate per image, the original where nothing was found; see `Attack.propose`."""
        classes = model(images[:1]).shape[1]
        logging.getLogger("auto-attack").addHandler(logging.NullHandler())
        logging.getLogger("auto-attack").propagate = False
        with isolated(seed, model):
            # torch accepts seeds below 2^64; pyautoattack passes this one on as it is.
            ensemble = Ensemble(
                model, norm=threat.norm.value, eps=threat.eps, seed=seed, version="standard"
            )
            ensemble.apgd_targeted.n_target_classes = min(9, classes - 1)
            ensemble.fab.n_target_classes = min(9, classes - 1)
            candidates, _ = ensemble.run_standard_evaluation(images, labels, batch_size=len(images))
        return candidates.unsqueeze(0)


@dataclass(frozen=True)
class APGD:
    """Auto-PGD of cross-entropy or of the difference of logits ratio.

    Attributes:
        loss: `ce`, or `dlr`, which needs three classes.
        steps: gradient steps per start.
        restarts: random starts.
    """

    loss: Literal["ce", "dlr"] = "ce"
    steps: int = 100
    restarts: int = 1

    @property
    def name(self) -> str:
        """`apgd-ce` or `apgd-dlr`."""
        return f"apgd-{self.loss}"

    @property
    def version(self) -> str:
        """Library, release and settings."""
        return (
            f"pyautoattack {version('pyautoattack')} APGD-{self.loss.upper()}, "
            f"{self.steps} steps, {self.restarts} starts"
        )

    def refusal(self, threat: ThreatModel, classes: int) -> str | None:
        """The DLR loss needs at least three classes."""
        del threat
        if self.loss == "ce" or classes >= _LEAST_CLASSES_DLR:
            return None
        return f"APGD-DLR needs at least {_LEAST_CLASSES_DLR} classes, got {classes}"

    def propose(
        self,
        model: nn.Module,
        images: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        threat: ThreatModel,
        seed: int,
    ) -> Float[Tensor, "k n c h w"]:
        """One candidate per image, the original where nothing was found; see `Attack.propose`."""
        with isolated(seed, model):
            attack = APGDAttack(
                model,
                n_iter=self.steps,
                norm=threat.norm.value,
                n_restarts=self.restarts,
                eps=threat.eps,
                seed=seed,
                loss=self.loss,
                device="cpu",
                logger=logging.getLogger("auto-attack"),
            )
            return attack.perturb(images, labels).unsqueeze(0)


@dataclass(frozen=True)
class FAB:
    """The fast adaptive boundary attack, targeted (Croce and Hein, arXiv 1907.02044).

    It looks for the nearest adversarial image. What the library keeps of it lies in the ball.

    Attributes:
        steps: steps per target.
        targets: likely targets, at most the number of wrong classes.
    """

    steps: int = 100
    targets: int = 9
    name: str = "fab-t"

    @property
    def version(self) -> str:
        """Library, release and settings."""
        return (
            f"pyautoattack {version('pyautoattack')} FAB-T, {self.steps} steps, "
            f"{self.targets} targets"
        )

    def refusal(self, threat: ThreatModel, classes: int) -> str | None:
        """Runs in both norms, on any number of classes above one."""
        del threat
        return None if classes > 1 else f"expected two classes or more, got {classes}"

    def propose(
        self,
        model: nn.Module,
        images: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        threat: ThreatModel,
        seed: int,
    ) -> Float[Tensor, "k n c h w"]:
        """One candidate per image, the original where nothing was found; see `Attack.propose`."""
        with isolated(seed, model):
            attack = FABAttack_PT(
                model,
                norm=threat.norm.value,
                n_restarts=1,
                n_iter=self.steps,
                eps=threat.eps,
                seed=seed,
                targeted=True,
                device="cpu",
                n_target_classes=min(self.targets, model(images[:1]).shape[1] - 1),
            )
            return attack.perturb(images, labels).unsqueeze(0)


@dataclass(frozen=True)
class Square:
    """Random search over squares, without gradients (Andriushchenko et al., arXiv 1912.00049).

    Attributes:
        queries: forward passes per image.
    """

    queries: int = 5000
    name: str = "square"

    @property
    def version(self) -> str:
        """Library, release and settings."""
        return f"pyautoattack {version('pyautoattack')} Square, {self.queries} queries"

    def refusal(self, threat: ThreatModel, classes: int) -> str | None:
        """Runs in both norms, on any number of classes above one."""
        del threat
        return None if classes > 1 else f"expected two classes or more, got {classes}"

    def propose(
        self,
        model: nn.Module,
        images: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        threat: ThreatModel,
        seed: int,
    ) -> Float[Tensor, "k n c h w"]:
        """One candidate per image, the original where nothing was found; see `Attack.propose`.

        Raises:
            ValueError: in l2, an image of fewer than 5 pixels a side.
        """
        if threat.norm is Norm.L2 and min(images.shape[2:]) < _LEAST_SIDE:
            raise ValueError(
                f"Square in l2 needs images of {_LEAST_SIDE} pixels a side or more, "
                f"got {images.shape[2]} x {images.shape[3]}"
            )
        with isolated(seed), torch.no_grad():
            attack = SquareAttack(
                model,
                norm=threat.norm.value,
                n_queries=self.queries,
                eps=threat.eps,
                seed=seed,
                resc_schedule=True,
                device="cpu",
            )
            return attack.perturb(images, labels).unsqueeze(0)
