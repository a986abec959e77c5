"""Tubes of a simplex field that keep to what the label's cone allows.

A zonotope (`simplex_tubes`) follows how states and features hang together, and is sharp while it
is thin; its remainders, once made, are carried along, and a wide tube grows where no state of the
simplex can go. The leads alone say less, but a step's bounds on the whole cell of states with such
leads (`cone_steps`) do not grow from step to step where the label's cone is invariant. Here both
are kept, and each takes from the other what it knows of the hidden units: the tube holds what the
thinner of the two holds.

Beside the leads, the rivals' entries are bounded from above: with l a lower bound of v_y - v_j, the
target's entry for j is at most (1 - l) / 2, since it is 0 or less than the label's by l or more.

A cell holds states of the simplex, and those of the float32 program are near it: by convexity the
distance d from it obeys d' <= (1 - s) d + s t + sqrt(K) b, with t what the sum of a computed target
can be off by and b the rounding of a step's entries.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from robustness.certificates.flows.simplex.cone_cells import Cells
from robustness.certificates.flows.simplex.cone_steps import (
    ConeNetwork,
    hidden_range,
    leads_after,
    steepest_axis,
)
from robustness.certificates.flows.simplex.simplex_networks import (
    Rounding,
    SimplexNetwork,
    rounding_of_target,
)
from robustness.certificates.flows.simplex.simplex_tubes import SimplexZonotopes, Zonotope
from robustness.nets.simplex import SimplexField
from robustness.numerics.arithmetic import FLOAT64_ROOM

# States farther than this from the simplex are left to the zonotope.
LARGEST_DRIFT = 0.01
# Ratios to a label's entry of less than this are of no use.
_LEAST_ENTRY = 1e-3


@dataclass(frozen=True)
class ConeTube:
    """States within a zonotope, near the simplex, where the label has some leads.

    Attributes:
        zonotope: holds the states.
        leads: lower bounds of the label's lead over each class; infinite over itself, shape (n, k).
        most: upper bounds of the entries; of the label's, infinity, shape (n, k).
        drift: a bound on the l2 distance from the simplex, shape (n,); infinite where none is
            known.
    """

    zonotope: Zonotope
    leads: Float[Tensor, "n k"]
    most: Float[Tensor, "n k"]
    drift: Float[Tensor, " n"]

    @classmethod
    def point(cls, zonotope: Zonotope, labels: Int[Tensor, " n"]) -> "ConeTube":
        """States that are the same whatever the features, with no negative entry."""
        off = (zonotope.centre.sum(dim=1) - 1).abs()
        leads = zonotope.least_leads(labels)
        most = torch.where(leads == torch.inf, torch.inf, zonotope.centre)
        return cls(zonotope, leads, most, off + FLOAT64_ROOM)

    @property
    def size(self) -> Float[Tensor, " n"]:
        """See `tubes.StateSet`."""
        return torch.minimum(self.zonotope.size.nan_to_num(torch.inf), 1 + self.drift)

    def least_leads(self, labels: Int[Tensor, " n"]) -> Float[Tensor, "n k"]:
        """See `tubes.StateSet`."""
        return _larger(self.leads, self.zonotope.least_leads(labels))

    def widened(self, error: Float[Tensor, " n"]) -> "ConeTube":
        """See `tubes.StateSet`."""
        drift = self.drift + math.sqrt(self.leads.shape[1]) * error
        by = error.unsqueeze(1)
        return ConeTube(self.zonotope.widened(error), self.leads - 2 * by, self.most + by, drift)

    def combined(self, weights: Sequence[float], sets: Sequence["ConeTube"]) -> "ConeTube":
        """See `tubes.StateSet`; but for the zonotope, only convex combinations keep anything."""
        zonotope = self.zonotope.combined(weights, [item.zonotope for item in sets])
        terms = [(w, item) for w, item in zip(weights, sets, strict=True) if w != 0]
        if min(w for w, _ in terms) < 0 or abs(sum(weights) - 1) > FLOAT64_ROOM:
            label = torch.where(self.leads == torch.inf, torch.inf, -torch.inf)
            anything = torch.full_like(self.leads, torch.inf)
            return ConeTube(zonotope, label, anything, anything[:, 0])
        # The weights' own rounding; near the simplex no lead and no entry exceeds 2.
        leads = torch.stack([w * item.leads for w, item in terms]).sum(dim=0) - 2 * FLOAT64_ROOM
        most = torch.stack([w * item.most for w, item in terms]).sum(dim=0) + 2 * FLOAT64_ROOM
        drift = torch.stack([w * item.drift for w, item in terms]).sum(dim=0)
        return ConeTube(zonotope, leads, most, drift + 2 * FLOAT64_ROOM)


@dataclass(frozen=True)
class ConeTubes:
    """The field of `SimplexZonotopes`, its states in the label's cone or near it.

    Attributes:
        field: the field.
        features: exact features of the images, float64, shape (n, features).
        distance: l2 distance of the perturbed program's features, shape (n,).
        labels: classes whose lead is followed, shape (n,).
        halvings: how often a cell is cut in two before its bounds are asked for.
    """

    field: SimplexField
    features: Float[Tensor, "n f"]
    distance: Float[Tensor, " n"]
    labels: Int[Tensor, " n"]
    halvings: int = 0

    def relaxed(self, states: ConeTube, share: float) -> ConeTube:
        """See `tubes.Relaxation`."""
        net, classes = SimplexNetwork.of(self.field), self.field.classes
        zonotopes = SimplexZonotopes(self.field, self.features, self.distance, self.labels)
        label = functional.one_hot(self.labels, classes).bool()
        # Stable, so that the other classes keep their order.
        order = label.int().argsort(dim=1, descending=True, stable=True)
        rivals = order[:, 1:]

        drift = states.drift
        leads = (states.leads - math.sqrt(2) * drift.unsqueeze(1)).gather(1, rivals)
        most = (states.most + drift.unsqueeze(1)).gather(1, rivals).clamp(0, 1)
        cells, known = _cells(leads, most, drift)
        cone = ConeNetwork.of(net, order, self.features, self.distance)
        # Between a state of the program and the nearest of the simplex.
        apart = net.inner.norm(dim=1) * drift.unsqueeze(1)
        near = known.unsqueeze(1)
        low, high = hidden_range(cells, cone)
        within = (
            torch.where(near, low - apart, -torch.inf),
            torch.where(near, high + apart, torch.inf),
        )
        rounding = self._rounding_near_the_simplex(net, known)
        after, hidden = zonotopes.step(states.zonotope, share, within, rounding)

        # A zonotope that has overflowed says nothing.
        from_zonotope = (hidden.low - apart).nan_to_num(-torch.inf, torch.inf, -torch.inf)
        to_zonotope = (hidden.high + apart).nan_to_num(torch.inf, torch.inf, -torch.inf)
        low = torch.where(near, torch.maximum(low, from_zonotope), 0.0)
        high = torch.where(near, torch.minimum(high, to_zonotope), 0.0)
        least, proposed = self._by_parts(cells, cone, share, low, torch.maximum(low, high))
        # By how much a target is off, the program's state being so far from the cell's.
        moved = (1 + net.inner_norm * net.outer_norm) * drift
        error = share * (moved + hidden.rounding.entry) + (0.0 if share == 1 else 1 - share) * drift
        lost = math.sqrt(2) * error + (2 - math.sqrt(2)) * share * hidden.rounding.entry
        kept = torch.where(near, least - lost.unsqueeze(1), -torch.inf)
        kept = torch.full_like(states.leads, torch.inf).scatter(1, rivals, kept)
        of_target = ((1 - proposed) / 2).clamp(0, 1)
        grown = share * of_target + (0.0 if share == 1 else (1 - share) * most)
        grown = torch.where(near, grown + error.unsqueeze(1), torch.inf)
        grown = torch.full_like(states.most, torch.inf).scatter(1, rivals, grown)
        # A computed target has no negative entry, and its sum is nearly 1, whatever the state.
        drift = share * hidden.rounding.total + (0.0 if share == 1 else (1 - share) * drift)
        return ConeTube(after, _larger(kept, after.least_leads(self.labels)), grown, drift)

    def _by_parts(
        self, cells: Cells, net: ConeNetwork, share: float, low: Tensor, high: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`leads_after` of each cell, as the least over its parts."""
        found = leads_after(cells, net, share, low, high)
        for _ in range(self.halvings):
            cells = cells.halves(steepest_axis(cells, found))
            net, low, high = _twice(net), low.repeat(2, 1), high.repeat(2, 1)
            of_parts = hidden_range(cells, net)
            low, high = torch.maximum(low, of_parts[0]), torch.minimum(high, of_parts[1])
            found = leads_after(cells, net, share, low, torch.maximum(low, high))
        # Halves of all cells are stacked, first the lower ones.
        parts = (2**self.halvings, -1, found.least.shape[1])
        return found.least.view(parts).amin(dim=0), found.proposed.view(parts).amin(dim=0)

    def _rounding_near_the_simplex(self, net: SimplexNetwork, known: Tensor) -> Rounding:
        classes = self.field.classes
        centre = torch.full((len(known), classes), 1 / classes, dtype=torch.float64)
        # No state of the simplex is farther than 1 from its centre.
        reach = torch.full_like(self.distance, 1 + LARGEST_DRIFT)
        found = rounding_of_target(net, centre, reach, self.features, self.distance)
        unknown = torch.full_like(self.distance, torch.inf)
        return Rounding(
            torch.where(known, found.entry, unknown), torch.where(known, found.total, unknown)
        )


def _cells(leads: Tensor, most: Tensor, drift: Tensor) -> tuple[Cells, Tensor]:
    """The states of the simplex with such leads and entries, and where there is such a cell.

    With eta_j <= eta_y - lead_j, the ratio eta_j / eta_y is at most 1 - lead_j where the lead is
    not negative, and at most 1 - lead_j / eta_y elsewhere; and it is at most most_j / eta_y.

    Args:
        leads: lower bounds of the leads over the rivals, shape (n, classes - 1).
        most: upper bounds of the rivals' entries, in [0, 1], of the same shape.
        drift: distance of the program's states, shape (n,).
    """
    own = _least_own_entry(leads, most).unsqueeze(1)
    known = (own.squeeze(1) > _LEAST_ENTRY) & (drift <= LARGEST_DRIFT)
    high = 1 - torch.where(leads < 0, leads / own, leads)
    high = torch.minimum(high, most / own) + FLOAT64_ROOM
    high = torch.where(known.unsqueeze(1), high.clamp_min(0), 1.0)
    return Cells(torch.zeros_like(high), high), known


def _least_own_entry(leads: Tensor, most: Tensor) -> Tensor:
    """A lower bound of the label's entry, shape (n,); 0 where none is known.

    The entries sum to 1, so that t = eta_y obeys t + sum_j min(most_j, t - lead_j) >= 1, whose left
    side increases in t; and no lead exceeds it, since no entry is negative.
    """
    low, high = torch.zeros_like(leads[:, 0]), torch.ones_like(leads[:, 0])
    for _ in range(40):
        middle = (low + high) / 2
        rivals = torch.minimum(most, middle.unsqueeze(1) - leads).sum(dim=1)
        short = middle + rivals < 1 - FLOAT64_ROOM
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return torch.maximum(low, leads.amax(dim=1) - FLOAT64_ROOM).clamp_min(0)


def _twice(net: ConeNetwork) -> ConeNetwork:
    return ConeNetwork(
        net.inner.repeat(2, 1, 1),
        net.offset.repeat(2, 1),
        net.outer.repeat(2, 1, 1),
        net.shift.repeat(2, 1),
        net.distance.repeat(2),
    )


def _larger(first: Tensor, second: Tensor) -> Tensor:
    """The larger of two lower bounds; one that is no number says nothing."""
    return torch.maximum(
        first.nan_to_num(-torch.inf, torch.inf, -torch.inf),
        second.nan_to_num(-torch.inf, torch.inf, -torch.inf),
    )
