"""Linear (CROWN) bounds of a target's margins over l-infinity boxes, and their rounding.

A margin is bounded from below by a linear function of the pixels, found by going backwards from
the margin to the pixels and replacing each ReLU by a line above and a line below it (Zhang et
al., arXiv 1811.00866, theorem 3.2). Its least value over the box is exact. The head is merged
with the specification, so that rows w_y - w_j are bounded as a whole.

Why interval bounds for the rounding and linear ones for the rest are sound together: for every
image x' of the box let z be its exact features and z^ the ones that the float32 program computes.
The exact margin at z is at least the linear bound L. Entry by entry |z^ - z| <= e, a bound that
`boxes` carries through the layers: e' = |W| e + gamma_n (|W| |z^| + |b|) behind an affine layer,
and e itself behind a ReLU. A margin is linear in the features, so at z^ it is at least
L - |w_y - w_j| e. What the rounding of head, softmax and solver can take away from there is
bounded as for every target-seeking flow (`constants.flow_allowance`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input

from robustness.certificates.layers import boxes
from robustness.certificates.layers.boxes import Box
from robustness.nets.encoders import Normalise
from robustness.numerics.arithmetic import FLOAT64_ROOM

# Rows that are taken backwards at once: flat memory whatever the network.
_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Rows:
    """Linear functions of one layer's activations, each about one image.

    Attributes:
        slopes: coefficients, shape (r, *shape of the layer's output).
        offset: constant terms, shape (r,).
        image: which image of the batch each row is about, shape (r,).
    """

    slopes: Float[Tensor, "r *shape"]
    offset: Float[Tensor, " r"]
    image: Int[Tensor, " r"]


@dataclass(frozen=True)
class Trace:
    """A network's layers with the box that enters each, for a batch of images.

    Attributes:
        layers: the layers, sequences taken apart.
        entered: the box in front of each layer.
        final: the box behind the last.
        ceiling: what a white image gives with all weights and biases taken positive, shape
            (1, ...) of the output; it bounds everything that is ever summed on the way.
    """

    layers: Sequence[nn.Module]
    entered: Sequence[Box]
    final: Box
    ceiling: Float[Tensor, "1 *shape"]


def trace(layers: Sequence[nn.Module], pixels: Box) -> Trace:
    """Boxes in front of and behind every layer (the intermediate bounds of arXiv 1906.06316).

    Args:
        layers: from `boxes.layers_of`.
        pixels: the box of pixels, within [0, 1].
    """
    entered, box, ceiling = [], pixels, torch.ones_like(pixels.low[:1])
    for layer in layers:
        entered.append(box)
        box, ceiling = boxes.propagate(layer, box), _all_positive(layer, ceiling)
    return Trace(layers, entered, box, ceiling)


def lower_bounds(network: Trace, rows: Rows) -> Float[Tensor, " r"]:
    """Lower bounds of linear functions of the network's output over its box of pixels.

    They hold in exact arithmetic, float64 rounding of their own evaluation included.
    """
    parts = []
    for start in range(0, len(rows.image), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        piece = Rows(rows.slopes[part], rows.offset[part], rows.image[part])
        parts.append(_lower_bounds(network, piece))
    return torch.cat(parts) if parts else rows.offset


def _lower_bounds(network: Trace, rows: Rows) -> Tensor:
    ceiling = rows.slopes.flatten(1).abs() @ network.ceiling.flatten() + rows.offset.abs()
    for layer, box in zip(reversed(network.layers), reversed(network.entered), strict=True):
        rows = _backwards(layer, rows, box)
    pixels = network.entered[0]
    centre, half = (part.flatten(1)[rows.image] for part in (pixels.centre, pixels.half_width))
    slopes = rows.slopes.flatten(1)
    least = (slopes * centre - slopes.abs() * half).sum(dim=1) + rows.offset
    return least - FLOAT64_ROOM * ceiling


@singledispatch
def _backwards(layer: nn.Module, rows: Rows, box: Box) -> Rows:
    """Linear functions of the layer's input that are no greater, given the box in front of it."""
    raise NotImplementedError(f"no rule is registered for {type(layer).__name__}")


@_backwards.register
def _(layer: nn.Flatten, rows: Rows, box: Box) -> Rows:
    del layer
    return Rows(rows.slopes.reshape(-1, *box.low.shape[1:]), rows.offset, rows.image)


@_backwards.register
def _(layer: Normalise, rows: Rows, box: Box) -> Rows:
    del box
    slopes = rows.slopes / layer.std.double()
    offset = rows.offset - (slopes * layer.mean.double()).flatten(1).sum(dim=1)
    return Rows(slopes, offset, rows.image)


@_backwards.register
def _(layer: nn.Linear, rows: Rows, box: Box) -> Rows:
    del box
    weight, bias = boxes.affine(layer)
    return Rows(rows.slopes @ weight, rows.offset + rows.slopes @ bias, rows.image)


@_backwards.register
def _(layer: nn.Conv2d, rows: Rows, box: Box) -> Rows:
    weight, bias = boxes.affine(layer)
    offset = rows.offset + rows.slopes.sum(dim=(2, 3)) @ bias
    shape = box.low.shape[1:]
    slopes = conv2d_input(
        (len(rows.slopes), *shape), weight, rows.slopes, layer.stride, layer.padding
    )
    return Rows(slopes, offset, rows.image)


@_backwards.register
def _(layer: nn.ReLU, rows: Rows, box: Box) -> Rows:
    # Above, between low < 0 < high, relu lies below the chord; below, above the line of slope 0
    # or 1, whichever leaves the smaller triangle.
    del layer
    active, bent = box.low >= 0, (box.low < 0) & (box.high > 0)
    chord = torch.where(bent, box.high / (box.high - box.low), active.double())
    lift = torch.where(bent, -chord * box.low, 0.0)
    under = torch.where(bent, (box.high > -box.low).double(), active.double())
    falling = rows.slopes.clamp_max(0)
    offset = rows.offset + (falling * lift[rows.image]).flatten(1).sum(dim=1)
    slopes = rows.slopes.clamp_min(0) * under[rows.image] + falling * chord[rows.image]
    return Rows(slopes, offset, rows.image)


@singledispatch
def _all_positive(layer: nn.Module, size: Tensor) -> Tensor:
    """What the layer gives with its weights and biases taken positive, for inputs >= 0."""
    raise NotImplementedError(f"no rule is registered for {type(layer).__name__}")


@_all_positive.register
def _(layer: nn.Flatten, size: Tensor) -> Tensor:
    return layer(size)


@_all_positive.register
def _(layer: nn.ReLU, size: Tensor) -> Tensor:
    del layer
    return size


@_all_positive.register
def _(layer: Normalise, size: Tensor) -> Tensor:
    return (size + layer.mean.double().abs()) / layer.std.double()


@_all_positive.register
def _(layer: nn.Linear, size: Tensor) -> Tensor:
    weight, bias = boxes.affine(layer)
    return size @ weight.abs().T + bias.abs()


@_all_positive.register
def _(layer: nn.Conv2d, size: Tensor) -> Tensor:
    weight, bias = boxes.affine(layer)
    return functional.conv2d(size, weight.abs(), bias.abs(), layer.stride, layer.padding)
