"""Classifiers keep nothing of a forward pass, and turn solver failure into NaN logits."""

import math

import pytest
import torch
from torch import nn

from robustness.nets.classifiers import NeuralODEClassifier, ResidualClassifier, potential
from robustness.nets.encoders import MLPEncoder, Normalise
from robustness.nets.fields import LyaNetField
from robustness.nets.solvers import AdaptiveSolver, FixedStepSolver, Solver


def small_node(solver: Solver, initial: float = 0.0) -> NeuralODEClassifier:
    torch.manual_seed(0)
    normalise, encoder = Normalise([0.3], [0.5]), MLPEncoder(16, [8], 9)
    field = LyaNetField(4, 3, "normalised", 1.0)
    return NeuralODEClassifier(normalise, encoder, field, solver, 4, initial).eval()


def test_the_initial_state_is_the_same_for_every_image_and_favours_no_class():
    model = small_node(FixedStepSolver(), initial=0.25)
    assert model.initial_state(torch.randn(3, 9)).tolist() == [[0.25] * 4] * 3


def test_the_logits_are_the_state_at_the_horizon():
    model, images = small_node(FixedStepSolver("rk4", 5)), torch.rand(3, 1, 4, 4)
    features = model.encoder((images - 0.3) / 0.5)
    by_hand = model.solver.solve(model.field, torch.zeros(3, 4), features).states[-1]
    assert torch.equal(model(images), by_hand)


def test_nothing_of_a_forward_pass_stays_on_the_model():
    model = small_node(AdaptiveSolver())
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    first = model(torch.zeros(2, 1, 4, 4))
    model(torch.rand(5, 1, 4, 4))
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    assert torch.equal(model(torch.zeros(2, 1, 4, 4)), first)


def test_a_failed_solve_gives_nan_logits_to_its_image_alone():
    model = small_node(AdaptiveSolver(max_steps=30))
    images = torch.rand(3, 1, 4, 4)

    class Stiff(nn.Module):
        def forward(self, _, state, features):
            rate = 1 + 1e5 * (features.sum(dim=1, keepdim=True) > 0)
            return -rate * (state - 1)

    features = torch.tensor([[-1.0], [1.0], [-1.0]]).repeat(1, 9)
    model.field, model.features = Stiff(), lambda _: features
    logits = model(images)
    assert logits.isnan().any(dim=1).tolist() == [False, True, False]
    assert logits.isnan().all(dim=1).tolist() == [False, True, False]


def test_the_potential_is_the_cross_entropy_of_the_state():
    states = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, math.log(3), 0.0, 0.0]])
    # softmax of the second row is (1, 3, 1, 1) / 6.
    values = potential(states, torch.tensor([2, 1]))
    assert values.tolist() == pytest.approx([math.log(4), math.log(2)], rel=1e-6)


def test_the_residual_classifier_adds_each_block_to_its_stream():
    torch.manual_seed(0)
    model = ResidualClassifier(Normalise([0.5], [0.25]), inputs=4, width=3, blocks=1, classes=2)
    images = torch.rand(2, 1, 2, 2)
    _, entry, block, _, head = model.body
    stream = entry(((images - 0.5) / 0.25).flatten(1))
    stream = stream + block.outer(block.inner(stream.relu()).relu())
    torch.testing.assert_close(model(images), head(stream.relu()))
