import pytest
import torch
from torch import nn

from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.encoders import Normalise
from robustness.nets.simplex import SimplexField
from robustness.nets.solvers import FixedStepSolver
from robustness.training.losses import invariance_monte_carlo, margin_potential, sample_simplex


def model(bias: list[float], gain: float = 1.0) -> NeuralODEClassifier:
    """A field whose proposal is `gain * bias` everywhere."""
    field = SimplexField(3, 2, gain)
    with torch.no_grad():
        field.to_state.weight.zero_()
        field.to_state.bias.copy_(torch.tensor(bias))
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    solver = FixedStepSolver("euler", 4, 1.0)
    return NeuralODEClassifier(Normalise([0.0], [1.0]), encoder, field, solver, 3, 1 / 3)


IMAGE = torch.full((1, 1, 1, 1), 0.5)


def test_sampled_states_lie_on_the_simplex_and_favour_no_class() -> None:
    states = sample_simplex(20_000, 4, torch.Generator().manual_seed(0))
    assert float(states.min()) >= 0
    torch.testing.assert_close(states.sum(dim=1), torch.ones(20_000))
    torch.testing.assert_close(states.mean(dim=0), torch.full((4,), 0.25), atol=0.01, rtol=0)
    # Uniform on the simplex of n = 4: the variance of an entry is (n - 1) / (n^2 (n + 1)).
    assert float(states[:, 0].var()) == pytest.approx(3 / 80, rel=0.05)


def test_the_margin_potential_is_the_best_rival_less_the_label() -> None:
    states = torch.tensor([[0.5, 0.2, 0.3], [0.5, 0.2, 0.3]])
    torch.testing.assert_close(
        margin_potential(states, torch.tensor([0, 1])), torch.tensor([-0.2, 0.3])
    )


@torch.no_grad()
def test_a_field_that_heads_for_the_labels_corner_has_no_loss_up_to_its_own_rate() -> None:
    certain = model([10.0, 0.0, 0.0])
    states = sample_simplex(500, 3, torch.Generator().manual_seed(1))
    label = torch.tensor([0])
    at_rate = invariance_monte_carlo(certain, IMAGE, label, states, certain.field.rate, 0.0)
    beyond = invariance_monte_carlo(certain, IMAGE, label, states, 2 * certain.field.rate, 0.0)
    assert float(at_rate) == pytest.approx(0.0, abs=1e-5)
    assert float(beyond) > 0.1


@torch.no_grad()
def test_the_violation_of_a_field_that_stands_still_is_the_wanted_decrease() -> None:
    states = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])
    # W + 1 of class 0 is 1.3 and 0.7 at these states.
    loss = invariance_monte_carlo(
        model([0.0, 0.0, 0.0]), IMAGE, torch.tensor([0]), states, 2.0, 0.0
    )
    assert loss.item() == pytest.approx(2 * (1.3 + 0.7) / 2, rel=1e-5)


def test_a_wrong_corner_has_a_gradient_only_by_the_leak() -> None:
    states = torch.full((1, 3), 1 / 3)
    gradients = {}
    for leak in (0.0, 0.1):
        wrong = model([0.0, 50.0, 0.0])
        invariance_monte_carlo(wrong, IMAGE, torch.tensor([0]), states, 1.0, leak).backward()
        gradients[leak] = float(wrong.field.to_state.bias.grad.abs().sum())
    assert gradients[0.0] == 0.0
    assert gradients[0.1] > 0.1
