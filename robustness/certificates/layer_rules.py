"""Lipschitz and float32-rounding rules of the layers that ordinary networks are made of.

A convolution with zero padding reads an image that is extended by zeros without end, and keeps
some rows and columns of the result. Whatever the size of the image and the padding, it is a
restriction of the convolution on the whole grid Z^2, whose norm is therefore a bound:

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

Importing this module registers the rules with `bounds`.
"""

import math

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.nn import functional

from robustness.certificates import bounds
from robustness.certificates.bounds import Tube, UpperBound
from robustness.nets.classifiers import ResidualBlock
from robustness.nets.convolutions import ConvEncoder, ConvReLUEncoder, ConvResidualBlock

# Relative error of float64 transforms, products and roots of at most some thousand terms is far
# below this; every bound is raised by it.
_FLOAT64_ROOM = 1e-9
# Frequencies per axis and degree: the grid costs 1 - cos(pi / 32)^2, one per cent.
_FREQUENCIES = 32
# Rounds of Gram iteration: a matrix of rank 128 is bounded to within one per cent.
_ROUNDS = 8
# Float32 operations behind one entry of a batch norm in evaluation mode, in either of its forms,
# x alpha + (beta - mean alpha) or (x - mean) / std gamma + beta; the reciprocal root included.
_BATCH_NORM_ROUNDINGS = 12
# No rule is given for a batch norm whose variance could vanish in float32.
_SMALLEST_VARIANCE = 1e-30


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
    norm = bounds.remembered(
        ("convolution on the whole grid", stride),
        weight.numpy(),
        lambda: _supremum_of_symbols(_unshuffled(weight, stride)),
    )
    return bounds._bound(norm * (1 + _FLOAT64_ROOM), "norms of convolutions")


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


@torch.no_grad()
def lipschitz_at(module: nn.Module, shape: tuple[int, ...]) -> UpperBound | None:
    """A proven l2 Lipschitz constant of `module` on inputs of one size, or None.

    Never above `bounds.lipschitz`, which holds for every size: to average over an image shrinks
    distances by the root of its pixels. The reach of a tube of radius 1 is that constant.

    Args:
        module: any module.
        shape: of one input, without the batch.
    """
    general = bounds.lipschitz(module)
    if general is None:
        return None
    ball = Tube.around(torch.zeros(1, *shape), torch.ones(1))
    reach = float(bounds.propagate(module, ball).reach)
    return bounds._bound(min(reach, general.value), general.how)


def _grows_no_distance(module: nn.Module) -> bool:
    """Whether a layer is the identity, or the maximum over windows that share no pixel."""
    if isinstance(module, nn.MaxPool2d):
        return module.stride == module.kernel_size and module.dilation == 1
    return not (isinstance(module, nn.Dropout) and module.training)


@bounds._lipschitz.register(nn.Identity)
@bounds._lipschitz.register(nn.Dropout)
@bounds._lipschitz.register(nn.MaxPool2d)
def _(module: nn.Module) -> UpperBound | None:
    return bounds._bound(1.0, "1-Lipschitz layer") if _grows_no_distance(module) else None


@bounds._propagate.register(nn.Identity)
@bounds._propagate.register(nn.Dropout)
@bounds._propagate.register(nn.MaxPool2d)
def _(module: nn.Module, tube: Tube) -> Tube:
    if not _grows_no_distance(module):
        raise NotImplementedError(f"no rounding bound is known for this {type(module).__name__}")
    return Tube(module(tube.centre), tube.reach, tube.error)


def _is_plain(module: nn.Conv2d) -> bool:
    """Whether a convolution is one of those that the rule is about."""
    return (
        module.groups == 1
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and module.stride[0] == module.stride[1]
        and module.weight.shape[2] == module.weight.shape[3]
        and tuple(module.kernel_size) == tuple(module.weight.shape[2:])
        and bool(module.weight.isfinite().all())
    )


@bounds._lipschitz.register
def _(module: nn.Conv2d) -> UpperBound | None:
    return convolution_norm(module.weight, module.stride[0]) if _is_plain(module) else None


@bounds._propagate.register
def _(module: nn.Conv2d, tube: Tube) -> Tube:
    if not _is_plain(module):
        raise NotImplementedError(
            "no rounding bound is known for grouped, dilated or uneven convolutions"
        )
    weight, stride = module.weight.detach().double(), module.stride[0]
    bias = weight.new_zeros(len(weight)) if module.bias is None else module.bias.detach().double()
    norm = convolution_norm(weight, stride).value
    absolute = convolution_norm(weight.abs(), stride).value

    def convolved(images: Tensor, kernel: Tensor, offset: Tensor) -> Tensor:
        return functional.conv2d(images, kernel, offset, module.stride, module.padding)

    centre = convolved(tube.centre, weight, bias)
    size = bounds._length(convolved(tube.centre.abs(), weight.abs(), bias.abs()))
    size = size + absolute * tube.spread
    shape = (centre[0].numel(), weight[0].numel() + 1)
    operands = absolute + bounds._length(tube.centre) + tube.spread
    local = bounds.rounding(size, shape, operands)
    return Tube(centre, norm * tube.reach, norm * tube.error + local)


def _scale(module: nn.BatchNorm2d) -> Tensor | None:
    """The slope gamma / sqrt(var + eps) of each channel; None where a batch decides it."""
    if module.training or module.running_var is None or module.running_mean is None:
        return None
    variance = module.running_var.double() + module.eps
    # Of two terms that cancel float32 would keep another sum.
    cancel = module.eps < 0 or bool((module.running_var < 0).any())
    if cancel or not bool((variance >= _SMALLEST_VARIANCE).all()):
        return None
    gamma = 1.0 if module.weight is None else module.weight.detach().double()
    return gamma / variance.sqrt()


@bounds._lipschitz.register
def _(module: nn.BatchNorm2d) -> UpperBound | None:
    scale = _scale(module)
    if scale is None:
        return None
    return bounds._bound(float(scale.abs().max()) * (1 + _FLOAT64_ROOM), "scales of batch norms")


@bounds._propagate.register
def _(module: nn.BatchNorm2d, tube: Tube) -> Tube:
    scale = _scale(module)
    if scale is None:
        raise NotImplementedError("no rounding bound is known for a batch norm of its own batch")
    assert module.running_mean is not None
    assert module.running_var is not None
    steepest = float(scale.abs().max()) * (1 + _FLOAT64_ROOM)
    mean, zero = module.running_mean.double(), torch.zeros(len(scale), dtype=torch.float64)
    beta = zero if module.bias is None else module.bias.detach().double()
    gamma = zero + 1 if module.weight is None else module.weight.detach().double()
    centre = (tube.centre - _per_channel(mean)) * _per_channel(scale) + _per_channel(beta)
    terms = (tube.centre.abs() + _per_channel(mean.abs())) * _per_channel(scale.abs())
    size = bounds._length(terms + _per_channel(beta.abs())) + steepest * tube.spread
    inverse = (module.running_var.double() + module.eps).rsqrt()
    factors = torch.stack([mean.abs(), beta.abs(), gamma.abs(), inverse, scale.abs()])
    operands = float(factors.max()) + bounds._length(tube.centre) + tube.spread
    # A factor that is flushed to zero meets at most two others on its way to the result.
    shape = (centre[0].numel(), _BATCH_NORM_ROUNDINGS)
    local = bounds.rounding(size, shape, operands + operands**2)
    return Tube(centre, steepest * tube.reach, steepest * tube.error + local)


def _per_channel(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)


def _is_mean(module: nn.AdaptiveAvgPool2d) -> bool:
    return module.output_size in (1, (1, 1), [1, 1])


@bounds._lipschitz.register
def _(module: nn.AdaptiveAvgPool2d) -> UpperBound | None:
    return bounds._bound(1.0, "1-Lipschitz layer") if _is_mean(module) else None


@bounds._propagate.register
def _(module: nn.AdaptiveAvgPool2d, tube: Tube) -> Tube:
    if not _is_mean(module):
        raise NotImplementedError("no rounding bound is known for means over parts of an image")
    channels, height, width = tube.centre.shape[1:]
    # The mean of n numbers moves by at most their distance over the root of n.
    factor = (height * width) ** -0.5 * (1 + _FLOAT64_ROOM)
    size = bounds._length(module(tube.centre.abs())) + factor * tube.spread
    operands = 1 + bounds._length(tube.centre) + tube.spread
    local = bounds.rounding(size, (channels, height * width + 1), operands)
    return Tube(module(tube.centre), factor * tube.reach, factor * tube.error + local)


def _sum(first: Tube, second: Tube) -> Tube:
    """The tube of the sum of two branches, which rounds once."""
    if first.centre.shape != second.centre.shape:
        raise ValueError(
            f"expected branches of one shape, got {tuple(first.centre.shape[1:])} and "
            f"{tuple(second.centre.shape[1:])}"
        )
    centre, reach = first.centre + second.centre, first.reach + second.reach
    error = first.error + second.error
    local = bounds.rounding(bounds._length(centre) + reach + error, (centre[0].numel(), 1), 0.0)
    return Tube(centre, reach, error + local)


def _branch(block: ResidualBlock) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), block.inner, nn.ReLU(), block.outer)


@bounds._lipschitz.register
def _(module: ResidualBlock) -> UpperBound | None:
    branch = bounds.lipschitz(_branch(module))
    return None if branch is None else bounds._bound(1.0, "identity") + branch


@bounds._propagate.register
def _(module: ResidualBlock, tube: Tube) -> Tube:
    return _sum(tube, bounds.propagate(_branch(module), tube))


@bounds._lipschitz.register
def _(module: ConvResidualBlock) -> UpperBound | None:
    shortcut, residual = bounds.lipschitz(module.shortcut), bounds.lipschitz(module.residual)
    # A layer that works in place would alter what the other branch reads.
    in_place = any(getattr(layer, "inplace", False) for layer in module.modules())
    if shortcut is None or residual is None or in_place:
        return None
    return shortcut + residual


@bounds._propagate.register
def _(module: ConvResidualBlock, tube: Tube) -> Tube:
    if bounds.lipschitz(module) is None:
        raise NotImplementedError("no rounding bound is known for a branch of a residual block")
    shortcut = bounds.propagate(module.shortcut, tube)
    return bounds.propagate(nn.ReLU(), _sum(shortcut, bounds.propagate(module.residual, tube)))


# Encoders are the sequence of their layers, for which the rules of a sequence hold.
for _encoder in (ConvEncoder, ConvReLUEncoder):
    bounds._lipschitz.register(_encoder, bounds._lipschitz.dispatch(nn.Sequential))
    bounds._propagate.register(_encoder, bounds._propagate.dispatch(nn.Sequential))
