"""ODE solvers by torchdiffeq, fixed or adaptive said by type.

A solve receives the features it runs on and hands back a `Solution`; nothing is
remembered between two solves, so interleaved solves cannot disturb each other.
"""

import functools
import math
from dataclasses import dataclass
from typing import Literal

import torch
import torchdiffeq
from jaxtyping import Float
from torch import Tensor, nn

from robustness.errors import UsageError
from robustness.nets.runge_kutta import METHODS, FixedMethod

Gradient = Literal["backprop", "adjoint"]
AdaptiveMethod = Literal["dopri5", "bosh3", "adaptive_heun"]


@dataclass(frozen=True)
class Solution:
    """A solved trajectory.

    Attributes:
        times: the times at which states are given, shape (t,).
        states: the states, shape (t, n, dim); a sample whose solve failed is NaN throughout
            (underflow of the step, too many steps, or a non-finite state).
        nfe: number of vector-field evaluations; for samples solved alone, the largest.
    """

    times: Float[Tensor, " t"]
    states: Float[Tensor, "t n *dim"]
    nfe: int

    @property
    def final(self) -> Float[Tensor, "n *dim"]:
        """The states at the horizon, shape (n, dim)."""
        return self.states[-1]


@dataclass(frozen=True)
class FixedStepSolver:
    """An explicit Runge-Kutta method on a uniform grid.

    Attributes:
        method: `euler`, `midpoint`, `heun2` (the two-stage strong-stability-preserving
            method) or `rk4` (torchdiffeq's 3/8 rule).
        steps: number of steps over the horizon.
        horizon: T, in units of the vector field's time.
        gradient: by back-propagation through the steps or by the adjoint equation.
    """

    method: FixedMethod = "rk4"
    steps: int = 10
    horizon: float = 1.0
    gradient: Gradient = "backprop"

    def __post_init__(self) -> None:
        _require_positive("steps", self.steps)
        _require_positive("horizon", self.horizon)
        grid = torch.linspace(0.0, self.horizon, self.steps + 1, device="cpu")
        if not bool((grid.diff() > 0).all()):
            raise UsageError(
                f"solver: expected steps that float32 can tell apart, got {self.steps} steps over "
                f"a horizon of {self.horizon!r}; use fewer steps or a longer horizon"
            )

    @property
    def couples_batch(self) -> bool:
        """Whether a sample's solution depends on its neighbours in the batch."""
        return False

    @property
    def step_size(self) -> float:
        """Time per step."""
        return self.horizon / self.steps

    def solve(
        self,
        field: nn.Module,
        state: Float[Tensor, "n *dim"],
        features: Tensor,
        points: int | None = None,
    ) -> Solution:
        """Solve from time 0 to the horizon.

        Args:
            field: called as `field(t, state, features)`.
            state: initial states, shape (n, dim).
            features: what the field is conditioned on, first axis n.
            points: ignored; a fixed-step solution is given at its own grid.
        """
        del points
        grid = torch.linspace(0.0, self.horizon, self.steps + 1, dtype=state.dtype, device="cpu")
        times = grid.to(state.device)  # the same grid on every device
        states = _odeint(self.gradient, field, state, features, times, method=self.method)
        return Solution(times, states, METHODS[self.method].evaluations * self.steps)


@dataclass(frozen=True)
class AdaptiveSolver:
    """An embedded Runge-Kutta method that chooses its own steps.

    torchdiffeq takes one step size for a whole batch, so samples that share a batch change
    each other's solution. Unless `coupled` says otherwise each sample is solved alone.

    Attributes:
        method: `dopri5`, `bosh3` or `adaptive_heun`.
        rtol: relative tolerance of the local error.
        atol: absolute tolerance of the local error, in units of the state.
        horizon: T, in units of the vector field's time.
        max_steps: a solve that needs more is a failure of that sample.
        gradient: by back-propagation through the steps or by the adjoint equation.
        coupled: solve the batch as one system, as torchdiffeq does by itself (for training).
    """

    method: AdaptiveMethod = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    horizon: float = 1.0
    max_steps: int = 1000
    gradient: Gradient = "backprop"
    coupled: bool = False

    def __post_init__(self) -> None:
        for name in ("rtol", "atol", "horizon", "max_steps"):
            _require_positive(name, getattr(self, name))

    @property
    def couples_batch(self) -> bool:
        """Whether a sample's solution depends on its neighbours in the batch."""
        return self.coupled

    def solve(
        self,
        field: nn.Module,
        state: Float[Tensor, "n *dim"],
        features: Tensor,
        points: int | None = None,
    ) -> Solution:
        """Solve from time 0 to the horizon.

        Args:
            field: called as `field(t, state, features)`.
            state: initial states, shape (n, dim).
            features: what the field is conditioned on, first axis n.
            points: number of equally spaced times to give states at; 2 by default.
        """
        grid = torch.linspace(0.0, self.horizon, points or 2, dtype=state.dtype, device="cpu")
        times = grid.to(state.device)
        if len(state) == 0:  # the size of whose first step would be a mean over nothing
            return Solution(times, state.expand(len(times), *state.shape), 0)
        groups = [slice(None)] if self.coupled else [slice(i, i + 1) for i in range(len(state))]
        parts, most = [], 0
        for group in groups:
            states, nfe = self._solve_group(field, state[group], features[group], times)
            parts.append(states)
            most = max(most, nfe)
        return Solution(times, torch.cat(parts, dim=1), most)

    def _solve_group(
        self, field: nn.Module, state: Tensor, features: Tensor, times: Tensor
    ) -> tuple[Tensor, int]:
        counted = _Counted(field)
        try:
            states = _odeint(
                self.gradient,
                counted,
                state,
                features,
                times,
                method=self.method,
                rtol=self.rtol,
                atol=self.atol,
                options={"max_num_steps": self.max_steps},
            )
        except AssertionError:
            # torchdiffeq asserts on step underflow, on non-finite states and on max_num_steps.
            # The NaN stays attached to the inputs, so that a gradient through it is NaN as well
            # and not an exception that would take the rest of the batch with it.
            shape = (-1,) + (1,) * (state.dim() - 1)
            failed = (state + features.flatten(1).sum(dim=1).view(shape)) * torch.nan
            states = failed.expand(len(times), *state.shape)
        return states, counted.calls


class _Counted(nn.Module):
    """A field that counts its own evaluations; its parameters stay visible to the adjoint."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field
        self.calls = 0

    def forward(self, t: Tensor, state: Tensor, features: Tensor) -> Tensor:
        self.calls += 1
        return self.field(t, state, features)


Solver = FixedStepSolver | AdaptiveSolver


def _require_positive(name: str, value: float | int) -> None:
    if not 0 < value < math.inf:
        raise UsageError(f"solver: expected a finite {name} above 0, got {value!r}; correct it")


def _conditioned(field: nn.Module, features: Tensor, t: Tensor, state: Tensor) -> Tensor:
    return field(t, state, features)


def _odeint(
    gradient: Gradient,
    field: nn.Module,
    state: Tensor,
    features: Tensor,
    times: Tensor,
    **settings: object,
) -> Tensor:
    conditioned = functools.partial(_conditioned, field, features)
    if gradient == "adjoint":
        # The adjoint reaches only the state, the times and what is listed here: features left
        # out would silently get no gradient.
        parameters = (features, *field.parameters())
        return torchdiffeq.odeint_adjoint(
            conditioned, state, times, adjoint_params=parameters, **settings
        )
    return torchdiffeq.odeint(conditioned, state, times, **settings)
