"""Floating-point arithmetic as rounding bounds see it: units, sums, and the room they are given."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

# Relative error of what float64 evaluates here (an SVD, transforms, sums of at most a million
# terms, symmetric eigenvalue problems of some thousand rows) is far below this; every bound that
# is evaluated in float64 is raised by it.
FLOAT64_ROOM = 1e-9
# Share by which a bound on rounding is raised for the float64 arithmetic that evaluates it.
ALLOWANCE_ROOM = 1e-6
# No bound is given for activations beyond this, far below where float32 overflows.
LARGEST = 1e30
# A sum of more terms than this over the unit of rounding has no bound.
_MOST_ROUNDING = 0.1


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
# Centres of a certificate are evaluated in float64. For a float32 program that error drowns in
# the room that every bound is given; for a float64 program it is as large as the program's, by
# the same operations, so both are charged: twice the unit and twice what is flushed. They may also
# be the program's own.
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


def rounding_of_entries(terms: int, size: Tensor, operands: Tensor | float) -> Tensor:
    """Float32 error of each entry of a layer of sums of products.

    Args:
        terms: number of terms of a sum.
        size: each sum with all of its terms taken positive.
        operands: a bound on every factor that enters, which broadcasts against `size`; see
            `rounding`.

    Returns:
        A bound per entry; infinite where a sum might leave the range of float32.
    """
    flushed = current_arithmetic().tiny * terms * (2 + operands)
    error = (gamma(terms) * size + flushed) * (1 + ALLOWANCE_ROOM)
    return torch.where(size + operands <= LARGEST, error, torch.inf)
