"""Proven upper bounds on the spectral norm of a convolution with its real zero padding.

Two bounds hold for every convolution of stride 1, and the smaller is given.

- The torus. A zero-padded convolution reads, from an image of height h, rows -p to h - 1 + p.
  On a torus of height h + p those rows are the image's own and p rows of zeros, so the
  convolution is the circular one restricted to inputs that vanish on these p rows and to the
  outputs that are kept. A restriction has no larger norm. The circular convolution is block
  diagonal in the Fourier basis, and its norm the largest over all frequencies of the norm of a
  matrix of channels (Sedghi et al., arXiv 1805.10408; the step from circular to zero padding is
  discussed with Gram iteration by Delattre et al., arXiv 2305.16173).
- The matrix. Where the operator has few rows or columns, its Gram matrix is unrolled and its
  largest eigenvalue found: exact up to rounding, where the torus ignores the border.

Power iteration would approach the norm from below and prove nothing.

Importing this module also registers the rules of `bounds` for convolutional contractive flows.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from robustness.certificates import bounds
from robustness.nets.encoders import (
    ChannelPad,
    ConvContractiveFlowEncoder,
    ConvContractiveStep,
)

# Relative error of float64 transforms, sums and symmetric eigenvalue problems of at most some
# thousand rows is far below this; every bound is raised by it.
_FLOAT64_ROOM = 1e-9
# Largest Gram matrix that is unrolled: well under a second on one core.
_UNROLLED = 800


def conv_spectral_bound(
    weight: Float[Tensor, "o i k l"], input_hw: tuple[int, int], padding: int
) -> float:
    """An upper bound on the l2 operator norm of z -> conv2d(z, weight, padding=padding).

    Args:
        weight: the kernel, shape (outputs, inputs, k, k); of stride 1 and without dilation.
        input_hw: height and width of the images that it is applied to.
        padding: rows and columns of zeros on each side, at most k - 1.

    Returns:
        The smaller of the two bounds of this module, in float64, raised for rounding.

    Raises:
        ValueError: the padding exceeds k - 1, the output is empty, the kernel is not a square, or
            an entry is not finite.
    """
    outputs, inputs, size, across = weight.shape
    height, width = input_hw
    if size != across:
        raise ValueError(f"expected a square kernel, got {size} x {across}")
    if not 0 <= padding < size:
        raise ValueError(f"expected a padding from 0 to {size - 1}, got {padding}")
    out_height, out_width = height + 2 * padding - size + 1, width + 2 * padding - size + 1
    if out_height < 1 or out_width < 1:
        raise ValueError(f"expected images of at least {size - 2 * padding} pixels, got {input_hw}")
    kernel = weight.detach().double()
    if not bool(kernel.isfinite().all()):
        raise ValueError("expected a finite kernel, got one with infinite or NaN entries")

    def smaller() -> float:
        bound = _torus_bound(kernel, input_hw, padding)
        if min(inputs * height * width, outputs * out_height * out_width) <= _UNROLLED:
            bound = min(bound, _unrolled_norm(kernel, input_hw, padding))
        return bound

    question = ("convolution", input_hw, padding)
    return bounds.remembered(question, kernel.numpy(), smaller) * (1 + _FLOAT64_ROOM)


def _torus_bound(kernel: Tensor, input_hw: tuple[int, int], padding: int) -> float:
    size = kernel.shape[2]
    # Enough rows for the p zero rows that are read, and for the kernel itself to fit.
    rows, columns = (max(side + padding, size) for side in input_hw)
    symbols = torch.fft.rfft2(kernel, s=(rows, columns)).permute(2, 3, 0, 1)
    return float(np.linalg.norm(symbols.numpy(), 2, axis=(2, 3)).max())


def _unrolled_norm(kernel: Tensor, input_hw: tuple[int, int], padding: int) -> float:
    """The exact norm: the largest eigenvalue of A^T A, or of A A^T where that is smaller."""
    outputs, inputs, size, _ = kernel.shape
    height, width = input_hw
    out_shape = (outputs, height + 2 * padding - size + 1, width + 2 * padding - size + 1)
    in_shape = (inputs, height, width)
    by_input = np.prod(in_shape) <= np.prod(out_shape)
    shape = in_shape if by_input else out_shape
    basis = torch.eye(int(np.prod(shape)), dtype=torch.float64).unflatten(1, shape)
    if by_input:
        images = functional.conv2d(basis, kernel, padding=padding)
    else:
        images = functional.conv_transpose2d(basis, kernel, padding=padding)
    rows = images.flatten(1).numpy()
    return float(np.sqrt(max(np.linalg.eigvalsh(rows @ rows.T)[-1], 0.0)))


@bounds._lipschitz.register(ChannelPad)
@bounds._lipschitz.register(nn.PixelUnshuffle)
def _(module: nn.Module) -> bounds.UpperBound | None:
    del module
    return bounds._bound(1.0, "1-Lipschitz layer")


@bounds._lipschitz.register
def _(module: ConvContractiveStep) -> bounds.UpperBound | None:
    # The Jacobian I - W^T D W, 0 <= D <= I, is symmetric with eigenvalues in [1 - |W|^2, 1].
    norm = conv_spectral_bound(module.weight, module.size, module.padding)
    factor = max(1.0, norm**2 * (1 + _FLOAT64_ROOM) - 1)
    return bounds._bound(factor, "contractive Euler steps (norms of convolutions)")


@bounds._propagate.register(ChannelPad)
@bounds._propagate.register(nn.PixelUnshuffle)
def _(module: nn.Module, tube: bounds.Tube) -> bounds.Tube:
    return bounds.Tube(module(tube.centre), tube.reach, tube.error)


@bounds._propagate.register
def _(module: ConvContractiveStep, tube: bounds.Tube) -> bounds.Tube:
    # As for the dense step, with |W| bounded as an operator: |(|W| e)| <= norm(|W|) |e|. The
    # rounding bound is one for sums of products, which direct and unrolled convolutions are;
    # PyTorch asks its CPU backends for no other (a Winograd transform would not be covered).
    if tuple(tube.centre.shape[2:]) != tuple(module.size):
        raise ValueError(
            f"expected a state of {module.size} pixels, which the norm is proved for, "
            f"got {tuple(tube.centre.shape[2:])}"
        )
    weight, padding = module.weight.detach().double(), module.padding
    offset = module.bias.detach().double().view(-1, 1, 1)
    norm = conv_spectral_bound(weight, module.size, padding)
    absolute = conv_spectral_bound(weight.abs(), module.size, padding)
    hidden, channels, kernel, _ = weight.shape
    pixels = module.size[0] * module.size[1]
    # float64 rounds so little that norms will do for the sizes, which halves the convolutions.
    by_norm = bounds.current_arithmetic() is bounds.FLOAT64
    u = functional.conv2d(tube.centre, weight, padding=padding) + offset
    u = u.clamp_min(0)
    if by_norm:
        u_terms = absolute * bounds._length(tube.centre) + pixels**0.5 * float(offset.norm())
    else:
        each = functional.conv2d(tube.centre.abs(), weight.abs(), padding=padding)
        u_terms = bounds._length(each + offset.abs())
    u_size = u_terms + absolute * tube.spread
    u_operands = absolute + bounds._length(tube.centre) + tube.spread
    u_shape = (hidden * pixels, channels * kernel**2 + 1)
    u_error = bounds.rounding(u_size, u_shape, u_operands)
    u_spread = norm * tube.spread + u_error
    v = functional.conv_transpose2d(u, weight, padding=padding)
    if by_norm:
        v_terms = absolute * bounds._length(u)
    else:
        v_terms = bounds._length(functional.conv_transpose2d(u, weight.abs(), padding=padding))
    v_size = v_terms + absolute * u_spread
    v_operands = absolute + bounds._length(u) + u_spread
    v_rounding = bounds.rounding(v_size, (channels * pixels, hidden * kernel**2), v_operands)
    v_error = norm * u_error + v_rounding
    centre = tube.centre - v
    step = bounds.lipschitz(module)
    assert step is not None
    size = bounds._length(centre) + step.value * tube.spread + v_error
    local = v_error + bounds.rounding(size, (channels * pixels, 1), 0.0)
    return bounds.Tube(centre, step.value * tube.reach, step.value * tube.error + local)


# A flow is the sequence of its layers, for which the rules of a sequence hold.
_of_sequence = bounds._lipschitz.dispatch(nn.Sequential)
_through_sequence = bounds._propagate.dispatch(nn.Sequential)
bounds._lipschitz.register(ConvContractiveFlowEncoder, _of_sequence)
bounds._propagate.register(ConvContractiveFlowEncoder, _through_sequence)
