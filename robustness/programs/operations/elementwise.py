"""Functions of one entry: a line above and a line below each, over the entry's box.

Rectifiers have the lines of CROWN (Zhang et al., arXiv 1811.00866). Convex functions lie below
their chord and above any tangent, concave ones the other way round. Any other smooth function
lies within M r^2 / 2 of its tangent at the centre of a box of half-width r, where M bounds its
second derivative; where that is wider than the function's range, the range's ends are used.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from robustness.numerics.arithmetic import LARGEST, current_arithmetic
from robustness.programs.boxes import Box
from robustness.programs.graph import Node
from robustness.programs.operations.base import (
    NORMAL,
    Operation,
    Rows,
    constant,
    dot,
    register,
    require,
)


class Line(NamedTuple):
    """slope x + intercept, entry by entry."""

    slope: Tensor
    intercept: Tensor


class Elementwise(Operation):
    """A function of one entry.

    Subclasses give the function's range over a box and a line on either side.
    """

    def below(self, box: Box) -> Line:
        """A line that is nowhere above the function on the box."""
        raise NotImplementedError

    def above(self, box: Box) -> Line:
        """A line that is nowhere below the function on the box."""
        raise NotImplementedError

    def lines(self, rows: Rows, out: Box, *boxes: Box) -> tuple[list[Tensor | None], Tensor]:
        """The line below where a row is positive, the one above where it is negative."""
        del out
        (box,) = boxes
        below, above = self.below(box), self.above(box)
        up, down = rows.clamp_min(0), rows.clamp_max(0)
        if below.slope is above.slope:
            back = rows * below.slope.unsqueeze(1)
        else:
            back = up * below.slope.unsqueeze(1) + down * above.slope.unsqueeze(1)
        return [back], dot(up, below.intercept) + dot(down, above.intercept)

    @property
    def side(self) -> int:
        """Where lines that touch the function are free to choose: -1 below, 1 above, 0 nowhere."""
        return 0

    @property
    def free(self) -> bool:
        """Whether one of its two lines is."""
        return self.side != 0

    def touching(self, box: Box, share: Tensor) -> Line:
        """A line on the free side for each share in [0, 1]."""
        raise NotImplementedError

    def chosen_lines(
        self, shares: Tensor, rows: Rows, out: Box, *boxes: Box
    ) -> tuple[list[Tensor | None], Tensor]:
        """The chosen line on the free side, the only one on the other."""
        del out
        (box,) = boxes
        each = Box(box.low.unsqueeze(1), box.high.unsqueeze(1))
        chosen = self.touching(each, shares.clamp(0, 1))
        only = self.above(box) if self.side < 0 else self.below(box)
        free, other = rows.clamp_min(0), rows.clamp_max(0)
        if self.side > 0:
            free, other = other, free
        back = free * chosen.slope + other * only.slope.unsqueeze(1)
        offset = (free * chosen.intercept).flatten(2).sum(dim=2) + dot(other, only.intercept)
        return [back], offset


class Rectifier(Elementwise):
    """max(x, a), relu with a = 0: exact in floating-point arithmetic."""

    def __init__(self, node: Node, threshold: Tensor) -> None:
        super().__init__(node)
        self.threshold = threshold

    def interval(self, *boxes: Box) -> Box:
        """Ends to ends."""
        (box,) = boxes
        return Box(torch.maximum(box.low, self.threshold), torch.maximum(box.high, self.threshold))

    def below(self, box: Box) -> Line:
        """Y = x or y = a: whichever leaves the smaller triangle."""
        low, high = box.low - self.threshold, box.high - self.threshold
        slope = ((low >= 0) | ((high > 0) & (high > -low))).double()
        return Line(slope, self.threshold * (1 - slope))

    def above(self, box: Box) -> Line:
        """The chord."""
        low, high = box.low - self.threshold, box.high - self.threshold
        bent = (low < 0) & (high > 0)
        slope = torch.where(bent, high / (high - low), (low >= 0).double())
        lift = torch.where(bent, -slope * low, 0.0)
        return Line(slope, lift + self.threshold * (1 - slope))

    @property
    def side(self) -> int:
        """Any line through the bend of a slope in [0, 1] lies below."""
        return -1

    def shares(self, *boxes: Box) -> Tensor:
        """The slope below."""
        return self.below(boxes[0]).slope

    def touching(self, box: Box, share: Tensor) -> Line:
        """Of slope `share` where the entry is undecided."""
        low, high = box.low - self.threshold, box.high - self.threshold
        slope = torch.where(low >= 0, 1.0, torch.where(high <= 0, 0.0, share))
        return Line(slope, self.threshold * (1 - slope))


@register("relu", "clamp_min")
def _rectifier(node: Node) -> Operation:
    threshold = node.args[1] if node.name == "clamp_min" else 0.0
    require(node, not isinstance(threshold, Node), "a bound that depends on the image")
    require(node, node.shape == node.parents[0].shape, "a bound of another shape")
    return Rectifier(node, constant(threshold, node.dtype))


@dataclass(frozen=True)
class Curve:
    """A function with what its lines rest on.

    Attributes:
        value: the function.
        slope: its derivative.
        units: relative error of the library's float result in units of rounding, twice what all
            float32 numbers show (`benchmarks/rounding_units.py`).
        absolute: further error, in units of rounding, that does not scale with the result.
        shape: `convex`, `concave`, or `bounded`, with a second derivative within `bend`.
        bend: bound of the second derivative's absolute value, for `bounded`.
        rising: whether the function never falls.
        lowest: where a function that falls and then rises is least, and its value there.
    """

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    units: float
    absolute: float = 0.0
    shape: str = "bounded"
    bend: float = 0.0
    rising: bool = True
    lowest: tuple[float, float] | None = None


def _logistic(x: Tensor) -> Tensor:
    p = x.sigmoid()
    return p * (1 - p)


def _gelu_slope(x: Tensor) -> Tensor:
    density = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    slope: Tensor = torch.special.ndtr(x) + x * density
    return slope


def _silu_slope(x: Tensor) -> Tensor:
    p = x.sigmoid()
    return p * (1 + x * (1 - p))


# Where gelu and silu are least, and slightly less than their values there.
_GELU_LOWEST, _SILU_LOWEST = (-0.7517915, -0.16997122), (-1.2784645, -0.27846455)

CURVES: dict[str, Curve] = {
    "exp": Curve(torch.exp, torch.exp, 8.0, shape="convex"),
    "tanh": Curve(torch.tanh, lambda x: 1 - torch.tanh(x) ** 2, 8.0, bend=0.77),
    "sigmoid": Curve(torch.sigmoid, _logistic, 12.0, 2.0, bend=0.0963),
    "softplus": Curve(functional.softplus, torch.sigmoid, 16.0, 8.0, shape="convex"),
    "gelu": Curve(
        functional.gelu, _gelu_slope, 16.0, 48.0, bend=0.798, rising=False, lowest=_GELU_LOWEST
    ),
    "silu": Curve(
        functional.silu, _silu_slope, 16.0, 4.0, bend=0.5, rising=False, lowest=_SILU_LOWEST
    ),
    "log": Curve(torch.log, torch.reciprocal, 8.0, 4.0, shape="concave"),
    "sqrt": Curve(torch.sqrt, lambda x: 0.5 / torch.sqrt(x), 4.0, shape="concave"),
    "reciprocal": Curve(
        torch.reciprocal, lambda x: -1 / (x * x), 2.0, shape="convex", rising=False
    ),
    "elu": Curve(functional.elu, lambda x: torch.exp(x.clamp_max(0)), 16.0, 4.0, bend=1.0),
    "sin": Curve(torch.sin, torch.cos, 8.0, 4.0, bend=1.0, rising=False),
    "cos": Curve(torch.cos, lambda x: -torch.sin(x), 8.0, 4.0, bend=1.0, rising=False),
}
# Settings that mean the plain function.
_DEFAULTS: dict[str, tuple[tuple[float, ...], ...]] = {
    "softplus": ((), (1,), (1, 20)),
    "elu": ((), (1,), (1, 1), (1, 1, 1)),
}
# What is asked of the operand for the rules to hold.
_POSITIVE = ("log", "sqrt", "reciprocal", "rsqrt")
# Room for float64 in a line's intercept, as a share of all that enters it.
_ROOM = 2.0**-40


class Smooth(Elementwise):
    """A smooth function from `CURVES`."""

    def __init__(self, node: Node, curve: Curve) -> None:
        super().__init__(node)
        self.curve = curve

    def interval(self, *boxes: Box) -> Box:
        """The range, by monotony or by the curve's least value."""
        (box,) = boxes
        if self.node.name in _POSITIVE and not bool((box.low >= NORMAL).all()):
            box = Box(box.low.where(box.low >= NORMAL, torch.nan), box.high)
        first, last = self.curve.value(box.low), self.curve.value(box.high)
        low, high = torch.minimum(first, last), torch.maximum(first, last)
        if self.node.name in ("sin", "cos"):
            low, high = self._wave(box)
        elif self.curve.lowest is not None:
            place, value = self.curve.lowest
            # A margin around the place: its digits are rounded.
            inside = (box.low < place + 1e-5) & (box.high > place - 1e-5)
            low = torch.where(inside, torch.minimum(low, torch.full_like(low, value)), low)
        room = _ROOM * (1 + torch.maximum(low.abs(), high.abs()))
        room = torch.where(box.low == box.high, 2.0**-50 * (1 + low.abs()), room)
        return Box(low - room, high + room)

    def _wave(self, box: Box) -> tuple[Tensor, Tensor]:
        centre = self.curve.value(box.centre)
        reach = box.half
        return (centre - reach).clamp_min(-1), (centre + reach).clamp_max(1)

    def rounding(self, out: Box, *boxes: Box) -> Tensor | float:
        """The library's accuracy, stated in `CURVES` and checked by a test."""
        del boxes
        arithmetic = current_arithmetic()
        error = arithmetic.unit * (self.curve.units * out.size + self.curve.absolute)
        return torch.where(out.size <= LARGEST, error + 2 * arithmetic.tiny, torch.inf)

    def below(self, box: Box) -> Line:
        """A tangent, a chord, or the least value."""
        if self.curve.shape == "convex":
            return self._tangent(box, -1)
        if self.curve.shape == "concave":
            return self._chord(box, -1)
        return self._bounded(box, -1)

    def above(self, box: Box) -> Line:
        """A chord, a tangent, or the largest value."""
        if self.curve.shape == "convex":
            return self._chord(box, 1)
        if self.curve.shape == "concave":
            return self._tangent(box, 1)
        return self._bounded(box, 1)

    @property
    def side(self) -> int:
        """Tangents of a convex function lie below it, those of a concave one above."""
        return {"convex": -1, "concave": 1}.get(self.curve.shape, 0)

    def shares(self, *boxes: Box) -> Tensor:
        """The middle of the box."""
        return torch.full_like(boxes[0].low, 0.5)

    def touching(self, box: Box, share: Tensor) -> Line:
        """The tangent at a share of the way through the box."""
        return self._tangent_at(box.low + share * (box.high - box.low), self.side)

    def _tangent(self, box: Box, side: int) -> Line:
        return self._tangent_at(box.centre, side)

    def _tangent_at(self, at: Tensor, side: int) -> Line:
        value, slope = self.curve.value(at), self.curve.slope(at)
        return Line(slope, value - slope * at + side * _ROOM * (value.abs() + (slope * at).abs()))

    def _chord(self, box: Box, side: int) -> Line:
        low, high = self.curve.value(box.low), self.curve.value(box.high)
        width = box.high - box.low
        narrow = width <= 1e-12 * (1 + box.size)
        slope = torch.where(narrow, 0.0, (high - low) / width.clamp_min(1e-300))
        # From the end that is further out, which also covers a slope that is rounded.
        ends = torch.stack([low - slope * box.low, high - slope * box.high])
        intercept = ends.amax(dim=0) if side > 0 else ends.amin(dim=0)
        size = low.abs() + high.abs() + (slope * box.size).abs()
        return Line(slope, intercept + side * _ROOM * size)

    def _bounded(self, box: Box, side: int) -> Line:
        at, half = box.centre, box.half
        value, slope = self.curve.value(at), self.curve.slope(at)
        away = self.curve.bend * half * half / 2
        reach = self.interval(box)
        end = reach.high if side > 0 else reach.low
        # Area between the line and the function's centre: what a tangent leaves, or a constant.
        flat = (end - value).abs() <= away
        slope = torch.where(flat, 0.0, slope)
        room = _ROOM * (1 + value.abs() + (slope * at).abs())
        return Line(slope, torch.where(flat, end, value - slope * at + side * (away + room)))


@register(*CURVES)
def _smooth(node: Node) -> Operation:
    plain = node.args[1:] in _DEFAULTS.get(node.name, ((),))
    require(node, plain and set(node.kwargs) <= {"approximate"}, "settings of its own")
    # Beyond 20 torch's softplus is its operand, which differs by more than float64 rounds.
    narrow = node.name != "softplus" or node.dtype is torch.float32
    require(node, narrow, "numbers of that precision")
    exact = node.kwargs.get("approximate", "none") == "none"
    require(node, exact, "an approximation of gelu")
    return Smooth(node, CURVES[node.name])


class Square(Elementwise):
    """x^2, whether it is written as a power or as a product of a value with itself."""

    def interval(self, *boxes: Box) -> Box:
        """From the nearest to 0 to the furthest."""
        box = boxes[0]
        nearest = torch.zeros_like(box.low).clamp(box.low, box.high)
        return Box(nearest**2, box.size**2)

    def rounding(self, out: Box, *boxes: Box) -> Tensor | float:
        """Of one product."""
        del boxes
        arithmetic = current_arithmetic()
        error = arithmetic.unit * out.size * (1 + 1e-6) + 2 * arithmetic.tiny
        return torch.where(out.size <= LARGEST, error, torch.inf)

    def below(self, box: Box) -> Line:
        """The tangent at the centre."""
        at = box.centre
        return Line(2 * at, -at * at)

    def above(self, box: Box) -> Line:
        """The chord, whose slope is the tangent's."""
        return Line(box.low + box.high, -box.low * box.high)

    @property
    def side(self) -> int:
        """Any tangent lies below."""
        return -1

    def shares(self, *boxes: Box) -> Tensor:
        """The middle of the box."""
        return torch.full_like(boxes[0].low, 0.5)

    def touching(self, box: Box, share: Tensor) -> Line:
        """The tangent at a share of the way through the box."""
        at = box.low + share * (box.high - box.low)
        return Line(2 * at, -at * at)

    def chosen_lines(
        self, shares: Tensor, rows: Rows, out: Box, *boxes: Box
    ) -> tuple[list[Tensor | None], Tensor]:
        """As of any function of one entry; a value that enters twice is counted once."""
        (back,), offset = super().chosen_lines(shares, rows, out, boxes[0])
        return [back, *[None] * (len(boxes) - 1)], offset

    def lines(self, rows: Rows, out: Box, *boxes: Box) -> tuple[list[Tensor | None], Tensor]:
        """As of any function of one entry; a value that enters twice is counted once."""
        (back,), offset = super().lines(rows, out, boxes[0])
        return [back, *[None] * (len(boxes) - 1)], offset
