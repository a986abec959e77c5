"""How far float32 functions are from exact ones, over all float32 numbers of the used range.

The certificate `program` charges each of `robustness.programs.operations.elementwise.CURVES` for
some units of rounding. This compares every float32 number from 2^-24 to 2^8 in size, and each 61st
beyond, with float64: for numbers that lie together in memory and for such that do not, which other
code computes, and softmax besides, whose exponential is another one. What is printed is the largest
error in units of rounding (2^-24), of the result where it is relative; and as a share of what is
charged, which above 1 would be too little.

    python benchmarks/rounding_units.py [--every 1] [--workers 2] [FUNCTION ...]
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from robustness.numerics.arithmetic import FLOAT32, LARGEST
from robustness.programs.operations.elementwise import CURVES, Curve

# Numbers of one binade, and how many are looked at together.
_BINADE, _TOGETHER = 2**23, 2**18
_EXPONENTS, _USED, _BEYOND = range(-126, 128), range(-24, 8), 61


def _exact_gelu(x: Tensor) -> Tensor:
    return x * torch.special.ndtr(x)


# Where PyTorch's own float64 function is not exact enough.
_EXACT: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": _exact_gelu,
    "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
}


@dataclass(frozen=True)
class Worst:
    """The largest errors that were met.

    Attributes:
        numbers: how many were looked at.
        units: relative error in units of rounding.
        absolute: the error itself in these units, of results up to 1 in size.
        share: of what is charged.
        at: where.
    """

    numbers: int = 0
    units: float = 0.0
    absolute: float = 0.0
    share: float = 0.0
    at: float = 0.0

    def and_also(self, other: "Worst") -> "Worst":
        """The larger ones of both."""
        worse = max(self, other, key=lambda w: w.share)
        return Worst(
            self.numbers + other.numbers,
            max(self.units, other.units),
            max(self.absolute, other.absolute),
            worse.share,
            worse.at,
        )


def numbers(exponent: int, sign: int, every: int, offset: int = 0) -> Iterator[Tensor]:
    """Float32 numbers of a binade in parts: each `every`-th from `offset` on."""
    start = (exponent + 127) * _BINADE + offset
    for first in range(start, (exponent + 128) * _BINADE, _TOGETHER * every):
        last = min(first + _TOGETHER * every, (exponent + 128) * _BINADE)
        yield sign * torch.arange(first, last, every, dtype=torch.int32).view(torch.float32)


def apart(x: Tensor) -> Tensor:
    """The same numbers, with others between them."""
    return torch.stack([x, torch.ones_like(x)], dim=1)[:, 0]


def worst_of(name: str, curve: Curve, x: Tensor) -> Worst:
    """Errors of a function at some numbers, of both layouts."""
    exact = _EXACT.get(name, curve.value)(x.double())
    used = exact.abs() <= LARGEST
    if not bool(used.any()):
        return Worst()
    charged = FLOAT32.unit * (curve.units * exact.abs() + curve.absolute) + 2 * FLOAT32.tiny
    charged = torch.where(used, charged, 1.0)
    found = Worst(int(used.sum()))
    for given in (x, apart(x)):
        error = torch.where(used, (curve.value(given).double() - exact).abs(), 0.0)
        # A result that is not finite is in error without end.
        share = torch.where(error.isnan(), torch.inf, error / charged)
        top = share.argmax()
        normal = exact.abs() >= 2.0**-100
        units = (error / (FLOAT32.unit * exact.abs()))[normal]
        largest = float(units.max()) if len(units) else 0.0
        small = torch.where(exact.abs() <= 1, error, 0.0) / FLOAT32.unit
        met = Worst(0, largest, float(small.max()), float(share[top]), float(x[top]))
        found = found.and_also(met)
    return found


def worst_of_softmax(x: Tensor, others: int) -> Worst:
    """Errors of exp(x) / (1 + the sum of some such), as softmax computes it, against its charge."""
    used = x[(x < 0) & (x >= -80)]
    used = used[: len(used) // others * others]
    if len(used) == 0:
        return Worst()
    rows = functional.pad(used.view(-1, others), (1, 0))
    exact, charged = rows.double().softmax(dim=1), 20 + 2 * (others + 1)
    error = (rows.softmax(dim=1).double() - exact).abs()
    share = error / (2 * FLOAT32.unit * (exact * charged + 0.4) + 2 * FLOAT32.tiny)
    top = share.argmax()
    units = error / (FLOAT32.unit * exact)
    absolute = float(error.max()) / FLOAT32.unit
    at = float(rows.flatten()[top])
    return Worst(len(used), float(units.max()), absolute, float(share.max()), at)


def worst_in(name: str, exponent: int, every: int = 1, offset: int = 0) -> Worst:
    """Errors of a function, or of `softmax`, over a binade of either sign."""
    found = Worst()
    for sign in (1, -1):
        for x in numbers(exponent, sign, every, offset):
            if name == "softmax":
                for others in (1, 16):
                    found = found.and_also(worst_of_softmax(x, others))
            else:
                found = found.and_also(worst_of(name, CURVES[name], x))
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("functions", nargs="*", default=[*CURVES, "softmax"])
    parser.add_argument("--every", type=int, default=1, help="look at each such number only")
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    with ProcessPoolExecutor(given.workers) as pool:
        for name in given.functions:
            every = [given.every * (1 if e in _USED else _BEYOND) for e in _EXPONENTS]
            found = Worst()
            for part in pool.map(partial(worst_in, name), _EXPONENTS, every):
                found = found.and_also(part)
            sys.stdout.write(
                f"{name}: {found.numbers} numbers, {found.units:.2f} units relative, "
                f"{found.absolute:.2f} absolute up to 1, {found.share:.3f} of the charge at "
                f"{found.at!r}\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
