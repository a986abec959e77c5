"""One step of a simplex field on cells of a label's cone, by linear bounds of every lead.

The lead of E(eta) = (1 - s) eta + s P(v) over class j is (1 - s)(eta_y - eta_j) + s min(v_y - v_j,
g_y) or more, v the point that is projected and g_y a lower bound of the target's entry; v is
bounded by a linear function of state and features (the linear relaxation of relu of Zhang et al.,
arXiv 1811.00866), whose least value in a cell is exact.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustness.certificates.flows.simplex.cone_cells import Cells
from robustness.certificates.flows.simplex.simplex_networks import SimplexNetwork
from robustness.nets.simplex import project_to_simplex
from robustness.numerics.arithmetic import FLOAT64_ROOM


@dataclass(frozen=True)
class ConeNetwork:
    """A simplex field's network as one image sees it, or each of c images; the label comes first.

    Attributes:
        inner: A, shape (units, classes) or (c, units, classes).
        offset: a and the features, shape (units,) or (c, units).
        outer: gain B, shape (classes, units) or (c, classes, units).
        shift: gain b, shape (classes,) or (c, classes).
        distance: l2 distance of the perturbed program's features, shape (1,) or (c,).
    """

    inner: Float[Tensor, "*c u k"]
    offset: Float[Tensor, "*c u"]
    outer: Float[Tensor, "*c k u"]
    shift: Float[Tensor, "*c k"]
    distance: Float[Tensor, " d"]

    @classmethod
    def of(
        cls,
        net: SimplexNetwork,
        order: Tensor,
        features: Float[Tensor, "*c u"],
        distance: Float[Tensor, " d"],
    ) -> "ConeNetwork":
        """`net` at some features, its classes in the given order, shape (classes,) or (c, k)."""
        inner = net.inner.T[order].mT
        return cls(inner, net.offset + features, net.outer[order], net.shift[order], distance)


@dataclass(frozen=True)
class Leads:
    """What is known of the label's leads after a step from some cells.

    Attributes:
        least: a lower bound of the lead over each rival, shape (c, classes - 1).
        proposed: of v's lead, of the same shape.
        rows: the state's part of each linear bound, shape (c, classes - 1, classes).
    """

    least: Float[Tensor, "c r"]
    proposed: Float[Tensor, "c r"]
    rows: Float[Tensor, "c r k"]


def hidden_range(
    cells: Cells, net: ConeNetwork
) -> tuple[Float[Tensor, "c u"], Float[Tensor, "c u"]]:
    """What relu is applied to, from and to, for all states of a cell and all features."""
    room = net.distance.unsqueeze(1) + FLOAT64_ROOM
    return cells.least(net.inner) + net.offset - room, cells.largest(net.inner) + net.offset + room


def leads_after(
    cells: Cells,
    net: ConeNetwork,
    share: float,
    low: Float[Tensor, "c u"],
    high: Float[Tensor, "c u"],
) -> Leads:
    """The label's leads after a step from any state of a cell, in exact arithmetic.

    Args:
        cells: states of the simplex.
        net: the network.
        share: h * kappa.
        low: what relu is applied to is nowhere less; finite.
        high: and nowhere more.

    Returns:
        The leads; minus infinity in cells where `low` and `high` are no range, NaN for instance.
    """
    classes = net.inner.shape[-1]
    open_ = (low < 0) & (high > 0)
    chord = torch.where(open_, high / (high - low).clamp_min(1e-300), (low >= 0).double())
    line = torch.where(open_, (high > -low).double(), chord)

    lead = torch.ones(classes - 1, classes, dtype=torch.float64)
    lead[:, 1:] = -torch.eye(classes - 1, dtype=torch.float64)
    weight = lead @ net.outer
    # From below relu(u) >= line u, from above relu(u) <= chord (u - low).
    slope = torch.where(weight >= 0, line.unsqueeze(1), chord.unsqueeze(1)) * weight
    above = torch.where(open_, -chord * low, torch.zeros_like(low))
    constant = _times(slope, net.offset) + _times(lead, net.shift)
    constant = constant + _times(weight.clamp_max(0), above)
    constant = constant - slope.norm(dim=2) * net.distance.unsqueeze(1)
    rows = lead + slope @ net.inner

    leads = cells.least(rows) + constant - FLOAT64_ROOM
    entry = project_to_simplex(torch.cat([torch.zeros_like(leads[:, :1]), -leads], dim=1))
    together = (1 - share) * lead + share * rows
    joint = cells.least(together) + share * constant
    kept = (1 - share) * cells.least(lead)
    capped = torch.minimum(joint, kept + share * entry[:, :1])
    # No target leads by less than -1, however far the proposal is outside of the simplex.
    least = torch.maximum(capped, kept - share) - FLOAT64_ROOM
    known = (low <= high).all(dim=1, keepdim=True)
    return Leads(_where(known, least), _where(known, leads), together)


def steepest_axis(cells: Cells, leads: Leads) -> Int[Tensor, " c"]:
    """The axis along which cutting a cell raises its worst lead most, to first order."""
    rival = leads.least.argmin(dim=1)
    rows = leads.rows
    chosen = rows.gather(1, rival.view(-1, 1, 1).expand(-1, 1, rows.shape[2])).squeeze(1)
    level = cells.centres().unsqueeze(1) @ chosen.unsqueeze(2)
    influence = (cells.high - cells.low) * (chosen[:, 1:] - level.squeeze(2)).abs()
    # The relaxation of relu shrinks with the cell along every axis, not along these alone.
    return (influence + 0.05 * (cells.high - cells.low)).argmax(dim=1)


def _where(known: Tensor, bound: Tensor) -> Tensor:
    """A lower bound, minus infinity where nothing is known or it is no number."""
    return torch.where(known & ~bound.isnan(), bound, -torch.inf)


def _times(rows: Tensor, values: Tensor) -> Tensor:
    """Rows of shape (m, u) or (c, m, u) times values of shape (u,) or (c, u)."""
    return (rows @ values.unsqueeze(-1)).squeeze(-1)
