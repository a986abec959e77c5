import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.encoders import Normalise
from robustness.nets.fields import lyapunov_rate
from robustness.nets.simplex import SimplexField, project_to_simplex
from robustness.nets.solvers import FixedStepSolver


def test_points_of_the_simplex_are_their_own_projection() -> None:
    points = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.0, 0.4, 0.6]])
    torch.testing.assert_close(project_to_simplex(points), points)


def test_projections_agree_with_those_computed_by_hand() -> None:
    # (2, 0, 0): nearest is the corner. (0.5, 0.5, 0.3): tau = 0.1. (1, 0.5, -3): the support is
    # the first two, tau = 0.25.
    points = torch.tensor([[2.0, 0.0, 0.0], [0.5, 0.5, 0.3], [1.0, 0.5, -3.0]])
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.4, 0.4, 0.2], [0.75, 0.25, 0.0]])
    torch.testing.assert_close(project_to_simplex(points), expected)


def test_no_point_of_the_simplex_is_nearer_than_the_projection() -> None:
    generator = torch.Generator().manual_seed(0)
    points = 2 * torch.randn(20, 6, generator=generator, dtype=torch.float64)
    rivals = torch.distributions.Dirichlet(torch.full((6,), 0.3, dtype=torch.float64))
    torch.manual_seed(0)
    samples = rivals.sample((5000,))
    nearest = (points - project_to_simplex(points)).norm(dim=1)
    assert bool((torch.cdist(points, samples) >= nearest.unsqueeze(1) - 1e-12).all())


def test_the_projection_has_the_gradient_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    for scale in (0.1, 1.0, 5.0):
        points = scale * torch.randn(8, 5, generator=generator, dtype=torch.float64)
        assert torch.autograd.gradcheck(project_to_simplex, (points.requires_grad_(),))


def test_the_gradient_is_the_projection_onto_the_support() -> None:
    point = torch.tensor([[1.0, 0.5, -3.0]], requires_grad=True)
    jacobian = torch.autograd.functional.jacobian(project_to_simplex, point).view(3, 3)
    expected = torch.tensor([[0.5, -0.5, 0.0], [-0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(jacobian, expected)


def field(classes: int = 4, gain: float = 3.0) -> SimplexField:
    torch.manual_seed(3)
    return SimplexField(classes, 8, gain)


def test_the_velocity_solves_the_quadratic_program_of_the_paper() -> None:
    dynamics = field()
    state = torch.tensor([[0.1, 0.0, 0.6, 0.3]])
    features = torch.randn(1, 8, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        velocity = dynamics(torch.zeros(()), state, features)[0].double().numpy()
        wanted = dynamics.rate * dynamics.proposal(state, features)[0].double().numpy()
    eta, rate = state[0].double().numpy(), dynamics.rate
    found = minimize(
        lambda f: np.sum((f - wanted) ** 2),
        np.zeros(4),
        jac=lambda f: 2 * (f - wanted),
        method="SLSQP",
        constraints=[
            {"type": "eq", "fun": lambda f: f.sum()},
            {"type": "ineq", "fun": lambda f: f + rate * eta},
        ],
        options={"ftol": 1e-12, "maxiter": 500},
    )
    np.testing.assert_allclose(velocity, found.x, atol=1e-4)


def test_at_an_edge_of_the_simplex_no_velocity_points_outwards() -> None:
    dynamics = field(gain=50.0)
    features = torch.randn(100, 8, generator=torch.Generator().manual_seed(5))
    state = torch.tensor([0.0, 0.5, 0.5, 0.0]).repeat(100, 1)
    velocity = dynamics(torch.zeros(()), state, features)
    assert bool((velocity[:, [0, 3]] >= 0).all())
    torch.testing.assert_close(velocity.sum(dim=1), torch.zeros(100), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["euler", "heun2"])
def test_solved_states_stay_on_the_simplex(method: str) -> None:
    class Features(torch.nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return 10 * z.flatten(1)

    model = NeuralODEClassifier(
        Normalise([0.0], [1.0]), Features(), field(), FixedStepSolver(method, 10), 4, 0.25
    )
    images = torch.randn(50, 1, 2, 4, generator=torch.Generator().manual_seed(6))
    states = model.solve(model.features(images)).states.detach()
    assert float(states.min()) >= -1e-6
    torch.testing.assert_close(states.sum(dim=2), torch.ones(11, 50), atol=1e-5, rtol=0)


def test_the_field_is_as_lipschitz_in_its_features_as_its_card_says() -> None:
    dynamics = field()
    generator = torch.Generator().manual_seed(7)
    state = torch.full((500, 4), 0.25)
    a = torch.randn(500, 8, generator=generator)
    b = a + 0.1 * torch.randn(500, 8, generator=generator)
    with torch.no_grad():
        moved = dynamics(torch.zeros(()), state, a) - dynamics(torch.zeros(()), state, b)
        norm = torch.linalg.matrix_norm(dynamics.to_state.weight, 2)
    bound = lyapunov_rate(4) * 3.0 * norm * (a - b).norm(dim=1)
    assert bool((moved.norm(dim=1) <= bound * (1 + 1e-5)).all())
