"""Lipschitz and rounding rules of the orthogonal encoder, for the rules of `bounds`.

An orthogonal convolution does not know the size of its images, so its norm is bounded for every
size at once.

Importing this module registers the rules.
"""

from torch import nn
from torch.nn import functional

from robustness.certificates.layers import bounds
from robustness.nets.orthogonal import (
    MaxMin,
    OrthogonalConv,
    OrthogonalEncoder,
)
from robustness.numerics import arithmetic
from robustness.numerics.norms import lengths, norm_at_any_size
from robustness.numerics.upper_bound import UpperBound, proved


@bounds.lipschitz_rule.register
def _(module: MaxMin) -> UpperBound | None:
    # |max(a,b) - max(c,d)|^2 + |min(a,b) - min(c,d)|^2 <= |a - c|^2 + |b - d|^2: rearrangement.
    del module
    return proved(1.0, "1-Lipschitz layer")


@bounds.lipschitz_rule.register
def _(module: OrthogonalConv) -> UpperBound | None:
    return proved(norm_at_any_size(module.weight), "orthogonal convolutions (Gram step)")


@bounds.tube_rule.register
def _(module: MaxMin, tube: bounds.Tube) -> bounds.Tube:
    return bounds.Tube(module(tube.centre), tube.reach, tube.error)


@bounds.tube_rule.register
def _(module: OrthogonalConv, tube: bounds.Tube) -> bounds.Tube:
    # Rounding as of sums of products, which direct and unrolled convolutions are; see conv_norms.
    weight, offset = module.weight.detach().double(), module.bias.detach().double().view(-1, 1, 1)
    norm, absolute = norm_at_any_size(weight), norm_at_any_size(weight.abs())
    centre = functional.conv2d(tube.centre, weight, padding=1) + offset
    terms = functional.conv2d(tube.centre.abs(), weight.abs(), padding=1) + offset.abs()
    size = lengths(terms) + absolute * tube.spread
    shape = (centre[0].numel(), weight[0].numel() + 1)
    operands = absolute + lengths(tube.centre) + tube.spread
    local = arithmetic.rounding(size, shape, operands)
    return bounds.Tube(centre, norm * tube.reach, norm * tube.error + local)


# A sequence like any other; its last layer is a linear map like any other (`bounds`).
bounds.lipschitz_rule.register(OrthogonalEncoder, bounds.lipschitz_rule.dispatch(nn.Sequential))
bounds.tube_rule.register(OrthogonalEncoder, bounds.tube_rule.dispatch(nn.Sequential))
