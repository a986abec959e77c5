"""Robust accuracy by the authors' own protocol, by PGD in pixel units, and in the worst case."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustness.attacks import (
    PGD,
    Attack,
    PaperProtocol,
    Status,
    default_stages,
    judge,
    published_accuracy,
    worst_case,
)
from robustness.claims.models import Study
from robustness.data import ImageSet
from robustness.numerics.devices import beside
from robustness.results.leaderboard import Proportion
from robustness.threat import Norm, ThreatModel

IMAGES = 500
_SEED, _BATCH = 0, 250

# As in the authors' script, which reads both radii in units of normalised pixels.
PAPER = {
    "linf 8/255": ThreatModel(Norm.LINF, 8 / 255),
    "l2 127/255": ThreatModel(Norm.L2, 127 / 255),
}
# At the radius of a study, where those steps are too weak to say anything about digits.
WIDE_STEPS = 20


def protocols(model: nn.Module, images: ImageSet, study: Study) -> dict[str, Proportion]:
    """Robust accuracy of one model under every protocol.

    - `paper`: as `published_accuracy` counts, in normalised units and wherever images end up.
    - `pixels`: PGD with the same radius, step and number of steps in true pixel units.
    - `wide`: PGD with more steps on the deployed model, at the study's radius.
    - `worst`: the worst case over views, at the same radius.

    All but the first are judged as everywhere: a sample stands if the deployed model classifies
    it rightly and no image that was found in ball and box has another class.

    Args:
        model: pixels to logits, with a `normalise` layer, in evaluation mode.
        images: the images to attack, in pixel units.
        study: whose radius the last two are measured at.
    """
    script = PaperProtocol()
    found = {}
    for name, threat in PAPER.items():
        found[f"paper {name}"] = _published(model, images, threat)
        attack = PGD(script.steps, relative_step=script.step / threat.eps)
        found[f"pixels {name}"] = _standing(images, _pgd(model, attack, threat))
    name = words_of(study.threat)
    found[f"wide {name}"] = _standing(images, _pgd(model, PGD(WIDE_STEPS), study.threat))
    found[f"worst {name}"] = _standing(images, _worst(model, study.threat))
    return found


def words_of(threat: ThreatModel) -> str:
    """Norm and radius as results name them; a radius in 255ths where it is a whole number."""
    levels = 255 * threat.eps
    eps = f"{round(levels)}/255" if abs(levels - round(levels)) < 1e-9 else f"{threat.eps:g}"
    return f"{threat.norm.value.lower()} {eps}"


_Outcomes = Callable[[Tensor, Tensor], list[Status]]


def _published(model: nn.Module, images: ImageSet, threat: ThreatModel) -> Proportion:
    right = 0
    for pixels, labels in _batches(images):
        accuracy = published_accuracy(model, pixels, labels, threat, _SEED)
        right += round(accuracy * len(labels))
    return Proportion.of(right, len(images))


def _standing(images: ImageSet, outcomes: _Outcomes) -> Proportion:
    standing = sum(outcomes(*batch).count(Status.ROBUST) for batch in _batches(images))
    return Proportion.of(standing, len(images))


def _pgd(model: nn.Module, attack: Attack, threat: ThreatModel) -> _Outcomes:
    def outcomes(pixels: Tensor, labels: Tensor) -> list[Status]:
        there, known = beside(model, pixels, labels)
        found = attack.propose(model, there, known, threat, _SEED).detach().to(pixels.device)
        # The image itself is a candidate too: one that is classified wrongly does not stand.
        candidates = torch.cat([pixels.unsqueeze(0), found])
        return [v.status for v in judge(model, pixels, labels, candidates, threat)]

    return outcomes


def _worst(model: nn.Module, threat: ThreatModel) -> _Outcomes:
    def outcomes(pixels: Tensor, labels: Tensor) -> list[Status]:
        stages = default_stages(model, threat)
        return [o.status for o in worst_case(model, pixels, labels, threat, stages, seed=_SEED)]

    return outcomes


def _batches(images: ImageSet) -> list[tuple[Tensor, Tensor]]:
    return list(zip(images.images.split(_BATCH), images.labels.split(_BATCH), strict=True))
