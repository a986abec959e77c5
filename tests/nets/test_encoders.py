"""Encoders: their formulas, and contractive steps that stay non-expansive."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from robustness.nets.encoders import (
    ContractiveFlowEncoder,
    ContractiveStep,
    MLPEncoder,
    Normalise,
    constrain,
    release,
)


def test_normalise_shifts_and_scales_each_channel_by_its_own_numbers():
    layer = Normalise([0.5, 0.0], [0.25, 2.0])
    images = torch.tensor([[[[1.0]], [[1.0]]]])
    assert layer(images).flatten().tolist() == [2.0, 0.5]


@pytest.mark.parametrize(("mean", "std"), [([0.5], [0.0]), ([0.5], [-1.0]), ([0.5, 0.5], [1.0])])
def test_normalise_refuses_numbers_that_do_not_fit(mean, std):
    with pytest.raises(ValueError, match="as many positive stds as means"):
        Normalise(mean, std)


def test_the_perceptron_has_a_relu_behind_every_layer_but_the_last():
    encoder = MLPEncoder(4, [3, 5], 2)
    kinds = [type(layer) for layer in encoder]
    assert kinds == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    shapes = [tuple(p.shape) for p in encoder.parameters() if p.dim() == 2]
    assert shapes == [(3, 4), (5, 3), (2, 5)]


def test_a_contractive_step_has_its_hand_computed_value():
    step = ContractiveStep(2, 2)
    with torch.no_grad():
        step.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, -1.0]]))
        step.bias.copy_(torch.tensor([0.5, -10.0]))
    # W z + b = (3.5, -8), through relu (3.5, 0), and W^T (3.5, 0) = (3.5, 7).
    assert step(torch.tensor([[1.0, 1.0]])).tolist() == [[-2.5, -6.0]]


def test_the_jacobian_of_a_contractive_step_is_symmetric_with_the_stated_spectrum():
    torch.manual_seed(0)
    step = ContractiveStep(6, 9).double()
    with torch.no_grad():
        step.bias.copy_(0.3 * torch.randn(9))
    norm = float(torch.linalg.matrix_norm(step.weight.detach(), 2))
    for _ in range(20):
        z = torch.randn(1, 6, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(step, z)[0, :, 0]
        torch.testing.assert_close(jacobian, jacobian.T)
        spectrum = torch.linalg.eigvalsh(jacobian)
        assert spectrum.max() <= 1 + 1e-9
        assert spectrum.min() >= 1 - norm**2 - 1e-9


def test_a_fresh_flow_is_already_non_expansive():
    torch.manual_seed(0)
    for step in list(ContractiveFlowEncoder(12, 3, 20))[1:]:
        assert np.linalg.norm(step.weight.detach().double().numpy(), 2) ** 2 <= 2 * (1 + 1e-6)


def test_training_keeps_every_step_non_expansive_and_release_bakes_it_in():
    torch.manual_seed(0)
    encoder = ContractiveFlowEncoder(12, 2, 5)
    constrain(encoder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(40)
    images = torch.rand(4, 1, 3, 4)
    constrained = encoder(images)
    release(encoder)
    assert not any(parametrize.is_parametrized(module) for module in encoder.modules())
    assert set(encoder.state_dict()) == {"1.weight", "1.bias", "2.weight", "2.bias"}
    # Some processors multiply a copy at another address by another kernel.
    torch.testing.assert_close(encoder(images), constrained, rtol=1e-5, atol=1e-6)
    for step in list(encoder)[1:]:
        norm = np.linalg.norm(step.weight.detach().double().numpy(), 2)
        assert 2 * (1 - 1e-5) <= norm**2 <= 2


def test_a_matrix_inside_the_bound_is_left_as_it_is():
    step = nn.Sequential(ContractiveStep(4, 4))
    with torch.no_grad():
        step[0].weight.copy_(0.5 * torch.eye(4))
    constrain(step)
    torch.testing.assert_close(step[0].weight.detach(), 0.5 * torch.eye(4))
