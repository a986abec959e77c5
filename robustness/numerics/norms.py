"""Proven upper bounds on the norms of matrices and of convolutions with their zero padding.

Power iteration would approach a norm from below and prove nothing. Three bounds on convolutions:

`conv_spectral_bound` is for images of one size and stride 1, and gives the smaller of two.

- The torus. A zero-padded convolution reads, from an image of height h, rows -p to h - 1 + p.
  On a torus of height h + p those rows are the image's own and p rows of zeros, so the
  convolution is the circular one restricted to inputs that vanish on these p rows and to the
  outputs that are kept. A restriction has no larger norm. The circular convolution is block
  diagonal in the Fourier basis, and its norm the largest over all frequencies of the norm of a
  matrix of channels (Sedghi et al., arXiv 1805.10408; the step from circular to zero padding is
  discussed with Gram iteration by Delattre et al., arXiv 2305.16173).
- The matrix. Where the operator has few rows or columns, its Gram matrix is unrolled and its
  largest eigenvalue found: exact up to rounding, where the torus ignores the border.

`convolution_norm` is for images of every size. A convolution with zero padding reads an image that
is extended by zeros without end, and keeps some rows and columns of the result. Whatever the size
of the image and the padding, it is a restriction of the convolution on the whole grid Z^2, whose
norm is therefore a bound:

    |W|_2 <= sup over w in [0, 2 pi]^2 of sigma_max(W(w)),   W(w) = sum_u W_u exp(-i u.w).

- A stride s is a convolution of stride 1 behind a permutation of pixels: blocks of s x s pixels
  become channels, of the image and of the kernel alike.
- The supremum is found on a grid of N x N frequencies. For unit vectors a, b and any phase,
  Re(exp(i p) a* W(w) b) is, up to a shift of the kernel, a real trigonometric polynomial of degree
  d = floor(K / 2) in each variable, for a kernel of height and width K. By M. Riesz's lemma such a
  polynomial is at least M cos(d x) at distance x <= pi / d of its maximum M, so that each variable
  costs a factor of cos(pi d / N) at most.
- The largest singular value at a frequency is bounded by Gram iteration (Delattre et al., arXiv
  2305.16173): with G_0 = A and G_{t+1} = G_t* G_t, |G_t|_F^(1 / 2^t) is an upper bound on it at
  every t, and falls towards it.

`norm_at_any_size` is for images of every size too, and for kernels that are nearly orthogonal. One
step of Gram iteration, taken on the coefficients and not at sampled frequencies: K(w)* K(w) is the
sum over offsets d of C_d exp(i d.w), with C the autocorrelation of the kernel, so that
|K|^2 <= sum_d |C_d|. For an orthogonal kernel C_0 = I and every other C_d is 0 up to the rounding
of its entries, so that the bound is 1 up to rounding; for any other kernel it holds and is loose.
"""

import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.nn import functional

from robustness.numerics.arithmetic import FLOAT64_ROOM
from robustness.numerics.upper_bound import UpperBound, proved

# Largest Gram matrix that is unrolled: well under a second on one core.
_UNROLLED = 800
# Frequencies per axis and degree: the grid costs 1 - cos(pi / 32)^2, one per cent.
_FREQUENCIES = 32
# Rounds of Gram iteration: a matrix of rank 128 is bounded to within one per cent.
_ROUNDS = 8


def lengths(vectors: Float[Tensor, "n *shape"]) -> Float[Tensor, " n"]:
    """Euclidean length of each vector, shape (n,)."""
    found: Tensor = torch.linalg.vector_norm(vectors.flatten(1), dim=1)
    return found


def spectral_norm(matrix: Float[Tensor, "m n"]) -> UpperBound:
    """Largest singular value of a matrix, by a full SVD in float64, raised for its rounding.

    LAPACK's SVD is backward stable: computed singular values differ from the exact ones by a
    modest multiple of float64's unit roundoff times the norm.
    """
    values = matrix.detach().double().numpy()
    largest = remembered(("svd",), values, lambda: np.linalg.svd(values, compute_uv=False)[0])
    return proved(largest * (1 + FLOAT64_ROOM), "SVD")


_MEMORY: dict[tuple[object, ...], float] = {}
_MEMORY_LIMIT = 4096


def remembered(
    question: tuple[object, ...], values: np.ndarray, compute: Callable[[], Any]
) -> float:
    """The norm of `values`, computed once per content: shards of a run ask for the same ones.

    Args:
        question: what is asked, besides the values.
        values: the weights; their bytes are the key, so that an altered weight is a new one.
        compute: gives the answer.
    """
    content = hashlib.sha256(np.ascontiguousarray(values).tobytes()).digest()
    key = (*question, values.shape, content)
    if key not in _MEMORY:
        if len(_MEMORY) >= _MEMORY_LIMIT:
            _MEMORY.clear()
        _MEMORY[key] = float(compute())
    return _MEMORY[key]


def pairwise_slopes(weight: Float[Tensor, "k f"]) -> Float[Tensor, "k k"]:
    """Euclidean norm of w_i - w_j for all pairs of rows, raised for rounding, shape (k, k).

    The l2 Lipschitz constant of the margin of i over j of the linear map z -> W z.
    """
    rows = weight.detach().double()
    slopes: Tensor = torch.linalg.vector_norm(rows.unsqueeze(1) - rows.unsqueeze(0), dim=2)
    return slopes * (1 + FLOAT64_ROOM)


def conv_spectral_bound(
    weight: Float[Tensor, "o i k l"], input_hw: tuple[int, int], padding: int
) -> float:
    """An upper bound on the l2 operator norm of z -> conv2d(z, weight, padding=padding).

    Args:
        weight: the kernel, shape (outputs, inputs, k, k); of stride 1 and without dilation.
        input_hw: height and width of the images that it is applied to.
        padding: rows and columns of zeros on each side, at most k - 1.

    Returns:
        The smaller of torus and matrix, in float64, raised for rounding.

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
    return remembered(question, kernel.numpy(), smaller) * (1 + FLOAT64_ROOM)


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


def gram_iteration(
    matrices: Complex[Tensor, "b m n"], rounds: int = _ROUNDS, floor: float = 0.0
) -> float:
    """An upper bound on the largest singular value of any of some matrices.

    Matrices that cannot hold the largest value are dropped on the way: those whose bound is below
    `floor`, or below what |G|_F / sqrt(rank) <= sigma^(2^t) leaves to another one.

    Args:
        matrices: shape (b, m, n), complex128.
        rounds: number of squarings t.
        floor: a bound that the result need not fall below.

    Returns:
        The larger of `floor` and of the bounds of all matrices, not raised for rounding.
    """
    if matrices.shape[1] < matrices.shape[2]:
        matrices = matrices.mT
    rank = matrices.shape[2]
    largest = float(matrices.abs().max())
    if not math.isfinite(largest):
        return math.inf
    if largest == 0:
        return floor
    # G_t is exp(log) times what is stored, which keeps its entries within range.
    matrices = matrices / largest
    log = matrices.new_full((len(matrices),), math.log(largest), dtype=torch.float64)
    for doublings in range(rounds + 1):
        size = torch.linalg.matrix_norm(matrices)
        log = log + size.log()
        found = torch.exp(log / 2**doublings)
        least = max(floor, float(found.max()) * rank ** (-1 / 2 ** (doublings + 1)))
        kept = (found >= least) & (size > 0)
        if doublings == rounds or not bool(kept.any()):
            break
        scaled = matrices[kept] / size[kept].view(-1, 1, 1)
        matrices, log = scaled.mH @ scaled, 2 * log[kept]
    return max(floor, float(found.max()))


def convolution_norm(kernel: Float[Tensor, "o i k k"], stride: int) -> UpperBound:
    """The l2 operator norm of a zero-padded convolution, for images of every size and padding.

    Args:
        kernel: the kernel, finite, shape (outputs, inputs, k, k).
        stride: of both axes.
    """
    weight = kernel.detach().double()
    norm = remembered(
        ("convolution on the whole grid", stride),
        weight.numpy(),
        lambda: _supremum_of_symbols(_unshuffled(weight, stride)),
    )
    return proved(norm * (1 + FLOAT64_ROOM), "norms of convolutions")


def _unshuffled(kernel: Tensor, stride: int) -> Tensor:
    """The kernel of stride 1 on images whose blocks of pixels have become channels."""
    lacking = -kernel.shape[2] % stride
    return functional.pixel_unshuffle(functional.pad(kernel, (0, lacking, 0, lacking)), stride)


def _supremum_of_symbols(kernel: Tensor) -> float:
    degree = kernel.shape[2] // 2
    count = max(1, _FREQUENCIES * degree)
    largest = 0.0
    # Real kernels have conjugate symbols at opposite frequencies: half of one axis is enough. One
    # row of frequencies at a time keeps the memory small.
    for angle in 2 * math.pi * np.arange(count // 2 + 1) / count:
        phases = torch.exp(-1j * angle * torch.arange(kernel.shape[2], dtype=torch.float64))
        row = (kernel * phases.view(-1, 1)).sum(dim=2)
        symbols = torch.fft.fft(row, n=count, dim=2).permute(2, 0, 1)
        largest = gram_iteration(symbols, floor=largest)
    return largest / math.cos(math.pi * degree / count) ** 2


def norm_at_any_size(weight: Float[Tensor, "o i k l"]) -> float:
    """An upper bound on the l2 norm of the zero-padded convolution, whatever its images' size.

    Args:
        weight: the kernel, shape (outputs, inputs, k, k); of stride 1 and without dilation.

    Returns:
        The bound, in float64, raised for rounding.

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

    return remembered(("any size",), kernel.numpy(), bound) * (1 + FLOAT64_ROOM)
