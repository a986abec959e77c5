"""Solvers against exact solutions, and against the ways in which adaptive ones fail."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustness.errors import UsageError
from robustness.nets.solvers import AdaptiveSolver, FixedStepSolver, Solver

ORDERS = {"euler": 1, "midpoint": 2, "heun2": 2, "rk4": 4}


class Field(nn.Module):
    """A field given by a formula, which counts its evaluations per batch size."""

    def __init__(self, formula: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.formula = formula
        self.calls: list[int] = []

    def forward(self, t: Tensor, state: Tensor, features: Tensor) -> Tensor:
        self.calls.append(len(state))
        return self.formula(t, state, features)


def decay(t: Tensor, state: Tensor, features: Tensor) -> Tensor:
    """eta' = -c (eta - 1), with c the feature."""
    return -features * (state - 1)


def explosion(t: Tensor, state: Tensor, features: Tensor) -> Tensor:
    """eta' = c eta^2, which leaves every bound at time 1 / (c eta(0))."""
    return features * state**2


def doubles(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("method", ORDERS)
@pytest.mark.parametrize(
    ("formula", "exact"),
    [
        (explosion, lambda start, c: start / (1 - c * start)),
        (lambda t, y, c: c * torch.cos(t) * y, lambda start, c: start * np.exp(c * np.sin(1.0))),
    ],
    ids=["nonlinear", "time-dependent"],
)
def test_a_fixed_step_method_converges_with_its_declared_order(method, formula, exact):
    start, rate = 0.5, 1.0
    steps = np.array([16, 32, 64, 128])
    errors = [
        abs(
            FixedStepSolver(method, int(n))
            .solve(Field(formula), doubles([start]), doubles([rate]))
            .final.item()
            - exact(start, rate)
        )
        for n in steps
    ]
    slope = np.polyfit(np.log(1 / steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(ORDERS[method], abs=0.12)


@pytest.mark.parametrize("method", ORDERS)
def test_one_step_of_a_linear_problem_is_the_stability_polynomial(method):
    a, start = 0.7, 3.0
    polynomial = {
        "euler": 1 - a,
        "heun2": 1 - a + a**2 / 2,
        "midpoint": 1 - a + a**2 / 2,
        "rk4": 1 - a + a**2 / 2 - a**3 / 6 + a**4 / 24,
    }[method]
    final = FixedStepSolver(method, 1).solve(Field(decay), doubles([start]), doubles([a])).final
    assert final.item() == pytest.approx(1 + polynomial * (start - 1), abs=1e-12)


@pytest.mark.parametrize(
    "solver",
    [FixedStepSolver("rk4", 40), AdaptiveSolver(rtol=1e-8, atol=1e-8)],
    ids=["fixed", "adaptive"],
)
def test_each_row_of_a_batch_relaxes_to_the_exact_solution_of_its_own_features(solver: Solver):
    rates, starts = doubles([0.5], [2.0], [4.0]), doubles([3.0, -1.0], [0.0, 5.0], [1.0, 2.0])
    final = solver.solve(Field(decay), starts, rates).final
    torch.testing.assert_close(final, 1 + (starts - 1) * torch.exp(-rates), atol=1e-6, rtol=0)


def test_a_fixed_step_solution_holds_every_grid_point_from_the_initial_state_on():
    solution = FixedStepSolver("euler", 4, horizon=2.0).solve(
        Field(decay), doubles([3.0]), doubles([1.0])
    )
    assert solution.times.tolist() == [0, 0.5, 1, 1.5, 2]
    assert solution.states.flatten().tolist() == [3, 2, 1.5, 1.25, 1.125]


def test_an_adaptive_solution_is_given_at_as_many_times_as_asked_for():
    solution = AdaptiveSolver(horizon=2.0).solve(
        Field(decay), doubles([3.0]), doubles([1.0]), points=5
    )
    exact = 1 + 2 * torch.exp(-solution.times)
    assert solution.times.tolist() == [0, 0.5, 1, 1.5, 2]
    torch.testing.assert_close(solution.states.flatten(), exact, atol=1e-4, rtol=0)


def test_a_batch_that_is_solved_as_one_system_changes_with_its_neighbours():
    solver = AdaptiveSolver(rtol=1e-2, atol=1e-2, coupled=True)
    features, starts = torch.tensor([[1.0], [30.0]]), torch.tensor([[3.0], [3.0]])
    together = solver.solve(Field(decay), starts, features).final[0]
    alone = solver.solve(Field(decay), starts[:1], features[:1]).final[0]
    assert solver.couples_batch
    assert (together - alone).abs().item() > 1e-5


@pytest.mark.parametrize("solver", [AdaptiveSolver(rtol=1e-2, atol=1e-2), FixedStepSolver()])
def test_without_coupling_a_sample_does_not_depend_on_its_neighbours(solver: Solver):
    features, starts = torch.tensor([[1.0], [30.0]]), torch.tensor([[3.0], [3.0]])
    together = solver.solve(Field(decay), starts, features).final[0]
    alone = solver.solve(Field(decay), starts[:1], features[:1]).final[0]
    assert not solver.couples_batch
    assert together.item() == alone.item()


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["backprop", "adjoint"])
@pytest.mark.parametrize("method", ["dopri5", "bosh3", "adaptive_heun"])
def test_an_exploding_sample_is_nan_and_leaves_the_others_and_their_gradients_alone(
    method, gradient
):
    solver = AdaptiveSolver(method, rtol=1e-5, atol=1e-5, gradient=gradient, max_steps=300)
    features = torch.tensor([[-1.0], [2.0], [-0.5]], requires_grad=True)
    solution = solver.solve(Field(explosion), torch.ones(3, 1), features, points=3)
    solution.final.sum().backward()
    assert solution.states[:, 1].isnan().all()
    expected = 1 / (1 - features.detach())
    torch.testing.assert_close(solution.final[[0, 2]], expected[[0, 2]], atol=1e-2, rtol=0)
    # d/dc of 1 / (1 - c).
    torch.testing.assert_close(features.grad[[0, 2]], expected[[0, 2]] ** 2, atol=3e-2, rtol=0)
    assert features.grad[1].isnan()


def test_running_out_of_steps_is_a_failure_of_that_sample_only():
    solver = AdaptiveSolver("adaptive_heun", rtol=1e-4, atol=1e-4, max_steps=20)
    features = torch.tensor([[0.01], [300.0]])
    final = solver.solve(Field(decay), torch.full((2, 2), 3.0), features).final
    assert final.isnan().tolist() == [[False, False], [True, True]]


def test_a_single_allowed_step_makes_every_solve_fail_without_an_exception():
    features = torch.tensor([[1.0], [2.0]], requires_grad=True)
    final = AdaptiveSolver(max_steps=1).solve(Field(decay), torch.full((2, 1), 3.0), features).final
    final.sum().backward()
    assert final.isnan().all()
    assert features.grad.isnan().all()


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "fixed", "method": "rk4", "steps": 50},
        {"kind": "adaptive", "rtol": 1e-8, "atol": 1e-8},
    ],
    ids=["fixed", "adaptive"],
)
def test_backpropagation_and_adjoint_agree_on_features_and_parameters(settings):
    settings = dict(settings)
    build = FixedStepSolver if settings.pop("kind") == "fixed" else AdaptiveSolver
    torch.manual_seed(0)
    layer = nn.Linear(3, 3).double()
    gradients = {}
    for gradient in ("backprop", "adjoint"):
        field = Field(lambda _, y, z: torch.tanh(layer(y) + z) - y)
        field.layer = layer
        features = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3).requires_grad_()
        start = torch.zeros(2, 3, dtype=torch.float64)
        final = build(gradient=gradient, **settings).solve(field, start, features).final
        loss = (final * doubles([1.0, -2.0, 3.0])).sum()
        gradients[gradient] = torch.autograd.grad(loss, [features, layer.weight, layer.bias])
    assert gradients["backprop"][0].abs().min() > 1e-3
    for direct, adjoint in zip(gradients["backprop"], gradients["adjoint"], strict=True):
        torch.testing.assert_close(adjoint, direct, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "solver",
    [FixedStepSolver(steps=4), AdaptiveSolver(rtol=1e-2, atol=1e-2)],
    ids=["fixed", "adaptive"],
)
def test_a_solve_is_not_disturbed_by_another_that_runs_between_its_steps(solver: Solver):
    start, features = torch.full((2, 1), 3.0), torch.tensor([[1.0], [2.0]])
    undisturbed = solver.solve(Field(decay), start, features)

    def interrupted(t: Tensor, state: Tensor, z: Tensor) -> Tensor:
        solver.solve(Field(explosion), -torch.ones(1, 1), torch.ones(1, 1))
        return decay(t, state, z)

    disturbed = solver.solve(Field(interrupted), start, features)
    assert torch.equal(undisturbed.states, disturbed.states)
    assert undisturbed.nfe == disturbed.nfe


@pytest.mark.parametrize(
    ("method", "stages"), [("euler", 1), ("midpoint", 2), ("heun2", 2), ("rk4", 4)]
)
def test_fixed_steps_count_their_evaluations(method, stages):
    field = Field(decay)
    solution = FixedStepSolver(method, 7).solve(field, torch.ones(2, 1), torch.ones(2, 1))
    assert solution.nfe == len(field.calls) == 7 * stages


@pytest.mark.parametrize("coupled", [True, False])
def test_adaptive_steps_count_the_evaluations_of_the_hardest_sample(coupled):
    features, start = torch.tensor([[1.0], [30.0]]), torch.full((2, 1), 3.0)
    solver = AdaptiveSolver(coupled=coupled)
    field = Field(decay)
    nfe = solver.solve(field, start, features).nfe
    alone = []
    for i in range(2):
        single = Field(decay)
        solver.solve(single, start[i : i + 1], features[i : i + 1])
        alone.append(len(single.calls))
    assert alone[0] < alone[1]
    assert nfe == (len(field.calls) if coupled else max(alone))
    assert set(field.calls) == ({2} if coupled else {1})


@pytest.mark.parametrize(
    "build",
    [
        lambda: FixedStepSolver(steps=0),
        lambda: FixedStepSolver(horizon=-1.0),
        lambda: FixedStepSolver(horizon=math.nan),
        lambda: AdaptiveSolver(rtol=0.0),
        lambda: AdaptiveSolver(atol=-1e-3),
        lambda: AdaptiveSolver(max_steps=0),
    ],
)
def test_settings_that_cannot_be_solved_with_are_refused_in_one_line(build):
    with pytest.raises(UsageError, match="above 0") as caught:
        build()
    assert "\n" not in str(caught.value)


@pytest.mark.xfail(
    raises=AssertionError,
    strict=True,
    reason="the adjoint equation fails while gradients are taken, beyond the solver's reach",
)
def test_an_adjoint_equation_that_cannot_be_solved_costs_its_own_sample_only():
    features = torch.tensor([[300.0], [0.1]], requires_grad=True)
    solver = AdaptiveSolver(gradient="adjoint", max_steps=200)
    final = solver.solve(Field(decay), torch.full((2, 1), 3.0), features).final
    # The state at rest is solved forwards, and explodes when it is solved back to time 0.
    assert final.isfinite().all()
    final.sum().backward()
    assert features.grad[0].isnan()
    assert features.grad[1].isfinite()


@pytest.mark.parametrize(
    "solver", [FixedStepSolver(), AdaptiveSolver(), AdaptiveSolver(coupled=True)]
)
def test_no_states_have_no_solution(solver) -> None:
    solution = solver.solve(Field(decay), torch.zeros(0, 3), torch.zeros(0, 3))
    assert solution.final.shape == (0, 3)
    assert solution.states.shape[0] == len(solution.times)
