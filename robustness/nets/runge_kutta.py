"""Explicit Runge-Kutta methods, each said once: its tableau, and all that follows from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

FixedMethod = Literal["euler", "midpoint", "heun2", "rk4"]

Row = tuple[Fraction, ...]


@dataclass(frozen=True)
class RungeKutta:
    """y_1 = y_0 + h sum_i b_i k_i with k_i = f(y_0 + h sum_j a_ij k_j).

    Attributes:
        stages: the rows a_i of the tableau, of length i each.
        weights: b.
        roundings: a bound on the floating-point roundings of one stage, or of the sum of a step,
            per unit of state size, for a field that relaxes towards a target. Every increment is a
            difference of two such sizes that is scaled twice, by constants that are rounded too
            (under 10 u); Euler adds one of them to the state (11 u in all), heun2 half the sum of
            two, the others up to four with weights of up to 3.
        convex: the method in the form of Shu and Osher (1988), where it has one with coefficients
            of at least 0: each new state is a convex combination of the states before it and of
            the results of Euler's step from each of them. None where there is no such form.
    """

    stages: tuple[Row, ...]
    weights: Row
    roundings: int
    convex: tuple[tuple[Row, Row], ...] | None = None

    @property
    def evaluations(self) -> int:
        """Evaluations of the field in one step."""
        return len(self.weights)

    @property
    def stability(self) -> Row:
        """Coefficients of the stability polynomial R(z), from the constant: c_k = b A^(k-1) 1."""
        coefficients, powers = [Fraction(1)], [Fraction(1)] * self.evaluations
        for _ in self.stages:
            coefficients.append(_dot(self.weights, powers))
            powers = [_dot(row, powers) for row in self.stages]
        return tuple(coefficients)

    def retained(self, share: float) -> float:
        """R(-share): what one step of size h keeps of y under y' = -kappa y, share = h * kappa."""
        return sum(
            c.numerator * (-share) ** power / c.denominator
            for power, c in enumerate(self.stability)
        )


def _dot(row: Sequence[Fraction], values: Sequence[Fraction]) -> Fraction:
    return sum((a * b for a, b in zip(row, values, strict=False)), Fraction(0))


def _row(*entries: str) -> Row:
    return tuple(Fraction(entry) for entry in entries)


# By the names and with the coefficients of torchdiffeq, whose rk4 is the 3/8 rule.
METHODS: dict[FixedMethod, RungeKutta] = {
    "euler": RungeKutta((_row(),), _row("1"), 20, ((_row("0"), _row("1")),)),
    "heun2": RungeKutta(
        (_row(), _row("1")),
        _row("1/2", "1/2"),
        40,
        ((_row("0"), _row("1")), (_row("1/2", "0"), _row("0", "1/2"))),
    ),
    "midpoint": RungeKutta((_row(), _row("1/2")), _row("0", "1"), 200),
    "rk4": RungeKutta(
        (_row(), _row("1/3"), _row("-1/3", "1"), _row("1", "-1", "1")),
        _row("1/8", "3/8", "3/8", "1/8"),
        200,
    ),
}

CONVEX = tuple(name for name, method in METHODS.items() if method.convex is not None)
