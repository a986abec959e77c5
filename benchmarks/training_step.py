"""A Monte Carlo LyaNet training step against the same step through the solver, side by side.

Run as `python benchmarks/training_step.py`. Both steps are of one model, `digits/lyanet`, at one
batch size, interleaved so that a busy machine slows both alike; the median ratio is printed.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from robustness.data import load_images
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.solvers import FixedStepSolver
from robustness.training.losses import cross_entropy, monte_carlo_lyapunov, sample_states
from robustness.zoo import load_model

BATCH, STATES, ROUNDS = 64, 128, 30


def main() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    model = load_model("digits/lyanet").module.train().requires_grad_(True)
    assert isinstance(model, NeuralODEClassifier)
    assert isinstance(model.solver, FixedStepSolver)
    images = load_images("digits", "train")
    pixels, labels = images.images[:BATCH], images.labels[:BATCH]
    generator = torch.Generator().manual_seed(0)
    through_solver = model.solver

    def monte_carlo() -> torch.Tensor:
        states = sample_states(STATES, model.classes, generator)
        return monte_carlo_lyapunov(model, pixels, labels, states)

    def solved(gradient: str) -> Callable[[], torch.Tensor]:
        def loss() -> torch.Tensor:
            model.solver = replace(through_solver, gradient=gradient)  # type: ignore[arg-type]
            return cross_entropy(model, pixels, labels)

        return loss

    rivals = {"back-propagation": solved("backprop"), "adjoint": solved("adjoint")}
    ratios: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(ROUNDS):
        cost = seconds(model, monte_carlo)
        for name, loss in rivals.items():
            ratios[name].append(cost / seconds(model, loss))
    for name, values in ratios.items():
        print(
            f"Monte Carlo step / step through the solver by {name}: "
            f"{statistics.median(values):.3f} (rk4, {through_solver.steps} steps, batch {BATCH}, "
            f"{STATES} states)"
        )


def seconds(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> float:
    started = time.perf_counter()
    model.zero_grad()
    loss().backward()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
