"""Interval bounds: a box that holds every float32 activation the program can compute.

A box is carried in float64 from layer to layer. Behind an affine layer it is the exact image of
the box in front, widened entry by entry by a bound on the layer's float32 rounding, so that it
speaks of the arithmetic that predicts (Gowal et al., arXiv 1810.12715, for the bounds; Higham's
gamma_n for the rounding).
"""

from dataclasses import dataclass
from functools import singledispatch

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from robustness.certificates import bounds
from robustness.nets.convolutions import ConvReLUEncoder
from robustness.nets.encoders import Normalise

# Share by which a float32 rounding bound is raised for the float64 arithmetic that evaluates it.
_FLOAT64_ROOM = 1e-6


@dataclass(frozen=True)
class Box:
    """All that a layer's computed activations can be, for each of n images.

    Attributes:
        low: lower ends, float64, shape (n, ...).
        high: upper ends, of the same shape.
    """

    low: Float[Tensor, "n *shape"]
    high: Float[Tensor, "n *shape"]

    @classmethod
    def around(cls, images: Float[Tensor, "n *shape"], eps: Float[Tensor, " n"]) -> "Box":
        """All images of the pixel box within `eps`, in l-infinity, of `images`."""
        wide = eps.double().view(-1, *(1,) * (images.dim() - 1))
        return cls((images.double() - wide).clamp_min(0), (images.double() + wide).clamp_max(1))

    @property
    def centre(self) -> Float[Tensor, "n *shape"]:
        """Middle of the box."""
        return (self.low + self.high) / 2

    @property
    def half_width(self) -> Float[Tensor, "n *shape"]:
        """Half the length of each side."""
        return (self.high - self.low) / 2

    @property
    def size(self) -> Float[Tensor, "n *shape"]:
        """Largest absolute value of each entry."""
        return torch.maximum(self.low.abs(), self.high.abs())


def rounding(terms: int, size: Tensor, operands: Tensor | float) -> Tensor:
    """Float32 error of each entry of a layer of sums of products.

    Args:
        terms: number of terms of a sum.
        size: each sum with all of its terms taken positive.
        operands: a bound on every factor that enters; see `bounds.rounding`.

    Returns:
        A bound per entry; infinite where a sum might leave the range of float32.
    """
    flushed = bounds._TINY * terms * (2 + operands)
    error = (bounds.gamma(terms) * size + flushed) * (1 + _FLOAT64_ROOM)
    return torch.where(size + operands <= bounds.LARGEST, error, torch.inf)


def propagate(module: nn.Module, box: Box) -> Box:
    """The box behind `module`, given the box in front of it.

    Raises:
        NotImplementedError: no interval rule is known for this kind of module.
    """
    if not bounds._follows_a_rule(module, _propagate.registry):
        raise NotImplementedError(f"no interval rule is known for {type(module).__name__}")
    return _propagate(module, box)


def is_bounded(module: nn.Module) -> bool:
    """Whether every part of `module` has an interval rule."""
    if not bounds._follows_a_rule(module, _propagate.registry):
        return False
    return not isinstance(module, nn.Sequential) or all(is_bounded(layer) for layer in module)


@singledispatch
def _propagate(module: nn.Module, box: Box) -> Box:
    raise NotImplementedError(f"no rule is registered for {type(module).__name__}")


@_propagate.register(nn.Flatten)
@_propagate.register(nn.ReLU)
def _(module: nn.Module, box: Box) -> Box:
    return Box(module(box.low), module(box.high))


@_propagate.register
def _(module: Normalise, box: Box) -> Box:
    mean, std = module.mean.double(), module.std.double()
    size = (box.size + mean.abs()) / std
    error = rounding(4, size, float(std.reciprocal().max() + mean.abs().max()) + 1)
    return Box((box.low - mean) / std - error, (box.high - mean) / std + error)


@_propagate.register
def _(module: nn.Linear, box: Box) -> Box:
    weight = module.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if module.bias is None else module.bias.detach().double()
    centre = box.centre @ weight.T + bias
    spread = box.half_width @ weight.abs().T
    size = box.size @ weight.abs().T + bias.abs()
    operands = float(weight.abs().max() + box.size.max())
    return _widened(centre, spread, rounding(weight.shape[1] + 1, size, operands))


@_propagate.register
def _(module: nn.Conv2d, box: Box) -> Box:
    # As for contractive flows, the rounding bound is one of sums of products, in any order.
    if module.groups != 1 or module.dilation != (1, 1) or module.padding_mode != "zeros":
        raise NotImplementedError("no interval rule is known for grouped or dilated convolutions")
    weight = module.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if module.bias is None else module.bias.detach().double()
    offset = bias.view(-1, 1, 1)

    def convolved(images: Tensor, kernel: Tensor) -> Tensor:
        return functional.conv2d(images, kernel, None, module.stride, module.padding)

    centre = convolved(box.centre, weight) + offset
    spread = convolved(box.half_width, weight.abs())
    size = convolved(box.size, weight.abs()) + offset.abs()
    operands = float(weight.abs().max() + box.size.max())
    return _widened(centre, spread, rounding(weight[0].numel() + 1, size, operands))


@_propagate.register(nn.Sequential)
@_propagate.register(ConvReLUEncoder)
def _(module: nn.Sequential, box: Box) -> Box:
    for layer in module:
        box = propagate(layer, box)
    return box


def _widened(centre: Tensor, spread: Tensor, error: Tensor) -> Box:
    return Box(centre - spread - error, centre + spread + error)
