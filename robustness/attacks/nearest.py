"""The nearest adversarial image that is found: an upper bound on a sample's robust radius."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustness.attacks.ascent import Ascent, ascend
from robustness.attacks.base import Attack
from robustness.attacks.judge import Status, Verdict, judge
from robustness.attacks.lanes import LANE, scores
from robustness.attacks.stages import climbed_view
from robustness.attacks.views import View
from robustness.numerics.devices import beside
from robustness.threat import Norm, ThreatModel

# Halvings of the logarithm of the radius, from the whole box to a thousandth of it.
_ROUNDS, _SMALLEST = 8, 1e-3
_STEPS = 20
# Halvings of the way from the original to an adversarial image.
_RETREATS = 8


def nearest_version(model: nn.Module) -> str:
    """What `nearest_adversarial` does without further attacks, for a reader to repeat it."""
    return (
        f"bisection of the radius, {_ROUNDS} ascents of the margin of {_STEPS} steps through "
        f"{climbed_view(model).name}, {_RETREATS} halvings of the way back"
    )


def whole_box(norm: Norm, image: Float[Tensor, "c h w"]) -> ThreatModel:
    """The smallest ball that holds the whole box around any image of this shape."""
    return ThreatModel(norm, 1.0 if norm is Norm.LINF else float(image.numel()) ** 0.5)


def nearest_adversarial(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    norm: Norm,
    seed: int = 0,
    attacks: Sequence[Attack] = (),
    view: View | None = None,
    climbed: nn.Module | None = None,
) -> list[Verdict]:
    """Look for each image's nearest adversarial image, however far.

    A bisection of the radius of an ascent of the margin, each image by itself; then what the
    minimal-norm `attacks` (FAB, DeepFool, CW) propose; then each adversarial image retreats
    towards its original as far as it stays adversarial. Everything is judged as usual.

    Args:
        model: the deployed model.
        images: originals in [0, 1], shape (n, c, h, w).
        labels: true classes, shape (n,).
        norm: the norm of the distance.
        seed: decides every random draw.
        attacks: further attacks, given the ball that holds the whole box.
        view: what the bisection climbs; by default the deployed model.
        climbed: the model on the device that is searched on; by default the deployed one.

    Returns:
        One verdict per image, with the distances of the nearest adversarial image; a wrong
        prediction has distance 0.
    """
    if len(images) == 0:
        return []
    threat = whole_box(norm, images[0])
    watched = model if climbed is None else climbed
    there, known = beside(watched, images, labels)
    view = view or View("deployed", watched, faithful=True)
    candidates = [images.cpu(), _bisect(view, watched, there, known, threat, seed).cpu()]
    for attack in attacks:
        candidates += attack.propose(watched, there, known, threat, seed).detach().cpu()
    found = judge(model, images, labels, torch.stack(candidates), threat)
    retreated = images.cpu().clone()
    for i, verdict in enumerate(found):
        if verdict.image is not None:
            retreated[i] = verdict.image
    retreated = _retreat(watched, there, known, retreated.to(there.device))
    again = judge(model, images, labels, retreated.unsqueeze(0), threat)
    return [_nearer(a, b, norm) for a, b in zip(found, again, strict=True)]


def _bisect(
    view: View, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, seed: int
) -> Tensor:
    """The adversarial image of the smallest radius at which one is found, or the original."""
    best = images.clone()
    high = torch.full((len(images),), threat.eps, dtype=torch.float64)
    low = high * _SMALLEST
    ascent = Ascent("margin", steps=_STEPS, lane=LANE)
    for turn in range(_ROUNDS):
        radius = high if turn == 0 else (low * high).sqrt()
        proposed = ascend(ascent, view, model, images, labels, threat.norm, radius, seed + turn)
        fooled = scores(model, proposed, LANE).argmax(dim=1) != labels
        broken = fooled.cpu()
        distance = threat.norm.distance(proposed, images).clamp_min(threat.eps * _SMALLEST)
        best[fooled] = proposed[fooled]
        high = torch.where(broken, torch.minimum(high, distance), high)
        low = torch.where(broken, low, radius).minimum(high)
    return best


def _retreat(model: nn.Module, images: Tensor, labels: Tensor, adversarial: Tensor) -> Tensor:
    """Halve the way back to the original where the image on the way is adversarial too."""
    wide = (-1, 1, 1, 1)
    low = torch.zeros(len(images), device=images.device)
    high = torch.ones_like(low)
    for _ in range(_RETREATS):
        middle = (low + high) / 2
        between = images + middle.view(wide) * (adversarial - images)
        fooled = scores(model, between, LANE).argmax(dim=1) != labels
        high, low = torch.where(fooled, middle, high), torch.where(fooled, low, middle)
    return images + high.view(wide) * (adversarial - images)


def _nearer(first: Verdict, second: Verdict, norm: Norm) -> Verdict:
    if second.status is not Status.ADVERSARIAL:
        return first
    if first.status is not Status.ADVERSARIAL:
        return second
    distances = [v.linf if norm is Norm.LINF else v.l2 for v in (first, second)]
    assert distances[0] is not None
    assert distances[1] is not None
    return first if distances[0] <= distances[1] else second
