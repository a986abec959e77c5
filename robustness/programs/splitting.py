"""Splitting: a ball in two, by the side of its bend on which an undecided rectifier's operand lies.

On either half the rectifier is a straight line, boxes behind it are narrower, and what is imposed
enters the bound with a multiplier that is climbed with the lines (beta-CROWN, Wang et al.,
arXiv 2103.06624). Sides are those of computed values, so halves cover the ball of the program that
runs. A margin is proved where the bounds of all leaves are above 0; a leaf without images is fine.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustness.programs.boxes import Box
from robustness.programs.network import Bounds
from robustness.programs.operations.base import Rows
from robustness.programs.operations.elementwise import Rectifier
from robustness.programs.slopes import Choice, ascended_from, together


@dataclass(frozen=True)
class _Leaves:
    """Parts of balls whose bounds are not above 0.

    Attributes:
        bounds: of each part.
        choice: of its lines.
        rows: the function that is bounded, shape (n, 1, *shape).
        owner: which function of which image it is part of.
    """

    bounds: Bounds
    choice: Choice
    rows: Rows
    owner: Int[Tensor, " n"]

    def lanes(self, part: Tensor) -> "_Leaves":
        return _Leaves(
            self.bounds.lanes(part), self.choice.lanes(part), self.rows[part], self.owner[part]
        )


@dataclass(frozen=True)
class _Unit:
    """An entry of a rectifier's operand for each leaf.

    Attributes:
        place: the step that it is an entry of; -1 where none is undecided.
        entry: its flat index.
        weight: the largest coefficient of the rectifier's results, the scale of multipliers.
    """

    place: Int[Tensor, " n"]
    entry: Int[Tensor, " n"]
    weight: Float[Tensor, " n"]

    def lanes(self, part: Tensor) -> "_Unit":
        return _Unit(self.place[part], self.entry[part], self.weight[part])


@torch.no_grad()
def split(
    bounds: Bounds, step: int, rows: Rows, found: Float[Tensor, "n r"], budget: int, steps: int
) -> Float[Tensor, "n r"]:
    """Lower bounds, those not above 0 raised where all leaves of a tree are above it.

    Args:
        bounds: boxes of every step.
        step: whose linear functions are bounded.
        rows: the functions.
        found: bounds of them that hold.
        budget: splits of each function's ball; 0 leaves everything as it is.
        steps: of the ascent on the choices of each leaf.

    Returns:
        Bounds that hold and are nowhere below `found`.
    """
    raised = found.clone()
    pairs = (found.isfinite() & (found <= 0)).nonzero()
    if budget == 0 or len(pairs) == 0 or not bounds.network.rectified:
        return raised
    # Two halves of each leaf.
    for part in pairs.split(max(1, together(bounds, step) // 2)):
        image, row = part.unbind(dim=1)
        least = _least_of_leaves(
            bounds.lanes(image), step, rows[image, row].unsqueeze(1), budget, steps
        )
        raised[image, row] = torch.maximum(found[image, row], least)
    return raised


def _least_of_leaves(
    bounds: Bounds, step: int, rows: Rows, budget: int, steps: int
) -> Float[Tensor, " n"]:
    """The least bound of the leaves of each tree; -inf where some are not above 0."""
    count = len(rows)
    _, choice = ascended_from(Choice.of(bounds, step), bounds, step, rows, steps)
    least = rows.new_full((count,), torch.inf)
    left = torch.full((count,), budget)
    size = max(1, together(bounds, step) // 2)
    waiting = [_Leaves(bounds, choice, rows, torch.arange(count))]
    while waiting:
        leaves = waiting.pop()
        # Every open leaf is to be split: a tree with too many of them is given up.
        left = left - leaves.owner.bincount(minlength=count)
        leaves = leaves.lanes((left[leaves.owner] >= 0).nonzero().squeeze(1))
        if len(leaves.owner) == 0:
            continue
        unit = _dearest(leaves, step)
        # Without an undecided entry nothing is left to split.
        left[leaves.owner[unit.place < 0]] = -1
        going = (left[leaves.owner] >= 0).nonzero().squeeze(1)
        if len(going) == 0:
            continue
        halves, bound = _halved(leaves.lanes(going), unit.lanes(going), step, steps)
        proved = torch.where(bound > 0, bound, torch.inf)
        least.scatter_reduce_(0, halves.owner, proved, "amin")
        failed = (~(bound > 0)).nonzero().squeeze(1)
        waiting += [halves.lanes(part) for part in failed.split(size) if len(part)]
    # The image itself is in some leaf, so that no tree is of empty ones alone.
    return torch.where((left >= 0) & least.isfinite(), least, -torch.inf)


def _halved(
    leaves: _Leaves, unit: _Unit, step: int, steps: int
) -> tuple[_Leaves, Float[Tensor, " n"]]:
    """Both halves of each leaf, split at an entry, and their bounds; inf where empty."""
    count = len(leaves.owner)
    twice = torch.arange(count).repeat(2)
    above = torch.arange(len(twice)) < count
    base, unit = leaves.lanes(twice), unit.lanes(twice)
    limits, pulls = {}, dict(base.bounds.pulls)
    for p, threshold in base.bounds.network.rectified.items():
        mine = (unit.place == p).nonzero().squeeze(1)
        if len(mine) == 0:
            continue
        shape = base.bounds.boxes[p].low.shape
        low = torch.full((len(twice), shape[1:].numel()), -torch.inf, dtype=torch.float64)
        high, pull = -low, pulls.get(p, torch.zeros(shape, dtype=torch.float64)).flatten(1).clone()
        bend = threshold.expand(shape[1:]).flatten()
        at, up = unit.entry[mine], above[mine]
        low[mine, at] = torch.where(up, bend[at], -torch.inf)
        high[mine, at] = torch.where(up, torch.inf, bend[at])
        pull[mine, at] = torch.where(up, 1.0, -1.0) * unit.weight[mine]
        limits[p], pulls[p] = Box(low.view(shape), high.view(shape)), pull.view(shape)
    found, empty = base.bounds.imposed(limits, pulls)
    multipliers = {
        p: base.choice.multipliers.get(p, torch.zeros_like(pull.unsqueeze(1)))
        for p, pull in pulls.items()
    }
    start = Choice(base.choice.shares, multipliers)
    best, last = ascended_from(start, found, step, base.rows, steps)
    best = torch.maximum(best, found.by_boxes(step, base.rows).squeeze(1))
    best = torch.where(empty, torch.inf, best)
    return _Leaves(found, last, base.rows, base.owner), best


def _dearest(leaves: _Leaves, step: int) -> _Unit:
    """For each leaf the undecided entry whose lines cost most."""
    bounds, choice = leaves.bounds, leaves.choice
    passed: dict[int, Tensor] = {}
    bounds.by_lines(step, leaves.rows, choice.shares, choice.multipliers, passed)
    count = len(leaves.owner)
    place = torch.full((count,), -1)
    entry, best = torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.float64)
    weight = torch.ones(count, dtype=torch.float64)
    for i, rows in passed.items():
        given = bounds.network.steps[i]
        assert given is not None
        assert isinstance(given.operation, Rectifier)
        p, threshold = given.parents[0], given.operation.threshold
        if not torch.equal(threshold, bounds.network.rectified[p]):
            continue
        box = bounds.boxes[p]
        low, high = ((end - threshold).flatten(1) for end in (box.low, box.high))
        undecided = (low < 0) & (high > 0)
        share = choice.shares[i].flatten(1)
        a = rows.flatten(1)
        chord = -low * high / (high - low)
        below = torch.maximum(share * -low, (1 - share) * high)
        cost = torch.where(a < 0, -a * chord, a * below)
        cost = torch.where(undecided & cost.isfinite(), cost, 0.0)
        dearest, at = cost.max(dim=1)
        more = dearest > best
        best, entry = torch.where(more, dearest, best), torch.where(more, at, entry)
        place = torch.where(more, p, place)
        weight = torch.where(more, a.abs().amax(dim=1), weight)
    return _Unit(place, entry, weight)
