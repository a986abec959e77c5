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
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

# Relative error of float64 transforms, sums and symmetric eigenvalue problems of at most some
# thousand rows is far below this; every bound is raised by it.
_FLOAT64_ROOM = 1e-9
# Largest Gram matrix that is unrolled: well under a second on one core.
_UNROLLED = 800


def conv_spectral_bound(
    weight: Float[Tensor, "o i k k"], input_hw: tuple[int, int], padding: int
) -> float:
    """An upper bound on the l2 operator norm of z -> conv2d(z, weight, padding=padding).

    Args:
        weight: the kernel, shape (outputs, inputs, k, k); of stride 1 and without dilation.
        input_hw: height and width of the images that it is applied to.
        padding: rows and columns of zeros on each side, at most k - 1.

    Returns:
        The smaller of the two bounds of this module, in float64, raised for rounding.

    Raises:
        ValueError: the padding exceeds k - 1, the output is empty, or an entry is not finite.
    """
    outputs, inputs, size, _ = weight.shape
    height, width = input_hw
    if not 0 <= padding < size:
        raise ValueError(f"expected a padding from 0 to {size - 1}, got {padding}")
    out_height, out_width = height + 2 * padding - size + 1, width + 2 * padding - size + 1
    if out_height < 1 or out_width < 1:
        raise ValueError(f"expected images of at least {size - 2 * padding} pixels, got {input_hw}")
    kernel = weight.detach().double()
    if not bool(kernel.isfinite().all()):
        raise ValueError("expected a finite kernel, got one with infinite or NaN entries")
    bound = _torus_bound(kernel, input_hw, padding)
    if min(inputs * height * width, outputs * out_height * out_width) <= _UNROLLED:
        bound = min(bound, _unrolled_norm(kernel, input_hw, padding))
    return bound * (1 + _FLOAT64_ROOM)


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
