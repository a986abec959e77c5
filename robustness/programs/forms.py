"""Affine forms: values as a centre, generators and a remainder, carried forwards.

Behind the narrowest place of a program, where all that it knows of the image passes through a few
features, values are small and operations many: an unrolled solver. There a value is carried as
c + sum_s g_s e_s + r, with symbols |e_s| <= 1 that all values share and |r| <= rest entry by entry
(affine arithmetic; zonotopes). What is linear in the symbols cancels as it does in the program,
which intervals forget at every step. Each bent operation is replaced by a line with a remainder,
which becomes a symbol of its own; what rounding adds meanwhile is kept in `rest` until then.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustness.programs.boxes import Box
from robustness.programs.operations import Operation
from robustness.programs.operations.base import unit_rows
from robustness.programs.operations.elementwise import Elementwise

# Float64 room of an operation on forms, as a share of all absolute terms.
_ROOM = 2.0**-40
# An entry's form gives way to a box that is so many times narrower: what it shares with others is
# lost then.
_WORSE = 2.0


@dataclass(frozen=True)
class Form:
    """A value of n images as an affine form.

    Attributes:
        centre: shape (n, *shape).
        generators: shape (n, s, *shape); symbols that are younger than the value are left out.
        rest: what the value may differ by, entry by entry, shape (n, *shape).
    """

    centre: Tensor
    generators: Tensor
    rest: Tensor

    @property
    def box(self) -> Box:
        """The smallest box around the form."""
        reach = self.generators.abs().sum(dim=1) * (1 + _ROOM) + self.rest
        reach = reach + _ROOM * self.centre.abs()
        return Box(self.centre - reach, self.centre + reach)

    def within(self, box: Box) -> "Form":
        """The form, and the box instead where that says far more of an entry."""
        reach = self.generators.abs().sum(dim=1) + self.rest
        worse = ~(reach <= _WORSE * box.half) & box.half.isfinite()
        if not bool(worse.any()):
            return self
        return Form(
            torch.where(worse, box.centre, self.centre),
            self.generators.masked_fill(worse.unsqueeze(1), 0.0),
            torch.where(worse, box.half * (1 + _ROOM), self.rest),
        )

    @property
    def size(self) -> Tensor:
        """All absolute terms of an entry."""
        return self.centre.abs() + self.generators.abs().sum(dim=1) + self.rest

    def settled(self, symbols: int) -> "Form":
        """The form with its remainder as new symbols behind the first `symbols` ones."""
        count = len(self.centre)
        flat = self.rest.flatten(1)
        used = (flat > 0).any(dim=0).nonzero().squeeze(1)
        fresh = flat.new_zeros(count, len(used), flat.shape[1])
        fresh[:, torch.arange(len(used)), used] = flat[:, used]
        fresh = fresh.view(count, len(used), *self.rest.shape[1:])
        padding = self.generators.new_zeros(
            count, symbols - self.generators.shape[1], *self.rest.shape[1:]
        )
        generators = torch.cat([self.generators, padding, fresh], dim=1)
        return Form(self.centre, generators, torch.zeros_like(self.rest))


def advanced(
    operation: Operation, operands: list[Form], boxes: list[Box], out: Box, error: Tensor | float
) -> Form:
    """The form of a result, given those of its operands.

    Args:
        operation: what is computed.
        operands: their forms.
        boxes: their boxes, which may be narrower than the forms'.
        out: a box of the result.
        error: its rounding.
    """
    if operation.affine:
        form = _affine(operation, operands)
    elif isinstance(operation, Elementwise) and len(operands) == 1:
        form = _of_one_entry(operation, operands[0], boxes[0])
    else:
        form = _by_lines(operation, operands, boxes, out)
    rest = form.rest + error + _ROOM * form.size
    return Form(form.centre, form.generators, rest)


def _linear(operation: Operation, parts: list[Tensor]) -> Tensor:
    """The linear part applied to every symbol, shape (n, s, *shape)."""
    count, symbols = len(parts[0]), max(part.shape[1] for part in parts)
    padded = [
        torch.cat([p, p.new_zeros(count, symbols - p.shape[1], *p.shape[2:])], dim=1)
        if p.shape[1] < symbols
        else p
        for p in parts
    ]
    out = operation.linear(*(p.flatten(0, 1) for p in padded))
    return out.view(count, symbols, *out.shape[1:])


def _affine(operation: Operation, operands: list[Form]) -> Form:
    centre = operation.interval(*(Box(form.centre, form.centre) for form in operands))
    generators = _linear(operation, [form.generators for form in operands])
    zero = operation.interval(*(Box(-form.rest, form.rest) for form in operands))
    return Form(centre.centre, generators, zero.half)


def _of_one_entry(operation: Elementwise, operand: Form, box: Box) -> Form:
    below, above = operation.below(box), operation.above(box)
    slope = (below.slope + above.slope) / 2
    ends = (box.low, box.high)
    high = torch.stack([(above.slope - slope) * x + above.intercept for x in ends]).amax(dim=0)
    low = torch.stack([(below.slope - slope) * x + below.intercept for x in ends]).amin(dim=0)
    rest = slope.abs() * operand.rest + (high - low) / 2
    room = _ROOM * (high.abs() + low.abs() + (slope * box.size).abs())
    centre = slope * operand.centre + (high + low) / 2
    return Form(centre, slope.unsqueeze(1) * operand.generators, rest + room)


def _by_lines(operation: Operation, operands: list[Form], boxes: list[Box], out: Box) -> Form:
    """By the lines of every entry of the result, below and above."""
    rows = unit_rows(out)
    below, low = operation.lines(rows, out, *boxes)
    above, high = operation.lines(-rows, out, *boxes)
    shape, high = out.low.shape, -high
    centre = (low + high) / 2
    rest, size = (high - low) / 2, low.abs() + high.abs()
    generators: Tensor | None = None
    for form, box, lower, upper in zip(operands, boxes, below, above, strict=True):
        if lower is None and upper is None:
            continue
        first = torch.zeros_like(upper) if lower is None else lower  # type: ignore[arg-type]
        second = torch.zeros_like(first) if upper is None else -upper
        slope, gap = ((first + second) / 2).flatten(2), ((second - first) / 2).flatten(2)
        middle, half = box.centre.flatten(1).unsqueeze(2), box.half.flatten(1).unsqueeze(2)
        # The half-gap of the two lines is a linear function, which is added where it is largest.
        rest = rest + (gap @ middle + gap.abs() @ half).squeeze(2)
        rest = rest + (slope.abs() @ form.rest.flatten(1).unsqueeze(2)).squeeze(2)
        centre = centre + (slope @ form.centre.flatten(1).unsqueeze(2)).squeeze(2)
        moved = form.generators.flatten(2) @ slope.mT
        if generators is None:
            generators = moved
        else:
            short, long = sorted((generators, moved), key=lambda g: g.shape[1])
            long = long.clone()
            long[:, : short.shape[1]] += short
            generators = long
        size = size + ((slope.abs() + gap.abs()) @ (middle.abs() + half)).squeeze(2)
    if generators is None:
        generators = centre.new_zeros(len(centre), 0, centre.shape[1])
    rest = rest + _ROOM * size
    return Form(centre.view(shape), generators.view(len(centre), -1, *shape[1:]), rest.view(shape))
