"""V(t) and accuracy along the horizon, and what dopri5 needs at equal tolerance."""

import torch
from torch import Tensor

from robustness.claims.results import Horizon
from robustness.data import ImageSet
from robustness.nets.classifiers import NeuralODEClassifier, potential
from robustness.nets.solvers import AdaptiveSolver, FixedStepSolver
from robustness.numerics.devices import beside

SHARES = (0.9, 0.99)
TOLERANCES = (1e-3, 1e-5)

# Enough that a time is resolved to 2% of the horizon, whatever steps a model deploys.
STEPS = 50
_BATCH = 500


@torch.no_grad()
def along_horizon(model: NeuralODEClassifier, images: ImageSet) -> Horizon:
    """The course of one model's flow, solved by rk4 with the same fine steps for every model."""
    solver = FixedStepSolver("rk4", STEPS, model.solver.horizon)
    values, right = [], []
    for pixels, labels in zip(
        images.images.split(_BATCH), images.labels.split(_BATCH), strict=True
    ):
        pixels, labels = beside(model, pixels, labels)
        features = model.features(pixels)
        states = solver.solve(model.field, model.initial_state(features), features).states
        values.append(torch.stack([potential(state, labels) for state in states]))
        right.append(states.argmax(dim=2) == labels)
    accuracy = torch.cat(right, dim=1).cpu().double().mean(dim=1)
    time = torch.linspace(0, 1, STEPS + 1)
    return Horizon(
        time=rounded(time),
        potential=rounded(torch.cat(values, dim=1).median(dim=1).values),
        accuracy=rounded(accuracy),
        reached={
            f"{share:g}": first_kept(time, accuracy, share * float(accuracy[-1]))
            for share in SHARES
        },
    )


def first_kept(time: Tensor, accuracy: Tensor, level: float) -> float:
    """The first time from which on the accuracy is never below `level`; the last is at it."""
    below = (accuracy < level).nonzero()
    return round(float(time[int(below[-1]) + 1 if len(below) else 0]), 4)


def rounded(values: Tensor) -> list[float]:
    """Values with six digits, which is all that a figure shows."""
    return [float(f"{value:.6g}") for value in values.tolist()]


@torch.no_grad()
def dopri5_evaluations(model: NeuralODEClassifier, images: ImageSet, tolerance: float) -> float:
    """Mean evaluations of the field per image, each solved alone (rtol = atol = tolerance)."""
    solver = AdaptiveSolver("dopri5", tolerance, tolerance, model.solver.horizon)
    features = model.features(*beside(model, images.images))
    alone = [solver.solve(model.field, model.initial_state(f), f).nfe for f in features.split(1)]
    return sum(alone) / len(alone)
