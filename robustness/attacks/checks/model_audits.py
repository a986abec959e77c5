"""Audits of a model's predictions: does it do what attacks and judges assume of a model?"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustness.attacks.checks.flag import SIGNIFICANCE, Flag, Pairs
from robustness.attacks.judge import predict_alone

# Largest difference, relative to the largest logit, of two calls that compute the same.
_ROUNDING = 1e-6
# Pairs of images whose boundary is looked for, and how close, as a part of the way between them.
_PAIRS, _BESIDE = 8, 1e-2
# Probabilities that sum to one up to this are taken for a softmax.
_SUM = 1e-4


@torch.no_grad()
def batch_invariance(model: nn.Module, images: Float[Tensor, "n c h w"]) -> Flag:
    """Whether a prediction changes with its company: alone, together, in halves, reversed.

    Asked of the images and of points close to a boundary between two of them, where an attack
    works: on clean images margins hide the coupling. Raised by a single flip.
    """
    points = torch.cat([images, _beside_boundaries(model, images)])
    alone, _ = predict_alone(model, points)
    reverse = torch.arange(len(points), device=points.device).flip(0)
    halves = points.tensor_split([max(1, len(points) // 2)])
    company = [
        model(points).argmax(dim=1),
        model(points[reverse]).argmax(dim=1)[reverse],
        torch.cat([model(half).argmax(dim=1) for half in halves if len(half)]),
    ]
    changed = torch.stack([prediction != alone for prediction in company]).any(dim=0)
    flips, beside = int(changed.sum()), len(points) - len(images)
    detail = (
        f"{flips} of {len(points)} predictions change with the batch they are made in: "
        f"{int(changed[: len(images)].sum())} of {len(images)} images and "
        f"{int(changed[len(images) :].sum())} of {beside} points beside a boundary"
    )
    return Flag("batch-invariance", flips > 0, float(flips), 0.0, detail)


def _beside_boundaries(model: nn.Module, images: Tensor) -> Tensor:
    """Both sides of where the prediction, alone, changes on the way from image to image."""
    classes, _ = predict_alone(model, images)
    following = torch.arange(len(images), device=images.device).roll(-1)
    pairs = torch.nonzero(classes != classes[following]).squeeze(1)[:_PAIRS]
    start, way = images[pairs], images[following[pairs]] - images[pairs]
    low = torch.zeros(len(pairs), device=images.device)
    high = torch.ones_like(low)
    while len(pairs) and float((high - low).max()) > _BESIDE:
        middle = (low + high) / 2
        reached, _ = predict_alone(model, start + middle.view(-1, 1, 1, 1) * way)
        same = reached == classes[pairs]
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    return torch.cat([start + part.view(-1, 1, 1, 1) * way for part in (low, high)])


@torch.no_grad()
def randomness(model: nn.Module, images: Float[Tensor, "n c h w"], calls: int = 3) -> Flag:
    """Whether two calls on the same batch differ.

    Raised if logits differ by more than rounding, relative to the largest.
    """
    first = model(images).cpu().double()
    scale = float(first.nan_to_num(0, 0, 0).abs().max().clamp_min(1e-30))
    others = torch.stack([model(images).cpu().double() for _ in range(calls - 1)])
    spread = float((others - first).nan_to_num(0, 0, 0).abs().max()) / scale
    flips = int((others.argmax(dim=2) != first.argmax(dim=1)).any(dim=0).sum())
    detail = (
        f"logits of {calls} calls differ by {spread:.1e} of the largest; "
        f"{flips} of {len(images)} predictions flip"
    )
    return Flag("randomness", spread > _ROUNDING, spread, _ROUNDING, detail)


@torch.no_grad()
def solver_failures(model: nn.Module, images: Float[Tensor, "n c h w"]) -> Flag:
    """Samples without finite logits: lost to the solver. Raised by a single one."""
    _, finite = predict_alone(model, images)
    lost = int((~finite).sum())
    detail = f"{lost} of {len(images)} samples have no finite logits"
    return Flag("solver-failures", lost > 0, float(lost), 0.0, detail)


@torch.no_grad()
def logits_check(model: nn.Module, images: Float[Tensor, "n c h w"]) -> Flag:
    """Whether the outputs are probabilities, or their logarithms, rather than logits.

    Raised if the entries of every sample sum to 1 and none is negative, or their exponentials do.
    """
    outputs = model(images).cpu().double()
    scores = outputs[outputs.isfinite().all(dim=1)]
    if not len(scores):
        return Flag("logits", False, 0.0, 1.0, "no finite logits to look at")
    probabilities = bool((scores >= 0).all()) and _sums_to_one(scores)
    logarithms = bool((scores <= 0).all()) and _sums_to_one(scores.exp())
    kind = "probabilities" if probabilities else "logarithms of probabilities"
    raised = probabilities or logarithms
    detail = f"outputs are {kind if raised else 'logits'} on {len(scores)} samples"
    return Flag("logits", raised, float(raised), 1.0, detail)


def _sums_to_one(values: Tensor) -> bool:
    return bool(((values.sum(dim=1) - 1).abs() < _SUM).all())


def input_range(
    model: nn.Module, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]
) -> Flag:
    """Whether the model would rather have pixels of 0 to 255.

    Raised if it is right on more images times 255 than on the images, beyond chance.
    """
    return _prefers(model, images, labels, lambda x: 255 * x, "input-range", "times 255")


def normalisation(
    model: nn.Module, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]
) -> Flag:
    """Whether the model would rather have images normalised beforehand.

    Raised if it is right on more images of mean 0 and standard deviation 1 per channel than on
    the images, beyond chance. The model should normalise in a layer of its own.
    """

    def normalised(x: Tensor) -> Tensor:
        centre = x.mean(dim=(0, 2, 3), keepdim=True)
        return (x - centre) / x.std(dim=(0, 2, 3), keepdim=True).clamp_min(1e-6)

    return _prefers(model, images, labels, normalised, "normalisation", "normalised")


@torch.no_grad()
def _prefers(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    change: Callable[[Tensor], Tensor],
    name: str,
    words: str,
) -> Flag:
    plain = (model(images).argmax(dim=1) == labels).tolist()
    changed = (model(change(images)).argmax(dim=1) == labels).tolist()
    chance = Pairs.of(plain, changed).probability
    detail = (
        f"right on {sum(plain)} of {len(images)} images, on {sum(changed)} of them {words}; "
        f"p = {chance:.2g}"
    )
    return Flag(name, chance < SIGNIFICANCE, chance, SIGNIFICANCE, detail)
