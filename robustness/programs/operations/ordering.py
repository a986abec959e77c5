"""Comparisons: maxima, sorting, choices by a condition."""

from typing import Any

import torch
from torch import Tensor

from robustness.numerics.arithmetic import current_arithmetic
from robustness.programs.boxes import Box
from robustness.programs.graph import Node
from robustness.programs.operations.base import (
    COMPARISONS,
    NORMAL,
    Operation,
    Rows,
    broadcast,
    constant,
    dot,
    register,
    require,
    summed_to,
)
from robustness.programs.operations.elementwise import Elementwise, Line, Rectifier


def _negated(box: Box) -> Box:
    return Box(-box.high, -box.low)


class _Bent(Elementwise):
    """a x for x < 0 and b x for x >= 0, with b > a."""

    def __init__(self, node: Node, left: float, right: float) -> None:
        super().__init__(node)
        require(node, left < right, "a slope that falls")
        self.left, self.right = left, right

    def _value(self, x: Tensor) -> Tensor:
        return torch.where(x < 0, self.left * x, self.right * x)

    def interval(self, *boxes: Box) -> Box:
        """Between its ends, and 0 where the box holds it."""
        (box,) = boxes
        ends = torch.stack([self._value(box.low), self._value(box.high)])
        low, high = ends.amin(0), ends.amax(0)
        if self.left < 0:
            low = torch.where((box.low < 0) & (box.high > 0), 0.0, low)
        return Box(low, high)

    def rounding(self, out: Box, *boxes: Box) -> Tensor | float:
        """Of one product, where a slope is not 1 in size."""
        del boxes
        if abs(self.left) in (0, 1) and abs(self.right) in (0, 1):
            return 0.0
        arithmetic = current_arithmetic()
        return arithmetic.unit * out.size * (1 + 1e-6) + 2 * arithmetic.tiny

    def below(self, box: Box) -> Line:
        """One of the two slopes, or 0 between them for an absolute value."""
        right = (box.low >= 0) | ((box.high > 0) & (box.high > -box.low))
        slope = torch.where(right, self.right, self.left).to(box.low.dtype)
        return Line(slope, torch.zeros_like(slope))

    def above(self, box: Box) -> Line:
        """The chord."""
        bent = (box.low < 0) & (box.high > 0)
        slope = torch.where(box.low >= 0, self.right, self.left).to(box.low.dtype)
        rise = self.right * box.high - self.left * box.low
        slope = torch.where(bent, rise / (box.high - box.low), slope)
        lift = torch.where(bent, (self.right - slope) * box.high, 0.0)
        return Line(slope, lift + 2.0**-44 * lift.abs())

    @property
    def side(self) -> int:
        """Any line through 0 of a slope between the two lies below."""
        return -1

    def shares(self, *boxes: Box) -> Tensor:
        """Which of the two slopes is taken below."""
        return (self.below(boxes[0]).slope == self.right).double()

    def touching(self, box: Box, share: Tensor) -> Line:
        """Of a slope between the two where the entry is undecided."""
        between = (self.left + share * (self.right - self.left)).clamp(self.left, self.right)
        slope = torch.where(box.high <= 0, self.left, between)
        slope = torch.where(box.low >= 0, self.right, slope)
        return Line(slope, torch.zeros_like(slope))


@register("abs")
def _abs(node: Node) -> Operation:
    return _Bent(node, -1.0, 1.0)


@register("leaky_relu")
def _leaky(node: Node) -> Operation:
    return _Bent(
        node, float(constant(node.args[1] if len(node.args) > 1 else 0.01, node.dtype)), 1.0
    )


class Ceiling(Operation):
    """min(x, b): the negative of max(-x, -b)."""

    def __init__(self, node: Node, bound: object) -> None:
        super().__init__(node)
        self.inner = Rectifier(node, -constant(bound, node.dtype))

    def interval(self, *boxes: Box) -> Box:
        """Ends to ends."""
        return _negated(self.inner.interval(_negated(boxes[0])))

    def lines(self, rows: Rows, out: Box, *boxes: Box) -> tuple[list[Tensor | None], Tensor]:
        """Those of the maximum, both sides negated."""
        (back,), offset = self.inner.lines(-rows, out, _negated(boxes[0]))
        assert back is not None
        return [-back], offset

    @property
    def free(self) -> bool:
        """As the maximum is."""
        return True

    def shares(self, *boxes: Box) -> Tensor:
        """Those of the maximum."""
        return self.inner.shares(_negated(boxes[0]))

    def chosen_lines(
        self, shares: Tensor, rows: Rows, out: Box, *boxes: Box
    ) -> tuple[list[Tensor | None], Tensor]:
        """Those of the maximum, both sides negated."""
        (back,), offset = self.inner.chosen_lines(shares, -rows, out, _negated(boxes[0]))
        assert back is not None
        return [-back], offset


class Clamp(Operation):
    """min(max(x, a), b)."""

    def __init__(self, node: Node, low: object, high: object) -> None:
        super().__init__(node)
        self.floor, self.ceiling = Rectifier(node, constant(low, node.dtype)), Ceiling(node, high)

    def interval(self, *boxes: Box) -> Box:
        """Ends to ends."""
        return self.ceiling.interval(self.floor.interval(*boxes))

    def lines(self, rows: Rows, out: Box, *boxes: Box) -> tuple[list[Tensor | None], Tensor]:
        """Those of the minimum, then those of the maximum."""
        (middle,), offset = self.ceiling.lines(rows, out, self.floor.interval(*boxes))
        assert middle is not None
        found, more = self.floor.lines(middle, out, *boxes)
        return found, offset + more


@register("clamp", "hardtanh")
def _clamp(node: Node) -> Operation:
    given = [*node.args[1:], None, None][:2]
    defaults = (-1.0, 1.0) if node.name == "hardtanh" else (None, None)
    low, high = (
        node.kwargs.get(name, value if value is not None else default)
        for name, value, default in zip(("min", "max"), given, defaults, strict=True)
    )
    require(node, not any(isinstance(b, Node) for b in (low, high)), "bounds of the image")
    require(node, node.shape == node.parents[0].shape, "bounds of another shape")
    if high is None:
        return Rectifier(node, constant(low, node.dtype))
    return Ceiling(node, high) if low is None else Clamp(node, low, high)


@register("clamp_max")
def _clamp_max(node: Node) -> Operation:
    require(node, not isinstance(node.args[1], Node), "a bound that depends on the image")
    require(node, node.shape == node.parents[0].shape, "a bound of another shape")
    return Ceiling(node, node.args[1])


class Maximum(Operation):
    """max(x, y) = y + relu(x - y)."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.inputs = [parent.shape for parent in node.parents]
        self.inner = Rectifier(node, constant(0.0))

    def interval(self, *boxes: Box) -> Box:
        """The larger of both ends."""
        first, second = (
            Box(broadcast(b.low, self.shape), broadcast(b.high, self.shape)) for b in boxes
        )
        return Box(torch.maximum(first.low, second.low), torch.maximum(first.high, second.high))

    def lines(self, rows: Rows, out: Box, *boxes: Box) -> tuple[list[Tensor | None], Tensor]:
        """Those of the rectifier."""
        first, second = (
            Box(broadcast(b.low, self.shape), broadcast(b.high, self.shape)) for b in boxes
        )
        gap = Box(first.low - second.high, first.high - second.low)
        gap = gap.widened(2.0**-44 * (first.size + second.size))
        (back,), offset = self.inner.lines(rows, out, gap)
        assert back is not None
        return [summed_to(back, self.inputs[0]), summed_to(rows - back, self.inputs[1])], offset


class Minimum(Maximum):
    """min(x, y): the negative of max(-x, -y)."""

    def interval(self, *boxes: Box) -> Box:
        """The smaller of both ends."""
        return _negated(super().interval(*map(_negated, boxes)))

    def lines(self, rows: Rows, out: Box, *boxes: Box) -> tuple[list[Tensor | None], Tensor]:
        """Those of the maximum, both sides negated."""
        found, offset = super().lines(-rows, out, *map(_negated, boxes))
        return [-part for part in found if part is not None], offset


@register("maximum", "minimum")
def _extreme(node: Node) -> Operation:
    first, second = node.args
    if isinstance(first, Node) and isinstance(second, Node):
        return Maximum(node) if node.name == "maximum" else Minimum(node)
    bound = second if isinstance(first, Node) else first
    require(node, node.shape == node.parents[0].shape, "a bound of another shape")
    if node.name == "maximum":
        return Rectifier(node, constant(bound, node.dtype))
    return Ceiling(node, bound)


class _Largest(Operation):
    """The maximum over groups of entries: below it lies any member, above it its largest end."""

    members: Tensor

    def _gathered(self, values: Tensor) -> Tensor:
        """Members of each group, shape (n, entries, members); absent ones are -inf."""
        flat = values.flatten(1)
        padded = torch.cat([flat, flat.new_full((len(flat), 1), -torch.inf)], dim=1)
        return padded[:, self.members]

    def interval(self, *boxes: Box) -> Box:
        """The larger of both ends."""
        (box,) = boxes
        low, high = (self._gathered(end).amax(dim=2) for end in (box.low, box.high))
        shape = (len(low), *self.shape)
        return Box(low.view(shape), high.view(shape))

    def lines(self, rows: Rows, out: Box, *boxes: Box) -> tuple[list[Tensor | None], Tensor]:
        """The member of the largest lower end; where it leads for certain, it is the maximum."""
        (box,) = boxes
        low, high = self._gathered(box.low), self._gathered(box.high)
        chosen = low.argmax(dim=2, keepdim=True)
        others = high.scatter(2, chosen, -torch.inf).amax(dim=2)
        certain = low.gather(2, chosen).squeeze(2) >= others
        entry = self.members.expand(len(low), -1, -1).gather(2, chosen).squeeze(2)
        flat = rows.flatten(2)
        passed = flat.clamp_min(0) + flat.clamp_max(0) * certain.unsqueeze(1)
        back = flat.new_zeros(*flat.shape[:2], box.low[0].numel())
        back.scatter_add_(2, entry.unsqueeze(1).expand_as(passed), passed)
        offset = dot(flat.clamp_max(0), torch.where(certain, 0.0, out.high.flatten(1)))
        return [back.view(*rows.shape[:2], *box.low.shape[1:])], offset


@register("amax", "max")
class AxisMaximum(_Largest):
    """The maximum over axes."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        require(node, node.output in (None, 0), "the places of maxima in use")
        shape = node.parents[0].shape
        given = node.args[1] if len(node.args) > 1 else None
        dims = list(range(len(shape))) if given in (None, []) else given
        dims = [d % len(shape) for d in ([dims] if isinstance(dims, int) else dims)]
        entries = torch.arange(node.parents[0].size).view(shape)
        kept = [d for d in range(len(shape)) if d not in dims]
        ordered = entries.permute(*kept, *dims)
        self.members = ordered.reshape(node.size, -1)


@register("max_pool2d_with_indices", "max_pool2d")
class MaxPool(_Largest):
    """The maximum over windows."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        require(node, node.output in (None, 0), "the places of maxima in use")
        given = [*node.args[1:], *[None] * 5][:5]
        require(node, not given[4], "windows beyond the edge")
        kernel = _pair(given[0], [1, 1])
        stride, padding = _pair(given[1], kernel), _pair(given[2], [0, 0])
        spread = _pair(given[3], [1, 1])
        _, channels, height, width = node.parents[0].shape
        absent = node.parents[0].size
        entries = torch.arange(absent).view(1, channels, height, width)
        top, left = padding
        padded = torch.nn.functional.pad(entries, (left, left, top, top), value=absent)
        down, right = stride
        rows, columns = node.shape[2:]
        windows = [
            padded[
                :,
                :,
                i * spread[0] : i * spread[0] + (rows - 1) * down + 1 : down,
                j * spread[1] : j * spread[1] + (columns - 1) * right + 1 : right,
            ]
            for i in range(kernel[0])
            for j in range(kernel[1])
        ]
        self.members = torch.stack(windows, dim=-1).reshape(node.size, -1)


def _pair(given: Any, default: list[int]) -> list[int]:
    """A setting of both axes."""
    if given is None or given == []:
        return default
    values = [given] if isinstance(given, int) else list(given)
    return values * 2 if len(values) == 1 else values


def _flushed(ends: Tensor) -> Tensor:
    return torch.where(ends.abs() < NORMAL, 0.0, ends)


@register(*COMPARISONS)
class Comparison(Operation):
    """x > y and its like: 1 where it holds all over the boxes, 0 where nowhere."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        kind = node.parents[0].dtype
        fixed = [s for s in node.args if isinstance(s, Tensor) and s.is_floating_point()]
        same = all(s.dtype is kind for s in fixed)
        require(node, same, "a number of another precision")
        self.sides = [None if isinstance(s, Node) else constant(s, kind) for s in node.args]

    def interval(self, *boxes: Box) -> Box:
        """0, 1, or both."""
        given = iter(boxes)
        count = len(boxes[0].low)
        sides = []
        for side in self.sides:
            box = next(given) if side is None else Box(*[side.expand(count, *side.shape)] * 2)
            sides.append(Box(broadcast(box.low, self.shape), broadcast(box.high, self.shape)))
        less, more = sides if self.node.name in ("lt", "le") else reversed(sides)
        # Where denormals are flushed, different numbers may compare as equal.
        if self.node.name in ("lt", "gt"):
            always = (less.high < more.low) & (_flushed(less.high) < _flushed(more.low))
            ever = less.low < more.high
        else:
            always = less.high <= more.low
            ever = (less.low <= more.high) | (_flushed(less.low) <= _flushed(more.high))
        zero = torch.zeros((count, *self.shape), dtype=torch.float64)
        return Box(zero + always, zero + ever)


@register("where")
class Choice(Operation):
    """x where a condition holds, else y."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.parts = [None if isinstance(p, Node) else constant(p, node.dtype) for p in node.args]
        self.inputs = [parent.shape for parent in node.parents]

    def _boxes(self, boxes: tuple[Box, ...]) -> list[Box]:
        given, count = iter(boxes), len(boxes[0].low)
        zero = torch.zeros((count, *self.shape), dtype=torch.float64)
        found = []
        for part in self.parts:
            box = next(given) if part is None else Box(*[part.expand(count, *part.shape)] * 2)
            ends = (broadcast(box.low, self.shape), broadcast(box.high, self.shape))
            found.append(Box(zero + ends[0], zero + ends[1]))
        return found

    def interval(self, *boxes: Box) -> Box:
        """Of the side that is chosen, or the hull of both."""
        condition, first, second = self._boxes(boxes)
        always, never = condition.low > 0, condition.high <= 0
        low = torch.where(always, first.low, torch.where(never, second.low, first.low))
        high = torch.where(always, first.high, torch.where(never, second.high, first.high))
        open_ = ~(always | never)
        low = torch.where(open_, torch.minimum(first.low, second.low), low)
        return Box(low, torch.where(open_, torch.maximum(first.high, second.high), high))

    def lines(self, rows: Rows, out: Box, *boxes: Box) -> tuple[list[Tensor | None], Tensor]:
        """The chosen side's, exactly; where both may be, an end of the hull."""
        condition, first, second = self._boxes(boxes)
        chosen = [(condition.low > 0), (condition.high <= 0)]
        open_ = (~(chosen[0] | chosen[1])).unsqueeze(1)
        undecided = rows * open_
        offset = dot(undecided.clamp_min(0), out.low) + dot(undecided.clamp_max(0), out.high)
        back: list[Tensor | None] = []
        shapes = iter(self.inputs)
        for number, part in enumerate(self.parts):
            if number == 0:
                if part is None:
                    next(shapes)
                    back.append(None)
                continue
            mine = rows * chosen[number - 1].unsqueeze(1)
            if part is None:
                back.append(summed_to(mine, next(shapes)))
            else:
                offset = offset + dot(mine, (first, second)[number - 1].low)
        return back, offset


@register("sort")
class Sorting(Operation):
    """Entries in order along an axis: the k-th of the lower ends and the k-th of the upper ends."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        require(node, node.output == 0, "the places of its entries in use")
        settings = dict(zip(("dim", "descending"), node.args[1:], strict=False)) | node.kwargs
        self.axis = settings.get("dim", -1) % len(self.shape)
        self.falling = bool(settings.get("descending", False))

    def _sorted(self, values: Tensor) -> Tensor:
        return values.sort(dim=self.axis + 1, descending=self.falling).values

    def interval(self, *boxes: Box) -> Box:
        """Order statistics never fall when an entry rises."""
        (box,) = boxes
        return Box(self._sorted(box.low), self._sorted(box.high))

    def lines(self, rows: Rows, out: Box, *boxes: Box) -> tuple[list[Tensor | None], Tensor]:
        """The entry that stands at a place for certain; elsewhere an end of the box."""
        low, high = (end.movedim(self.axis + 1, -1) for end in (boxes[0].low, boxes[0].high))
        before = high.unsqueeze(-1) < low.unsqueeze(-2)  # j before i, rising, at (..., j, i)
        smaller, larger = before.sum(dim=-2), before.sum(dim=-1)
        count = low.shape[-1]
        certain = smaller + larger == count - 1
        place = larger if self.falling else smaller
        own = torch.arange(count)
        # (..., place, entry): 1 where the entry stands at the place for certain.
        stands = (place.unsqueeze(-2) == own.view(-1, 1)) & certain.unsqueeze(-2)
        moved = rows.movedim(self.axis + 2, -1)
        back = (moved.unsqueeze(-2) @ stands.unsqueeze(1).double()).squeeze(-2)
        known = stands.any(dim=-1).unsqueeze(1)
        ends = [end.movedim(self.axis + 1, -1) for end in (out.low, out.high)]
        rest = moved * ~known
        offset = dot(rest.clamp_min(0), ends[0]) + dot(rest.clamp_max(0), ends[1])
        return [back.movedim(-1, self.axis + 2)], offset


@register("gather")
class Gathering(Operation):
    """Entries along an axis at places that may depend on the image."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        values, axis, places = node.args[:3]
        require(node, isinstance(values, Node), "constant entries")
        self.axis = axis % len(self.shape)
        self.places = None if isinstance(places, Node) else places
        self.length = values.shape[self.axis]

    def _places(self, boxes: tuple[Box, ...]) -> tuple[Tensor, Tensor]:
        if self.places is not None:
            fixed = self.places.expand(len(boxes[0].low), *self.places.shape)
            return fixed, fixed
        ends = boxes[1].low.ceil().long(), boxes[1].high.floor().long()
        return ends[0].clamp(0, self.length - 1), ends[1].clamp(0, self.length - 1)

    def interval(self, *boxes: Box) -> Box:
        """The hull of the entries at all places that are possible."""
        first, last = self._places(boxes)
        low = boxes[0].low.new_full(first.shape, torch.inf)
        high = -low
        for place in range(self.length):
            index = torch.full_like(first, place)
            possible = (first <= place) & (place <= last)
            values = [end.gather(self.axis + 1, index) for end in (boxes[0].low, boxes[0].high)]
            low = torch.where(possible, torch.minimum(low, values[0]), low)
            high = torch.where(possible, torch.maximum(high, values[1]), high)
        return Box(low, high)

    def lines(self, rows: Rows, out: Box, *boxes: Box) -> tuple[list[Tensor | None], Tensor]:
        """The entry itself where its place is known; else an end of the box."""
        first, last = self._places(boxes)
        known = (first == last).unsqueeze(1)
        back = rows.new_zeros(*rows.shape[:2], *boxes[0].low.shape[1:])
        index = first.unsqueeze(1).expand(*rows.shape[:2], *first.shape[1:])
        back.scatter_add_(self.axis + 2, index, rows * known)
        rest = rows * ~known
        offset = dot(rest.clamp_min(0), out.low) + dot(rest.clamp_max(0), out.high)
        return [back, *[None] * (len(boxes) - 1)], offset
