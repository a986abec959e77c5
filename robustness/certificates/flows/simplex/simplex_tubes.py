"""Tubes of a simplex field, as zonotopes: affine in the features but for bounded remainders.

Norms of Jacobians lose the directions of what they bound, and the tubes made of them grow where
the perturbed states do not. Here a set of states is

    c + G d + E xi + b,   |d|_2 <= distance,   |xi_i| <= 1,   |b_i| <= box_i,

with the one change d of the features and the symbols xi shared by all states of a solve: steps act
on them by matrices, and only what is not affine adds new ones (the zonotopes of Singh et al.,
NeurIPS 2018, with an l2 ball for the features).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from robustness.certificates.flows.simplex.simplex_networks import (
    Rounding,
    SimplexNetwork,
    rounding_of_target,
)
from robustness.nets.simplex import SimplexField, project_to_simplex
from robustness.numerics.arithmetic import FLOAT64_ROOM

_ROOM = 1 + FLOAT64_ROOM


@dataclass(frozen=True)
class Zonotope:
    """States, or targets, of each of n images; see the module.

    Attributes:
        centre: c, float64, shape (n, classes).
        linear: G, shape (n, classes, features).
        distance: l2 length of d, shape (n,).
        symbols: E, shape (n, classes, m). Sets of one solve share their first columns.
        box: shape (n, classes).
    """

    centre: Float[Tensor, "n k"]
    linear: Float[Tensor, "n k f"]
    distance: Float[Tensor, " n"]
    symbols: Float[Tensor, "n k m"]
    box: Float[Tensor, "n k"]

    @classmethod
    def point(
        cls, centre: Float[Tensor, "n k"], distance: Float[Tensor, " n"], features: int
    ) -> "Zonotope":
        """States that are the same whatever the features."""
        n, k = centre.shape
        none = centre.new_zeros(n, k, 0)
        return cls(centre, centre.new_zeros(n, k, features), distance, none, centre.new_zeros(n, k))

    def spread(self, rows: Float[Tensor, "*n r k"]) -> Float[Tensor, "n r"]:
        """How far each row times a state can be from the row times the centre."""
        of_features: Tensor = (rows @ self.linear).norm(dim=2) * self.distance.unsqueeze(1)
        return (of_features + self.spread_of_rest(rows)) * _ROOM

    def spread_of_rest(self, rows: Float[Tensor, "*n r k"]) -> Float[Tensor, "n r"]:
        """The part of `spread` that does not follow the features."""
        of_symbols = (rows @ self.symbols).abs().sum(dim=2)
        return of_symbols + (rows.abs() @ self.box.unsqueeze(2)).squeeze(2)

    @property
    def size(self) -> Float[Tensor, " n"]:
        """See `tubes.StateSet`."""
        identity = torch.eye(self.centre.shape[1], dtype=torch.float64)
        return (self.centre.abs() + self.spread(identity)).amax(dim=1)

    def least_leads(self, labels: Int[Tensor, " n"]) -> Float[Tensor, "n k"]:
        """See `tubes.StateSet`."""
        rows = differences(labels, self.centre.shape[1])
        lead = (rows @ self.centre.unsqueeze(2)).squeeze(2) - self.spread(rows)
        return lead.scatter(1, labels.unsqueeze(1), torch.inf)

    def widened(self, error: Float[Tensor, " n"]) -> "Zonotope":
        """See `tubes.StateSet`."""
        return replace(self, box=self.box + error.unsqueeze(1))

    def combined(self, weights: Sequence[float], sets: Sequence["Zonotope"]) -> "Zonotope":
        """See `tubes.StateSet`."""
        terms = list(zip(weights, sets, strict=True))
        most = max(item.symbols.shape[2] for item in sets)
        return Zonotope(
            torch.stack([w * item.centre for w, item in terms]).sum(dim=0),
            torch.stack([w * item.linear for w, item in terms]).sum(dim=0),
            self.distance,
            torch.stack(
                [
                    w * functional.pad(item.symbols, (0, most - item.symbols.shape[2]))
                    for w, item in terms
                ]
            ).sum(dim=0),
            torch.stack([abs(w) * item.box for w, item in terms]).sum(dim=0),
        )


@dataclass(frozen=True)
class SimplexZonotopes:
    """T = P(v), v = eta + gain (B relu(A eta + a + z) + b), for features near those of n images.

    - relu(u) = lambda u + mu +- mu for l <= u <= h, lambda = h / (h - l), mu = -lambda l / 2;
    - with S the support of P at the centre, k = |S|, and t_S = (sum_S v_i - 1) / k, P(v) is
      L(v) + sum_i nu_i (e_i - 1_S/k), where L(v)_i = v_i - t_S on S and 0 elsewhere. Here nu_i >=
      0 is (tau - v_i)+ on S and (v_i - tau)+ elsewhere, tau the threshold of P(v): the entries
      of P(v) sum to 1, hence tau = t_S + sum(nu)/k.

    Attributes:
        field: the field.
        features: exact features of the images, float64, shape (n, features).
        distance: l2 distance of the perturbed program's features, shape (n,).
        labels: classes whose lead is followed, shape (n,).
    """

    field: SimplexField
    features: Float[Tensor, "n f"]
    distance: Float[Tensor, " n"]
    labels: Int[Tensor, " n"]

    def relaxed(self, states: Zonotope, share: float) -> Zonotope:
        """See `tubes.Relaxation`."""
        anything = torch.full((len(self.labels), self.field.width), torch.inf, dtype=torch.float64)
        unknown = torch.full_like(self.distance, torch.inf)
        return self.step(states, share, (-anything, anything), Rounding(unknown, unknown))[0]

    def step(
        self,
        states: Zonotope,
        share: float,
        within: tuple[Float[Tensor, "n u"], Float[Tensor, "n u"]],
        rounding: Rounding,
    ) -> tuple[Zonotope, "Hidden"]:
        """`relaxed`, where something else is known of the same states.

        Args:
            states: what is relaxed.
            share: see `tubes.Relaxation`.
            within: from and to what the hidden units are known to reach, infinite where nothing is.
            rounding: of the target, infinite where nothing is known.

        Returns:
            The states after the step, and what is known of the target's computation.
        """
        net = SimplexNetwork.of(self.field)
        classes = self.field.classes
        identity = torch.eye(classes, dtype=torch.float64)
        proposals = self._proposals(net, states, within)
        faces = _faces(proposals, self.labels)
        kept = (1 - share) * identity
        moved = kept + share * faces.onto @ proposals.jacobian
        target = project_to_simplex(proposals.centre)
        target = target + (faces.away @ faces.middle.unsqueeze(2)).squeeze(2)
        # What was a box in front of this step becomes symbols, which later steps turn and shrink.
        symbols = (
            moved @ states.symbols,
            moved * states.box.unsqueeze(1),
            share * faces.away * faces.half.unsqueeze(1),
        )
        of_units = (faces.onto @ net.outer).abs() @ proposals.slack.unsqueeze(2)
        after = Zonotope(
            (1 - share) * states.centre + share * target,
            (1 - share) * states.linear + share * faces.onto @ proposals.linear,
            states.distance,
            torch.cat(symbols, dim=2),
            share * of_units.squeeze(2) * _ROOM,
        )
        reach = states.spread(identity).norm(dim=1)
        here = rounding_of_target(net, states.centre, reach, self.features, self.distance)
        entry = torch.minimum(here.entry.nan_to_num(torch.inf), rounding.entry)
        total = torch.minimum(here.total.nan_to_num(torch.inf), rounding.total)
        hidden = Hidden(proposals.low, proposals.high, Rounding(entry, total))
        return after.widened(share * entry), hidden

    def _proposals(
        self, net: SimplexNetwork, states: Zonotope, within: tuple[Tensor, Tensor]
    ) -> "_Proposals":
        hidden = net.hidden(states.centre, self.features)
        # |A_i G + e_i|^2 = A_i G G^T A_i^T + 2 A_i G e_i + 1, without the product A G.
        squared = ((net.inner @ (states.linear @ states.linear.mT)) * net.inner).sum(dim=2)
        squared = squared + 2 * (net.inner.T * states.linear).sum(dim=1) + 1
        # The square may cancel down to its float64 rounding.
        spread = (squared.clamp_min(0) + 1e-12).sqrt() * states.distance.unsqueeze(1)
        spread = (spread + states.spread_of_rest(net.inner)) * _ROOM + FLOAT64_ROOM
        spread = spread.nan_to_num(torch.inf)
        low = torch.maximum(hidden - spread, within[0])
        high = torch.minimum(hidden + spread, within[1])
        slope = torch.where(low >= 0, 1.0, (high / (high - low)).clamp(0, 1))
        slope = torch.where(high <= 0, 0.0, slope).nan_to_num(0.5)
        slack = torch.where((low < 0) & (high > 0), -slope * low / 2, 0.0)
        slack = torch.where(low.isfinite() & high.isfinite(), slack, torch.inf)
        classes = states.centre.shape[1]
        bend = (slope @ net.products).view(-1, classes, classes)
        jacobian = torch.eye(classes, dtype=torch.float64) + bend
        return _Proposals(
            states.centre + (slope * hidden + slack) @ net.outer.T + net.shift,
            jacobian @ states.linear + slope.unsqueeze(1) * net.outer,
            jacobian,
            slack,
            net.outer,
            states,
            low,
            high,
        )


@dataclass(frozen=True)
class Hidden:
    """What a step's bounds rest on.

    Attributes:
        low: what relu is applied to is nowhere less, shape (n, units).
        high: and nowhere more, shape (n, units).
        rounding: of the target.
    """

    low: Float[Tensor, "n u"]
    high: Float[Tensor, "n u"]
    rounding: Rounding


@dataclass(frozen=True)
class _Proposals:
    """v as an affine function of the states and of d, and the slack of the hidden units."""

    centre: Tensor
    linear: Tensor
    jacobian: Tensor
    slack: Tensor
    outer: Tensor
    states: Zonotope
    low: Tensor
    high: Tensor

    def spread(self, rows: Tensor) -> Tensor:
        """How far each row times v can be from the row times the centre, shape (n, rows)."""
        of_features: Tensor = (rows @ self.linear).norm(dim=2) * self.states.distance.unsqueeze(1)
        of_rest = self.states.spread_of_rest(rows @ self.jacobian)
        of_units = ((rows @ self.outer).abs() @ self.slack.unsqueeze(2)).squeeze(2)
        return (of_features + of_rest + of_units) * _ROOM + FLOAT64_ROOM


def _faces(proposals: _Proposals, labels: Tensor) -> "_Faces":
    """The affine form of P over the proposals, around the support at their centre."""
    v, classes = proposals.centre, proposals.centre.shape[1]
    rows = differences(labels, classes)
    lead, spread = (rows @ v.unsqueeze(2)).squeeze(2), proposals.spread(rows)
    label = functional.one_hot(labels, classes).bool()
    # P sees differences only, so that v_y = 0 may be chosen.
    lead, spread = lead.masked_fill(label, 0.0), spread.masked_fill(label, 0.0)
    least, most = excess_range(-lead - spread, spread - lead)
    inside = project_to_simplex(v) > 0
    by_box = torch.where(inside, -least, most).clamp_min(0)

    size = inside.sum(dim=1, keepdim=True)
    excess = torch.eye(classes, dtype=torch.float64) - (inside / size).unsqueeze(1)
    middle = (excess @ v.unsqueeze(2)).squeeze(2) + 1 / size
    middle, spread = torch.where(inside, -middle, middle), proposals.spread(excess)
    return _Faces.of(inside, middle - spread, middle + spread, by_box)


@dataclass(frozen=True)
class _Faces:
    """P over the tube: onto v + const + away (middle +- half), S the support at the centre.

    With k = |S|, d_i = e_i - 1_S / k and w_i = d_i . v + 1/k, the amount by which v_i exceeds the
    threshold of S alone, nu_i of `SimplexZonotopes` obeys

    - off S, with o_i = sum of the other nu / k: c (w_i - o_i)+ <= nu_i <= c w_i+, c = k / (k + 1);
    - on S: c (-w_i)+ <= nu_i <= c (-w_i + o_i)+, c = k / (k - 1).

    Over l <= w <= h, w+ lies between lambda w and lambda (w - l), lambda = h / (h - l), and a shift
    of its argument by o moves it by at most lambda o where it falls short and o where it exceeds.
    The alternative is the constant nu_hi / 2 +- nu_hi / 2; the narrower is taken.

    Attributes:
        onto: Jacobian of the affine map, shape (n, classes, classes).
        away: d_i in column i, shape (n, classes, classes).
        middle: middle of the amounts of d_i at the centre, shape (n, classes).
        half: half of their width, shape (n, classes).
    """

    onto: Tensor
    away: Tensor
    middle: Tensor
    half: Tensor

    @classmethod
    def of(cls, inside: Tensor, low: Tensor, high: Tensor, by_box: Tensor) -> "_Faces":
        """From bounds of w_i off S and of -w_i on S, and from upper bounds of nu; (n, classes)."""
        support, classes = inside.double(), inside.shape[1]
        size = support.sum(dim=1, keepdim=True)
        factor = torch.where(inside, size / (size - 1).clamp_min(1e-300), size / (size + 1))
        most = torch.where(inside, by_box, torch.minimum(by_box, factor * high.clamp_min(0)))
        others = (most.sum(dim=1, keepdim=True) - most).clamp_min(0) / size
        bounded = torch.minimum(most, factor * (high + others).clamp_min(0))
        most = torch.where(inside & (size > 1), bounded, most)

        slope = torch.where(low >= 0, 1.0, (high / (high - low)).clamp(0, 1))
        slope = torch.where((high <= 0) | (most <= 0), 0.0, slope)
        below = torch.where(inside, 0.0, slope * others)
        above = torch.where(inside, others, 0.0) - slope * low.clamp_max(0)
        # Where a class certainly enters, or leaves, w+ is w and nothing is lost above.
        half = factor * (above + below) / 2
        affine = (most > 0) & (half < most / 2) & (~inside | (size > 1))
        sign = torch.where(inside, -1.0, 1.0)
        tilt = torch.where(affine, factor * slope, 0.0)
        at_centre = (low + high) / 2
        middle = torch.where(affine, tilt * at_centre + factor * (above - below) / 2, most / 2)
        half = torch.where(affine, half, most / 2)
        away = torch.eye(classes, dtype=torch.float64) - (support / size).unsqueeze(2)
        onto = support.unsqueeze(2) * (away * support.unsqueeze(1))
        # The sign of w_i on S, which tilts against d_i.
        onto = onto + (away * (tilt * sign).unsqueeze(1)) @ away.mT
        return cls(onto, away, middle, half)


def excess_range(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest v_i - tau(v) of each entry over low <= v <= high, tau the threshold of P.

    Where entry i is in the support, v_i - tau is P(v)_i, which increases in v_i and decreases in
    every other entry. Where it is not, tau does not depend on v_i and increases in the others.
    """
    n, k = low.shape
    own = torch.eye(k, dtype=torch.bool).expand(n, k, k)
    found = []
    for mine, others in ((low, high), (high, low)):
        corner = torch.where(own, mine.unsqueeze(1), others.unsqueeze(1)).flatten(0, 1)
        ordered = corner.sort(dim=1, descending=True).values
        ranks = torch.arange(1, k + 1, dtype=torch.float64)
        # The threshold is the largest mean excess of the leading entries.
        threshold = ((ordered.cumsum(dim=1) - 1) / ranks).amax(dim=1, keepdim=True)
        found.append((corner - threshold).unflatten(0, (n, k)).diagonal(dim1=1, dim2=2))
    return found[0], found[1]


def differences(labels: Int[Tensor, " n"], classes: int) -> Float[Tensor, "n k k"]:
    """e_y - e_j for the label y and every j, shape (n, classes, classes)."""
    identity = torch.eye(classes, dtype=torch.float64)
    return identity[labels].unsqueeze(1) - identity
