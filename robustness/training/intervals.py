"""Training on interval bounds: the Lyapunov loss of a target-seeking field over an l-infinity box.

The bounds are float32 and carry gradients; they train and choose checkpoints, and prove nothing.
What is proved about the trained model is proved by `certificates`.
"""

from dataclasses import dataclass
from functools import singledispatch
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from robustness.errors import UsageError
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.encoders import Normalise
from robustness.nets.fields import TargetSeekingField

# Tolerance of the regularisers of Shi et al. (arXiv 2103.17268, section 3.3).
_TOLERANCE = 0.5


@dataclass(frozen=True)
class Band:
    """A box of activations, as affine layers see it.

    Attributes:
        centre: middle of the box, shape (n, ...).
        radius: half the length of each side, of the same shape.
    """

    centre: Float[Tensor, "n *shape"]
    radius: Float[Tensor, "n *shape"]

    @classmethod
    def around(cls, images: Float[Tensor, "n *shape"], eps: float) -> "Band":
        """All images of the pixel box within `eps`, in l-infinity, of `images`."""
        return cls.between((images - eps).clamp_min(0), (images + eps).clamp_max(1))

    @classmethod
    def between(cls, low: Float[Tensor, "n *shape"], high: Float[Tensor, "n *shape"]) -> "Band":
        """The band with these ends."""
        return cls((low + high) / 2, (high - low) / 2)


def propagate(module: nn.Module, band: Band) -> tuple[Band, list[Band]]:
    """The band behind `module` (Gowal et al., arXiv 1810.12715, section 3.1).

    Returns:
        The band, and those that entered a ReLU on the way.

    Raises:
        UsageError: intervals do not pass through a part of the module.
    """
    return _propagate(module, band)


@singledispatch
def _propagate(module: nn.Module, band: Band) -> tuple[Band, list[Band]]:
    del band
    raise UsageError(
        f"expected layers that intervals pass through, got {type(module).__name__}; "
        "set [model.encoder] kind to conv-relu or mlp"
    )


@_propagate.register
def _(module: nn.Flatten, band: Band) -> tuple[Band, list[Band]]:
    return Band(module(band.centre), module(band.radius)), []


@_propagate.register
def _(module: nn.ReLU, band: Band) -> tuple[Band, list[Band]]:
    low, high = module(band.centre - band.radius), module(band.centre + band.radius)
    return Band.between(low, high), [band]


@_propagate.register
def _(module: Normalise, band: Band) -> tuple[Band, list[Band]]:
    return Band(module(band.centre), band.radius / module.std), []


@_propagate.register
def _(module: nn.Linear, band: Band) -> tuple[Band, list[Band]]:
    return Band(module(band.centre), functional.linear(band.radius, module.weight.abs())), []


@_propagate.register
def _(module: nn.Conv2d, band: Band) -> tuple[Band, list[Band]]:
    radius = functional.conv2d(
        band.radius, module.weight.abs(), None, module.stride, module.padding
    )
    return Band(module(band.centre), radius), []


@_propagate.register
def _(module: nn.Sequential, band: Band) -> tuple[Band, list[Band]]:
    entered = []
    for layer in module:
        band, more = propagate(layer, band)
        entered += more
    return band, entered


def worst_scores(
    field: TargetSeekingField, features: Band, labels: Int[Tensor, " n"]
) -> Float[Tensor, "n k"]:
    """Upper bounds, over a band of features, of how far each class's target exceeds the label's.

    The head is merged with the specification (Gowal et al., arXiv 1810.12715, section 3): rows
    w_j - w_y are bounded as a whole, which a difference of two bounded scores is not. The
    coupling is left out, as it only helps the class that leads.

    Args:
        field: its head and gain are used.
        features: boxes of features, of shape (n, f).
        labels: classes y, shape (n,).

    Returns:
        Bounds of shape (n, classes), zero at the label; all others are negative where the label
        provably leads.
    """
    scores = field.head(features.centre)
    normals = field.head.weight
    spreads = (normals.unsqueeze(0) - normals.unsqueeze(1)).abs()
    spread = torch.bmm(spreads[labels], features.radius.unsqueeze(2)).squeeze(2)
    return field.gain * (scores - scores.gather(1, labels.unsqueeze(1)) + spread)


def certified_interval(
    model: NeuralODEClassifier,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    eps: float,
    clean: float = 0.0,
    regularisation: float = 0.0,
) -> Float[Tensor, ""]:
    """The Lyapunov loss of a target-seeking field, at its worst over an l-infinity box.

    V is convex, so V' <= -kappa V + kappa V(g): the Lyapunov condition holds up to the loss of
    the target g, which is bounded over the box by the cross-entropy of its worst margins.
    Source: the comparison argument in docs/theory.md, section "Target-seeking fields", with
    interval bounds (Gowal et al., arXiv 1810.12715, equation 11 for the mixed loss).

    Args:
        model: a classifier with a `TargetSeekingField`.
        images: pixels, shape (n, c, h, w).
        labels: classes, shape (n,).
        eps: half the side of the box, in pixel units.
        clean: share of the plain cross-entropy of the target in the loss.
        regularisation: weight of the regularisers of `tightness` and `balance`.

    Returns:
        The loss, a scalar.
    """
    field = cast(TargetSeekingField, model.field)
    normalised, _ = propagate(model.normalise, Band.around(images, eps))
    features, entered = propagate(model.encoder, normalised)
    loss = functional.cross_entropy(worst_scores(field, features, labels), labels)
    if clean > 0:
        scores = field.gain * field.head(model.features(images))
        loss = (1 - clean) * loss + clean * functional.cross_entropy(scores, labels)
    if regularisation > 0 and entered:
        terms = [tightness(normalised, band) + balance(band) for band in entered]
        loss = loss + regularisation * torch.stack(terms).mean()
    return loss


def tightness(inputs: Band, band: Band) -> Float[Tensor, ""]:
    """How far bounds have widened beyond twice the input's (2103.17268, equation 9)."""
    width = band.radius.mean().clamp_min(1e-12)
    return functional.relu(_TOLERANCE - inputs.radius.mean() / width) / _TOLERANCE


def balance(band: Band) -> Float[Tensor, ""]:
    """How unequally active and inactive neurons share mean and variance (2103.17268, eq. 10)."""
    active = (band.centre > band.radius).to(band.centre.dtype)
    inactive = (band.centre < -band.radius).to(band.centre.dtype)
    squares = (band.centre - band.centre.mean()) ** 2
    total = band.centre.new_zeros(())
    for quantity in (band.centre.abs(), squares):
        of_active, of_inactive = (quantity * active).mean(), (quantity * inactive).mean()
        if of_active > 0 and of_inactive > 0:
            ratio = of_active / of_inactive
            ratio = torch.minimum(ratio, 1 / ratio)
            total = total + functional.relu(_TOLERANCE - ratio) / _TOLERANCE
    return total


def certified_by_intervals(
    model: NeuralODEClassifier,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    eps: float,
) -> Bool[Tensor, " n"]:
    """Float32 preview of what intervals certify, for choosing a checkpoint; proves nothing."""
    field = cast(TargetSeekingField, model.field)
    normalised, _ = propagate(model.normalise, Band.around(images, eps))
    features, _ = propagate(model.encoder, normalised)
    excess = worst_scores(field, features, labels).scatter(1, labels.unsqueeze(1), -torch.inf)
    return excess.amax(dim=1) < 0
