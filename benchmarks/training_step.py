"""A Monte Carlo LyaNet training step against the same step through the solver, side by side.

Run as `python benchmarks/training_step.py`. All steps are of the `mnist/lyanet` architecture with
its own batch size, states and solver, on random images (their content costs nothing), and are
interleaved so that a busy machine slows all alike. Two ratios of processor time are printed
against each rival: of the whole step, encoder included, and of the field's part alone, from given
features. The encoder is most of a Monte Carlo step, and sets how far the first can fall.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.encoders import Normalise
from robustness.nets.fields import LyaNetField
from robustness.nets.solvers import FixedStepSolver
from robustness.numerics.reproducible import reproducible_arithmetic
from robustness.recipe import MonteCarloLyapunovConfig, read_recipe
from robustness.training.losses import dropout, monte_carlo_lyapunov, sample_states
from robustness.zoo import find_entry

MODEL, ROUNDS = "mnist/lyanet", 40
Loss = Callable[[NeuralODEClassifier], Tensor]


@reproducible_arithmetic()
def main() -> None:
    recipe = read_recipe(find_entry(MODEL))
    loss = recipe.trained_by.loss
    assert isinstance(loss, MonteCarloLyapunovConfig)
    batch, classes = recipe.trained_by.batch_size, recipe.data.classes
    torch.manual_seed(0)
    whole = recipe.model.build(recipe.data.shape, classes).train()
    assert isinstance(whole, NeuralODEClassifier)
    solver = whole.solver
    assert isinstance(solver, FixedStepSolver)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(batch, *recipe.data.shape, generator=generator)
    labels = torch.randint(classes, (batch,), generator=generator)
    field_only = without_encoder(whole)
    features = whole.features(pixels).detach()[:, None, None]
    inputs = {whole: pixels, field_only: features}

    def monte_carlo(model: NeuralODEClassifier) -> Tensor:
        states = sample_states(loss.states, classes, generator, loss.extent)
        drop = dropout(loss.dropout, generator) if loss.dropout else None
        return monte_carlo_lyapunov(model, inputs[model], labels, states, drop)

    def solved(gradient: str) -> Loss:
        def loss(model: NeuralODEClassifier) -> Tensor:
            model.solver = replace(solver, gradient=gradient)  # type: ignore[arg-type]
            return functional.cross_entropy(model(inputs[model]), labels)

        return loss

    rivals = {"back-propagation": solved("backprop"), "the adjoint": solved("adjoint")}
    print(f"{MODEL}: {solver.method}, {solver.steps} steps, batch {batch}, {loss.states} states")
    for part, model in {"whole step": whole, "field alone": field_only}.items():
        for name, ratio in ratios(model, monte_carlo, rivals).items():
            print(f"{part}: Monte Carlo / through the solver by {name}: {ratio:.3f}")


def without_encoder(whole: NeuralODEClassifier) -> NeuralODEClassifier:
    """The same field and solver on given features, which take a gradient as the encoder's do."""
    field = whole.field
    assert isinstance(field, LyaNetField)
    scale = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(field.features))
    return NeuralODEClassifier(Normalise([0.0], [1.0]), scale, field, whole.solver, whole.classes)


def ratios(
    model: NeuralODEClassifier, step: Loss, rivals: dict[str, Loss], rounds: int = ROUNDS
) -> dict[str, float]:
    """The median cost of `step` in units of each rival's, from interleaved rounds."""
    found: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        cost = seconds(model, step)
        for name, loss in rivals.items():
            found[name].append(cost / seconds(model, loss))
    return {name: statistics.median(values) for name, values in found.items()}


def seconds(model: NeuralODEClassifier, loss: Loss) -> float:
    started = time.process_time()
    model.zero_grad()
    loss(model).backward()
    return time.process_time() - started


if __name__ == "__main__":
    main()
