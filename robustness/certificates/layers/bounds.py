"""What each kind of layer does to distances and to rounding: `lipschitz` and `propagate`.

A rule is registered for a class, and holds for a module that computes what this class does; of any
other module nothing is known.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robustness.nets.encoders import (
    ContractiveFlowEncoder,
    ContractiveStep,
    MLPEncoder,
    Normalise,
)
from robustness.nets.orthogonal import OrthogonalLinear
from robustness.numerics import arithmetic, norms
from robustness.numerics.arithmetic import FLOAT64_ROOM
from robustness.numerics.norms import lengths
from robustness.numerics.upper_bound import UpperBound, proved
from robustness.programs.trust import altered_library, unaltered

# No norm is bounded of weights below this in a float64 program; float32 has none whose squares
# float64 would lose.
_SMALLEST = 1e-100


def refusal_of_arithmetic(model: nn.Module, dtype: torch.dtype = torch.float32) -> str | None:
    """Why the rounding bounds do not hold for the program of `model`; None where they do.

    They are bounds for sums of products of finite numbers of one precision. NNPACK computes
    convolutions by Winograd's transform instead, whose errors are larger; PyTorch turns to it for
    batches of 16 images or more where oneDNN is switched off.

    Args:
        model: the program.
        dtype: the precision that it computes in.
    """
    altered = altered_library()
    if altered is not None:
        return f"functions of {altered} were replaced in this process"
    if any(parametrize.is_parametrized(part) for part in model.modules()):
        return "weights are computed anew by a parametrisation at every call; bake them in first"
    # Counters of batches are integers, and no part of what is computed.
    every = (*model.parameters(), *model.buffers())
    tensors = [t for t in every if t.is_floating_point() or t.is_complex()]
    known = all(t.dtype is dtype and bool(t.isfinite().all()) for t in tensors)
    if not known or dtype not in (torch.float32, torch.float64):
        return (
            f"the weights are not all finite numbers of one precision ({dtype} is expected), "
            "which the rounding bounds are for"
        )
    if dtype is torch.float64 and any(_squares_vanish(tensor) for tensor in tensors):
        return f"weights smaller than {_SMALLEST:g} leave the range in which norms are bounded"
    backends = [getattr(torch.backends.mkldnn, name) for name in ("matmul", "conv")]
    lowered = any(backend.fp32_precision not in ("none", "ieee") for backend in backends)
    if lowered or torch.is_autocast_enabled("cpu"):
        return "products are set to a lower precision; set it to the highest"
    direct = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    enabled = torch._C._get_nnpack_enabled()  # noqa: SLF001
    transformed = torch.backends.nnpack.is_available() and enabled
    if transformed and not direct and any(p.dim() == 4 for p in model.parameters()):
        return "convolutions may run by Winograd's transform; switch oneDNN on or NNPACK off"
    return None


def _squares_vanish(weights: Tensor) -> bool:
    """Whether a weight is so small that float64 loses its square."""
    sizes = weights.detach().abs()
    return bool(((sizes > 0) & (sizes < _SMALLEST)).any())


def lipschitz(module: nn.Module) -> UpperBound | None:
    """A proven l2 Lipschitz constant of `module`, or None where no proof is known for it."""
    return lipschitz_rule(module) if _follows_a_rule(module, lipschitz_rule.registry) else None


def _follows_a_rule(module: nn.Module, rules: Mapping[Any, Any]) -> bool:
    described = next(known for known in type(module).__mro__ if known in rules)
    return described is not object and unaltered(module, described)


@singledispatch
def lipschitz_rule(module: nn.Module) -> UpperBound | None:
    """The rule of a class of modules for `lipschitz`; register one with `.register`."""
    raise NotImplementedError(f"no rule is registered for {type(module).__name__}")


@lipschitz_rule.register(nn.Flatten)
@lipschitz_rule.register(nn.ReLU)
def _(module: nn.Module) -> UpperBound | None:
    del module
    return proved(1.0, "1-Lipschitz layer")


@lipschitz_rule.register
def _(module: Normalise) -> UpperBound | None:
    if not bool((module.std > 0).all()):
        return None
    # The weights' own rounding to float32 is part of the deployed function: exact here.
    steepest = float(module.std.double().reciprocal().max())
    return proved(steepest * (1 + FLOAT64_ROOM), "1/std of the normalising layer")


@lipschitz_rule.register(nn.Linear)
@lipschitz_rule.register(OrthogonalLinear)
def _(module: nn.Linear | OrthogonalLinear) -> UpperBound | None:
    return norms.spectral_norm(module.weight)


@lipschitz_rule.register
def _(module: ContractiveStep) -> UpperBound | None:
    # The Jacobian I - W^T D W, 0 <= D <= I, is symmetric with eigenvalues in [1 - |W|^2, 1].
    norm = norms.spectral_norm(module.weight).value
    return proved(max(1.0, norm**2 * (1 + FLOAT64_ROOM) - 1), "contractive Euler steps (SVD)")


@lipschitz_rule.register(nn.Sequential)
@lipschitz_rule.register(MLPEncoder)
@lipschitz_rule.register(ContractiveFlowEncoder)
def _(module: nn.Sequential) -> UpperBound | None:
    product = proved(1.0, "identity")
    for layer in module:
        factor = lipschitz(layer)
        if factor is None:
            return None
        product = product * factor
    return product


@dataclass(frozen=True)
class Tube:
    """All that a layer's computed activations can be, for images near each of n centres.

    Attributes:
        centre: the activations of the centre in float64, first axis n: exact but for rounding
            that `arithmetic` gives room for, or charges where the program computes in float64.
        reach: l2 distance that the exact activations of a perturbed image can have from the
            centre's, shape (n,).
        error: l2 distance between the computed and the exact activations, shape (n,).
    """

    centre: Float[Tensor, "n *shape"]
    reach: Float[Tensor, " n"]
    error: Float[Tensor, " n"]

    @classmethod
    def around(cls, images: Float[Tensor, "n *shape"], radius: Float[Tensor, " n"]) -> "Tube":
        """All images within `radius` of `images`, which float32 represents exactly."""
        return cls(images.double(), radius.double(), torch.zeros_like(radius.double()))

    @property
    def spread(self) -> Float[Tensor, " n"]:
        """Distance that computed activations can have from the exact centre, shape (n,)."""
        return self.reach + self.error


@dataclass(frozen=True)
class Activations:
    """What the deployed program computed in front of a layer and behind it, with images first."""

    before: Tensor
    behind: Tensor


_deployed: ContextVar[Mapping[nn.Module, Activations]] = ContextVar("deployed", default={})  # noqa: B039


@contextmanager
def deployed_as(activations: Mapping[nn.Module, Activations]) -> Iterator[None]:
    """Within this context rules may take a centre from what the deployed program computed.

    Its rounding is that of the program, which `arithmetic.FLOAT64` charges for the centre as well.
    """
    token = _deployed.set(activations)
    try:
        yield
    finally:
        _deployed.reset(token)


def behind(module: nn.Module, centre: Tensor) -> Tensor | None:
    """What the deployed float64 program computed of this very centre; None where it did not."""
    known = _deployed.get().get(module)
    if known is None or known.behind.dtype is not torch.float64:
        return None
    return known.behind if torch.equal(known.before, centre) else None


def propagate(module: nn.Module, tube: Tube) -> Tube:
    """The tube behind `module`, given the tube in front of it.

    Raises:
        NotImplementedError: no bound is known for this kind of module.
    """
    if not _follows_a_rule(module, tube_rule.registry):
        raise NotImplementedError(f"no rounding bound is known for {type(module).__name__}")
    return tube_rule(module, tube)


@singledispatch
def tube_rule(module: nn.Module, tube: Tube) -> Tube:
    """The rule of a class of modules for `propagate`; register one with `.register`."""
    raise NotImplementedError(f"no rule is registered for {type(module).__name__}")


@tube_rule.register(nn.Flatten)
def _(module: nn.Flatten, tube: Tube) -> Tube:
    return Tube(module(tube.centre), tube.reach, tube.error)


@tube_rule.register
def _(module: nn.ReLU, tube: Tube) -> Tube:
    del module  # which may write into what it is given
    return Tube(torch.relu(tube.centre), tube.reach, tube.error)


@tube_rule.register
def _(module: Normalise, tube: Tube) -> Tube:
    slope = lipschitz(module)
    if slope is None:
        raise NotImplementedError("no rounding bound is known for standard deviations below 0")
    steepest = slope.value
    centre = (tube.centre - module.mean.double()) / module.std.double()
    size = lengths(centre) + steepest * tube.spread
    if centre.shape != tube.centre.shape:
        raise ValueError(
            f"expected images of {module.mean.shape[1]} channels, got {tube.centre.shape[1]}"
        )
    local = arithmetic.rounding(size, (centre[0].numel(), 4), steepest)
    return Tube(centre, steepest * tube.reach, steepest * tube.error + local)


@tube_rule.register(nn.Linear)
@tube_rule.register(OrthogonalLinear)
def _(module: nn.Linear | OrthogonalLinear, tube: Tube) -> Tube:
    weight = module.weight.detach().double()
    offset = torch.zeros(len(weight)).double() if module.bias is None else module.bias.double()
    centre = tube.centre @ weight.T + offset
    norm, entries = norms.spectral_norm(module.weight).value, float(weight.norm())
    size = lengths(tube.centre.abs() @ weight.abs().T + offset.abs()) + entries * tube.spread
    shape = (len(weight), weight.shape[1] + 1)
    local = arithmetic.rounding(size, shape, entries + lengths(tube.centre) + tube.spread)
    return Tube(centre, norm * tube.reach, norm * tube.error + local)


@tube_rule.register
def _(module: ContractiveStep, tube: Tube) -> Tube:
    # u = W z + b, then v = W^T relu(u), then z - v: each rounds; relu does not.
    weight, offset = module.weight.detach().double(), module.bias.detach().double()
    norm, entries = norms.spectral_norm(module.weight).value, float(weight.norm())
    hidden, width = weight.shape
    u = (tube.centre @ weight.T + offset).clamp_min(0)
    u_size = lengths(tube.centre.abs() @ weight.abs().T + offset.abs()) + entries * tube.spread
    u_operands = entries + lengths(tube.centre) + tube.spread
    u_error = arithmetic.rounding(u_size, (hidden, width + 1), u_operands)
    u_spread = norm * tube.spread + u_error
    v_size = lengths(u @ weight.abs()) + entries * u_spread
    v_rounding = arithmetic.rounding(v_size, (width, hidden), entries + lengths(u) + u_spread)
    v_error = norm * u_error + v_rounding
    centre = tube.centre - u @ weight
    step = lipschitz(module)
    assert step is not None
    size = lengths(centre) + step.value * tube.spread + v_error
    local = v_error + arithmetic.rounding(size, (width, 1), 0.0)
    return Tube(centre, step.value * tube.reach, step.value * tube.error + local)


@tube_rule.register(nn.Sequential)
@tube_rule.register(MLPEncoder)
@tube_rule.register(ContractiveFlowEncoder)
def _(module: nn.Sequential, tube: Tube) -> Tube:
    for layer in module:
        tube = propagate(layer, tube)
    return tube
