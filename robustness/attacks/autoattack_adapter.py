"""AutoAttack (Croce and Hein, arXiv 2003.01690) from pyautoattack."""

import logging
from dataclasses import dataclass
from importlib.metadata import version

from jaxtyping import Float, Int
from pyautoattack import AutoAttack as Ensemble
from torch import Tensor, nn

from robustness.attacks.base import isolated
from robustness.threat import ThreatModel

# The targeted DLR loss compares the third and fourth largest logits.
_LEAST_CLASSES = 4


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
        with isolated(seed):
            # torch accepts seeds below 2^64; pyautoattack passes this one on as it is.
            ensemble = Ensemble(
                model, norm=threat.norm.value, eps=threat.eps, seed=seed, version="standard"
            )
            ensemble.apgd_targeted.n_target_classes = min(9, classes - 1)
            ensemble.fab.n_target_classes = min(9, classes - 1)
            candidates, _ = ensemble.run_standard_evaluation(images, labels, batch_size=len(images))
        return candidates.unsqueeze(0)
