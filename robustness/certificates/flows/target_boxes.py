"""Margins of a target network over l-infinity boxes of pixels, and the largest boxes they bear.

The program that computes the features is recorded, and bounded as any other (`programs.network`),
its rounding included. The head is merged with the specification, so that rows w_y - w_j of the
features are bounded as a whole: over the box of the features, and, where that leaves a sign open,
by lines through the encoder (Zhang et al., arXiv 1811.00866). The better of the two counts, margin
by margin. What the rounding of head, softmax and solver can take away from there is bounded as for
every target-seeking flow (`constants.flow_allowance`).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robustness.certificates.flows.constants import flow_allowance
from robustness.certificates.search import RadiusSearch
from robustness.certificates.sharing import shared
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.encoders import Normalise
from robustness.nets.fields import TargetSeekingField
from robustness.numerics.arithmetic import ALLOWANCE_ROOM, FLOAT64_ROOM
from robustness.programs.boxes import Box
from robustness.programs.graph import Refusal
from robustness.programs.network import Ball, Bounds, Network
from robustness.programs.record import record
from robustness.programs.trust import unaltered
from robustness.threat import Norm

# Where the search for a radius starts (a usual one, and the share that float64 rounding will
# cost it), and the relative width at which it ends.
_FIRST_GUESS, _TOLERANCE = 0.1 * (1 + 1e-6), 2**-8
# A search that has not closed its bracket by then keeps what it has verified.
_MOST_ROUNDS = 24
# Smallest radius given: float64 represents the ends of smaller boxes too coarsely.
_SMALLEST = 1e-6
# Rows that are taken backwards at once: flat memory whatever the network.
_ROWS_AT_ONCE = 256
# Layers of the encoders that boxes and lines are cheap for and lose little in.
_KNOWN = (nn.Sequential, nn.Flatten, nn.ReLU, nn.Linear, nn.Conv2d, Normalise)


class _Features(nn.Module):
    """The features of a neural ODE on the class state, shape (n, f)."""

    def __init__(self, model: NeuralODEClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.features(images)


@shared
def features_of(model: NeuralODEClassifier, shape: tuple[int, int, int]) -> Network:
    """The recorded program of a model's features, with the rules of its operations.

    Raises:
        NotImplementedError: it cannot be recorded, or an operation has no rule.
    """
    try:
        return Network(record(_Features(model), shape))
    except Refusal as refused:
        raise NotImplementedError(str(refused)) from refused


def refusal_of_boxes(model: NeuralODEClassifier) -> str | None:
    """Why a model's encoder is not bounded over boxes; None where it is.

    It is where it is a sequence of affine layers and rectifiers, as those are which are trained on
    intervals. Every other that can be recorded is bounded by the certificate `program`.
    """
    return _refusal_of_layer(model.normalise) or _refusal_of_layer(model.encoder)


def _refusal_of_layer(module: nn.Module) -> str | None:
    described = next((kind for kind in type(module).__mro__ if kind in _KNOWN), None)
    if described is None or not unaltered(module, described):
        return f"no interval rule is known for {type(module).__name__}"
    if isinstance(module, Normalise) and not bool((module.std > 0).all()):
        return "no interval rule is known for Normalise with standard deviations of 0 or less"
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1):
        return "no interval rule is known for Flatten with axes of its own"
    inner = module if isinstance(module, nn.Sequential) else ()
    return next((reason for layer in inner if (reason := _refusal_of_layer(layer))), None)


@dataclass(frozen=True)
class BoxMargins:
    """Lower bounds of the computed target's margins over each image's box.

    Attributes:
        margins: float64 margin of the label over each class, without the coupling and with all
            rounding taken off; infinite at the label itself; shape (n, classes).
        linear: whether lines gave it, shape (n, classes).
    """

    margins: Float[Tensor, "n k"]
    linear: Bool[Tensor, "n k"]

    @property
    def worst(self) -> Float[Tensor, " n"]:
        """The smallest margin of each image; the label leads all over the box where positive."""
        return self.margins.amin(dim=1)


@torch.no_grad()
def box_margins(
    model: NeuralODEClassifier,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    eps: Float[Tensor, " n"],
) -> BoxMargins:
    """Margins of the target over all images of the pixel box within `eps` of each image.

    Lines are sought where boxes leave the sign of a margin open. They rest on the intervals in
    front of each ReLU: on encoders trained with intervals, lines there as well widened the mean
    radius by 0.2%, for four times the work.

    Args:
        model: a target-seeking flow whose encoder has interval rules.
        images: pixels, shape (n, c, h, w).
        labels: classes y, shape (n,).
        eps: half the side of each image's box, shape (n,).

    Raises:
        NotImplementedError: see `features_of`.
    """
    channels, height, width = images.shape[1:]
    return _box_margins(model, features_of(model, (channels, height, width)), images, labels, eps)


def _box_margins(
    model: NeuralODEClassifier, network: Network, images: Tensor, labels: Tensor, eps: Tensor
) -> BoxMargins:
    ball = Ball(images.double().unsqueeze(1), eps.double(), Norm.LINF)
    bounds = Bounds(network, ball, forms=False)
    features = bounds.boxes[-1]
    features = Box(features.low.flatten(1), features.high.flatten(1))
    label = torch.nn.functional.one_hot(labels, model.classes).bool()
    normals, offset = _merged_head(model, labels)
    flow = _flow_allowance(model, features).unsqueeze(1)
    margins = _by_intervals(features, normals, offset)
    image, rival = ((margins - flow <= 0) & ~label).nonzero(as_tuple=True)
    linear = torch.zeros_like(label)
    if len(image):
        by_lines = _by_lines(bounds, image, normals[image, rival]) + offset[image, rival]
        by_lines = by_lines - FLOAT64_ROOM * offset[image, rival].abs()
        linear[image, rival] = by_lines > margins[image, rival]
        margins[image, rival] = torch.maximum(margins[image, rival], by_lines)
    return BoxMargins((margins - flow).masked_fill(label, torch.inf), linear)


def _merged_head(model: NeuralODEClassifier, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The margins' rows and offsets over the features, shapes (n, classes, f) and (n, classes)."""
    field = model.field
    assert isinstance(field, TargetSeekingField)
    weight, bias = _head(field)
    normals = field.gain * (weight[labels].unsqueeze(1) - weight)
    return normals, field.gain * (bias[labels].unsqueeze(1) - bias)


def _head(field: TargetSeekingField) -> tuple[Tensor, Tensor]:
    weight = field.head.weight.detach().double()
    missing = field.head.bias is None
    return weight, weight.new_zeros(len(weight)) if missing else field.head.bias.detach().double()


def _by_intervals(
    features: Box, normals: Float[Tensor, "n k f"], offset: Float[Tensor, "n k"]
) -> Float[Tensor, "n k"]:
    """Margins at all computed features."""
    sizes = normals.abs()
    columns = torch.stack([features.half, features.size], dim=2)
    spread, size = torch.bmm(sizes, columns).unbind(dim=2)
    centre = torch.bmm(normals, features.centre.unsqueeze(2)).squeeze(2) + offset
    return centre - spread - FLOAT64_ROOM * (size + offset.abs())


def _by_lines(
    bounds: Bounds, image: Int[Tensor, " r"], normals: Float[Tensor, "r f"]
) -> Float[Tensor, " r"]:
    """Lower bounds of linear functions of some images' features."""
    last = len(bounds.network) - 1
    found = normals.new_zeros(len(image))
    _, number, counts = image.unique(return_inverse=True, return_counts=True)
    # Images of as many rows are taken together: what is known of an image serves all of its rows.
    for count in counts.unique().tolist():
        chosen = (counts[number] == count).nonzero().squeeze(1)
        chosen = chosen[image[chosen].argsort(stable=True)].view(-1, count)
        for part in chosen.split(max(1, _ROWS_AT_ONCE // count)):
            rows = normals[part].unsqueeze(2)
            found[part] = bounds.lanes(image[part[:, 0]]).by_lines(last, rows)
    return found


def _flow_allowance(model: NeuralODEClassifier, features: Box) -> Float[Tensor, " n"]:
    """What a margin at the computed features can lose to head, softmax and solver."""
    field = model.field
    assert isinstance(field, TargetSeekingField)
    weight, bias = _head(field)
    score = (features.size @ weight.abs().T + bias.abs()).amax(dim=1)
    operands = weight.abs().max() + features.size.amax(dim=1)
    return flow_allowance(model, score, operands) * (1 + ALLOWANCE_ROOM)


@dataclass(frozen=True)
class BoxRadii:
    """The largest boxes that were verified, and what stopped the next larger ones.

    Attributes:
        radii: half the side of a box that was itself verified, 0 where none was, shape (n,).
        rival: class with the smallest margin over the smallest box that failed, shape (n,).
        linear: whether that margin's bound was a linear one, shape (n,).
        rounding: share of the unperturbed image's margin over that class which rounding takes,
            shape (n,).
    """

    radii: Float[Tensor, " n"]
    rival: Int[Tensor, " n"]
    linear: Bool[Tensor, " n"]
    rounding: Float[Tensor, " n"]


@torch.no_grad()
def box_radii(
    model: NeuralODEClassifier, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]
) -> BoxRadii:
    """Search for each image's largest box on which the label leads; arguments as `box_margins`.

    The bracket of the largest verified and the smallest failed box is closed by regula falsi on
    the worst margin (the Illinois algorithm). A radius is one that was itself verified, so
    nothing rests on how the margin behaves between two of them.
    """
    channels, height, width = images.shape[1:]
    network = features_of(model, (channels, height, width))
    at_centre = _box_margins(model, network, images, labels, torch.zeros(len(images)))
    search = RadiusSearch(at_centre.worst, _FIRST_GUESS, _TOLERANCE)
    rival = at_centre.margins.argmin(dim=1)
    linear = torch.zeros_like(rival, dtype=torch.bool)
    for _ in range(_MOST_ROUNDS):
        part = search.open.nonzero().squeeze(1)
        if len(part) == 0:
            break
        found = _box_margins(model, network, images[part], labels[part], search.guess[part])
        search.record(part, found.worst)
        failed = part[~(found.worst > 0)]
        worst = found.margins.argmin(dim=1)
        rival[failed] = worst[~(found.worst > 0)]
        chosen = found.linear.gather(1, worst.unsqueeze(1)).squeeze(1)
        linear[failed] = chosen[~(found.worst > 0)]
    exact = _margins_at(model, images, labels)
    share = ((exact - at_centre.margins) / exact).gather(1, rival.unsqueeze(1)).squeeze(1)
    radii = torch.where(search.verified >= _SMALLEST, search.verified, 0.0)
    return BoxRadii(radii, rival, linear, share)


def _margins_at(model: NeuralODEClassifier, images: Tensor, labels: Tensor) -> Tensor:
    """The target's margins at the images themselves, nothing taken off, shape (n, classes)."""
    normals, offset = _merged_head(model, labels)
    features = model.features(images).double()
    return torch.bmm(normals, features.unsqueeze(2)).squeeze(2) + offset
