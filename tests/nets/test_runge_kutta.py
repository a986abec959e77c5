"""Each method as its table says it, as torchdiffeq runs it, and as Shu and Osher write it."""

from fractions import Fraction
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from robustness.nets.runge_kutta import CONVEX, METHODS, FixedMethod
from robustness.nets.solvers import FixedStepSolver

STEP = 0.3


class Bent(nn.Module):
    """y' = sin(3 y) + t z: neither linear nor autonomous."""

    def forward(self, t: Tensor, state: Tensor, features: Tensor) -> Tensor:
        return torch.sin(3 * state) + t * features


class Decay(nn.Module):
    """y' = -y."""

    def forward(self, t: Tensor, state: Tensor, features: Tensor) -> Tensor:
        return -state


def one_step(method: str, field: nn.Module) -> Tensor:
    start = torch.tensor([[0.7, -1.3]], dtype=torch.float64)
    solver = FixedStepSolver(method, steps=1, horizon=STEP)
    return solver.solve(field, start, torch.ones_like(start)).final


def test_every_method_that_a_recipe_can_name_is_in_the_table() -> None:
    assert set(METHODS) == set(get_args(FixedMethod))


@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_the_solver_is_the_step_of_the_tableau(name: str) -> None:
    method, field = METHODS[name], Bent()
    start = torch.tensor([[0.7, -1.3]], dtype=torch.float64)
    slopes: list[Tensor] = []
    for row in method.stages:
        time = STEP * float(sum(row, Fraction(0)))
        moved = sum((float(a) * k for a, k in zip(row, slopes, strict=True)), 0 * start)
        slopes.append(
            field(
                torch.tensor(time, dtype=start.dtype), start + STEP * moved, torch.ones_like(start)
            )
        )
    after = start + STEP * sum(float(b) * k for b, k in zip(method.weights, slopes, strict=True))
    torch.testing.assert_close(one_step(name, field), after, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", METHODS)
def test_the_stability_polynomial_is_what_a_step_keeps_of_a_decaying_state(name: str) -> None:
    start = torch.tensor([[0.7, -1.3]], dtype=torch.float64)
    kept = METHODS[name].retained(STEP) * start
    torch.testing.assert_close(one_step(name, Decay()), kept, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", CONVEX)
def test_the_convex_form_has_weights_that_sum_to_one_and_is_the_same_method(name: str) -> None:
    method = METHODS[name]
    # A state as y_0 + h sum_i c_i k_i, with k_i the slope at the i-th state.
    states: list[list[Fraction]] = [[Fraction(0)] * method.evaluations]
    for of_known, of_stepped in method.convex:
        assert min(*of_known, *of_stepped) >= 0
        assert sum(of_known) + sum(of_stepped) == 1
        total = [Fraction(0)] * method.evaluations
        for i, (plain, stepped) in enumerate(zip(of_known, of_stepped, strict=True)):
            total = [t + (plain + stepped) * c for t, c in zip(total, states[i], strict=True)]
            total[i] += stepped
        states.append(total)
    *stages, final = states
    assert [tuple(s[:i]) for i, s in enumerate(stages)] == list(method.stages)
    assert tuple(final) == method.weights
