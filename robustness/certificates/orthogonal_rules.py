"""Lipschitz and rounding rules of the orthogonal encoder, for the rules of `bounds`.

An orthogonal convolution does not know the size of its images, so its norm is bounded for every
size at once. Zero padding makes it a restriction of the convolution on the whole grid, whose norm
is the largest, over all frequencies w, of the norm of its symbol K(w), a matrix of channels. One
step of Gram iteration (Delattre et al., arXiv 2305.16173), taken on the coefficients and not at
sampled frequencies, bounds it: K(w)* K(w) is the sum over offsets d of C_d exp(i d.w), with C the
autocorrelation of the kernel, so that |K|^2 <= sum_d |C_d|. For an orthogonal kernel C_0 = I and
every other C_d is 0 up to the rounding of its entries, so that the bound is 1 up to rounding; for
any other kernel it holds and is loose.

Importing this module registers the rules.
"""

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from robustness.certificates import bounds
from robustness.nets.orthogonal import (
    MaxMin,
    OrthogonalConv,
    OrthogonalEncoder,
)

# Relative error of float64 sums and of norms of matrices of channels is far below this.
_FLOAT64_ROOM = 1e-9


def norm_at_any_size(weight: Float[Tensor, "o i k l"]) -> float:
    """An upper bound on the l2 norm of the zero-padded convolution, whatever its images' size.

    Args:
        weight: the kernel, shape (outputs, inputs, k, k); of stride 1 and without dilation.

    Returns:
        The bound of this module, in float64, raised for rounding.

    Raises:
        ValueError: an entry is not finite, or the kernel is not a square.
    """
    kernel = weight.detach().double()
    if kernel.shape[2] != kernel.shape[3]:
        raise ValueError(f"expected a square kernel, got {tuple(kernel.shape[2:])}")
    if not bool(kernel.isfinite().all()):
        raise ValueError("expected a finite kernel, got one with infinite or NaN entries")

    def bound() -> float:
        columns = kernel.transpose(0, 1)
        # C_d = sum over offsets e of K_e^T K_{e+d}, itself a convolution; shape (i, i, 2k-1, 2k-1).
        correlation = functional.conv2d(columns, columns, padding=kernel.shape[2] - 1)
        blocks = correlation.permute(2, 3, 0, 1).numpy()
        return float(np.sqrt(np.linalg.norm(blocks, 2, axis=(2, 3)).sum()))

    return bounds.remembered(("any size",), kernel.numpy(), bound) * (1 + _FLOAT64_ROOM)


@bounds._lipschitz.register
def _(module: MaxMin) -> bounds.UpperBound | None:
    # |max(a,b) - max(c,d)|^2 + |min(a,b) - min(c,d)|^2 <= |a - c|^2 + |b - d|^2: rearrangement.
    del module
    return bounds._bound(1.0, "1-Lipschitz layer")


@bounds._lipschitz.register
def _(module: OrthogonalConv) -> bounds.UpperBound | None:
    return bounds._bound(norm_at_any_size(module.weight), "orthogonal convolutions (Gram step)")


@bounds._propagate.register
def _(module: MaxMin, tube: bounds.Tube) -> bounds.Tube:
    return bounds.Tube(module(tube.centre), tube.reach, tube.error)


@bounds._propagate.register
def _(module: OrthogonalConv, tube: bounds.Tube) -> bounds.Tube:
    # Rounding as of sums of products, which direct and unrolled convolutions are; see conv_norms.
    weight, offset = module.weight.detach().double(), module.bias.detach().double().view(-1, 1, 1)
    norm, absolute = norm_at_any_size(weight), norm_at_any_size(weight.abs())
    centre = functional.conv2d(tube.centre, weight, padding=1) + offset
    terms = functional.conv2d(tube.centre.abs(), weight.abs(), padding=1) + offset.abs()
    size = bounds._length(terms) + absolute * tube.spread
    shape = (centre[0].numel(), weight[0].numel() + 1)
    operands = absolute + bounds._length(tube.centre) + tube.spread
    local = bounds.rounding(size, shape, operands)
    return bounds.Tube(centre, norm * tube.reach, norm * tube.error + local)


# A sequence like any other; its last layer is a linear map like any other (`bounds`).
bounds._lipschitz.register(OrthogonalEncoder, bounds._lipschitz.dispatch(nn.Sequential))
bounds._propagate.register(OrthogonalEncoder, bounds._propagate.dispatch(nn.Sequential))
