"""Lipschitz and rounding rules of convolutional contractive flows.

Importing this module registers the rules with `bounds`.
"""

from torch import nn
from torch.nn import functional

from robustness.certificates.layers import bounds
from robustness.nets.encoders import (
    ChannelPad,
    ConvContractiveFlowEncoder,
    ConvContractiveStep,
)
from robustness.numerics import arithmetic
from robustness.numerics.arithmetic import FLOAT64_ROOM
from robustness.numerics.norms import conv_spectral_bound, lengths
from robustness.numerics.upper_bound import UpperBound, proved


@bounds.lipschitz_rule.register(ChannelPad)
@bounds.lipschitz_rule.register(nn.PixelUnshuffle)
def _(module: nn.Module) -> UpperBound | None:
    del module
    return proved(1.0, "1-Lipschitz layer")


@bounds.lipschitz_rule.register
def _(module: ConvContractiveStep) -> UpperBound | None:
    # The Jacobian I - W^T D W, 0 <= D <= I, is symmetric with eigenvalues in [1 - |W|^2, 1].
    norm = conv_spectral_bound(module.weight, module.size, module.padding)
    factor = max(1.0, norm**2 * (1 + FLOAT64_ROOM) - 1)
    return proved(factor, "contractive Euler steps (norms of convolutions)")


@bounds.tube_rule.register(ChannelPad)
@bounds.tube_rule.register(nn.PixelUnshuffle)
def _(module: nn.Module, tube: bounds.Tube) -> bounds.Tube:
    return bounds.Tube(module(tube.centre), tube.reach, tube.error)


@bounds.tube_rule.register
def _(module: ConvContractiveStep, tube: bounds.Tube) -> bounds.Tube:
    # As for the dense step, with |W| bounded as an operator: |(|W| e)| <= norm(|W|) |e|. The
    # rounding bound is one for sums of products, which direct and unrolled convolutions are;
    # PyTorch asks its CPU backends for no other (a Winograd transform would not be covered).
    if tuple(tube.centre.shape[2:]) != tuple(module.size):
        raise NotImplementedError(
            f"the norm of a convolution is proved for states of {module.size} pixels, "
            f"and these have {tuple(tube.centre.shape[2:])}"
        )
    weight, padding = module.weight.detach().double(), module.padding
    offset = module.bias.detach().double().view(-1, 1, 1)
    norm = conv_spectral_bound(weight, module.size, padding)
    absolute = conv_spectral_bound(weight.abs(), module.size, padding)
    hidden, channels, kernel, _ = weight.shape
    pixels = module.size[0] * module.size[1]
    # float64 rounds so little that norms will do for the sizes, which halves the convolutions.
    by_norm = arithmetic.current_arithmetic() is arithmetic.FLOAT64
    centre = bounds.behind(module, tube.centre) if by_norm else None
    u = None
    if centre is None:
        u = functional.conv2d(tube.centre, weight, padding=padding) + offset
        u = u.clamp_min(0)
        centre = tube.centre - functional.conv_transpose2d(u, weight, padding=padding)
    if by_norm:
        u_terms = absolute * lengths(tube.centre) + pixels**0.5 * float(offset.norm())
    else:
        each = functional.conv2d(tube.centre.abs(), weight.abs(), padding=padding)
        u_terms = lengths(each + offset.abs())
    # Entry by entry |u| is at most the sum of its terms taken positive.
    u_length = u_terms if u is None else lengths(u)
    u_size = u_terms + absolute * tube.spread
    u_operands = absolute + lengths(tube.centre) + tube.spread
    u_shape = (hidden * pixels, channels * kernel**2 + 1)
    u_error = arithmetic.rounding(u_size, u_shape, u_operands)
    u_spread = norm * tube.spread + u_error
    if by_norm or u is None:  # which is by norm alone
        v_terms = absolute * u_length
    else:
        v_terms = lengths(functional.conv_transpose2d(u, weight.abs(), padding=padding))
    v_size = v_terms + absolute * u_spread
    v_operands = absolute + u_length + u_spread
    v_rounding = arithmetic.rounding(v_size, (channels * pixels, hidden * kernel**2), v_operands)
    v_error = norm * u_error + v_rounding
    step = bounds.lipschitz(module)
    assert step is not None
    size = lengths(centre) + step.value * tube.spread + v_error
    local = v_error + arithmetic.rounding(size, (channels * pixels, 1), 0.0)
    return bounds.Tube(centre, step.value * tube.reach, step.value * tube.error + local)


# A flow is the sequence of its layers, for which the rules of a sequence hold.
_of_sequence = bounds.lipschitz_rule.dispatch(nn.Sequential)
_through_sequence = bounds.tube_rule.dispatch(nn.Sequential)
bounds.lipschitz_rule.register(ConvContractiveFlowEncoder, _of_sequence)
bounds.tube_rule.register(ConvContractiveFlowEncoder, _through_sequence)
