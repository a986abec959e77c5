"""Cross-entropy with terms that make a neural ODE settle: the TisODE and SODEF baselines.

Both are stated for an autonomous field, as all fields of this package are, and regularise the
class state, where the originals have a state of their own in front of a linear classifier.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from robustness.nets.classifiers import NeuralODEClassifier


def steady_state(
    model: NeuralODEClassifier,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    weight: float,
) -> Float[Tensor, ""]:
    """TisODE's loss: cross-entropy, and the distance still travelled after the horizon.

    The solve goes on from T to 2T, and the integral of sum_i |f_i| over that time is added
    (Yan et al., arXiv 1910.05513, the steady-state constraint), by the trapezoidal rule on the
    solver's own grid.

    Args:
        model: the classifier.
        images: pixels, shape (n, c, h, w).
        labels: classes, shape (n,).
        weight: of the integral, averaged over the images.

    Returns:
        The loss, a scalar.
    """
    features = model.features(images)
    final = model.solve(features).final
    beyond = model.solver.solve(model.field, final, features)
    speeds = torch.stack(
        [
            model.field(time, state, features).abs().sum(dim=1).mean()
            for time, state in zip(beyond.times, beyond.states, strict=True)
        ]
    )
    travelled = torch.trapezoid(speeds, beyond.times)
    return functional.cross_entropy(final, labels) + weight * travelled


def state_jacobian(
    model: NeuralODEClassifier, states: Float[Tensor, "n k"], features: Float[Tensor, "n f"]
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k k"]]:
    """Velocities f(eta, z) and Jacobians df_i / d eta_j at given states, both with a graph."""
    states = states if states.requires_grad else states.detach().requires_grad_()
    velocity = model.field(states.new_zeros(()), states, features)
    rows = [
        torch.autograd.grad(velocity[:, i].sum(), states, create_graph=True)[0]
        for i in range(velocity.shape[1])
    ]
    return velocity, torch.stack(rows, dim=1)


def stable_equilibrium(
    model: NeuralODEClassifier,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    equilibrium: float,
    diagonal: float,
    dominance: float,
) -> Float[Tensor, ""]:
    """SODEF's loss: cross-entropy, and a Lyapunov-stable equilibrium where the solution ends.

    Three terms are added at eta(T) (Kang et al., arXiv 2110.12976): |f|, which vanishes at an
    equilibrium; exp(J_ii), which makes the Jacobian's diagonal negative; and
    exp(sum_j |J_ij| - |J_ii|) over j != i, which makes it strictly dominant. A negative and
    dominant diagonal has all eigenvalues in the left half plane, by Gershgorin's discs, so that
    the equilibrium is asymptotically stable.

    Args:
        model: the classifier.
        images: pixels, shape (n, c, h, w).
        labels: classes, shape (n,).
        equilibrium: weight of |f|, averaged over the images, as are the next two.
        diagonal: weight of the mean of exp(J_ii) over i.
        dominance: weight of the mean of exp(sum_j |J_ij| - |J_ii|) over i.

    Returns:
        The loss, a scalar.
    """
    features = model.features(images)
    final = model.solve(features).final
    velocity, jacobian = state_jacobian(model, final, features)
    entries = jacobian.diagonal(dim1=1, dim2=2)
    others = jacobian.abs().sum(dim=2) - entries.abs()
    return (
        functional.cross_entropy(final, labels)
        + equilibrium * torch.linalg.vector_norm(velocity, dim=1).mean()
        + diagonal * entries.exp().mean()
        + dominance * (others - entries.abs()).exp().mean()
    )
