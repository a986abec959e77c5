"""Interval bounds: a box that holds every float32 activation the program can compute.

A box is carried in float64 from layer to layer. Behind an affine layer it is the exact image of
the box in front, widened entry by entry by a bound on the layer's float32 rounding, so that it
speaks of the arithmetic that predicts (Gowal et al., arXiv 1810.12715, for the bounds; Higham's
gamma_n for the rounding). By induction it holds the activations of exact arithmetic too.
"""

from dataclasses import dataclass
from functools import singledispatch

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from robustness.nets.encoders import Normalise
from robustness.numerics.arithmetic import ALLOWANCE_ROOM, rounding_of_entries
from robustness.programs.trust import unaltered


@dataclass(frozen=True)
class Box:
    """All that a layer's computed activations can be, for each of n images.

    Attributes:
        low: lower ends, float64, shape (n, ...).
        high: upper ends, of the same shape.
        error: how far each computed activation can be from the exact one, of the same shape.
    """

    low: Float[Tensor, "n *shape"]
    high: Float[Tensor, "n *shape"]
    error: Float[Tensor, "n *shape"]

    @classmethod
    def around(cls, images: Float[Tensor, "n *shape"], eps: Float[Tensor, " n"]) -> "Box":
        """All images of the pixel box within `eps`, in l-infinity, of `images`."""
        wide, pixels = eps.double().view(-1, *(1,) * (images.dim() - 1)), images.double()
        low, high = (pixels - wide).clamp_min(0), (pixels + wide).clamp_max(1)
        return cls(low, high, torch.zeros_like(low))

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


def propagate(module: nn.Module, box: Box) -> Box:
    """The box behind `module`, given the box in front of it.

    Raises:
        NotImplementedError: no interval rule is known for this kind of module.
    """
    for layer in layers_of(module):
        box = _propagate(layer, box)
    return box


def layers_of(module: nn.Module) -> list[nn.Module]:
    """The layers of `module` in order, sequences taken apart.

    Raises:
        NotImplementedError: no interval rule is known for one of them.
    """
    described = next((kind for kind in type(module).__mro__ if kind in _KNOWN), None)
    if described is None or not unaltered(module, described):
        raise NotImplementedError(f"no interval rule is known for {type(module).__name__}")
    if isinstance(module, nn.Sequential):
        return [inner for layer in module for inner in layers_of(layer)]
    settings = ", ".join(_unknown_settings(module))
    if settings:
        raise NotImplementedError(
            f"no interval rule is known for {type(module).__name__} with {settings}"
        )
    return [module]


def refusal(module: nn.Module) -> str | None:
    """Why no box is known behind `module`; None where there is one."""
    try:
        layers_of(module)
    except NotImplementedError as error:
        return str(error)
    return None


# The kinds of layer that are known.
_KNOWN = (nn.Sequential, nn.Flatten, nn.ReLU, nn.Linear, nn.Conv2d, Normalise)


def _unknown_settings(module: nn.Module) -> list[str]:
    """Settings of a layer that the rules do not cover, in words."""
    found = []
    if isinstance(module, Normalise) and not bool((module.std > 0).all()):
        found.append("standard deviations of 0 or less")
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1):
        found.append("axes of its own")
    if isinstance(module, nn.Conv2d):
        if module.groups != 1:
            found.append("groups")
        if module.dilation != (1, 1):
            found.append("dilation")
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            found.append("padding other than a number of zeros")
    return found


@singledispatch
def _propagate(module: nn.Module, box: Box) -> Box:
    raise NotImplementedError(f"no rule is registered for {type(module).__name__}")


@_propagate.register
def _(module: nn.Flatten, box: Box) -> Box:
    return Box(module(box.low), module(box.high), module(box.error))


@_propagate.register
def _(module: nn.ReLU, box: Box) -> Box:
    # Not by the module itself, which may work in place. relu moves no two numbers apart, and
    # what it makes of two numbers below zero is the same.
    del module
    error = torch.where(box.high > 0, box.error, 0.0)
    return Box(box.low.clamp_min(0), box.high.clamp_min(0), error)


@_propagate.register
def _(module: Normalise, box: Box) -> Box:
    mean, std = module.mean.double(), module.std.double()
    size = (box.size + mean.abs()) / std
    local = rounding_of_entries(4, size, float(std.reciprocal().max() + mean.abs().max()) + 1)
    low, high = (box.low - mean) / std, (box.high - mean) / std
    return Box(low - local, high + local, box.error / std + local)


@_propagate.register
def _(module: nn.Linear, box: Box) -> Box:
    weight, bias = affine(module)
    images = torch.stack([box.half_width, box.size, box.error])
    spread, size, error = images @ weight.abs().T
    local = _rounding_of(weight, size + bias.abs(), box)
    return _widened(box.centre @ weight.T + bias, spread, error, local)


@_propagate.register
def _(module: nn.Conv2d, box: Box) -> Box:
    # As for contractive flows, the rounding bound is one of sums of products, in any order.
    weight, bias = affine(module)
    offset = bias.view(-1, 1, 1)

    def convolved(images: Tensor, kernel: Tensor) -> Tensor:
        return functional.conv2d(images, kernel, None, module.stride, module.padding)

    images = torch.cat([box.half_width, box.size, box.error])
    spread, size, error = convolved(images, weight.abs()).chunk(3)
    local = _rounding_of(weight, size + offset.abs(), box)
    return _widened(convolved(box.centre, weight) + offset, spread, error, local)


def affine(module: nn.Linear | nn.Conv2d) -> tuple[Tensor, Float[Tensor, " out"]]:
    """Weight and bias of a layer in float64; zeros stand for a missing bias."""
    weight = module.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if module.bias is None else module.bias.detach().double()
    return weight, bias


def _rounding_of(weight: Tensor, size: Tensor, box: Box) -> Tensor:
    # Of each image by itself: nothing that is said may depend on the neighbours in a batch.
    largest = box.size.flatten(1).amax(dim=1).view(-1, *(1,) * (size.dim() - 1))
    return rounding_of_entries(weight[0].numel() + 1, size, weight.abs().max() + largest)


def _widened(centre: Tensor, spread: Tensor, error: Tensor, local: Tensor) -> Box:
    low, high = centre - spread - local, centre + spread + local
    return Box(low, high, error * (1 + ALLOWANCE_ROOM) + local)
