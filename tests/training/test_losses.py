"""Losses against values worked out by hand, and the distribution of sampled states."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from robustness.nets.classifiers import NeuralODEClassifier, potential
from robustness.nets.encoders import Normalise
from robustness.nets.fields import LyaNetField, TargetSeekingField
from robustness.nets.solvers import FixedStepSolver
from robustness.training.losses import (
    certified_lyapunov,
    certified_margin_radius,
    cross_entropy,
    dropout,
    lyapunov_violation,
    monte_carlo_lyapunov,
    moved_gain,
    pairwise_slopes,
    sample_states,
)


class Push(nn.Module):
    """Moves every state along its features, with kappa 2."""

    rate = 2.0

    def forward(self, t: torch.Tensor, state: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        del t, state
        return features


def test_the_violation_has_its_hand_computed_value():
    # softmax(0, ln 3) = (1/4, 3/4), so grad V_0 = (-3/4, 3/4) and V_0 = ln 4.
    states, velocities = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[2.0, -1.0]])
    labels = torch.tensor([0])
    # grad V . f = -1.5 - 0.75 = -2.25.
    value = lyapunov_violation(states, velocities, labels, rate=2.0)
    assert value.tolist() == pytest.approx([2 * math.log(4) - 2.25], rel=1e-6)
    assert lyapunov_violation(states, velocities, labels, rate=1.5).tolist() == [0]


def test_the_monte_carlo_loss_is_the_mean_over_every_image_and_every_state():
    images = torch.tensor([[[[1.0, 0.0]]], [[[0.5, 1.0]]]])
    states = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])
    model = NeuralODEClassifier(
        Normalise([0.5], [0.5]), nn.Flatten(), Push(), FixedStepSolver(), classes=2
    )
    # The features, and velocities, are (1, -1) for the first image and (0, 1) for the second.
    violations = [
        -0.5 - 0.5 + 2 * math.log(2),  # image 0, state 0: grad V_0 = (-1/2, 1/2)
        -0.75 - 0.75 + 2 * math.log(4),  # image 0, state 1: grad V_0 = (-3/4, 3/4)
        -0.5 + 2 * math.log(2),  # image 1, state 0: grad V_1 = (1/2, -1/2)
        -0.25 + 2 * math.log(4 / 3),  # image 1, state 1: grad V_1 = (1/4, -1/4)
    ]
    assert min(violations) > 0
    loss = monte_carlo_lyapunov(model, images, torch.tensor([0, 1]), states)
    assert loss.item() == pytest.approx(sum(violations) / 4, rel=1e-6)


def test_dropout_in_the_grid_is_a_field_without_these_units():
    torch.manual_seed(0)
    field, features = LyaNetField(3, 4, "normalised", 2.0), torch.randn(2, 16)
    states, left_out = torch.randn(5, 3), iter([1, 2])

    def drop(units: Tensor) -> Tensor:
        assert units.shape == (2, 5, 4)
        return units.index_fill(2, torch.tensor([next(left_out)]), 0.0)

    found = field.on_grid(states, features, drop)
    with torch.no_grad():
        field.from_state.weight[1] = field.from_state.bias[1] = 0
        field.to_state.weight[:, 2] = 0
    torch.testing.assert_close(found, field.on_grid(states, features))


def test_dropout_leaves_out_its_share_keeps_the_mean_and_repeats_with_its_seed():
    def drawn() -> Tensor:
        return dropout(0.3, torch.Generator().manual_seed(1))(torch.ones(200, 500))

    units = drawn()
    assert units.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert stats.binomtest(int((units == 0).sum()), units.numel(), 0.3).pvalue > 1e-3
    assert torch.equal(units, drawn())


def test_a_large_gain_asks_for_no_margin_and_dropout_for_one():
    # The velocity points rightly by a hair, through one unit of four that outweighs the others.
    field = LyaNetField(2, 4, "normalised", gain=1000.0)
    with torch.no_grad():
        field.from_state.weight.zero_()
        field.from_state.bias.fill_(1.0)
        field.to_state.bias.zero_()
        field.to_state.weight.copy_(torch.tensor([[3.1, -1.0, -1.0, -1.0], [-3.1, 1, 1, 1]]))
    features, states = torch.eye(4).view(1, 16), torch.randn(64, 2)
    gradient = states.softmax(dim=1) - torch.tensor([1.0, 0.0])
    demand = field.rate * potential(states, torch.zeros(64, dtype=torch.int64))

    def loss(drop: Callable[[Tensor], Tensor] | None) -> float:
        velocities = field.on_grid(states, features, drop)[0].detach()
        return float(((gradient * velocities).sum(dim=1) + demand).relu().mean())

    assert loss(None) == 0
    assert loss(dropout(0.5, torch.Generator().manual_seed(0))) > 10


def test_a_gain_moves_as_the_authors_one_does():
    # 0.9999 a step leads from 100 to 1 in 46,052 steps; their 60 epochs have about as many.
    steps = 2 * 46_052
    hundred, one = torch.tensor(100.0), torch.tensor(1.0)
    assert float(moved_gain(hundred, 100.0, 0.69, 0.0, steps)) == pytest.approx(99.99, rel=1e-6)
    assert float(moved_gain(one, 100.0, 0.11, 0.5, steps)) == pytest.approx(1.0001, rel=1e-6)


@pytest.mark.parametrize(
    ("violated", "halfway", "at_the_end"),
    [(0.05, 1.0, 1.0), (0.4, 1.0, 100.0), (0.75, 100.0, 100.0)],
)
def test_a_gain_falls_while_few_violate_and_rises_while_many_do(
    violated: float, halfway: float, at_the_end: float
):
    gain, way = torch.tensor(100.0), []
    for step in range(200):
        gain = moved_gain(gain, 100.0, violated, step / 200, 200)
        way.append(float(gain))
    assert way[99] == pytest.approx(halfway, rel=1e-4)
    assert way[-1] == pytest.approx(at_the_end, rel=1e-4)
    assert all(1 <= value <= 100 for value in way)


def test_kappa_v_carries_no_gradient():
    states = torch.tensor([[0.3, -0.2, 0.1]], requires_grad=True)
    velocities = torch.tensor([[1.0, 2.0, 0.5]], requires_grad=True)
    labels = torch.tensor([0])
    gradients = []
    for rate in (2.0, 50.0):
        value = lyapunov_violation(states, velocities, labels, rate)
        assert value.item() > 0
        gradients.append(torch.autograd.grad(value.sum(), [states, velocities]))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    # With p = softmax(eta): d(grad V . f)/d eta = p * (f - p . f), and d/d f = p - e_y.
    p = states.detach().softmax(dim=1)
    f = velocities.detach()
    torch.testing.assert_close(gradients[0][0], p * (f - (p * f).sum()))
    torch.testing.assert_close(gradients[0][1], p - torch.tensor([[1.0, 0.0, 0.0]]))


def test_sampled_radii_are_uniform_up_to_the_length_of_a_corner():
    states = sample_states(4000, 10, torch.Generator().manual_seed(0)).double()
    radii = torch.linalg.vector_norm(states, dim=1) / (15 * math.sqrt(10))
    assert stats.kstest(radii.numpy(), "uniform").pvalue > 0.01


def test_sampled_directions_are_uniform_and_independent_of_the_radii():
    count, classes = 4000, 10
    states = sample_states(count, classes, torch.Generator().manual_seed(1)).double().numpy()
    radii = np.linalg.norm(states, axis=1)
    directions = states / radii[:, None]
    assert np.abs(directions.mean(axis=0)).max() < 4 / math.sqrt(classes * count)
    covariance = classes * directions.T @ directions / count
    assert np.abs(covariance - np.eye(classes)).max() < 6 / math.sqrt(count)
    # An entry of a uniform direction in n dimensions is 2 Beta((n-1)/2, (n-1)/2) - 1.
    half = (classes - 1) / 2
    for entry in directions.T:
        assert stats.kstest((entry + 1) / 2, stats.beta(half, half).cdf).pvalue > 1e-3
    assert abs(stats.spearmanr(radii, directions[:, 0]).statistic) < 4 / math.sqrt(count)


def test_sampled_states_are_repeatable_by_their_generator():
    first, again, other = (
        sample_states(5, 3, torch.Generator().manual_seed(seed)) for seed in (7, 7, 8)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def small_target_seeker(std: float) -> NeuralODEClassifier:
    """Features are the normalised pixels; the head's rows are e_1, e_2 and 0."""
    field = TargetSeekingField(3, 2, gain=1.0, coupling=0.0)
    with torch.no_grad():
        field.head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
        field.head.bias.zero_()
    normalise = Normalise([0.0], [std])
    return NeuralODEClassifier(normalise, nn.Flatten(), field, FixedStepSolver("euler", 10), 3)


def test_the_certified_loss_is_the_cross_entropy_of_the_shrunk_margins():
    model, images = small_target_seeker(std=0.5), torch.tensor([[[[1.0, 0.25]]]])
    loss = certified_lyapunov(model, images, torch.tensor([0]), eps=0.1, temperature=0.5)
    # Scores (2, 0.5, 0). The margins over the rivals shrink by 0.1 / 0.5 times sqrt(2) and 1.
    margins = [1.5 - 0.2 * math.sqrt(2), 2 - 0.2]
    by_hand = math.log(1 + sum(math.exp(-m / 0.5) for m in margins))
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)


def test_the_certified_loss_at_a_tiny_radius_is_plain_cross_entropy_with_a_finite_gradient():
    model, images = small_target_seeker(std=1.0), torch.rand(4, 1, 1, 2)
    labels = torch.tensor([0, 1, 2, 0])
    loss = certified_lyapunov(model, images, labels, eps=1e-12, temperature=1.0)
    loss.backward()
    plain = functional.cross_entropy(model.field.head(images.flatten(1)), labels)
    torch.testing.assert_close(loss, plain)
    assert model.field.head.weight.grad.isfinite().all()


def test_slopes_between_classes_and_their_gradients_are_those_of_the_differences():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 40, generator=generator, dtype=torch.float64)
    weight[3] = weight[5]  # two rows alike: no slope between them, and a finite gradient
    weight.requires_grad_()
    share = torch.rand(7, 7, generator=generator, dtype=torch.float64)
    slopes = pairwise_slopes(weight)
    by_differences = torch.linalg.vector_norm(weight.unsqueeze(1) - weight, dim=2)
    torch.testing.assert_close(slopes, by_differences, rtol=1e-9, atol=2e-6)
    (gradient,) = torch.autograd.grad((share * slopes).sum(), weight)
    (expected,) = torch.autograd.grad((share * by_differences).sum(), weight)
    torch.testing.assert_close(gradient, expected)


def test_the_previewed_radius_is_the_distance_to_the_nearest_boundary():
    model = small_target_seeker(std=0.5)
    images = torch.tensor([[[[0.75, 0.25]]], [[[0.1, 0.9]]], [[[0.2, 0.1]]]])
    radii = certified_margin_radius(model, images, torch.tensor([0, 1, 1]))
    # To the line x_1 = x_2: 0.5 / sqrt(2), and 0.8 / sqrt(2); the last image is misclassified.
    assert radii.tolist() == pytest.approx([0.5 / math.sqrt(2), 0.8 / math.sqrt(2), 0.0], rel=1e-6)


def test_cross_entropy_goes_through_the_solver():
    model, images = small_target_seeker(std=1.0), torch.tensor([[[[1.0, 0.0]]]])
    loss = cross_entropy(model, images, torch.tensor([0]))
    # Ten Euler steps of h kappa = kappa / 10 towards the target (1, 0, 0).
    share = 1 - (1 - model.field.rate / 10) ** 10
    assert loss.item() == pytest.approx(math.log(1 + 2 * math.exp(-share)), rel=1e-5)
