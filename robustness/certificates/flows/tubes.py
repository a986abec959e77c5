"""Tubes: all the states that a perturbed float32 solve can reach, step by step.

Every field here relaxes towards a target, f = kappa (T(eta, z) - eta), so that a step of size h of
an explicit Runge-Kutta method is a combination, with known coefficients in h * kappa, of the state
and of the targets at its stages. The difference between the solve of an image and that of a
perturbed one obeys the same combinations, so that bounds on the change of a target give bounds on
the change of the state, for the steps that really run: theory.md, equation (6).

Euler and heun2, which is eta/2 + E(E(eta))/2, are convex combinations of Euler maps
E(eta) = (1 - s) eta + s T(eta, z), s = h * kappa, whose Jacobian is bounded as one matrix. For
the other methods the targets' changes are bounded one by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustness.nets.runge_kutta import METHODS, Row, RungeKutta
from robustness.nets.solvers import FixedStepSolver
from robustness.numerics import arithmetic

Same = TypeVar("Same")


@runtime_checkable
class StateSet(Protocol):
    """A set of states, or of targets, for each of n images; of one kind throughout a solve."""

    @property
    def size(self) -> Float[Tensor, " n"]:
        """A bound on every entry of every state, shape (n,)."""
        ...

    def combined(self: Same, weights: Sequence[float], sets: Sequence[Same]) -> Same:
        """All weighted sums of one state from each of `sets`."""
        ...

    def widened(self: Same, error: Float[Tensor, " n"]) -> Same:
        """With an error of at most `error` in each entry."""
        ...

    def least_leads(self, labels: Int[Tensor, " n"]) -> Float[Tensor, "n k"]:
        """A lower bound of the label's lead over each class; infinite over itself."""
        ...


@dataclass(frozen=True)
class Ball:
    """States near those of each image.

    Attributes:
        centre: in exact arithmetic on the unperturbed image, float64, shape (n, classes).
        radius: l2 distance of the perturbed program's from it, shape (n,).
        shift: by how much the label's lead over each class can change, shape (n, classes).
    """

    centre: Float[Tensor, "n k"]
    radius: Float[Tensor, " n"]
    shift: Float[Tensor, "n k"]

    @classmethod
    def point(cls, centre: Float[Tensor, "n k"]) -> "Ball":
        """States that are known."""
        return cls(centre, torch.zeros_like(centre[:, 0]), torch.zeros_like(centre))

    @property
    def size(self) -> Float[Tensor, " n"]:
        """See `StateSet`."""
        return self.centre.abs().amax(dim=1) + self.radius

    def least_leads(self, labels: Int[Tensor, " n"]) -> Float[Tensor, "n k"]:
        """See `StateSet`."""
        label = labels.unsqueeze(1)
        lead = self.centre.gather(1, label) - self.centre
        return (lead - self.shift).scatter(1, label, torch.inf)

    def widened(self, error: Float[Tensor, " n"]) -> "Ball":
        """See `StateSet`."""
        radius = self.radius + self.centre.shape[1] ** 0.5 * error
        return replace(self, radius=radius, shift=self.shift + 2 * error.unsqueeze(1))

    def combined(self, weights: Sequence[float], sets: Sequence["Ball"]) -> "Ball":
        """See `StateSet`."""
        terms = list(zip(weights, sets, strict=True))
        radius = torch.stack([abs(w) * ball.radius for w, ball in terms]).sum(dim=0)
        shift = torch.stack([abs(w) * ball.shift for w, ball in terms]).sum(dim=0)
        return Ball(
            torch.stack([w * ball.centre for w, ball in terms]).sum(dim=0),
            radius,
            torch.minimum(shift, 2**0.5 * radius.unsqueeze(1)),
        )


States = TypeVar("States", bound=StateSet)


@runtime_checkable
class Relaxation(Protocol[States]):
    """The field of n images, features within a ball, as a relaxation towards a target."""

    def relaxed(self, states: States, share: float) -> States:
        """What the states become under (1 - share) eta + share T(eta, z), 0 < share <= 1.

        Includes the float32 rounding of the target, and none of the sum.
        """
        ...


def shares(solver: FixedStepSolver, rate: float) -> list[float]:
    """H * kappa of each step. The grid that is solved on is float32, where steps differ."""
    grid = torch.linspace(0.0, solver.horizon, solver.steps + 1, dtype=torch.float32)
    return [rate * step for step in grid.diff().double().tolist()]


def solve(
    field: Relaxation[States], solver: FixedStepSolver, rate: float, initial: States
) -> States:
    """The states at the horizon of the steps that `solver` really takes.

    Args:
        field: bounds of the field's target.
        solver: of a fixed step.
        rate: the field's kappa.
        initial: eta(0).
    """
    states = initial
    for share in shares(solver, rate):
        states = step(field, METHODS[solver.method], states, share)
    return states


def step(field: Relaxation[States], method: RungeKutta, states: States, share: float) -> States:
    """The states after one step, `share` being its h * kappa."""
    if method.convex is not None:
        return _by_euler_steps(field, method, method.convex, states, share)
    # Every increment is share * (T_i - s_i), with s_i itself a sum over (eta, T_0, T_1, ...).
    sums: list[Tensor] = []
    sets = [states]
    for row in method.stages:
        coefficients = _stage(sums, row, share, method.evaluations)
        known = coefficients[: len(sets)].tolist()
        first = len(sets) == 1
        stage = states if first else _rounded(method, states.combined(known, sets), *sets)
        sets.append(field.relaxed(stage, 1.0))
        sums.append(coefficients)
    final = _stage(sums, method.weights, share, method.evaluations).tolist()
    return _rounded(method, states.combined(final, sets), *sets)


def _by_euler_steps(
    field: Relaxation[States],
    method: RungeKutta,
    rows: Sequence[tuple[Row, Row]],
    states: States,
    share: float,
) -> States:
    known, stepped = [states], []
    for of_known, of_stepped in rows:
        stepped.append(field.relaxed(known[-1], share))
        terms = [
            (float(weight), term)
            for weight, term in zip((*of_known, *of_stepped), (*known, *stepped), strict=True)
            if weight
        ]
        weights, sets = zip(*terms, strict=True)
        whole = weights == (1.0,)
        combined = sets[0] if whole else states.combined(weights, sets)
        known.append(_rounded(method, combined, *known, *(() if whole else sets)))
    return known[-1]


def _stage(sums: list[Tensor], row: Row, share: float, stages: int) -> Tensor:
    """Coefficients of eta + sum_j row_j share (T_j - s_j) over eta and all targets."""
    total = torch.zeros(stages + 1, dtype=torch.float64)
    total[0] = 1.0
    for index, (weight, of_stage) in enumerate(zip(map(float, row), sums, strict=True)):
        total = total - weight * share * of_stage
        total[index + 1] += weight * share
    return total


def _rounded(method: RungeKutta, states: States, *operands: States) -> States:
    size = torch.stack([states.size, *(operand.size for operand in operands)]).amax(dim=0)
    error = method.roundings * arithmetic.FLOAT32.unit * size + arithmetic.FLOAT32.tiny
    return states.widened(torch.where(size <= arithmetic.LARGEST, error, torch.inf))
