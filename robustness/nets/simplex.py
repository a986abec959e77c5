"""A vector field that keeps its state on the probability simplex (FI-ODE, arXiv 2210.16940)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustness.nets.fields import lyapunov_rate


def project_to_simplex(points: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """The nearest point of the probability simplex, solved exactly.

    The projection is relu(v - tau) with the one tau for which the entries sum to 1. With entries
    sorted in falling order, the support is the largest r for which v_r exceeds the mean excess
    (v_1 + ... + v_r - 1) / r, and tau is that excess (Held, Wolfe and Crowder 1974). By
    differentiation the Jacobian is I - 11^T / |S| on the support S and 0 elsewhere, which is what
    back-propagation through tau gives, since the support is locally constant.

    Args:
        points: shape (n, k).

    Returns:
        Points of the simplex, shape (n, k).
    """
    ordered = points.sort(dim=1, descending=True).values
    ranks = torch.arange(1, points.shape[1] + 1, dtype=points.dtype, device=points.device)
    excess = (ordered.cumsum(dim=1) - 1) / ranks
    support = (ordered > excess).sum(dim=1, keepdim=True).clamp_min(1)
    return (points - excess.gather(1, support - 1)).clamp_min(0)


class SimplexField(nn.Module):
    """A data-controlled field under which the probability simplex is invariant.

    A network proposes a velocity u(eta, z) = kappa * gain * (B relu(A eta + z) + b), and a
    projection admits of it what keeps the state on the simplex (arXiv 2210.16940): the nearest
    f, in l2, with sum_i f_i = 0 and the barrier condition f_i >= -kappa eta_i. In the variable
    g = f + kappa eta these are the constraints of a simplex of size kappa, so that

        f = kappa * (P(eta + u / kappa) - eta),   P the projection onto the probability simplex,

    solves the quadratic program exactly. The field is thus a relaxation towards a point of the
    simplex: Euler steps with h * kappa <= 1, and convex combinations of such steps, stay on it.

    The features z enter next to A eta, not through a matrix product, so that f is Lipschitz in z
    with constant kappa * gain * |B| (relu and P are 1-Lipschitz).

    Args:
        classes: number of classes n, the dimension of the state.
        width: number of features and of hidden units.
        gain: scale of the proposed velocity.
    """

    def __init__(self, classes: int, width: int, gain: float) -> None:
        super().__init__()
        self.classes, self.width, self.gain = classes, width, gain
        self.rate = lyapunov_rate(classes)
        self.from_state = nn.Linear(classes, width)
        self.to_state = nn.Linear(width, classes)

    @property
    def features(self) -> int:
        """Number of features the field is conditioned on."""
        return self.width

    def proposal(
        self, state: Float[Tensor, "n c"], features: Float[Tensor, "n f"]
    ) -> Float[Tensor, "n c"]:
        """The network's proposed velocity in units of kappa, u / kappa, shape (n, classes)."""
        return self.gain * self.to_state((self.from_state(state) + features).relu())

    def target(
        self, state: Float[Tensor, "n c"], features: Float[Tensor, "n f"]
    ) -> Float[Tensor, "n c"]:
        """The point of the simplex that the state relaxes towards, shape (n, classes)."""
        return project_to_simplex(state + self.proposal(state, features))

    def forward(
        self, t: Tensor, state: Float[Tensor, "n c"], features: Float[Tensor, "n f"]
    ) -> Float[Tensor, "n c"]:
        """Velocity of the state, shape (n, classes); its entries sum to 0."""
        del t
        return self.rate * (self.target(state, features) - state)
