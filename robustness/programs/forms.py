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
from robustness.programs.operations.base import NORMAL, broadcast, unit_rows
from robustness.programs.operations.elementwise import Elementwise
from robustness.programs.operations.products import Quotient
from robustness.programs.operations.reductions import Norm, Softmax

# Float64 room of an operation on forms, as a share of all absolute terms.
_ROOM = 2.0**-40
# An entry's form gives way to a box that is so many times narrower: what it shares with others is
# lost then.
_WORSE = 2.0
# Most entries of a softmax whose differences are followed pair by pair.
_PAIRED = 32


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
        """The form with its remainder as new symbols behind the first `symbols`, or its own."""
        symbols = max(symbols, self.generators.shape[1])
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
    operation: Operation,
    operands: list[Form],
    boxes: list[Box],
    out: Box,
    error: Tensor | float,
    symbols: int,
) -> Form:
    """The form of a result, given those of its operands.

    Args:
        operation: what is computed.
        operands: their forms.
        boxes: their boxes, which may be narrower than the forms'.
        out: a box of the result.
        error: its rounding.
        symbols: how many there are; the form may bring more, behind them.
    """
    if operation.affine:
        form = _affine(operation, operands)
    elif isinstance(operation, Softmax):
        form = _of_softmax(operation, operands[0], boxes[0], out, symbols)
    elif isinstance(operation, Quotient):
        form = _better(
            _of_quotient(operands, boxes, out), _by_lines(operation, operands, boxes, out)
        )
    elif isinstance(operation, Norm):
        form = _better(_of_norm(operation, operands[0]), _by_lines(operation, operands, boxes, out))
    elif isinstance(operation, Elementwise) and len(operands) == 1:
        form = _of_one_entry(operation, operands[0], boxes[0])
    else:
        form = _by_lines(operation, operands, boxes, out)
    rest = form.rest + error + _ROOM * form.size
    return Form(form.centre, form.generators, rest)


def _padded(parts: list[Tensor]) -> list[Tensor]:
    """Generators of several values with symbols of the youngest."""
    count, symbols = len(parts[0]), max(part.shape[1] for part in parts)
    return [
        torch.cat([p, p.new_zeros(count, symbols - p.shape[1], *p.shape[2:])], dim=1)
        if p.shape[1] < symbols
        else p
        for p in parts
    ]


def _linear(operation: Operation, parts: list[Tensor]) -> Tensor:
    """The linear part applied to every symbol, shape (n, s, *shape)."""
    padded = _padded(parts)
    out = operation.linear(*(p.flatten(0, 1) for p in padded))
    return out.view(*padded[0].shape[:2], *out.shape[1:])


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
    lower, upper = (operation.lines(sign * rows, out, *boxes) for sign in (1, -1))
    return _between(lower, upper, operands, boxes, out)


def _between(
    lower: tuple[list[Tensor | None], Tensor],
    upper: tuple[list[Tensor | None], Tensor],
    operands: list[Form],
    boxes: list[Box],
    out: Box,
) -> Form:
    """Between lines of every entry of the result and of its negative."""
    (below, low), (above, high) = lower, upper
    shape, high = out.low.shape, -high
    centre = (low + high) / 2
    rest, size = (high - low) / 2, low.abs() + high.abs()
    generators: Tensor | None = None
    for form, box, under, over in zip(operands, boxes, below, above, strict=True):
        if under is None and over is None:
            continue
        first = torch.zeros_like(over) if under is None else under  # type: ignore[arg-type]
        second = torch.zeros_like(first) if over is None else -over
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


def _better(first: Form, second: Form) -> Form:
    """Entry by entry the form of the smaller remainder."""
    chosen = first.rest <= second.rest
    one, other = _padded([first.generators, second.generators])
    return Form(
        torch.where(chosen, first.centre, second.centre),
        torch.where(chosen.unsqueeze(1), one, other),
        torch.where(chosen, first.rest, second.rest),
    )


def _of_quotient(operands: list[Form], boxes: list[Box], out: Box) -> Form:
    """A quotient about q = c_x / c_y: x / y = q + (x - q y) / y.

    What x and y share cancels in x - q y, which is multiplied by the middle of 1 / y and, at its
    largest, by what 1 / y differs from that.
    """
    zero = torch.zeros_like(out.low)
    top, bottom = (
        Form(
            broadcast(form.centre, out.low.shape[1:]) + zero,
            broadcast(form.generators.flatten(0, 1), out.low.shape[1:]).unflatten(
                0, form.generators.shape[:2]
            )
            + zero.unsqueeze(1),
            broadcast(form.rest, out.low.shape[1:]) + zero,
        )
        for form in operands
    )
    low, high = (broadcast(end, out.low.shape[1:]) + zero for end in (boxes[1].low, boxes[1].high))
    known = low >= NORMAL
    least, most = torch.where(known, low, 1.0), torch.where(known, high, 1.0)
    at = top.centre / torch.where(known, bottom.centre.clamp(least, most), 1.0)
    middle, half = (1 / least + 1 / most) / 2, (1 / least - 1 / most) / 2
    first, second = _padded([top.generators, bottom.generators])
    generators = first - at.unsqueeze(1) * second
    rest = top.rest + at.abs() * bottom.rest
    rest = rest + _ROOM * (top.size + at.abs() * bottom.size)
    centre = top.centre - at * bottom.centre
    reach = centre.abs() + generators.abs().sum(dim=1) + rest
    rest = middle * rest + (half + _ROOM * middle) * reach + _ROOM * at.abs()
    rest = torch.where(known & rest.isfinite(), rest, torch.inf)
    return Form(at + middle * centre, middle.unsqueeze(1) * generators, rest)


def _of_norm(operation: Norm, operand: Form) -> Form:
    """|x| about the direction u of the centre: u.x <= |x| <= u.x + |x - u u.x|^2 / (2 u.x).

    What is across has no centre, and what x has of it along u is left out, where boxes count both.
    """
    axes = [d + 1 for d in operation.dims]
    deeper = [d + 2 for d in operation.dims]
    length = torch.linalg.vector_norm(operand.centre, dim=axes, keepdim=True)
    u = operand.centre / length.clamp_min(1e-150)
    along = (u.unsqueeze(1) * operand.generators).sum(dim=deeper, keepdim=True)
    rest = (u.abs() * operand.rest).sum(dim=axes, keepdim=True)
    rest = rest + _ROOM * (u.abs() * operand.size).sum(dim=axes, keepdim=True)
    middle = (u * operand.centre).sum(dim=axes, keepdim=True)
    across = (operand.generators - u.unsqueeze(1) * along).abs().sum(dim=1)
    across = across + operand.rest + u.abs() * rest + _ROOM * operand.size
    squares = (across**2).sum(dim=axes, keepdim=True) * (1 + _ROOM)
    least = middle - along.abs().sum(dim=1) - rest - _ROOM * middle
    half = torch.where(least > 0, squares / least / 4, torch.inf)
    found = Form(middle + torch.where(half.isfinite(), half, 0.0), along, rest + half)
    shape = operation.shape
    return Form(
        found.centre.reshape(-1, *shape),
        found.generators.reshape(*found.generators.shape[:2], *shape),
        found.rest.reshape(-1, *shape),
    )


def _of_softmax(operation: Softmax, operand: Form, box: Box, out: Box, symbols: int) -> Form:
    """By lines over the differences of entries, which share more than boxes say."""
    pairs, rows = operation.pairs(box), unit_rows(out)
    if operation.classes <= _PAIRED:
        centre = operand.centre.movedim(operation.axis + 1, -1)
        generators = operand.generators.movedim(operation.axis + 2, -1)
        rest = operand.rest.movedim(operation.axis + 1, -1)
        own = torch.eye(operation.classes, dtype=torch.bool)
        differences = Form(
            centre.unsqueeze(-2) - centre.unsqueeze(-1),
            generators.unsqueeze(-2) - generators.unsqueeze(-1),
            (rest.unsqueeze(-2) + rest.unsqueeze(-1)).masked_fill(own, 0.0),
        )
        room = _ROOM * operand.size.movedim(operation.axis + 1, -1).amax(dim=-1)
        pairs = pairs.within(differences.box.widened(room[..., None, None]))
    lower, upper = (operation.lines_of(sign * rows, out, pairs) for sign in (1, -1))
    form = _between(lower, upper, [operand], [box], out)
    return _shared_out(form, operation.axis + 1, symbols)


def _shared_out(form: Form, axis: int, symbols: int) -> Form:
    """A softmax whose entries sum to 1 symbol by symbol, too, where that costs little.

    The entry of the largest remainder is 1 less the others, with their new symbols, so that a
    weighted mean of values that are nearly equal is nearly exact.
    """
    settled = form.settled(symbols)
    rest = form.rest.movedim(axis, -1)
    most, place = rest.max(dim=-1, keepdim=True)
    others = rest.sum(dim=-1, keepdim=True) - most
    chosen = torch.zeros_like(rest).scatter(-1, place, 1.0)
    chosen = (chosen * (others <= _WORSE * most)).movedim(-1, axis)
    left = 1 - chosen
    centre, generators = settled.centre, settled.generators
    whole = 1 - (left * centre).sum(dim=axis, keepdim=True)
    moved = -(left.unsqueeze(1) * generators).sum(dim=axis + 1, keepdim=True)
    room = _ROOM * (1 + (left * settled.size).sum(dim=axis, keepdim=True))
    return Form(
        torch.where(chosen > 0, whole, centre),
        torch.where(chosen.unsqueeze(1) > 0, moved, generators),
        chosen * room,
    )
