import math

import pytest
import torch
from torch import nn

from robustness.errors import UsageError
from robustness.nets.classifiers import NeuralODEClassifier, potential
from robustness.nets.continuous import ContinuousNet
from robustness.nets.encoders import Normalise
from robustness.nets.fields import LyaNetField
from robustness.nets.solvers import AdaptiveSolver, FixedStepSolver
from robustness.training.losses import (
    continuous_lyapunov,
    lyapunov_violation,
    path_integral_lyapunov,
)


class Push(nn.Module):
    """A field that moves every state along its features, with kappa 1."""

    rate = 1.0

    def forward(self, t: torch.Tensor, state: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        del t, state
        return features


def pushed(scale: float = 1.0) -> NeuralODEClassifier:
    """Two pixels are the velocity of two class coordinates; Euler with two steps of 1/2."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(scale))

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return self.scale * z.flatten(1)

    solver = FixedStepSolver("euler", 2, 1.0)
    return NeuralODEClassifier(Normalise([0.0], [1.0]), Encoder(), Push(), solver, 2)


def test_the_loss_is_the_mean_violation_over_the_solved_states() -> None:
    model = pushed()
    images = torch.tensor([[[[0.5, 0.0]]]])
    # The class state runs from (0, 0) by (1/4, 0) to (1/2, 0), at velocity (1/2, 0); the label
    # is class 0, whose V falls at the rate (1 - p) / 2.
    expected = []
    for lead in (0.0, 0.25, 0.5):
        p = 1 / (1 + math.exp(-lead))
        expected.append(max(0.0, -(1 - p) * 0.5 - math.log(p)))
    loss = path_integral_lyapunov(model, images, torch.tensor([0]), through_solver=True)
    assert loss.item() == pytest.approx(sum(expected) / 3, rel=1e-5)


def test_the_rate_of_the_recipe_replaces_the_fields() -> None:
    model = pushed()
    images = torch.tensor([[[[0.5, 0.0]]]])
    labels = torch.tensor([1])
    slow = path_integral_lyapunov(model, images, labels, True, rate=1.0)
    fast = path_integral_lyapunov(model, images, labels, True, rate=2.0)
    states = torch.tensor([[0.0, 0.0], [0.25, 0.0], [0.5, 0.0]])
    extra = potential(states, torch.ones(3, dtype=torch.long)).mean()
    torch.testing.assert_close(fast - slow, extra)


def test_without_the_solver_the_states_are_data() -> None:
    images = torch.tensor([[[[0.5, 0.0]]]])
    labels = torch.tensor([1])
    states = torch.tensor([[0.0, 0.0], [0.25, 0.0], [0.5, 0.0]])
    scale = torch.tensor(1.0, requires_grad=True)
    velocity = (scale * torch.tensor([0.5, 0.0])).expand(3, 2)
    by_hand = lyapunov_violation(states, velocity, labels.repeat(3), 1.0).mean()
    (expected,) = torch.autograd.grad(by_hand, scale)

    detached, through = pushed(), pushed()
    loss = path_integral_lyapunov(detached, images, labels, through_solver=False)
    other = path_integral_lyapunov(through, images, labels, through_solver=True)
    loss.backward()
    other.backward()
    torch.testing.assert_close(loss, other)
    torch.testing.assert_close(detached.encoder.scale.grad, expected)
    # Through the solver, a greater scale also takes the states further from class 1.
    assert float(through.encoder.scale.grad) > float(expected) + 0.01


def test_the_gradient_through_the_solver_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    field = LyaNetField(3, 2, "simplex", 1.0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    solver = FixedStepSolver("rk4", 3, 1.0)
    model = NeuralODEClassifier(Normalise([0.0], [1.0]), encoder, field, solver, 3).double()
    images = torch.rand(2, 1, 2, 2, dtype=torch.float64)
    labels = torch.tensor([0, 2])
    bias = encoder[1].bias

    def loss() -> torch.Tensor:
        return path_integral_lyapunov(model, images, labels, True, rate=50.0)

    (gradient,) = torch.autograd.grad(loss(), bias)
    for index in range(4):
        with torch.no_grad():
            bias[index] += 1e-5
            above = float(loss())
            bias[index] -= 2e-5
            below = float(loss())
            bias[index] += 1e-5
        assert float(gradient[index]) == pytest.approx((above - below) / 2e-5, abs=1e-6)


class Growth(nn.Module):
    """dz/dt = rate * z."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(1.0))

    def forward(self, t: torch.Tensor, state: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        del t, features
        return self.rate * state


def one_block(steps: int = 2) -> ContinuousNet:
    """A block of growth on one pixel, whose value and its negative are the logits."""
    solver = FixedStepSolver("euler", steps, 1.0)
    net = ContinuousNet(Normalise([0.0], [1.0]), 1, [1], [1], [], solver, 2)
    net.transitions[0] = nn.Identity()
    net.fields[0] = Growth()
    with torch.no_grad():
        net.head[2].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        net.head[2].bias.zero_()
    return net


def test_a_blocks_loss_is_the_discrete_decrease_of_the_remaining_networks_potential() -> None:
    # Euler with h = 1/2 takes the pixel from 0.2 by 0.3 to 0.45; V(z) = ln(1 + exp(-2z)).
    values = [math.log1p(math.exp(-2 * z)) for z in (0.2, 0.3, 0.45)]
    allowed = [math.exp(-0.5 * 1.5) * v for v in values[:2]]
    expected = sum(max(0.0, v - a) / 0.5 for v, a in zip(values[1:], allowed, strict=True)) / 2
    images = torch.full((1, 1, 1, 1), 0.2)
    loss = continuous_lyapunov(one_block(), images, torch.tensor([0]), True, rate=1.5)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_block_that_decreases_fast_enough_costs_nothing() -> None:
    images = torch.full((1, 1, 1, 1), 3.0)
    loss = continuous_lyapunov(one_block(), images, torch.tensor([0]), True, rate=1.0)
    assert loss.item() == 0.0


def test_gradients_through_the_solver_reach_earlier_steps_and_others_do_not() -> None:
    images = torch.full((1, 1, 1, 1), 0.2)
    gradients = {}
    for through in (True, False):
        net = one_block()
        loss = continuous_lyapunov(net, images, torch.tensor([0]), through, rate=1.5)
        loss.backward()
        gradients[through] = float(net.fields[0].rate.grad)
    # dV/dz = -2 / (1 + exp(2z)). A step from z has dz'/drate = z / 2, and through the solver the
    # second step also has 3/2 of the first's.
    slopes = [-2 / (1 + math.exp(2 * z)) for z in (0.3, 0.45)]
    first, second = 0.2 / 2, 0.3 / 2
    assert gradients[False] == pytest.approx(slopes[0] * first + slopes[1] * second, rel=1e-5)
    assert gradients[True] == pytest.approx(
        slopes[0] * first + slopes[1] * (second + 1.5 * first), rel=1e-5
    )


def test_one_step_at_a_time_visits_the_states_of_the_whole_solve() -> None:
    torch.manual_seed(0)
    solver = FixedStepSolver("rk4", 4, 1.0)
    net = ContinuousNet(Normalise([0.0], [1.0]), 1, [8, 8], [2, 2], [], solver, 3).eval()
    images, labels = torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 2])
    whole = continuous_lyapunov(net, images, labels, True, rate=3.0)
    apart = continuous_lyapunov(net, images, labels, False, rate=3.0)
    torch.testing.assert_close(whole, apart)


def test_an_adaptive_solver_has_no_steps_to_take_apart() -> None:
    net = one_block()
    net.solver = AdaptiveSolver()
    images = torch.full((1, 1, 1, 1), 0.2)
    with pytest.raises(UsageError, match="fixed-step solver"):
        continuous_lyapunov(net, images, torch.tensor([0]), False, rate=1.0)
