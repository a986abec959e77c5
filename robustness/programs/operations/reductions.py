"""Norms, softmax and normalisations: functions of many entries, as chains of simpler ones.

Each chain is bounded from its end to its start by the lines of its links, over boxes of what is
between them.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from robustness.numerics.arithmetic import LARGEST, current_arithmetic, gamma
from robustness.programs.boxes import Box
from robustness.programs.graph import Node
from robustness.programs.operations.affine import axes_of
from robustness.programs.operations.base import (
    Operation,
    Rows,
    by_sign,
    constant,
    dot,
    register,
    require,
)

# Float64 room of a box in the middle of a chain, as a share of its ends.
_ROOM = 2.0**-44


def _loosened(box: Box) -> Box:
    """Each end moved outwards by a share of itself: ends may be of very different size."""
    return Box(box.low - _ROOM * box.low.abs(), box.high + _ROOM * box.high.abs())


class _Between(NamedTuple):
    """Slopes and intercepts of the lines below and above a link."""

    below: Tensor
    under: Tensor
    above: Tensor
    over: Tensor

    def back(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the link's operand, and offsets."""
        offset = dot(rows.clamp_min(0), self.under) + dot(rows.clamp_max(0), self.over)
        return by_sign(rows, self.below, self.above), offset


def _convex(value: object, slope: object, box: Box) -> _Between:
    """Lines of a convex function: its tangent at the centre, and its chord."""
    assert callable(value)
    assert callable(slope)
    at = box.centre
    steep, ends = slope(at), (value(box.low), value(box.high))
    width = box.high - box.low
    chord = torch.where(width > 1e-12 * (1 + box.size), (ends[1] - ends[0]) / width, steep)
    over = torch.maximum(ends[0] - chord * box.low, ends[1] - chord * box.high)
    room = 2.0**-40 * (value(at).abs() + ends[0].abs() + ends[1].abs() + (steep * at).abs())
    room = room + 2.0**-40 * (chord * box.size).abs()
    return _Between(steep, value(at) - steep * at - room, chord, over + room)


@register("linalg_vector_norm")
class Norm(Operation):
    """The l2 norm over axes.

    With c the centre and r the half-widths of a box, and s^2 = |c|^2 + |r|^2,
    c.x / |c| <= |x| <= (c.x + |r|^2) / s: the first is Cauchy's inequality, the second that of the
    means, |x| <= (|x|^2 + s^2) / (2 s), behind x_i^2 <= 2 c_i x_i - (c_i^2 - r_i^2).
    """

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        order = node.args[1] if len(node.args) > 1 else 2
        require(node, order == 2, f"the order {order}")
        self.dims = axes_of(node, 2)
        self.inputs = node.parents[0].shape
        self.kept = tuple(1 if i in self.dims else n for i, n in enumerate(self.inputs))
        self.terms = math.prod(self.inputs[d] for d in self.dims)

    def _norm(self, values: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(
            values, dim=[d + 1 for d in self.dims], keepdim=True
        )
        return norm.view(len(values), *self.kept)

    def interval(self, *boxes: Box) -> Box:
        """From the point nearest to 0 to the furthest."""
        (box,) = boxes
        nearest = torch.zeros_like(box.low).clamp(box.low, box.high)
        found = _loosened(Box(self._norm(nearest), self._norm(box.size)))
        shape = (len(box.low), *self.shape)
        return Box(found.low.view(shape), found.high.view(shape))

    def rounding(self, out: Box, *boxes: Box) -> Tensor | float:
        """Of a root of a sum of squares, some of which may be flushed."""
        del boxes
        flushed = math.sqrt(self.terms * current_arithmetic().tiny)
        error = gamma(self.terms + 4) * out.size + 2 * flushed
        # Squares must not overflow.
        return torch.where(out.size <= math.sqrt(LARGEST), error, torch.inf)

    def lines(self, rows: Rows, out: Box, *boxes: Box) -> tuple[list[Tensor | None], Tensor]:
        """Both lines of the class's description."""
        del out
        (box,) = boxes
        centre, half = box.centre, box.half
        length, spread = self._norm(centre), self._norm(half)
        scale = torch.sqrt(length**2 + spread**2).clamp_min(1e-150)
        kept = rows.reshape(*rows.shape[:2], *self.kept)
        above = kept.clamp_max(0)
        slopes = kept.clamp_min(0) / length.clamp_min(1e-150).unsqueeze(1)
        back = (slopes + above / scale.unsqueeze(1)) * centre.unsqueeze(1)
        # Where the centre is 0 to float64, the line below is that of slope 0.
        degenerate = (length <= 1e-100).unsqueeze(1)
        back = torch.where(degenerate, above / scale.unsqueeze(1) * centre.unsqueeze(1), back)
        room = _ROOM * (length + spread)
        over = spread**2 / scale + room
        return [back], dot(above, over) - dot(kept.clamp_min(0), room)


class _Exponentials(Operation):
    """s_i = sum_j exp(x_j - x_i) over one axis, and a function of it.

    Differences of entries lose nothing of what entries have in common, and no shift is needed.
    """

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.axis = node.args[1] % len(self.shape)
        self.classes = self.shape[self.axis]

    def pairs(self, box: Box) -> Box:
        """Differences x_j - x_i of entries in a box, shape (n, ..., i, j), the axis moved last."""
        low, high = (end.movedim(self.axis + 1, -1) for end in (box.low, box.high))
        own = torch.eye(self.classes, dtype=torch.bool)
        lows = (low.unsqueeze(-2) - high.unsqueeze(-1)).masked_fill(own, 0.0)
        highs = (high.unsqueeze(-2) - low.unsqueeze(-1)).masked_fill(own, 0.0)
        return _loosened(Box(lows, highs))

    def _sums(self, pairs: Box) -> Box:
        return _loosened(Box(pairs.low.exp().sum(-1), pairs.high.exp().sum(-1)))

    def _function(self, sums: Box) -> Box:
        raise NotImplementedError

    def _trained(self, logarithms: Box) -> Box:
        """The function of log(1 / s_i), in exact arithmetic."""
        raise NotImplementedError

    def _function_lines(self, sums: Box) -> _Between:
        raise NotImplementedError

    def interval(self, *boxes: Box) -> Box:
        """By monotony in every difference."""
        pairs = self.pairs(boxes[0])
        if boxes[0].low.dtype is torch.float64:
            found = self._function(self._sums(pairs))
        else:
            # Boxes that train, see `programs.live`: their gradients must not overflow.
            found = self._trained(Box(-pairs.high.logsumexp(-1), -pairs.low.logsumexp(-1)))
        return Box(
            found.low.movedim(-1, self.axis + 1).contiguous(),
            found.high.movedim(-1, self.axis + 1).contiguous(),
        )

    def lines(self, rows: Rows, out: Box, *boxes: Box) -> tuple[list[Tensor | None], Tensor]:
        """From the function to the sums, the exponentials, and the differences."""
        return self.lines_of(rows, out, self.pairs(boxes[0]))

    def lines_of(
        self, rows: Rows, out: Box, pairs: Box
    ) -> tuple[list[Tensor | None], Float[Tensor, "n r"]]:
        """As `lines`, for all operands whose differences are in a box, see `pairs`."""
        del out
        sums = self._sums(pairs)
        moved = rows.movedim(self.axis + 2, -1)
        of_sums, offset = self._function_lines(sums).back(moved)
        of_exponentials = of_sums.unsqueeze(-1).expand(*of_sums.shape, self.classes)
        of_pairs, more = _convex(torch.exp, torch.exp, pairs).back(of_exponentials)
        back = of_pairs.sum(dim=-2) - of_pairs.sum(dim=-1)
        return [back.movedim(-1, self.axis + 2)], offset + more


@register("_softmax")
class Softmax(_Exponentials):
    """p_i = 1 / sum_j exp(x_j - x_i), with sum_i p_i = 1."""

    def lines_of(
        self, rows: Rows, out: Box, pairs: Box
    ) -> tuple[list[Tensor | None], Float[Tensor, "n r"]]:
        """As those of the chain, for rows a - m with an offset of m.

        What all entries of a row have in common is known exactly. The m that leaves least to the
        lines is the median of the row, weighted by the widths of the result's box.
        """
        moved = rows.movedim(self.axis + 2, -1)
        width = (out.high - out.low).movedim(self.axis + 1, -1).unsqueeze(1).expand_as(moved)
        ordered, order = moved.detach().sort(dim=-1)
        weight = width.gather(-1, order).detach().cumsum(dim=-1)
        median = (weight < weight[..., -1:] / 2).sum(dim=-1, keepdim=True)
        common = ordered.gather(-1, median.clamp_max(self.classes - 1))
        back, offset = super().lines_of((moved - common).movedim(-1, self.axis + 2), out, pairs)
        # The difference rounds, and so does the sum.
        room = self.classes * 2.0**-50 * moved.abs().amax(dim=-1)
        return back, offset + (common.squeeze(-1) - room).flatten(2).sum(dim=2)

    def _function(self, sums: Box) -> Box:
        return _loosened(Box(sums.high.reciprocal(), sums.low.reciprocal()))

    def _trained(self, logarithms: Box) -> Box:
        return Box(logarithms.low.exp(), logarithms.high.exp())

    def _function_lines(self, sums: Box) -> _Between:
        return _convex(torch.reciprocal, lambda s: -1 / (s * s), sums)

    def rounding(self, out: Box, *boxes: Box) -> Tensor | float:
        """With t = max x - x_i, an exponential errs by some units and by the rounding of t.

        Its share of the error is at most t e^-t < 0.37 units, and so is that of each term of the
        sum; what is stated is twice the sum of all.
        """
        del boxes
        unit = current_arithmetic().unit
        error: Tensor = 2 * unit * (out.size * (20 + 2 * self.classes) + 0.4)
        return error + 2 * current_arithmetic().tiny


@register("_log_softmax")
class LogSoftmax(_Exponentials):
    """-log sum_j exp(x_j - x_i)."""

    def _function(self, sums: Box) -> Box:
        return _loosened(Box(-sums.high.log(), -sums.low.log())).widened(torch.tensor(2.0**-50))

    def _trained(self, logarithms: Box) -> Box:
        return logarithms

    def _function_lines(self, sums: Box) -> _Between:
        return _convex(lambda s: -s.log(), lambda s: -1 / s, sums)

    def rounding(self, out: Box, *boxes: Box) -> Tensor | float:
        """Of the exponentials and the logarithm, and of two differences of entries."""
        size = boxes[0].size.amax(dim=self.axis + 1, keepdim=True)
        unit = current_arithmetic().unit
        error: Tensor = 2 * unit * (out.size * 4 + 4 * size + 24 + 2 * self.classes)
        return error


class _Normalised(NamedTuple):
    """What a normalisation computes on the way, over a box: groups in the last axis."""

    centred: Box
    spread: Box
    inverse: Box


@register("native_group_norm", "native_layer_norm")
class GroupNorm(Operation):
    """(x - mean) / sqrt(var + eps) gamma + beta, mean and variance over groups of entries."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        require(node, node.output in (None, 0), "its statistics in use")
        require(node, len(node.parents) == 1, "weights that depend on the image")
        values = node.args[0]
        if node.name == "native_group_norm":
            _, gamma, beta, *_, groups, eps = node.args
            self.groups = int(groups)
            per_entry = (1, -1, *(1,) * (len(values.shape) - 2))
            require(node, values.shape[0] == 1, "a batch of its own")
        else:
            _, normalised, gamma, beta, eps = node.args
            self.groups = values.size // math.prod(normalised)
            per_entry = tuple(normalised)
        self.eps = float(eps)
        require(node, self.eps > 0, "a variance that may vanish")
        self.count = values.size // self.groups
        one = torch.ones(self.shape, dtype=torch.float64)
        self.gamma = one if gamma is None else one * constant(gamma).view(per_entry)
        self.beta = 0 * one if beta is None else one * constant(beta).view(per_entry)

    def _grouped(self, values: Tensor) -> Tensor:
        return values.reshape(*values.shape[: values.dim() - len(self.shape)], self.groups, -1)

    def _inside(self, box: Box) -> _Normalised:
        centre, half = self._grouped(box.centre), self._grouped(box.half)
        middle = centre - centre.mean(dim=-1, keepdim=True)
        share = 1 / self.count
        reach = half * (1 - 2 * share) + half.mean(dim=-1, keepdim=True)
        room = _ROOM * (centre.abs() + reach + centre.abs().mean(dim=-1, keepdim=True))
        centred = Box(middle - reach - room, middle + reach + room)
        nearest = torch.zeros_like(middle).clamp(centred.low, centred.high)
        spread = _loosened(
            Box(
                (nearest**2).mean(dim=-1, keepdim=True) + self.eps,
                (centred.size**2).mean(dim=-1, keepdim=True) + self.eps,
            )
        )
        return _Normalised(centred, spread, _loosened(Box(spread.high.rsqrt(), spread.low.rsqrt())))

    def interval(self, *boxes: Box) -> Box:
        """The hull of (x - mean) and 1 / sqrt(var + eps), and |x - mean| <= sqrt(n var)."""
        inside = self._inside(boxes[0])
        products = torch.stack(
            [
                a * b
                for a in (inside.centred.low, inside.centred.high)
                for b in (inside.inverse.low, inside.inverse.high)
            ]
        )
        limit = math.sqrt(self.count) * (1 + _ROOM)
        low, high = (
            end.clamp(-limit, limit).view(len(boxes[0].low), *self.shape)
            for end in (products.amin(dim=0), products.amax(dim=0))
        )
        ends = torch.stack([low * self.gamma, high * self.gamma])
        found = Box(ends.amin(0) + self.beta, ends.amax(0) + self.beta)
        return _loosened(found).widened(_ROOM * self.beta.abs())

    def rounding(self, out: Box, *boxes: Box) -> Tensor | float:
        """Of mean, variance, their root, and the scaling in either of its forms.

        A variance computed in one pass or in two, in any order, errs by at most gamma_8n times the
        mean square of the entries (Chan, Golub and LeVeque 1983).
        """
        del out
        inside, size = self._inside(boxes[0]), self._grouped(boxes[0].size)
        largest = size.amax(dim=-1, keepdim=True)
        of_mean = gamma(self.count + 2) * largest
        of_variance = gamma(8 * self.count + 8) * largest**2
        least = inside.spread.low - of_variance
        of_inverse = torch.where(
            least > inside.spread.low / 2,
            of_variance / (2 * least * least.clamp_min(1e-300).sqrt())
            + gamma(4) * inside.inverse.high,
            torch.inf,
        )
        inverse = inside.inverse.high + of_inverse
        scale, beta = self._grouped(self.gamma.abs()), self._grouped(self.beta.abs())
        error = (
            gamma(8) * ((size + largest) * inverse * scale + beta)
            + inside.centred.size * scale * of_inverse
            + of_mean * inverse * scale
        )
        error = error * (1 + 1e-6) + 1e-35 * (1 + size) * (1 + inverse * scale)
        # Squares and what is summed of them must not overflow.
        bounded = (self.count * largest**2 <= LARGEST) & (size * inverse * scale <= LARGEST)
        error = torch.where(bounded, error, torch.inf)
        return error.view(len(size), *self.shape)

    def lines(self, rows: Rows, out: Box, *boxes: Box) -> tuple[list[Tensor | None], Tensor]:
        """From the scaling to the product, the root, the variance, and the mean."""
        del out
        inside = self._inside(boxes[0])
        centred, inverse = inside.centred, inside.inverse
        offset = dot(rows, self.beta.expand(len(rows), *self.shape))
        grouped = self._grouped(rows * self.gamma)
        offset = offset - dot(grouped, centred.centre * inverse.centre)
        offset = offset - dot(grouped.abs(), centred.half * inverse.half)
        of_centred = grouped * inverse.centre.unsqueeze(1)
        of_inverse = (grouped * centred.centre.unsqueeze(1)).sum(dim=-1, keepdim=True)
        root = _convex(torch.rsqrt, lambda w: -0.5 * w.rsqrt() / w, inside.spread)
        of_spread, more = root.back(of_inverse)
        offset = offset + more + self.eps * of_spread.flatten(2).sum(dim=2)
        each = of_spread / self.count
        under = -(centred.centre**2).sum(dim=-1, keepdim=True)
        over = -(centred.low * centred.high).sum(dim=-1, keepdim=True)
        offset = offset + dot(each.clamp_min(0), under) + dot(each.clamp_max(0), over)
        of_centred = of_centred + 2 * each * centred.centre.unsqueeze(1)
        back = of_centred - of_centred.mean(dim=-1, keepdim=True)
        return [back.reshape(*rows.shape[:2], *boxes[0].low.shape[1:])], offset
