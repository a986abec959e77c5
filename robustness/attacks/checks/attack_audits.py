"""Audits of the attacks themselves: did they report what they found, and did they finish?

Two of the indicators of attack failure of Pintor et al. (arXiv 2106.09947, NeurIPS 2022), as their
published code defines them: silent success and incomplete optimisation.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robustness.attacks.ascent import Ascent, surviving_traces
from robustness.attacks.base import Attack
from robustness.attacks.checks.flag import Flag
from robustness.attacks.judge import Status, judge
from robustness.attacks.libraries.autoattack_adapter import APGD
from robustness.attacks.libraries.torchattacks_adapter import PGD
from robustness.attacks.stages import climbed_view
from robustness.attacks.views import VIEWS
from robustness.threat import ThreatModel

# Library attacks that are watched: each passes its whole batch to the model in every step.
WATCHED: tuple[Attack, ...] = (PGD(), APGD(steps=20))
# Share of samples that an attack may break on its way without returning what broke them.
_SILENT = 0.02
# The strongest ascent of the first stages of a verdict, with which one of `quick` effort ends.
CLIMBED = Ascent("targeted", steps=20, targets=4)
# Steps at a climb's end, and the share of its range of losses that these may still add.
_LAST, _RISE = 10, 0.05
# Share of samples left standing whose climb may be unfinished.
_UNFINISHED = 0.2


def audit_version() -> str:
    """Libraries, releases and settings of the attacks that are looked at.

    A part of the key of stored answers of all audits: it must change where what they answer does.
    """
    watched = "; ".join(attack.version for attack in WATCHED)
    # The views of installed packages are rivals of the deployed gradients.
    foreign = "; ".join(f"views of {m.name}, {m.release}" for m in VIEWS.values() if m.release)
    own = f"silent success of {watched}; incomplete optimisation of {CLIMBED.version}"
    return f"{own}; {foreign}" if foreign else own


class _Recorder(nn.Module):
    """A model that keeps the batches of one size that pass through it."""

    def __init__(self, inner: nn.Module, size: int) -> None:
        super().__init__()
        self.inner, self.size = inner, size
        self.training = inner.training
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        if len(images) == self.size:
            self.seen.append(images.detach().clone())
        logits: Tensor = self.inner(images)
        return logits


def silent_successes(
    attack: Attack,
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    threat: ThreatModel,
    seed: int = 0,
) -> Bool[Tensor, " n"]:
    """Samples of which an attack met an adversarial image and returned none.

    What it meets are the batches of all n images that it passes to the model; what is adversarial
    the judge says, of these and of what is returned.

    Raises:
        ValueError: the attack passed no batch of n images to the model.
    """
    watched = _Recorder(model, len(images))
    returned = attack.propose(watched, images, labels, threat, seed).detach()
    if not watched.seen:
        raise ValueError(
            f"{attack.name}: expected batches of {len(images)} images on its way, got none"
        )
    verdicts = judge(model, images, labels, returned, threat)
    stands = [verdict.status is Status.ROBUST for verdict in verdicts]
    silent = torch.tensor(stands, device=images.device)
    kept = torch.nonzero(silent).squeeze(1)
    if len(kept):
        iterates = torch.stack(watched.seen)[:, kept]
        met = judge(model, images[kept], labels[kept], iterates, threat)
        fooled = [verdict.status is Status.ADVERSARIAL for verdict in met]
        silent[kept] = torch.tensor(fooled, device=images.device)
    return silent


def silent_success(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    threat: ThreatModel,
    seed: int = 0,
    attacks: Sequence[Attack] = WATCHED,
) -> Flag:
    """Whether a library attack returns failures although it met adversarial images on its way.

    The value is the largest share over the attacks, by which the accuracy under this attack is too
    high. Raised above 2%.
    """
    classes = model(images[:1]).shape[1]
    run = [attack for attack in attacks if attack.refusal(threat, classes) is None]
    silent = {
        f"{attack.name} ({attack.version})": int(
            silent_successes(attack, model, images, labels, threat, seed).sum()
        )
        for attack in run
    }
    share = max(silent.values(), default=0) / len(images)
    found = ", ".join(f"{count} of {name}" for name, count in silent.items())
    detail = (
        f"samples of {len(images)} at {threat} that an iterate breaks and the image that the "
        f"attack returns does not: {found}"
    )
    return Flag("silent-success", share > _SILENT, share, _SILENT, detail)


def unfinished(losses: Float[Tensor, "r s"]) -> Bool[Tensor, " r"]:
    """Climbs whose best loss rose by 5% or more of the range of their losses in the last ten steps.

    The range, from the least to the largest loss of the climb, is what Pintor et al. rescale by: an
    answer in units of the loss would depend on the scale of logits, and one relative to the loss
    itself on where its zero is. A climb of ten steps or fewer is looked at as a whole; one without
    any rise is finished.

    Args:
        losses: at the start and after each step, shape (r, steps + 1). What is not finite is no
            rise and not part of the range.
    """
    finite = losses.isfinite()
    best = torch.where(finite, losses, -torch.inf).cpu().double().cummax(dim=1).values
    least = torch.where(finite, losses, torch.inf).cpu().double().amin(dim=1)
    top, before = best[:, -1], best[:, max(0, losses.shape[1] - 1 - _LAST)]
    return (top > least) & (top - before >= _RISE * (top - least))


def incomplete_optimisation(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    threat: ThreatModel,
    seed: int = 0,
    ascent: Ascent = CLIMBED,
) -> Flag:
    """Share of samples that an ascent leaves standing while it still climbs; see `unfinished`.

    Of each sample the climb that came to the largest loss counts. Raised above 20% of the samples
    that stand, if they are two or more: one alone is too few to tell.
    """
    radii = threat.radii(len(images))
    view = climbed_view(model)
    losses = surviving_traces(ascent, view, model, images, labels, threat.norm, radii, seed)
    count = int(unfinished(losses).sum())
    share = count / max(1, len(losses))
    detail = (
        f"{len(losses)} of {len(images)} samples stand at {threat} after {ascent.version} through "
        f"{view.name}; the loss of {count} of them rose by {_RISE:.0%} of its range or more in the "
        f"last {_LAST} steps"
    )
    raised = share > _UNFINISHED and count > 1
    return Flag("incomplete-optimisation", raised, share, _UNFINISHED, detail)
