"""Products and quotients of two values that both depend on the image.

A product x y on a box lies within r_x r_y of its plane through the centre,
c_y x + c_x y - c_x c_y: the mean of McCormick's two planes on either side.
"""

import math

import torch
from torch import Tensor

from robustness.numerics.arithmetic import rounding_of_entries
from robustness.programs.boxes import Box
from robustness.programs.graph import Node
from robustness.programs.operations.affine import Scaling, scaled
from robustness.programs.operations.base import (
    NORMAL,
    Operation,
    Rows,
    broadcast,
    constant,
    dot,
    least,
    register,
    require,
    summed_to,
)
from robustness.programs.operations.elementwise import CURVES, Smooth, Square


def _hull(first: Box, second: Box) -> Box:
    corners = torch.stack(
        [a * b for a in (first.low, first.high) for b in (second.low, second.high)]
    )
    return Box(corners.amin(dim=0), corners.amax(dim=0))


class Product(Operation):
    """x y, entry by entry with broadcasting."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.inputs = [parent.shape for parent in node.parents]

    def _broadcast(self, boxes: tuple[Box, ...]) -> list[Box]:
        zero = boxes[0].low.new_zeros(self.shape)
        return [
            Box(broadcast(b.low, self.shape) + zero, broadcast(b.high, self.shape) + zero)
            for b in boxes
        ]

    def interval(self, *boxes: Box) -> Box:
        """The hull of the corners."""
        return _hull(*self._broadcast(boxes))

    def rounding(self, out: Box, *boxes: Box) -> Tensor | float:
        """Of one product."""
        del out
        first, second = self._broadcast(boxes)
        return rounding_of_entries(1, first.size * second.size, first.size + second.size)

    def lines(self, rows: Rows, out: Box, *boxes: Box) -> tuple[list[Tensor | None], Tensor]:
        """The plane through the centre, less what it may be off by."""
        del out
        first, second = self._broadcast(boxes)
        centres = first.centre, second.centre
        offset = -dot(rows, centres[0] * centres[1]) - dot(rows.abs(), first.half * second.half)
        found = [
            summed_to(rows * centre.unsqueeze(1), shape)
            for centre, shape in zip(reversed(centres), self.inputs, strict=True)
        ]
        return list(found), offset


class Quotient(Operation):
    """x / y with y > 0: the product of x and of 1 / y, which is convex.

    Attributes:
        limit: a bound on the quotient's absolute value that is known otherwise, as of an entry of a
            vector over the vector's length.
    """

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.product = Product(node)
        self.inverse = Smooth(node, CURVES["reciprocal"])
        self.limit = _NORMALISED if _is_normalised(node) else math.inf

    def _inverse_of(self, divisor: Box) -> Box:
        positive = divisor.low >= NORMAL
        return Box(
            torch.where(positive, divisor.high.reciprocal(), torch.nan) * (1 - 2.0**-50),
            torch.where(positive, divisor.low.reciprocal(), torch.nan) * (1 + 2.0**-50),
        )

    def interval(self, *boxes: Box) -> Box:
        """The hull of the corners; without bound where the divisor is not known to be positive."""
        hull = self.product.interval(boxes[0], self._inverse_of(boxes[1]))
        low, high = hull.low.nan_to_num(nan=-math.inf), hull.high.nan_to_num(nan=math.inf)
        return Box(low.clamp(-self.limit, self.limit), high.clamp(-self.limit, self.limit))

    def rounding(self, out: Box, *boxes: Box) -> Tensor | float:
        """Of one quotient."""
        operands = 1 + boxes[0].size.flatten(1).amax(1) + boxes[1].size.flatten(1).amax(1)
        each = (-1, *(1,) * len(self.shape))
        return rounding_of_entries(2, out.size, operands.view(each))

    def lines(self, rows: Rows, out: Box, *boxes: Box) -> tuple[list[Tensor | None], Tensor]:
        """The lines of the product, then those of the reciprocal; an end where they are wider."""
        inverse = self._inverse_of(boxes[1])
        top = boxes[0].centre.abs() + boxes[0].half
        slack = top * broadcast(inverse.half, self.shape)
        flat = ((slack >= out.half) | ~slack.isfinite()).unsqueeze(1)
        kept, ends = rows, rows.new_zeros(rows.shape[:2])
        if bool(flat.any()):
            kept, ends = rows.masked_fill(flat, 0.0), least(rows.masked_fill(~flat, 0.0), out)
            shape = boxes[1].low.shape
            lost = flat.expand(len(rows), 1, *self.shape).squeeze(1)
            lost = summed_to(lost.unsqueeze(1).double(), tuple(shape[1:])).squeeze(1) > 0
            # A divisor of no known sign: its lines are of no use, and none may be NaN.
            safe = torch.where(lost & (boxes[1].low < NORMAL), 1.0, boxes[1].low)
            divisor = Box(safe, torch.maximum(safe, boxes[1].high))
            inverse = self._inverse_of(divisor)
        else:
            divisor = boxes[1]
        (above, below), offset = self.product.lines(kept, out, boxes[0], inverse)
        assert below is not None
        (bottom,), more = self.inverse.lines(below, out, divisor)
        return [above, bottom], offset + more + ends


# A computed length is at least (1 - gamma_n) times the exact one, and n entries that are flushed
# take no more than their own size: within half of this for so many entries.
_NORMALISED, _MOST_NORMALISED = 1 + 2.0**-10, 2**13
_LEAST_LENGTH = 1e-13


def _is_normalised(node: Node) -> bool:
    """Whether a quotient is that of a vector and its length, bounded from below.

    The length must keep the axes that it was taken over, so that every entry meets the length of
    its own vector; and without the bound a length whose squares are flushed would be 0.
    """
    top, bottom = node.args[:2]
    bounded = False
    while isinstance(bottom, Node) and bottom.name in ("expand", "clamp_min"):
        if bottom.name == "clamp_min":
            bounded |= isinstance(bottom.args[1], float | int) and bottom.args[1] >= _LEAST_LENGTH
        bottom = bottom.args[0]
    if not bounded or not isinstance(bottom, Node) or bottom.name != "linalg_vector_norm":
        return False
    if not isinstance(top, Node) or top.size > _MOST_NORMALISED:
        return False
    order, _, kept = [*bottom.args[1:], 2, None, False][:3] if len(bottom.args) > 3 else (0, 0, 0)
    return bottom.args[0] is top and order == 2 and bool(kept)


class MatrixProduct(Operation):
    """mm, bmm and matmul of two values."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.inputs = [parent.shape for parent in node.parents]
        ranks = {len(shape) for shape in self.inputs}
        require(node, len(ranks) == 1 and ranks <= {2, 3}, "operands of different ranks")
        self.terms = self.inputs[0][-1]

    def interval(self, *boxes: Box) -> Box:
        """The sum of the hulls of products, by centres and half-widths.

        |x y - c_x c_y| <= |c_x| r_y + r_x |c_y| + r_x r_y.
        """
        first, second = boxes
        centre = first.centre @ second.centre
        half = first.centre.abs() @ second.half + first.half @ (second.centre.abs() + second.half)
        return Box(centre - half, centre + half)

    def rounding(self, out: Box, *boxes: Box) -> Tensor | float:
        """Of sums of products."""
        del out
        first, second = boxes
        operands = first.size.flatten(1).amax(1) + second.size.flatten(1).amax(1)
        each = (-1, *(1,) * len(self.shape))
        return rounding_of_entries(self.terms + 1, first.size @ second.size, operands.view(each))

    def lines(self, rows: Rows, out: Box, *boxes: Box) -> tuple[list[Tensor | None], Tensor]:
        """The plane through the centre, less what it may be off by."""
        del out
        first, second = boxes
        offset = -dot(rows, first.centre @ second.centre) - dot(
            rows.abs(), first.half @ second.half
        )
        left = rows @ second.centre.mT.unsqueeze(1)
        right = first.centre.mT.unsqueeze(1) @ rows
        return [left, right], offset


@register("mul")
def _mul(node: Node) -> Operation:
    first, second = node.args[:2]
    if isinstance(first, Node) and isinstance(second, Node):
        return Square(node) if first is second else Product(node)
    return scaled(node, second if isinstance(first, Node) else first)


@register("div")
def _div(node: Node) -> Operation:
    require(node, node.kwargs.get("rounding_mode") is None, "a rounding mode")
    first, second = node.args[:2]
    if isinstance(first, Node) and isinstance(second, Node):
        return Quotient(node)
    if isinstance(first, Node):
        return scaled(node, second, divided=True)
    return ConstantOver(node)


class ConstantOver(Operation):
    """c / y with y > 0."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.top = constant(node.args[0], node.dtype)
        self.inverse = Smooth(node, CURVES["reciprocal"])
        self.inputs = node.parents[0].shape

    def _scaling(self) -> Scaling:
        return Scaling(self.node, self.top, 0.0, 2)

    def interval(self, *boxes: Box) -> Box:
        """The constant times the reciprocal's range."""
        (box,) = boxes
        return self._scaling().interval(_reciprocal(box))

    def rounding(self, out: Box, *boxes: Box) -> Tensor | float:
        """Of one quotient."""
        return self._scaling().rounding(out, _reciprocal(boxes[0]))

    def lines(self, rows: Rows, out: Box, *boxes: Box) -> tuple[list[Tensor | None], Tensor]:
        """The scaling's, then those of the reciprocal."""
        (middle,), offset = self._scaling().lines(rows, out, boxes[0])
        assert middle is not None
        found, more = self.inverse.lines(middle, out, boxes[0])
        return found, offset + more


def _reciprocal(box: Box) -> Box:
    positive = box.low >= NORMAL
    return Box(
        torch.where(positive, box.high.reciprocal(), torch.nan),
        torch.where(positive, box.low.reciprocal(), torch.nan),
    )


@register("pow")
def _pow(node: Node) -> Operation:
    exponent = node.args[1]
    plain = isinstance(exponent, float | int) and exponent == 2
    require(node, plain, "an exponent other than the number 2")
    return Square(node)
