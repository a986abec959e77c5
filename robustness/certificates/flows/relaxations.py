"""Bounds, by norms of Jacobians, on how far a perturbed target can move: one class per field.

A relaxed step (1 - s) eta + s T(eta, z) is differentiable almost everywhere along the segment from
the state and features of an image to those of a perturbed one, so that its change is bounded by
the largest norm of its Jacobian in the tube. `local` bounds ask which Jacobians the tube allows;
without it they are the ones that hold everywhere, and then every bound here is affine in the
radius of the states and in the distance of the features.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustness.certificates.flows.simplex.simplex_networks import (
    SimplexNetwork,
    rounding_of_target,
)
from robustness.certificates.flows.tubes import Ball
from robustness.nets.fields import TargetSeekingField
from robustness.nets.simplex import SimplexField, project_to_simplex
from robustness.numerics import arithmetic, norms
from robustness.numerics.arithmetic import FLOAT64_ROOM

_ROOM = 1 + FLOAT64_ROOM
# Float32 error of a softmax entry: of its exponential, and per class of the sum.
_EXP_ROUNDINGS, _SUM_ROUNDINGS = 32, 2


@dataclass(frozen=True)
class TargetSeekingRelaxation:
    """T = gain (W z + b) + coupling softmax(eta), for features near those of n images.

    The softmax's Jacobian S = diag(p) - pp^T is symmetric and positive semidefinite, and so is its
    mean over a segment, so that |(1 - s) I + s coupling S| = 1 - s + s coupling lambda_max(S).
    By Gershgorin's theorem lambda_max(S) <= max_i 2 p_i (1 - p_i), and S <= diag(p).

    Attributes:
        field: the field.
        features: exact features of the images, float64, shape (n, features).
        distance: l2 distance of the perturbed program's features, shape (n,).
        labels: classes whose lead is followed, shape (n,).
        local: whether lambda_max is bounded over the tube, or everywhere by 1/2.
    """

    field: TargetSeekingField
    features: Float[Tensor, "n f"]
    distance: Float[Tensor, " n"]
    labels: Int[Tensor, " n"]
    local: bool = True

    def relaxed(self, states: Ball, share: float) -> Ball:
        """See `tubes.Relaxation`."""
        field, head = self.field, self.field.head
        weight = head.weight.detach().double()
        bias = weight.new_zeros(len(weight)) if head.bias is None else head.bias.detach().double()
        p = states.centre.softmax(dim=1)
        target = field.gain * (self.features @ weight.T + bias) + field.coupling * p
        steepest = torch.full_like(states.radius, 0.5)
        low, high = torch.zeros_like(p), torch.ones_like(p)
        if self.local:
            low, high = _softmax_range(states.centre, states.radius)
            parabola = _widest_parabola(low, high).amax(dim=1)
            steepest = torch.minimum(steepest, torch.minimum(parabola, high.amax(dim=1)))
        norm = norms.spectral_norm(head.weight).value
        pushed = field.gain * norm * self.distance
        radius = (1 - share + share * field.coupling * steepest) * states.radius + share * pushed
        slopes = norms.pairwise_slopes(head.weight)[self.labels]
        turned = math.sqrt(2) * (steepest * states.radius).unsqueeze(1).expand_as(p)
        if self.local:
            turned = torch.minimum(turned, self._gap_change(p, low, high))
        shift = (1 - share) * states.shift + share * (
            field.gain * slopes * self.distance.unsqueeze(1) + field.coupling * turned
        )
        centre = (1 - share) * states.centre + share * target
        return Ball(centre, radius * _ROOM, shift * _ROOM).widened(share * self._rounding())

    def _gap_change(self, p: Tensor, low: Tensor, high: Tensor) -> Tensor:
        label = self.labels.unsqueeze(1)
        gap = p.gather(1, label) - p
        change = torch.maximum(
            gap - (low.gather(1, label) - high), (high.gather(1, label) - low) - gap
        )
        return change.scatter(1, label, 0.0)

    def _rounding(self) -> Tensor:
        """Float32 error of an entry of the target."""
        field, head = self.field, self.field.head
        weight = head.weight.detach().double()
        row = float(weight.norm(dim=1).max())
        offset = 0.0 if head.bias is None else float(head.bias.double().abs().max())
        length = torch.linalg.vector_norm(self.features, dim=1) + self.distance
        score, operands = row * length + offset, row + length
        of_head = arithmetic.rounding(score, (1, field.features + 4), operands)
        sums = _EXP_ROUNDINGS + _SUM_ROUNDINGS * field.classes
        of_scaling: Tensor = 4 * arithmetic.FLOAT32.unit * (field.gain * score + field.coupling)
        error: Tensor = field.gain * of_head + of_scaling
        return error + sums * arithmetic.FLOAT32.unit * field.coupling


def _softmax_range(states: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    # p_i = 1 / (1 + sum_j exp(eta_j - eta_i)), and each difference moves by at most sqrt(2) r.
    own = torch.eye(states.shape[1], dtype=torch.bool)
    others = states.unsqueeze(1).masked_fill(own, -torch.inf).logsumexp(dim=2)
    spread = math.sqrt(2) * radius.unsqueeze(1)
    low, high = (states - others - spread).sigmoid(), (states - others + spread).sigmoid()
    return (low - FLOAT64_ROOM).clamp(0, 1), (high + FLOAT64_ROOM).clamp(0, 1)


def _widest_parabola(low: Tensor, high: Tensor) -> Tensor:
    """The largest 2 p (1 - p) for p between low and high."""
    nearest = torch.full_like(low, 0.5).clamp(low, high)
    return 2 * nearest * (1 - nearest)


@dataclass(frozen=True)
class SimplexRelaxation:
    """T = P(v), v = eta + gain (B relu(A eta + a + z) + b): bounds that hold everywhere.

    P and relu are 1-Lipschitz, so that T is (1 + gain |A| |B|)-Lipschitz in eta and gain |B| in z.

    Attributes:
        field: the field.
        features: exact features of the images, float64, shape (n, features).
        distance: l2 distance of the perturbed program's features, shape (n,).
    """

    field: SimplexField
    features: Float[Tensor, "n f"]
    distance: Float[Tensor, " n"]

    def relaxed(self, states: Ball, share: float) -> Ball:
        """See `tubes.Relaxation`."""
        net = SimplexNetwork.of(self.field)
        bent = net.inner_norm * net.outer_norm
        pushed = share * net.outer_norm * self.distance
        target = project_to_simplex(net.proposal(states.centre, self.features))
        moved = share * (1 + bent) * states.radius + pushed
        ball = Ball(
            (1 - share) * states.centre + share * target,
            ((1 + share * bent) * states.radius + pushed) * _ROOM,
            ((1 - share) * states.shift + math.sqrt(2) * moved.unsqueeze(1)) * _ROOM,
        )
        rounding = rounding_of_target(
            net, states.centre, states.radius, self.features, self.distance
        )
        return ball.widened(share * rounding.entry)
