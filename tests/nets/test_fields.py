"""Vector fields against values worked out by hand."""

import math

import pytest
import torch
from torch import nn

from robustness.nets.fields import (
    LyaNetField,
    TargetSeekingField,
    class_corners,
    lyapunov_rate,
    velocities_on_grid,
)
from robustness.nets.simplex import SimplexField
from robustness.nets.solvers import FixedStepSolver

NOW = torch.zeros(())


def set_weights(layer: nn.Linear, weight: list[list[float]], bias: list[float]) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))


def small_lyanet(variant: str, gain: float) -> LyaNetField:
    """Two classes, width 2, and weights for which the raw output below is (3, 4)."""
    field = LyaNetField(2, 2, variant, gain)
    set_weights(field.from_state, [[1.0, 0.0], [0.0, 1.0]], [1.0, 0.0])
    set_weights(field.to_state, [[1.0, 0.0], [1.5, 1.0]], [1.0, 1.0])
    return field


# A eta + a = (2, -2), through relu (2, 0); M (2, 0) = (2, -6), through relu (2, 0); and
# B (2, 0) + b = (2 + 1, 3 + 1) = (3, 4).
STATE = torch.tensor([[1.0, -2.0]])
FEATURES = torch.tensor([[1.0, 2.0, -3.0, 4.0]])


def test_kappa_is_3_859_for_ten_classes():
    assert lyapunov_rate(10) == pytest.approx(3.859, abs=5e-4)
    assert LyaNetField(10, 2, "normalised", 1.0).rate == TargetSeekingField(10, 2, 1.0, 0.0).rate


def test_the_corner_of_a_class_is_15_on_its_own_axis_and_minus_15_elsewhere():
    assert class_corners(3).tolist() == [[15, -15, -15], [-15, 15, -15], [-15, -15, 15]]


def test_the_normalised_field_has_its_hand_computed_value():
    velocity = small_lyanet("normalised", gain=3.0)(NOW, STATE, FEATURES)
    # Direction (3, 4) / 5 = (0.6, 0.8). To the corners: (14, -13) of length sqrt(365), whose
    # product with the direction is -2; and (-16, 17) of length sqrt(545), product 4.
    first = 1 / (1 + math.exp(6))
    speed = (first * math.sqrt(365) + (1 - first) * math.sqrt(545)) / 2
    kappa = math.log(math.sqrt(2 * 225))
    expected = [3 * kappa * speed * 0.6, 3 * kappa * speed * 0.8]
    assert speed == pytest.approx(11.667, abs=1e-3)
    assert velocity[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_the_simplex_field_has_its_hand_computed_value():
    velocity = small_lyanet("simplex", gain=3.0)(NOW, STATE, FEATURES)
    # softmax(3, 4) = (0.26894, 0.73106), so the target is (-6.93176, 6.93176).
    rate = math.log(math.sqrt(2 * 225)) * 3 / 2
    expected = [rate * (-6.93176 - 1), rate * (6.93176 + 2)]
    assert velocity[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_a_vanishing_raw_output_moves_nothing_and_has_a_finite_gradient():
    field = small_lyanet("normalised", gain=1.0)
    set_weights(field.to_state, [[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0])
    velocity = field(NOW, STATE, FEATURES)
    velocity.sum().backward()
    assert velocity.tolist() == [[0, 0]]
    assert field.to_state.weight.grad.isfinite().all()


def barycentric(states: torch.Tensor) -> torch.Tensor:
    """Coordinates w with states = sum_i w_i c_i, for states on the corners' hyperplane."""
    return (states + 15) / 30


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_euler_steps_of_the_simplex_field_never_leave_the_corners_hull(share):
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    field = LyaNetField(4, 3, "simplex", gain=4.0)
    start = torch.distributions.Dirichlet(torch.full((4,), 0.3)).sample((50,)) @ class_corners(4)
    features = 20 * torch.randn(50, 9, generator=generator)
    horizon = 5 * share / field.rate  # gain / n = 1, so that h * rate * gain / n = share
    states = FixedStepSolver("euler", 5, horizon).solve(field, start, features).states
    weights = barycentric(states)
    assert weights.min().item() >= -1e-5
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(6, 50), atol=1e-4, rtol=0)


def test_longer_euler_steps_of_the_simplex_field_do_leave_the_corners_hull():
    torch.manual_seed(0)
    field = LyaNetField(4, 3, "simplex", gain=4.0)
    start = class_corners(4)[:1].repeat(50, 1)
    horizon = 1.9 / field.rate
    final = FixedStepSolver("euler", 1, horizon).solve(field, start, torch.randn(50, 9)).final
    assert barycentric(final).min().item() < -0.1


def test_the_target_seeking_field_has_its_hand_computed_value():
    field = TargetSeekingField(2, 2, gain=2.0, coupling=4.0)
    set_weights(field.head, [[1.0, 2.0], [3.0, -1.0]], [0.5, -0.5])
    state, features = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[1.0, 1.0]])
    # 2 (W z + b) = 2 (3.5, 1.5) = (7, 3), and 4 softmax(0, ln 3) = 4 (1/4, 3/4) = (1, 3).
    assert field.target(state, features)[0].tolist() == pytest.approx([8, 6], rel=1e-6)
    expected = [field.rate * 8, field.rate * (6 - math.log(3))]
    assert field(NOW, state, features)[0].tolist() == pytest.approx(expected, rel=1e-6)


def test_a_target_seeking_field_rests_at_its_target():
    torch.manual_seed(0)
    field = TargetSeekingField(3, 4, gain=2.0, coupling=0.0)
    features = torch.randn(5, 4)
    target = field.target(torch.zeros(5, 3), features)
    assert field(NOW, target, features).abs().max().item() == 0


@pytest.mark.parametrize(("gain", "coupling"), [(0.0, 1.0), (-1.0, 0.0), (1.0, -0.1)])
def test_a_target_seeking_field_refuses_what_would_void_its_certificate(gain, coupling):
    with pytest.raises(ValueError, match="expected gain > 0 and coupling >= 0"):
        TargetSeekingField(2, 2, gain, coupling)


def pair_by_pair(field: nn.Module, states: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """The velocity of each image at each state from a call of its own."""
    return torch.stack(
        [
            torch.cat([field(NOW, state[None], feature[None]) for state in states])
            for feature in features
        ]
    )


def grid_field(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "target-seeking":
        return TargetSeekingField(4, 9, gain=2.0, coupling=3.0)
    if kind == "on the simplex":
        return SimplexField(4, 9, gain=1.0)
    return LyaNetField(4, 3, kind, gain=2.0)


@pytest.mark.parametrize("kind", ["normalised", "simplex", "target-seeking", "on the simplex"])
def test_velocities_on_a_grid_are_those_of_every_pair_of_image_and_state(kind: str):
    field = grid_field(kind)
    # States at a corner and next to one, where an expanded square would cancel.
    states = torch.cat([10 * torch.randn(5, 4), class_corners(4)[:1], class_corners(4)[1:2] + 1e-3])
    features = torch.randn(6, 9, requires_grad=True)
    slow, fast = pair_by_pair(field, states, features), velocities_on_grid(field, states, features)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-4)
    directions = torch.randn(6, 7, 4)
    inputs = [features, *field.parameters()]
    for wanted, found in zip(
        torch.autograd.grad((slow * directions).sum(), inputs),
        torch.autograd.grad((fast * directions).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)


def test_a_grid_copies_no_matrix_per_state():
    field = LyaNetField(4, 32, "normalised", gain=1.0)
    with torch.profiler.profile(profile_memory=True) as profile:
        field.on_grid(torch.randn(64, 4), torch.randn(8, 32**2))
    most = max(event.cpu_memory_usage for event in profile.events())
    assert most < 8 * 64 * 32**2 * 4 / 8  # bytes of the copies, an eighth of them allowed


def test_feedback_scales_what_the_state_enters_by_before_training_and_nothing_else() -> None:
    states = []
    for feedback in (1.0, 0.1):
        torch.manual_seed(0)
        states.append(LyaNetField(3, 2, "simplex", 1.0, feedback=feedback).state_dict())
    plain, weak = states
    assert torch.equal(weak.pop("from_state.weight"), 0.1 * plain.pop("from_state.weight"))
    assert all(torch.equal(weak[name], plain[name]) for name in plain)
