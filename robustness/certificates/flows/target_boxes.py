"""Margins of a target network over l-infinity boxes of pixels, and the largest boxes they bear.

For every image of a box the target's margins are bounded from below twice: by intervals, which
carry the float32 rounding along, and by linear bounds less a bound on the rounding (see
`linear_bounds`). The better of the two counts, margin by margin.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustness.certificates.flows.constants import flow_allowance
from robustness.certificates.layers import boxes, linear_bounds
from robustness.certificates.layers.boxes import Box
from robustness.certificates.search import RadiusSearch
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.fields import TargetSeekingField
from robustness.numerics.arithmetic import ALLOWANCE_ROOM, FLOAT64_ROOM

# Where the search for a radius starts (a usual one, and the share that float64 rounding will
# cost it), and the relative width at which it ends.
_FIRST_GUESS, _TOLERANCE = 0.1 * (1 + 1e-6), 2**-8
# A search that has not closed its bracket by then keeps what it has verified.
_MOST_ROUNDS = 24
# Smallest radius given: float64 represents the ends of smaller boxes too coarsely.
_SMALLEST = 1e-6


@dataclass(frozen=True)
class BoxMargins:
    """Lower bounds of the computed target's margins over each image's box.

    Attributes:
        margins: float64 margin of the label over each class, without the coupling and with all
            rounding taken off; infinite at the label itself; shape (n, classes).
        allowance: what of it was given up to float32 rounding, shape (n, classes).
        linear: whether the linear bound gave it, shape (n, classes).
    """

    margins: Float[Tensor, "n k"]
    allowance: Float[Tensor, "n k"]
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

    Linear bounds are sought where intervals leave the sign of a margin open. Their lines rest on
    the intervals in front of each ReLU: on encoders trained with intervals, linear bounds there
    as well widened the mean radius by 0.2%, for four times the work.

    Args:
        model: a target-seeking flow whose encoder has interval rules.
        images: pixels, shape (n, c, h, w).
        labels: classes y, shape (n,).
        eps: half the side of each image's box, shape (n,).
    """
    field = model.field
    assert isinstance(field, TargetSeekingField)
    layers = [*boxes.layers_of(model.normalise), *boxes.layers_of(model.encoder)]
    network = linear_bounds.trace(layers, Box.around(images, eps))
    label = torch.nn.functional.one_hot(labels, model.classes).bool()
    weight, bias = boxes.affine(field.head)
    normals = field.gain * (weight[labels].unsqueeze(1) - weight)
    offset = field.gain * (bias[labels].unsqueeze(1) - bias)
    flow = _flow_allowance(model, network.final).unsqueeze(1)

    margins, rounding = _by_intervals(network, normals, offset)
    image, rival = ((margins - flow <= 0) & ~label).nonzero(as_tuple=True)
    rows = linear_bounds.Rows(normals[image, rival], offset[image, rival], image)
    by_lines = linear_bounds.lower_bounds(network, rows) - rounding[image, rival]
    linear = torch.zeros_like(label)
    linear[image, rival] = by_lines > margins[image, rival]
    margins[image, rival] = torch.maximum(margins[image, rival], by_lines)
    return BoxMargins((margins - flow).masked_fill(label, torch.inf), rounding + flow, linear)


def _by_intervals(
    network: linear_bounds.Trace, normals: Float[Tensor, "n k f"], offset: Float[Tensor, "n k"]
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Margins at all computed features, and what exact features' margins can differ by."""
    box, sizes = network.final, normals.abs()
    columns = torch.stack([box.half_width, box.error], dim=2)
    spread, error = torch.bmm(sizes, columns).unbind(dim=2)
    centre = torch.bmm(normals, box.centre.unsqueeze(2)).squeeze(2) + offset
    room = FLOAT64_ROOM * (sizes @ network.ceiling[0] + offset.abs())
    return centre - spread - room, error * (1 + ALLOWANCE_ROOM)


def _flow_allowance(model: NeuralODEClassifier, features: Box) -> Float[Tensor, " n"]:
    """What a margin at the computed features can lose to head, softmax and solver."""
    field = model.field
    assert isinstance(field, TargetSeekingField)
    weight, bias = boxes.affine(field.head)
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
        rounding: share of the unperturbed image's margin over that class which float32 rounding
            takes from the failed box, shape (n,).
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
    at_centre = box_margins(model, images, labels, torch.zeros(len(images)))
    search = RadiusSearch(at_centre.worst, _FIRST_GUESS, _TOLERANCE)
    rival = at_centre.margins.argmin(dim=1)
    linear, allowance = torch.zeros_like(rival, dtype=torch.bool), at_centre.allowance.clone()
    for _ in range(_MOST_ROUNDS):
        part = search.open.nonzero().squeeze(1)
        if len(part) == 0:
            break
        found = box_margins(model, images[part], labels[part], search.guess[part])
        search.record(part, found.worst)
        failed = part[~(found.worst > 0)]
        worst = found.margins.argmin(dim=1)
        rival[failed] = worst[~(found.worst > 0)]
        chosen = found.linear.gather(1, worst.unsqueeze(1)).squeeze(1)
        linear[failed] = chosen[~(found.worst > 0)]
        allowance[failed] = found.allowance[~(found.worst > 0)]
    exact = at_centre.margins + at_centre.allowance
    share = (allowance / exact).gather(1, rival.unsqueeze(1)).squeeze(1)
    radii = torch.where(search.verified >= _SMALLEST, search.verified, 0.0)
    return BoxRadii(radii, rival, linear, share)
