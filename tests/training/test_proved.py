"""Training on bounds of the program: the loss is V at its worst, and a few steps lower it."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from robustness.data import load_images
from robustness.errors import UsageError
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.convolutions import ConvReLUEncoder
from robustness.nets.encoders import Normalise
from robustness.nets.fields import LyaNetField
from robustness.nets.solvers import FixedStepSolver
from robustness.recipe import ProvedConfig
from robustness.training import losses
from robustness.training.proved import ProvedTraining, worst_potential

SETTINGS = {"kind": "proved", "eps": 0.04, "test_eps": 0.02, "regularisation": 0.0}


def model() -> NeuralODEClassifier:
    torch.manual_seed(0)
    encoder = ConvReLUEncoder((1, 8, 8), [8], [2], 36, 4)
    field = LyaNetField(10, 6, "simplex", 5.0)
    solver = FixedStepSolver("euler", 2)
    return NeuralODEClassifier(Normalise([0.0], [1.0]), encoder, field, solver, 10)


def test_a_few_steps_on_digits_lower_the_bound() -> None:
    trained, digits = model(), load_images("digits", "train").take(torch.arange(64))
    choice = ProvedConfig(warm_up=0.0, ramp=0.0, steering=1.0, **SETTINGS)
    training = ProvedTraining(choice, trained, 10)
    optimiser = torch.optim.Adam(trained.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        _, before = training.judge(digits.images, digits.labels)
    for _ in range(10):
        loss = training.loss(digits.images, digits.labels, generator, 0.0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        held, after = training.judge(digits.images, digits.labels)
        right = trained(digits.images).argmax(dim=1) == digits.labels
    assert after < 0.8 * before
    # An image whose label the bound keeps is predicted right.
    assert right[held].all()


def states_of(trained: NeuralODEClassifier, images: torch.Tensor) -> torch.Tensor:
    """The states that the field is evaluated at by Euler's two steps."""
    return trained.solve(trained.features(images)).states[:2]


def test_the_loss_is_what_its_parts_add_up_to() -> None:
    images, labels = torch.rand(3, 1, 8, 8), torch.tensor([0, 4, 9])
    trained = model()

    training = ProvedTraining(ProvedConfig(**SETTINGS), trained, 10)

    def loss(progress: float, **settings: float) -> float:
        training.choice = ProvedConfig(warm_up=0.0, ramp=0.5, **SETTINGS, **settings)
        generator = torch.Generator().manual_seed(5)
        return float(training.loss(images, labels, generator, progress).detach())

    # Before the box has grown, V at the horizon is the cross-entropy of the logits.
    plain = float(functional.cross_entropy(trained(images), labels).detach())
    assert loss(0.0) == pytest.approx(plain, rel=1e-4)
    bound = loss(1.0)
    assert bound > plain + 1e-3
    assert plain < loss(0.25) < bound
    assert loss(1.0, clean=0.25) == pytest.approx(0.75 * bound + 0.25 * plain, rel=1e-4)
    states = losses.sample_states(4, 10, torch.Generator().manual_seed(5), 0.3)
    violation = float(losses.monte_carlo_lyapunov(trained, images, labels, states).detach())
    with_it = loss(1.0, lyapunov=0.5, states=4, extent=0.3)
    assert with_it == pytest.approx(bound + 0.5 * violation, rel=1e-4)
    features = trained.features(images)
    raw = [trained.field._raw(state, features) for state in states_of(trained, images)]
    steered = sum(float(functional.cross_entropy(each, labels).detach()) for each in raw) / 2
    assert loss(0.0, steering=2.0) == pytest.approx(plain + 2 * steered, rel=1e-4)


def test_the_worst_potential_is_v_at_the_least_leads() -> None:
    found = worst_potential(torch.tensor([[0.0, 0.0], [100.0, math.log(2)]]))
    torch.testing.assert_close(found, torch.tensor([math.log(3), math.log(1.5)]))


def test_a_model_that_bounds_do_not_pass_through_is_refused_in_a_line() -> None:
    class Odd(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.erfinv(images.flatten(1)[:, :3])

    training = ProvedTraining(ProvedConfig(**SETTINGS), Odd(), 3)
    images, labels = torch.rand(2, 1, 4, 4), torch.tensor([0, 1])
    with pytest.raises(UsageError, match="no rule is known for the operation erfinv"):
        training.loss(images, labels, torch.Generator(), 0.0)
