"""Lipschitz and float32-rounding rules of the layers that ordinary networks are made of.

Importing this module registers the rules with `bounds`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustness.certificates.layers import bounds
from robustness.certificates.layers.bounds import Tube, UpperBound
from robustness.nets.classifiers import ResidualBlock
from robustness.nets.convolutions import ConvEncoder, ConvReLUEncoder, ConvResidualBlock
from robustness.numerics import arithmetic
from robustness.numerics.arithmetic import FLOAT64_ROOM
from robustness.numerics.norms import convolution_norm, lengths
from robustness.numerics.upper_bound import proved

# Float32 operations behind one entry of a batch norm in evaluation mode, in either of its forms,
# x alpha + (beta - mean alpha) or (x - mean) / std gamma + beta; the reciprocal root included.
_BATCH_NORM_ROUNDINGS = 12
# No rule is given for a batch norm whose variance could vanish in float32.
_SMALLEST_VARIANCE = 1e-30


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
    return proved(min(reach, general.value), general.how)


def _grows_no_distance(module: nn.Module) -> bool:
    """Whether a layer is the identity, or the maximum over windows that share no pixel."""
    if isinstance(module, nn.MaxPool2d):
        return module.stride == module.kernel_size and module.dilation == 1
    return not (isinstance(module, nn.Dropout) and module.training)


@bounds.lipschitz_rule.register(nn.Identity)
@bounds.lipschitz_rule.register(nn.Dropout)
@bounds.lipschitz_rule.register(nn.MaxPool2d)
def _(module: nn.Module) -> UpperBound | None:
    return proved(1.0, "1-Lipschitz layer") if _grows_no_distance(module) else None


@bounds.tube_rule.register(nn.Identity)
@bounds.tube_rule.register(nn.Dropout)
@bounds.tube_rule.register(nn.MaxPool2d)
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


@bounds.lipschitz_rule.register
def _(module: nn.Conv2d) -> UpperBound | None:
    return convolution_norm(module.weight, module.stride[0]) if _is_plain(module) else None


@bounds.tube_rule.register
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
    size = lengths(convolved(tube.centre.abs(), weight.abs(), bias.abs()))
    size = size + absolute * tube.spread
    shape = (centre[0].numel(), weight[0].numel() + 1)
    operands = absolute + lengths(tube.centre) + tube.spread
    local = arithmetic.rounding(size, shape, operands)
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


@bounds.lipschitz_rule.register
def _(module: nn.BatchNorm2d) -> UpperBound | None:
    scale = _scale(module)
    if scale is None:
        return None
    return proved(float(scale.abs().max()) * (1 + FLOAT64_ROOM), "scales of batch norms")


@bounds.tube_rule.register
def _(module: nn.BatchNorm2d, tube: Tube) -> Tube:
    scale = _scale(module)
    if scale is None:
        raise NotImplementedError("no rounding bound is known for a batch norm of its own batch")
    assert module.running_mean is not None
    assert module.running_var is not None
    steepest = float(scale.abs().max()) * (1 + FLOAT64_ROOM)
    mean, zero = module.running_mean.double(), torch.zeros(len(scale), dtype=torch.float64)
    beta = zero if module.bias is None else module.bias.detach().double()
    gamma = zero + 1 if module.weight is None else module.weight.detach().double()
    centre = (tube.centre - _per_channel(mean)) * _per_channel(scale) + _per_channel(beta)
    terms = (tube.centre.abs() + _per_channel(mean.abs())) * _per_channel(scale.abs())
    size = lengths(terms + _per_channel(beta.abs())) + steepest * tube.spread
    inverse = (module.running_var.double() + module.eps).rsqrt()
    factors = torch.stack([mean.abs(), beta.abs(), gamma.abs(), inverse, scale.abs()])
    operands = float(factors.max()) + lengths(tube.centre) + tube.spread
    # A factor that is flushed to zero meets at most two others on its way to the result.
    shape = (centre[0].numel(), _BATCH_NORM_ROUNDINGS)
    local = arithmetic.rounding(size, shape, operands + operands**2)
    return Tube(centre, steepest * tube.reach, steepest * tube.error + local)


def _per_channel(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)


def _is_mean(module: nn.AdaptiveAvgPool2d) -> bool:
    return module.output_size in (1, (1, 1), [1, 1])


@bounds.lipschitz_rule.register
def _(module: nn.AdaptiveAvgPool2d) -> UpperBound | None:
    return proved(1.0, "1-Lipschitz layer") if _is_mean(module) else None


@bounds.tube_rule.register
def _(module: nn.AdaptiveAvgPool2d, tube: Tube) -> Tube:
    if not _is_mean(module):
        raise NotImplementedError("no rounding bound is known for means over parts of an image")
    channels, height, width = tube.centre.shape[1:]
    # The mean of n numbers moves by at most their distance over the root of n.
    factor = (height * width) ** -0.5 * (1 + FLOAT64_ROOM)
    size = lengths(module(tube.centre.abs())) + factor * tube.spread
    operands = 1 + lengths(tube.centre) + tube.spread
    local = arithmetic.rounding(size, (channels, height * width + 1), operands)
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
    local = arithmetic.rounding(lengths(centre) + reach + error, (centre[0].numel(), 1), 0.0)
    return Tube(centre, reach, error + local)


def _branch(block: ResidualBlock) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), block.inner, nn.ReLU(), block.outer)


@bounds.lipschitz_rule.register
def _(module: ResidualBlock) -> UpperBound | None:
    branch = bounds.lipschitz(_branch(module))
    return None if branch is None else proved(1.0, "identity") + branch


@bounds.tube_rule.register
def _(module: ResidualBlock, tube: Tube) -> Tube:
    return _sum(tube, bounds.propagate(_branch(module), tube))


@bounds.lipschitz_rule.register
def _(module: ConvResidualBlock) -> UpperBound | None:
    shortcut, residual = bounds.lipschitz(module.shortcut), bounds.lipschitz(module.residual)
    # A layer that works in place would alter what the other branch reads.
    in_place = any(getattr(layer, "inplace", False) for layer in module.modules())
    if shortcut is None or residual is None or in_place:
        return None
    return shortcut + residual


@bounds.tube_rule.register
def _(module: ConvResidualBlock, tube: Tube) -> Tube:
    if bounds.lipschitz(module) is None:
        raise NotImplementedError("no rounding bound is known for a branch of a residual block")
    shortcut = bounds.propagate(module.shortcut, tube)
    return bounds.propagate(nn.ReLU(), _sum(shortcut, bounds.propagate(module.residual, tube)))


# Encoders are the sequence of their layers, for which the rules of a sequence hold.
for _encoder in (ConvEncoder, ConvReLUEncoder):
    bounds.lipschitz_rule.register(_encoder, bounds.lipschitz_rule.dispatch(nn.Sequential))
    bounds.tube_rule.register(_encoder, bounds.tube_rule.dispatch(nn.Sequential))
