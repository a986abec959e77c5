"""Proven upper bounds, as a type: a number that is not one cannot enter a proof.

An `UpperBound` is only made here, by functions whose result is at least the true value in
exact arithmetic. A norm estimated from below (power iteration, sampling) stays a float, and
the certificates take no floats where they need a bound.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import InitVar, dataclass
from functools import singledispatch
from typing import Any

import numpy as np
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

# Relative error of a float64 SVD and of float64 sums of at most a million terms is far below
# this; every bound is raised by it.
_FLOAT64_ROOM = 1e-9
# No bound is given for activations beyond this, far below where float32 overflows.
LARGEST = 1e30
# No norm is bounded of weights below this in a float64 program; float32 has none whose squares
# float64 would lose.
_SMALLEST = 1e-100
# A sum of more terms than this over the unit of rounding has no bound.
_MOST_ROUNDING = 0.1

_SEAL = object()


@dataclass(frozen=True)
class Arithmetic:
    """The floating-point arithmetic of a program, as its rounding bounds see it.

    Attributes:
        unit: relative error of one operation.
        tiny: what flushing a denormal operand or result to zero can take away.
    """

    unit: float
    tiny: float


FLOAT32 = Arithmetic(2.0**-24, 2.0**-126)
# A certificate evaluates its own centres in float64. For a float32 program that error drowns in
# the room that every bound is given; for a float64 program it is as large as the program's, by
# the same operations, so both are charged: twice the unit and twice what is flushed.
FLOAT64 = Arithmetic(2.0**-52, 2.0**-1021)

_arithmetic: ContextVar[Arithmetic] = ContextVar("arithmetic", default=FLOAT32)


def current_arithmetic() -> Arithmetic:
    """The arithmetic that rounding bounds speak of here: float32 unless `computed_in` says so."""
    return _arithmetic.get()


@contextmanager
def computed_in(dtype: torch.dtype) -> Iterator[None]:
    """Within this context rounding bounds speak of a program that computes in `dtype`.

    Raises:
        ValueError: nothing is known of the rounding of `dtype`.
    """
    known = {torch.float32: FLOAT32, torch.float64: FLOAT64}
    if dtype not in known:
        raise ValueError(f"expected a program in float32 or float64, got one in {dtype}")
    token = _arithmetic.set(known[dtype])
    try:
        yield
    finally:
        _arithmetic.reset(token)


@dataclass(frozen=True)
class UpperBound:
    """A number proved to be at least the quantity it bounds.

    Attributes:
        value: the bound.
        how: how it was established, in words.
    """

    value: float
    how: str
    seal: InitVar[Any] = None

    def __post_init__(self, seal: Any) -> None:
        if seal is not _SEAL:
            raise TypeError(
                "expected an UpperBound from robustness.certificates.bounds, which proves it; "
                "a number of another origin cannot enter a proof"
            )

    def __mul__(self, other: "UpperBound") -> "UpperBound":
        """The product of two bounds of non-negative quantities; of nothing else."""
        if not isinstance(other, UpperBound):
            return NotImplemented
        how = " x ".join(dict.fromkeys([self.how, other.how]))
        return _bound(self.value * other.value, how)

    def __add__(self, other: "UpperBound") -> "UpperBound":
        """The sum of two bounds; of nothing else."""
        if not isinstance(other, UpperBound):
            return NotImplemented
        how = " + ".join(dict.fromkeys([self.how, other.how]))
        return _bound(self.value + other.value, f"({how})")


def _bound(value: float, how: str) -> UpperBound:
    return UpperBound(value, how, _SEAL)


def spectral_norm(matrix: Float[Tensor, "m n"]) -> UpperBound:
    """Largest singular value of a matrix, by a full SVD in float64, raised for its rounding.

    LAPACK's SVD is backward stable: computed singular values differ from the exact ones by a
    modest multiple of float64's unit roundoff times the norm.
    """
    values = matrix.detach().double().numpy()
    largest = remembered(("svd",), values, lambda: np.linalg.svd(values, compute_uv=False)[0])
    return _bound(largest * (1 + _FLOAT64_ROOM), "SVD")


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
    slopes = torch.linalg.vector_norm(rows.unsqueeze(1) - rows.unsqueeze(0), dim=2)
    return slopes * (1 + _FLOAT64_ROOM)


# What a subclass may define for itself without becoming another function.
_HARMLESS = {"__init__", "__repr__", "extra_repr", "reset_parameters", "parametrisation", "settle"}
# How a module that is called comes to its forward method and to its parts.
_CALLING = ("__call__", "_call_impl", "_wrapped_call_impl", "__getattr__", "__getattribute__")


def unaltered(module: object, known: type[nn.Module]) -> bool:
    """Whether `module` computes what the class that a proof is about does.

    A subclass or an instance that replaces any method of that class, a hook, or a compiled version
    makes it another function.
    """
    if not isinstance(module, known):
        return False
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        torch.nn.modules.module._global_forward_hooks,
        torch.nn.modules.module._global_forward_pre_hooks,
    )
    if any(hooks) or getattr(module, "_compiled_call_impl", None) is not None:
        return False
    own = known.__mro__[: known.__mro__.index(nn.Module)]
    methods = {name for part in own for name, value in vars(part).items() if callable(value)}
    methods |= {name for part in own for name, v in vars(part).items() if isinstance(v, property)}
    methods = (methods | set(_CALLING)) - _HARMLESS
    return not methods & set(vars(module)) and all(
        getattr(type(module), name) is getattr(known, name) for name in methods
    )


def refusal_of_arithmetic(model: nn.Module, dtype: torch.dtype = torch.float32) -> str | None:
    """Why the rounding bounds do not hold for the program of `model`; None where they do.

    They are bounds for sums of products of finite numbers of one precision. NNPACK computes
    convolutions by Winograd's transform instead, whose errors are larger; PyTorch turns to it for
    batches of 16 images or more where oneDNN is switched off.

    Args:
        model: the program.
        dtype: the precision that it computes in.
    """
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
    transformed = torch.backends.nnpack.is_available() and torch._C._get_nnpack_enabled()
    if transformed and not direct and any(p.dim() == 4 for p in model.parameters()):
        return "convolutions may run by Winograd's transform; switch oneDNN on or NNPACK off"
    return None


def _squares_vanish(weights: Tensor) -> bool:
    """Whether a weight is so small that float64 loses its square."""
    sizes = weights.detach().abs()
    return bool(((sizes > 0) & (sizes < _SMALLEST)).any())


def lipschitz(module: nn.Module) -> UpperBound | None:
    """A proven l2 Lipschitz constant of `module`, or None where no proof is known for it."""
    return _lipschitz(module) if _follows_a_rule(module, _lipschitz.registry) else None


def _follows_a_rule(module: nn.Module, rules: Mapping[Any, Any]) -> bool:
    described = next(known for known in type(module).__mro__ if known in rules)
    return described is not object and unaltered(module, described)


@singledispatch
def _lipschitz(module: nn.Module) -> UpperBound | None:
    raise NotImplementedError(f"no rule is registered for {type(module).__name__}")


@_lipschitz.register(nn.Flatten)
@_lipschitz.register(nn.ReLU)
def _(module: nn.Module) -> UpperBound | None:
    del module
    return _bound(1.0, "1-Lipschitz layer")


@_lipschitz.register
def _(module: Normalise) -> UpperBound | None:
    if not bool((module.std > 0).all()):
        return None
    # The weights' own rounding to float32 is part of the deployed function: exact here.
    steepest = float(module.std.double().reciprocal().max())
    return _bound(steepest * (1 + _FLOAT64_ROOM), "1/std of the normalising layer")


@_lipschitz.register(nn.Linear)
@_lipschitz.register(OrthogonalLinear)
def _(module: nn.Linear | OrthogonalLinear) -> UpperBound | None:
    return spectral_norm(module.weight)


@_lipschitz.register
def _(module: ContractiveStep) -> UpperBound | None:
    # The Jacobian I - W^T D W, 0 <= D <= I, is symmetric with eigenvalues in [1 - |W|^2, 1].
    norm = spectral_norm(module.weight).value
    return _bound(max(1.0, norm**2 * (1 + _FLOAT64_ROOM) - 1), "contractive Euler steps (SVD)")


@_lipschitz.register(nn.Sequential)
@_lipschitz.register(MLPEncoder)
@_lipschitz.register(ContractiveFlowEncoder)
def _(module: nn.Sequential) -> UpperBound | None:
    product = _bound(1.0, "identity")
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
        centre: the exact activations of the centre, float64, first axis n.
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


def gamma(terms: int) -> float:
    """Higham's gamma_n = n u / (1 - n u): relative error of a sum of n products.

    Holds for every order of summation, blocked or fused (Higham, Accuracy and Stability of
    Numerical Algorithms, 2nd ed., section 3.1). Infinite where n u is no longer small.
    """
    relative = terms * current_arithmetic().unit
    return relative / (1 - relative) if relative <= _MOST_ROUNDING else math.inf


def rounding(size: Tensor, shape: tuple[int, int], operands: Tensor | float) -> Tensor:
    """l2 error of a vector of floating-point sums of products.

    Args:
        size: l2 length of the vector if all terms were positive, shape (n,).
        shape: number of sums, and of terms in each.
        operands: a bound on every factor that enters them, shape (n,). A denormal factor or
            result that is flushed to zero takes away `Arithmetic.tiny` times the other factor.

    Returns:
        A bound of shape (n,); infinite where a sum might leave the range of float32.
    """
    sums, terms = shape
    flushed = sums * terms * (2 + operands + torch.zeros_like(size))
    error = gamma(terms) * size + current_arithmetic().tiny * flushed
    bounded = (torch.maximum(size, flushed) <= LARGEST) & error.isfinite()
    return torch.where(bounded, error, torch.inf)


def propagate(module: nn.Module, tube: Tube) -> Tube:
    """The tube behind `module`, given the tube in front of it.

    Raises:
        NotImplementedError: no bound is known for this kind of module.
    """
    if not _follows_a_rule(module, _propagate.registry):
        raise NotImplementedError(f"no rounding bound is known for {type(module).__name__}")
    return _propagate(module, tube)


@singledispatch
def _propagate(module: nn.Module, tube: Tube) -> Tube:
    raise NotImplementedError(f"no rule is registered for {type(module).__name__}")


@_propagate.register(nn.Flatten)
@_propagate.register(nn.ReLU)
def _(module: nn.Module, tube: Tube) -> Tube:
    return Tube(module(tube.centre), tube.reach, tube.error)


@_propagate.register
def _(module: Normalise, tube: Tube) -> Tube:
    slope = lipschitz(module)
    if slope is None:
        raise NotImplementedError("no rounding bound is known for standard deviations below 0")
    steepest = slope.value
    centre = (tube.centre - module.mean.double()) / module.std.double()
    size = _length(centre) + steepest * tube.spread
    if centre.shape != tube.centre.shape:
        raise ValueError(
            f"expected images of {module.mean.shape[1]} channels, got {tube.centre.shape[1]}"
        )
    local = rounding(size, (centre[0].numel(), 4), steepest)
    return Tube(centre, steepest * tube.reach, steepest * tube.error + local)


@_propagate.register(nn.Linear)
@_propagate.register(OrthogonalLinear)
def _(module: nn.Linear | OrthogonalLinear, tube: Tube) -> Tube:
    weight = module.weight.detach().double()
    offset = torch.zeros(len(weight)).double() if module.bias is None else module.bias.double()
    centre = tube.centre @ weight.T + offset
    norm, entries = spectral_norm(module.weight).value, float(weight.norm())
    size = _length(tube.centre.abs() @ weight.abs().T + offset.abs()) + entries * tube.spread
    shape = (len(weight), weight.shape[1] + 1)
    local = rounding(size, shape, entries + _length(tube.centre) + tube.spread)
    return Tube(centre, norm * tube.reach, norm * tube.error + local)


@_propagate.register
def _(module: ContractiveStep, tube: Tube) -> Tube:
    # u = W z + b, then v = W^T relu(u), then z - v: each rounds; relu does not.
    weight, offset = module.weight.detach().double(), module.bias.detach().double()
    norm, entries = spectral_norm(module.weight).value, float(weight.norm())
    hidden, width = weight.shape
    u = (tube.centre @ weight.T + offset).clamp_min(0)
    u_size = _length(tube.centre.abs() @ weight.abs().T + offset.abs()) + entries * tube.spread
    u_operands = entries + _length(tube.centre) + tube.spread
    u_error = rounding(u_size, (hidden, width + 1), u_operands)
    u_spread = norm * tube.spread + u_error
    v_size = _length(u @ weight.abs()) + entries * u_spread
    v_rounding = rounding(v_size, (width, hidden), entries + _length(u) + u_spread)
    v_error = norm * u_error + v_rounding
    centre = tube.centre - u @ weight
    step = lipschitz(module)
    assert step is not None
    size = _length(centre) + step.value * tube.spread + v_error
    local = v_error + rounding(size, (width, 1), 0.0)
    return Tube(centre, step.value * tube.reach, step.value * tube.error + local)


@_propagate.register(nn.Sequential)
@_propagate.register(MLPEncoder)
@_propagate.register(ContractiveFlowEncoder)
def _(module: nn.Sequential, tube: Tube) -> Tube:
    for layer in module:
        tube = propagate(layer, tube)
    return tube


def _length(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors.flatten(1), dim=1)
