import math

import pytest
import torch
from torch import nn

from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.encoders import Normalise
from robustness.nets.solvers import FixedStepSolver
from robustness.training.stability import stable_equilibrium, state_jacobian, steady_state


class Linear(nn.Module):
    """d eta/dt = A eta + z."""

    def __init__(self, matrix: list[list[float]]) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor(matrix))

    def forward(self, t: torch.Tensor, state: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        del t
        return state @ self.matrix.T + features


def model(matrix: list[list[float]], steps: int = 2) -> NeuralODEClassifier:
    """Two pixels are z; Euler from the origin over the horizon 1."""
    solver = FixedStepSolver("euler", steps, 1.0)
    return NeuralODEClassifier(Normalise([0.0], [1.0]), nn.Flatten(), Linear(matrix), solver, 2)


IMAGE = torch.tensor([[[[0.8, 0.4]]]])
LABEL = torch.tensor([0])


def cross_entropy(a: float, b: float) -> float:
    return math.log1p(math.exp(b - a))


@torch.no_grad()
def test_the_distance_after_the_horizon_is_integrated_on_the_solvers_grid() -> None:
    # eta' = z - eta with h = 1/2 leaves 1, 1/2, 1/4 | 1/8, 1/16 of the velocity z, whose entries
    # sum to 1.2; eta(T) = 3/4 z.
    loss = steady_state(model([[-1.0, 0.0], [0.0, -1.0]]), IMAGE, LABEL, weight=2.0)
    speeds = [1.2 / 4, 1.2 / 8, 1.2 / 16]
    travelled = 0.5 * (speeds[0] / 2 + speeds[1] + speeds[2] / 2)
    expected = cross_entropy(0.75 * 0.8, 0.75 * 0.4) + 2 * travelled
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_a_flow_that_has_settled_costs_only_its_cross_entropy() -> None:
    # One Euler step of h * rate = 1 reaches the equilibrium eta = z exactly.
    settled = model([[-1.0, 0.0], [0.0, -1.0]], steps=1)
    loss = steady_state(settled, IMAGE, LABEL, weight=100.0)
    assert loss.item() == pytest.approx(cross_entropy(0.8, 0.4), rel=1e-5)


def test_the_jacobian_of_a_linear_field_is_its_matrix() -> None:
    matrix = [[-2.0, 0.5], [0.25, -1.0]]
    states = torch.randn(3, 2)
    velocity, jacobian = state_jacobian(model(matrix), states, torch.zeros(3, 2))
    torch.testing.assert_close(jacobian.detach(), torch.tensor(matrix).expand(3, 2, 2))
    torch.testing.assert_close(velocity.detach(), states @ torch.tensor(matrix).T)


def test_the_three_terms_of_a_stable_equilibrium_agree_with_those_computed_by_hand() -> None:
    matrix = [[-2.0, 0.5], [0.25, -1.0]]
    net = model(matrix, steps=1)
    # One step of length 1: eta(T) = z, and f there is A z + z.
    velocity = (-2 * 0.8 + 0.5 * 0.4 + 0.8, 0.25 * 0.8 - 0.4 + 0.4)
    norm = math.hypot(*velocity)
    diagonal = (math.exp(-2) + math.exp(-1)) / 2
    dominance = (math.exp(0.5 - 2) + math.exp(0.25 - 1)) / 2
    loss = stable_equilibrium(net, IMAGE, LABEL, 0.1, 10.0, 3.0)
    expected = cross_entropy(0.8, 0.4) + 0.1 * norm + 10 * diagonal + 3 * dominance
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_descending_the_jacobian_terms_makes_an_unstable_field_stable() -> None:
    net = model([[0.5, 1.0], [-0.5, 0.25]])
    optimiser = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(200):
        optimiser.zero_grad()
        stable_equilibrium(net, IMAGE, LABEL, 0.0, 10.0, 10.0).backward()
        optimiser.step()
    eigenvalues = torch.linalg.eigvals(net.field.matrix.detach()).real
    assert float(eigenvalues.max()) < 0
