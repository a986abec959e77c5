"""Upper bounds are upper bounds, and nothing else can pass for one."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import SHAPE, blueprints, random_images
from torch import nn

from robustness.certificates.layers import bounds
from robustness.certificates.layers.bounds import lipschitz
from robustness.nets.encoders import (
    ContractiveFlowEncoder,
    ContractiveStep,
    MLPEncoder,
    Normalise,
    constrain,
    release,
)
from robustness.nets.fields import LyaNetField
from robustness.numerics.norms import pairwise_slopes, spectral_norm
from robustness.numerics.upper_bound import UpperBound


def power_iteration(matrix: torch.Tensor, rounds: int) -> float:
    vector = torch.randn(matrix.shape[1], generator=torch.Generator().manual_seed(0))
    for _ in range(rounds):
        vector = matrix.T @ (matrix @ vector)
        vector = vector / vector.norm()
    return float((matrix @ vector).norm())


def test_an_upper_bound_cannot_be_made_by_hand():
    with pytest.raises(TypeError, match="cannot enter a proof"):
        UpperBound(1.0, "I say so")
    with pytest.raises(TypeError, match="cannot enter a proof"):
        UpperBound(1.0, "I say so", object())


def test_a_proven_bound_cannot_be_altered():
    bound = spectral_norm(torch.eye(2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        bound.value = 0.1
    with pytest.raises(TypeError, match="cannot enter a proof"):
        dataclasses.replace(bound, value=0.1)


def test_a_number_cannot_enter_a_product_of_bounds():
    bound = spectral_norm(torch.eye(2))
    for product in (lambda: bound * 2.0, lambda: 2.0 * bound):
        with pytest.raises(TypeError):
            product()


def test_a_norm_from_power_iteration_is_too_small_and_cannot_enter_a_product():
    matrix = torch.diag(torch.tensor([1.0, 1.0625, 1.125, 1.25]))
    estimate = power_iteration(matrix, 3)
    assert estimate < 1.25 <= spectral_norm(matrix).value
    with pytest.raises(TypeError):
        spectral_norm(matrix) * estimate


def test_a_product_of_bounds_names_what_it_is_made_of():
    product = spectral_norm(2 * torch.eye(2)) * lipschitz(nn.ReLU()) * spectral_norm(torch.eye(2))
    assert product.value == pytest.approx(2, rel=1e-8)
    assert product.how == "SVD x 1-Lipschitz layer x SVD"


WHOLE = st.integers(-50, 50)


@settings(max_examples=60)
@given(left=st.lists(WHOLE, min_size=1, max_size=9), right=st.lists(WHOLE, min_size=1, max_size=9))
def test_the_spectral_norm_of_an_outer_product_is_the_product_of_the_lengths(left, right):
    u, v = torch.tensor(left).float(), torch.tensor(right).float()
    exact = math.sqrt(sum(x * x for x in left)) * math.sqrt(sum(x * x for x in right))
    bound = spectral_norm(u.unsqueeze(1) * v).value
    assert exact <= bound <= exact * (1 + 1e-8)


@pytest.mark.parametrize("power", [0, 1, 5])
def test_the_spectral_norm_of_a_hadamard_matrix_is_the_root_of_its_size(power):
    matrix = torch.ones(1, 1)
    for _ in range(power):
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    bound = spectral_norm(matrix).value
    assert math.sqrt(2**power) <= bound <= math.sqrt(2**power) * (1 + 1e-8)


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1.0, 1e30])
def test_the_spectral_norm_of_a_diagonal_matrix_is_its_largest_entry_at_every_scale(size):
    entries = size * torch.tensor([0.5, -1.0, 0.25])
    exact = float(entries.double().abs().max())
    assert exact <= spectral_norm(torch.diag(entries)).value <= exact * (1 + 1e-8)


def test_pairwise_slopes_are_the_distances_between_rows():
    slopes = pairwise_slopes(torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 0.0]]))
    exact = torch.tensor([[0.0, 5.0, 3.0], [5.0, 0.0, 4.0], [3.0, 4.0, 0.0]]).double()
    torch.testing.assert_close(slopes, exact, rtol=1e-8, atol=0)
    assert (slopes >= exact).all()


def jacobian_norms(module: nn.Module, points: torch.Tensor) -> torch.Tensor:
    """The largest singular value of the Jacobian at each point."""
    jacobian = torch.func.vmap(torch.func.jacrev(lambda z: module(z.unsqueeze(0)).flatten()))
    return torch.linalg.matrix_norm(jacobian(points).flatten(2), 2)


@settings(max_examples=40)
@given(
    depth=st.integers(1, 4),
    hidden=st.sampled_from([1, 4, 12]),
    scale=st.sampled_from([0.1, 1.0, 1.2, 3.0]),
    seed=st.integers(0, 2**31),
)
def test_the_bound_of_a_flow_holds_at_densely_sampled_points(depth, hidden, scale, seed):
    torch.manual_seed(seed)
    encoder = ContractiveFlowEncoder(6, depth, hidden).double()
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.dim() == 2:
                parameter.mul_(scale)
            else:
                parameter.copy_(torch.randn_like(parameter))
    points = 3 * torch.randn(200, 1, 2, 3, dtype=torch.float64)
    bound = lipschitz(encoder).value
    assert jacobian_norms(encoder, points).max() <= bound * (1 + 1e-12)
    if scale <= 1:
        assert bound == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("size", [0.5, 1.3, 1.5, 4.0])
def test_the_bound_of_a_step_is_attained_where_every_unit_is_active(size):
    step = ContractiveStep(3, 3)
    with torch.no_grad():
        step.weight.copy_(size * torch.eye(3))
        step.weight[0, 0] = 0.0
        step.bias.fill_(100.0)
    # The Jacobian is the diagonal matrix of 1 - size^2, 1 - size^2 and, once, 1.
    attained = jacobian_norms(step, torch.zeros(1, 3)).item()
    assert attained == pytest.approx(max(1, size**2 - 1), rel=1e-6)
    assert attained <= lipschitz(step).value * (1 + 1e-7)
    assert lipschitz(step).value == pytest.approx(attained, rel=1e-6)


def test_the_bound_of_a_perceptron_is_the_product_of_its_layers_norms():
    torch.manual_seed(0)
    encoder = MLPEncoder(9, [8, 7], 5)
    norms = [torch.linalg.matrix_norm(p, 2).item() for p in encoder.parameters() if p.dim() == 2]
    assert lipschitz(encoder).value == pytest.approx(math.prod(norms), rel=1e-5)


def test_normalising_multiplies_by_the_smallest_standard_deviations_inverse():
    layer = Normalise([0.5, 0.0], [2.0, 0.25])
    assert 4.0 <= lipschitz(layer).value <= 4.0 * (1 + 1e-8)


@settings(max_examples=30)
@given(blueprints())
def test_the_bound_of_every_encoder_holds_between_random_images(plan):
    model = plan.build()
    bound = lipschitz(model.normalise) * lipschitz(model.encoder)
    twin = torch.nn.Sequential(model.normalise, model.encoder).double()
    first, second = random_images(40, plan.seed).double(), random_images(40, plan.seed + 1).double()
    second[20:] = first[20:] + 1e-4 * (second[20:] - first[20:])
    moved = torch.linalg.vector_norm(twin(first) - twin(second), dim=1)
    distance = torch.linalg.vector_norm((first - second).flatten(1), dim=1)
    assert (moved <= bound.value * distance * (1 + 1e-9) + 1e-9 * twin(first).abs().max()).all()


def test_the_parametrised_flow_of_training_is_bounded_once_it_is_released():
    torch.manual_seed(0)
    encoder = ContractiveFlowEncoder(9, 2, 4)
    constrain(encoder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(10)
    assert lipschitz(encoder) is None
    release(encoder)
    assert lipschitz(encoder).value == pytest.approx(1, abs=1e-6)


class Residual(nn.Sequential):
    def forward(self, z):
        return z + 10 * super().forward(z)


class Doubled(nn.Linear):
    def forward(self, z):
        return 2 * super().forward(z)


def patched() -> nn.Module:
    layer = nn.Linear(9, 9)
    layer.forward = lambda z: 100 * z
    return layer


def hooked(pre: bool) -> nn.Module:
    layer = nn.Linear(9, 9)
    if pre:
        layer.register_forward_pre_hook(lambda _, z: (10 * z[0],))
    else:
        layer.register_forward_hook(lambda *call: 10 * call[2])
    return layer


UNPROVED = {
    "unknown": lambda: nn.Tanh(),
    "batch norm": lambda: nn.BatchNorm1d(9),
    "field": lambda: LyaNetField(3, 3, "normalised", 1.0),
    "subclass of a container": lambda: Residual(nn.Linear(9, 9)),
    "subclass of a layer": lambda: Doubled(9, 9),
    "patched instance": patched,
    "forward hook": lambda: hooked(pre=False),
    "forward pre-hook": lambda: hooked(pre=True),
}


@pytest.mark.parametrize("kind", UNPROVED)
def test_nothing_is_proved_about_a_module_that_computes_something_else(kind):
    module = UNPROVED[kind]()
    assert lipschitz(module) is None
    assert lipschitz(nn.Sequential(nn.Flatten(), module)) is None
    still = bounds.Tube.around(torch.zeros(1, *SHAPE), torch.zeros(1))
    with pytest.raises(NotImplementedError, match="no rounding bound"):
        bounds.propagate(nn.Sequential(nn.Flatten(), module), still)
