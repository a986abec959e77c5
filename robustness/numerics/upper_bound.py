"""Proven upper bounds, as a type: a number that is not one cannot enter a proof.

An `UpperBound` is only made by `proved`, where a function has shown that its result is at least the
true value in exact arithmetic. A norm estimated from below (power iteration, sampling) stays a
float, and the certificates take no floats where they need a bound.
"""

from dataclasses import InitVar, dataclass
from typing import Any

_SEAL = object()


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
                "expected an UpperBound from a function that proves it, got a number; "
                "a number of another origin cannot enter a proof"
            )

    def __mul__(self, other: "UpperBound") -> "UpperBound":
        """The product of two bounds of non-negative quantities; of nothing else."""
        if not isinstance(other, UpperBound):
            return NotImplemented
        how = " x ".join(dict.fromkeys([self.how, other.how]))
        return proved(self.value * other.value, how)

    def __add__(self, other: "UpperBound") -> "UpperBound":
        """The sum of two bounds; of nothing else."""
        if not isinstance(other, UpperBound):
            return NotImplemented
        how = " + ".join(dict.fromkeys([self.how, other.how]))
        return proved(self.value + other.value, f"({how})")


def proved(value: float, how: str) -> UpperBound:
    """A bound that the caller has proved: the one door, so that every proof is found by it.

    Args:
        value: at least the true value, whatever rounding did to it.
        how: how that is known, in words.
    """
    return UpperBound(value, how, _SEAL)
