"""The inequalities that the Lyapunov certificates stand on, and the radii they give."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_models import PIXELS, Blueprint, in_double

from robustness.certificates.base import Kind
from robustness.certificates.comparison import comparison_radius, reaches_half
from robustness.certificates.flows.constants import LyapunovConstants, retained_per_step
from robustness.certificates.lyapunov import lyapunov_radius
from robustness.nets.classifiers import potential
from robustness.nets.fields import TargetSeekingField, lyapunov_rate
from robustness.training.losses import lyapunov_violation


def constants(
    rate: float, slack: float, lipschitz: float, classes: int, horizon: float
) -> LyapunovConstants:
    def row(value: float) -> torch.Tensor:
        return torch.tensor([value], dtype=torch.float64)

    return LyapunovConstants(
        rate=row(rate),
        slack=row(slack),
        lipschitz=row(lipschitz),
        initial=math.log(classes),
        horizon=horizon,
        reach=row(math.inf),
        kind=Kind.CERTIFIED,
        how="by hand",
    )


PAPER = constants(lyapunov_rate(10), slack=0.0, lipschitz=1.0, classes=10, horizon=1.0)


def test_with_the_papers_constants_the_radii_are_1_797_and_3_152():
    assert lyapunov_radius(PAPER).item() == pytest.approx(1.797, abs=5e-4)
    assert comparison_radius(PAPER).item() == pytest.approx(3.152, abs=5e-4)


def test_with_the_papers_constants_the_closed_form_lies_between_the_two():
    closed = (lyapunov_rate(10) - math.log(math.log(10) / math.log(2))) / math.sqrt(2)
    assert closed == pytest.approx(1.880, abs=5e-4)
    assert lyapunov_radius(PAPER).item() < closed < comparison_radius(PAPER).item()


def test_the_radii_are_inversely_proportional_to_the_lipschitz_constant():
    for radius in (lyapunov_radius, comparison_radius):
        steeper = constants(lyapunov_rate(10), 0.0, 50.0, 10, 1.0)
        assert radius(steeper).item() == pytest.approx(radius(PAPER).item() / 50, rel=1e-6)


ANY_CONSTANTS = st.builds(
    lambda rate, share, lipschitz, classes, horizon: constants(
        rate, share * rate * math.log(2), lipschitz, classes, horizon
    ),
    rate=st.floats(0.3, 20),
    share=st.one_of(st.just(0.0), st.floats(0, 1.2)),
    lipschitz=st.floats(1e-3, 1e3),
    classes=st.integers(2, 100),
    horizon=st.floats(0.05, 5),
)


@pytest.mark.slow
@settings(max_examples=150)
@given(ANY_CONSTANTS)
def test_the_sharper_radius_is_never_below_the_papers(found: LyapunovConstants):
    coarse, sharp = lyapunov_radius(found), comparison_radius(found)
    assert (sharp >= coarse).all()
    # Not only because it starts there: the comparison equation itself proves the paper's radius.
    assume(coarse.item() > 0)
    assert reaches_half(found, coarse * 0.99).all()


def solved_comparison(found: LyapunovConstants, eps: float, steps: int = 1000) -> float:
    """v(T) of v' = -kappa v + s + sqrt(2) L eps (1 - exp(-v)), by fine Runge-Kutta steps."""
    rate, slack = found.rate.item(), found.slack.item()
    push = math.sqrt(2) * found.lipschitz.item() * eps

    def slope(v: float) -> float:
        return -rate * v + slack + push * (1 - math.exp(-v))

    v, h = found.initial, found.horizon / steps
    for _ in range(steps):
        k1 = slope(v)
        k2 = slope(v + h / 2 * k1)
        k3 = slope(v + h / 2 * k2)
        k4 = slope(v + h * k3)
        v += h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return v


@settings(max_examples=25)
@given(ANY_CONSTANTS)
def test_the_sharper_radius_is_where_the_comparison_equation_ends_at_ln_2(found):
    radius = comparison_radius(found).item()
    assume(radius * found.lipschitz.item() > 0.01)
    assert solved_comparison(found, radius * (1 - 1e-6)) < math.log(2)
    # What the partition gives away is below a thousandth.
    assert solved_comparison(found, radius * (1 + 1e-3)) > math.log(2)


@settings(max_examples=60)
@given(ANY_CONSTANTS)
def test_no_radius_is_given_where_the_slack_alone_exceeds_the_threshold(found):
    assume(solved_comparison(found, 0.0, 200) > math.log(2) * (1 + 1e-6))
    assert lyapunov_radius(found).item() == 0
    assert comparison_radius(found).item() == 0


def states_of(count: int, classes: int, seed: int) -> torch.Tensor:
    """States of all sizes, with near ties among them."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(count, classes, generator=generator, dtype=torch.float64)
    sizes = 10 ** (5 * torch.rand(count, 1, generator=generator, dtype=torch.float64) - 3)
    return states * sizes


def labels_of(count: int, classes: int, seed: int) -> torch.Tensor:
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_inequality_1_the_gradient_of_v_fades_as_v_falls(classes):
    states, labels = states_of(20_000, classes, 0), labels_of(20_000, classes, 1)
    states.requires_grad_()
    value = potential(states, labels)
    (gradient,) = torch.autograd.grad(value.sum(), states)
    room = -torch.expm1(-value.detach())
    length = torch.linalg.vector_norm(gradient, dim=1)
    assert (length <= math.sqrt(2) * room * (1 + 1e-9) + 1e-15).all()
    torch.testing.assert_close(gradient.abs().sum(dim=1), 2 * room)
    # With two classes it is an equality, so that no smaller factor would do.
    assert (length / room.clamp_min(1e-12)).max() == pytest.approx(math.sqrt(2), rel=0.01)


def test_inequality_4_the_violation_of_a_target_seeking_field_is_at_most_its_targets_loss():
    torch.manual_seed(0)
    field = TargetSeekingField(5, 4, gain=3.0, coupling=2.0).double()
    states, labels = states_of(5000, 5, 2), labels_of(5000, 5, 3)
    features = states_of(5000, 4, 4)
    with torch.no_grad():
        violation = lyapunov_violation(
            states, field(torch.zeros(()), states, features), labels, field.rate
        )
        slack = field.rate * potential(field.target(states, features), labels)
    assert (violation <= slack * (1 + 1e-9) + 1e-9).all()
    assert (violation > 0.5 * slack).any()


@pytest.mark.parametrize(
    ("method", "coupling"),
    [("euler", 3.0), ("heun2", 3.0), ("midpoint", 0.0), ("rk4", 0.0)],
)
@pytest.mark.parametrize("share", [0.9998, 0.4])
def test_inequality_5_the_steps_that_run_keep_the_potential_below_the_mixture(
    method, coupling, share
):
    """V(N) <= rho^N V(0) + (1 - rho^N) max V(g), the largest target loss on the way."""
    plan = Blueprint(method=method, coupling=coupling, steps=3, share=share, classes=5, gain=2.0)
    model = in_double(plan.build())
    features, labels = states_of(500, PIXELS, 5), labels_of(500, 5, 6)
    met = []

    class Watched(torch.nn.Module):
        def forward(self, t, state, z):
            met.append(potential(model.field.target(state, z), labels))
            return model.field(t, state, z)

    with torch.no_grad():
        start = states_of(500, 5, 7)
        final = model.solver.solve(Watched(), start, features).final
    worst = torch.stack(met).amax(dim=0)
    kept = retained_per_step(plan.build()) ** 3
    bound = torch.maximum(
        kept * potential(start, labels) + (1 - kept) * worst,
        # rho is rounded up; where the target is worse than the start, that is the wrong way.
        worst,
    )
    mixture = torch.where(worst <= potential(start, labels), bound, worst)
    assert (potential(final, labels) <= mixture * (1 + 1e-9) + 1e-9).all()


@pytest.mark.parametrize("adversarial", [True, False])
@pytest.mark.parametrize("radius_of", [lyapunov_radius, comparison_radius])
def test_no_simulated_disturbance_within_the_radius_ends_above_ln_2(radius_of, adversarial):
    """eta' = kappa (g - eta) + w with |w| <= L eps, w along grad V or anywhere."""
    count, classes, steps, horizon, lipschitz = 300, 4, 2000, 1.0, 7.0
    kappa = lyapunov_rate(classes)
    generator = torch.Generator().manual_seed(0)
    labels = labels_of(count, classes, 1)
    one_hot = torch.nn.functional.one_hot(labels, classes).double()
    noise = torch.randn(count, classes, generator=generator, dtype=torch.float64)
    targets = 2 * noise + 5 * one_hot
    ones = torch.ones(count, dtype=torch.float64)
    found = LyapunovConstants(
        rate=kappa * ones,
        slack=kappa * potential(targets, labels),
        lipschitz=lipschitz * ones,
        initial=math.log(classes),
        horizon=horizon,
        reach=math.inf * ones,
        kind=Kind.CERTIFIED,
        how="simulated",
    )
    radii = radius_of(found)
    assert (radii > 0).sum() > count / 2
    strength = lipschitz * radii.unsqueeze(1)
    somewhere = torch.randn(count, classes, generator=generator, dtype=torch.float64)
    state = torch.zeros(count, classes, dtype=torch.float64)
    for _ in range(steps):
        push = state.softmax(dim=1) - one_hot if adversarial else somewhere
        push = strength * push / torch.linalg.vector_norm(push, dim=1, keepdim=True)
        state = state + horizon / steps * (kappa * (targets - state) + push)
    ends = potential(state, labels)[radii > 0]
    # The tolerance is Euler's error.
    assert ends.max() < math.log(2) + 2e-3
    if adversarial and radius_of is comparison_radius:
        assert ends.max() > 0.9 * math.log(2)
