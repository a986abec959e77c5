"""Lines chosen for each image: the slopes of undecided entries, by ascent on a margin's bound.

A rectifier that may bend lies above every line of a slope in [0, 1] through its bend, a convex
function above every tangent, a concave one below. Which of them is best depends on image and rival.
The choices are numbers in [0, 1], and the bound, its rounding included, is differentiable in them:
they are climbed by Adam (alpha-CROWN, Xu et al., arXiv 2011.13824). Every choice gives a bound
that holds, so the best bound that was met is taken and nothing rests on the ascent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from robustness.programs.boxes import Box
from robustness.programs.network import Bounds
from robustness.programs.operations.base import Rows

# Adam's step size at first, the factor between two steps, and the decay of its means.
_RATE, _DECAY, _MEANS = 0.3, 0.97, (0.9, 0.999)
# Shares that are climbed together, which bounds memory.
_TOGETHER = 2**21


def together(bounds: Bounds, step: int) -> int:
    """How many functions are climbed at a time, which bounds memory."""
    size = sum(share[0].numel() for share in bounds.shares(step).values())
    return max(1, _TOGETHER // max(1, size))


@dataclass(frozen=True)
class Choice:
    """What is free in a bound, by step: see `Bounds.by_lines`.

    Attributes:
        shares: of lines, in [0, 1].
        multipliers: of what is imposed on halves, not below 0.
    """

    shares: dict[int, Tensor]
    multipliers: dict[int, Tensor]

    @classmethod
    def of(cls, bounds: Bounds, step: int) -> "Choice":
        """The usual one, with multipliers of 0."""
        multipliers = {i: torch.zeros_like(p.unsqueeze(1)) for i, p in bounds.pulls.items()}
        return cls(bounds.shares(step), multipliers)

    @property
    def values(self) -> list[Tensor]:
        """All of them in order."""
        return [*self.shares.values(), *self.multipliers.values()]

    def with_values(self, values: Sequence[Tensor]) -> "Choice":
        """Others in their places."""
        count = len(self.shares)
        shares = dict(zip(self.shares, values[:count], strict=True))
        return Choice(shares, dict(zip(self.multipliers, values[count:], strict=True)))

    @property
    def within(self) -> "Choice":
        """The nearest one that is allowed."""
        return Choice(
            {i: share.clamp(0, 1) for i, share in self.shares.items()},
            {i: multiplier.clamp_min(0) for i, multiplier in self.multipliers.items()},
        )

    def lanes(self, part: Tensor) -> "Choice":
        """The choices of some images."""
        return self.with_values([value[part] for value in self.values])


@torch.no_grad()
def narrowed(bounds: Bounds, steps: int) -> Bounds:
    """Bounds with narrower boxes in front of every rectifier behind a bend, and behind them.

    Their ends are climbed, entry by entry, where the rectifier may bend; what the rectifier makes
    of the other entries needs no narrower ends. One rectifier after the other, each on the boxes
    that those before it have left; boxes between them follow by intervals.

    Args:
        bounds: boxes of every step.
        steps: of the ascent on the lines of each end.

    Returns:
        Bounds that hold, with boxes that are nowhere wider; the same where no rectifier is so.
    """
    for at, threshold in sorted(bounds.network.rectified.items()):
        if bounds.network.is_behind_bend(at):
            bounds = _narrowed_at(bounds, at, threshold, steps)
    return bounds


def _narrowed_at(bounds: Bounds, at: int, threshold: Tensor, steps: int) -> Bounds:
    box = bounds.boxes[at]
    pairs = ((box.low < threshold) & (box.high > threshold)).flatten(1).nonzero()
    if len(pairs) == 0:
        return bounds
    # Lower ends, and the negatives of upper ones.
    ends = torch.stack([box.low.flatten(1), -box.high.flatten(1)])
    asked = torch.cat([torch.cat([torch.full_like(pairs[:, :1], i), pairs], dim=1) for i in (0, 1)])
    for part in asked.split(together(bounds, at)):
        side, image, entry = part.unbind(dim=1)
        rows = torch.zeros(len(part), box.low[0].numel(), dtype=torch.float64)
        rows[torch.arange(len(part)), entry] = 1.0 - 2.0 * side.double()
        lanes = bounds.lanes(image)
        found, _ = ascended_from(
            Choice.of(lanes, at), lanes, at, rows.view(len(part), 1, *box.low.shape[1:]), steps
        )
        ends[side, image, entry] = torch.maximum(ends[side, image, entry], found)
    low, high = ends[0].view(box.low.shape), -ends[1].view(box.low.shape)
    return bounds.imposed({at: Box(low, high)}, {})[0]


@torch.no_grad()
def climbed(
    bounds: Bounds, step: int, rows: Rows, found: Float[Tensor, "n r"], steps: int
) -> Float[Tensor, "n r"]:
    """Lower bounds, those not above 0 raised by other choices of lines.

    Args:
        bounds: boxes of every step.
        step: whose linear functions are bounded.
        rows: the functions.
        found: what `Bounds.lower` says of them.
        steps: of the ascent; 0 leaves everything as it is.

    Returns:
        Bounds that hold and are nowhere below `found`.
    """
    raised = found.clone()
    pairs = (found.isfinite() & (found <= 0)).nonzero()
    if steps == 0 or len(pairs) == 0:
        return raised
    for part in pairs.split(together(bounds, step)):
        image, row = part.unbind(dim=1)
        lanes = bounds.lanes(image)
        ascended, _ = ascended_from(
            Choice.of(lanes, step), lanes, step, rows[image, row].unsqueeze(1), steps
        )
        raised[image, row] = torch.maximum(found[image, row], ascended)
    return raised


def ascended_from(
    choice: Choice, bounds: Bounds, step: int, rows: Rows, steps: int
) -> tuple[Float[Tensor, " n"], Choice]:
    """The best bounds met from a choice on, one row of each image, and the last choice.

    Args:
        choice: where the ascent starts.
        bounds: boxes of every step.
        step: whose linear functions are bounded.
        rows: the functions, shape (n, 1, *shape).
        steps: of the ascent.
    """
    best = rows.new_full((len(rows),), -torch.inf)
    values = choice.values
    first = [torch.zeros_like(value) for value in values]
    second = [torch.zeros_like(value) for value in values]
    for number in range(1, steps + 2):
        last = number == steps + 1
        with torch.set_grad_enabled(not last):
            leaves = [value.detach().requires_grad_(not last) for value in values]
            chosen = choice.with_values(leaves)
            bound = bounds.by_lines(step, rows, chosen.shares, chosen.multipliers).squeeze(1)
            total = bound.sum()
        best = torch.maximum(best, bound.detach())
        if last or not total.requires_grad or bool((best > 0).all()):
            break
        slopes = torch.autograd.grad(total, leaves, allow_unused=True)
        rate = _RATE * _DECAY ** (number - 1)
        for i, (value, slope) in enumerate(zip(leaves, slopes, strict=True)):
            if slope is None:
                continue
            # What is without bound has no slope.
            up = slope.nan_to_num(0.0, 0.0, 0.0)
            first[i] = _MEANS[0] * first[i] + (1 - _MEANS[0]) * up
            second[i] = _MEANS[1] * second[i] + (1 - _MEANS[1]) * up**2
            mean = first[i] / (1 - _MEANS[0] ** number)
            spread = (second[i] / (1 - _MEANS[1] ** number)).sqrt()
            values[i] = value.detach() + rate * mean / spread.clamp_min(1e-30)
        values = choice.with_values(values).within.values
    return best, choice.with_values([value.detach() for value in values])
