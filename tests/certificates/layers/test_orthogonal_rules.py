"""Norms and rounding of the orthogonal encoder, against exact values and dense sampling."""

import pytest
import torch
from small_models import SHAPE, in_double, random_images
from torch import Tensor
from torch.nn import functional

from robustness.certificates.layers import bounds
from robustness.nets.orthogonal import (
    MaxMin,
    OrthogonalConv,
    OrthogonalEncoder,
    orthogonal_kernel,
)
from robustness.numerics.norms import norm_at_any_size


def exact_norm(kernel: Tensor, side: int) -> float:
    """Of the zero-padded convolution on images of `side` pixels a side, unrolled."""
    basis = torch.eye(kernel.shape[1] * side**2, dtype=torch.float64)
    images = functional.conv2d(
        basis.unflatten(1, (kernel.shape[1], side, side)), kernel.double(), padding=1
    )
    return float(torch.linalg.matrix_norm(images.flatten(1), 2))


def encoder(seed: int = 0) -> OrthogonalEncoder:
    torch.manual_seed(seed)
    built = OrthogonalEncoder(SHAPE, [8], 2, 6)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return built.eval().requires_grad_(False)


@pytest.mark.parametrize("seed", range(4))
def test_the_norm_of_any_kernel_is_bounded_at_every_size(seed):
    torch.manual_seed(seed)
    kernel = torch.randn(3, 2, 3, 3)
    bound = norm_at_any_size(kernel)
    for side in (1, 2, 5, 9):
        assert exact_norm(kernel, side) <= bound
    assert bound <= 4 * exact_norm(kernel, 9)


@pytest.mark.parametrize("channels", [2, 8, 16])
def test_an_orthogonal_kernel_has_norm_one_at_every_size(channels):
    torch.manual_seed(channels)
    kernel = orthogonal_kernel(torch.randn(5, channels, channels))
    bound = norm_at_any_size(kernel)
    assert 1 - 1e-6 <= bound <= 1 + 1e-4
    # The bound follows the weights that are deployed, not what they were built to be.
    assert norm_at_any_size(2 * kernel) == pytest.approx(2 * bound)
    kernel[0, 0, 1, 1] += 0.5
    assert norm_at_any_size(kernel) >= exact_norm(kernel, 5) > 1.01


def test_the_encoder_is_one_lipschitz_and_proved_so():
    net = encoder()
    bound = bounds.lipschitz(net)
    assert bound is not None
    assert 1 - 1e-6 <= bound.value <= 1 + 1e-4
    twin, generator = in_double(net), torch.Generator().manual_seed(0)
    for scale in (1e-3, 0.1, 3.0):
        first = torch.randn(200, *SHAPE, generator=generator).double()
        second = first + scale * torch.randn(200, *SHAPE, generator=generator).double()
        moved = (twin(first) - twin(second)).norm(dim=1)
        assert bool((moved <= bound.value * (first - second).flatten(1).norm(dim=1)).all())


def test_an_encoder_whose_kernel_was_altered_is_no_longer_one_lipschitz():
    net = encoder()
    convolution = next(layer for layer in net if isinstance(layer, OrthogonalConv))
    convolution.weight.mul_(1.5)
    bound = bounds.lipschitz(net)
    assert bound is not None
    assert bound.value >= 1.5 * (1 - 1e-6)


def test_layers_that_run_other_code_have_no_bound():
    net = encoder()
    layer = next(layer for layer in net if isinstance(layer, MaxMin))
    layer.forward = lambda z: 2 * z  # type: ignore[method-assign]
    assert bounds.lipschitz(net) is None


@pytest.mark.parametrize("radius", [0.0, 0.1, 2.0])
def test_features_of_the_float32_program_lie_in_the_tube(radius):
    net, images = encoder(1), random_images(6, 1)
    tube = bounds.propagate(net, bounds.Tube.around(images, torch.full((6,), radius)))
    torch.testing.assert_close(tube.centre, in_double(net)(images.double()))
    generator = torch.Generator().manual_seed(2)
    for _ in range(100):
        delta = torch.randn(images.shape, generator=generator).double()
        delta = radius * delta / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        moved = (images + delta).float()
        distance = (net(moved).double() - tube.centre).norm(dim=1)
        assert bool((distance <= tube.spread + 1e-6 * radius).all())
    # The rounding of the program itself, against its exact evaluation.
    error = (net(images).double() - tube.centre).norm(dim=1)
    assert bool((error <= tube.error).all())
    assert float(tube.error.max()) < 1e-3
