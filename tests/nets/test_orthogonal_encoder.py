import pytest
import torch
from torch.nn import functional

from robustness.nets.encoders import constrain, release
from robustness.nets.orthogonal import (
    MaxMin,
    OrthogonalConv,
    OrthogonalEncoder,
    OrthogonalLinear,
    cayley,
    orthogonal_kernel,
)


def test_cayley_gives_the_rotation_by_a_known_angle() -> None:
    # For S = [[0, a], [-a, 0]] the transform is the rotation by 2 arctan a; a = 1 gives a
    # quarter turn.
    generators = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    torch.testing.assert_close(cayley(generators), torch.tensor([[0.0, -1.0], [1.0, 0.0]]))


def test_the_circular_convolution_with_an_orthogonal_kernel_keeps_all_inner_products() -> None:
    generator = torch.Generator().manual_seed(0)
    kernel = orthogonal_kernel(torch.randn(5, 4, 4, generator=generator, dtype=torch.float64))
    images = torch.randn(6, 4, 5, 7, generator=generator, dtype=torch.float64)
    wrapped = functional.pad(images, (1, 1, 1, 1), mode="circular")
    moved = functional.conv2d(wrapped, kernel).flatten(1)
    flat = images.flatten(1)
    torch.testing.assert_close(moved @ moved.T, flat @ flat.T)


def test_the_kernel_looks_at_neighbours_and_not_only_at_the_pixel_itself() -> None:
    kernel = orthogonal_kernel(torch.randn(5, 4, 4, generator=torch.Generator().manual_seed(1)))
    strengths = kernel.square().sum(dim=(0, 1))
    assert bool((strengths > 1e-3).all())


def test_maxmin_sorts_pairs_and_keeps_the_length() -> None:
    z = torch.tensor([[1.0, 5.0, 3.0, 2.0]])
    torch.testing.assert_close(MaxMin()(z), torch.tensor([[3.0, 5.0, 1.0, 2.0]]))


def encoder() -> OrthogonalEncoder:
    torch.manual_seed(2)
    return OrthogonalEncoder((1, 8, 8), [6, 24], 2, 10)


def test_the_encoder_never_takes_two_images_further_apart_after_training() -> None:
    model = encoder()
    constrain(model)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(10):
        optimiser.zero_grad()
        (-model(torch.rand(4, 1, 8, 8)).square().sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    release(model)
    generator = torch.Generator().manual_seed(3)
    a = torch.rand(300, 1, 8, 8, generator=generator)
    b = a + 0.1 * torch.randn(300, 1, 8, 8, generator=generator)
    with torch.no_grad():
        ratio = (model(a) - model(b)).norm(dim=1) / (a - b).flatten(1).norm(dim=1)
    assert float(ratio.max()) <= 1 + 1e-4
    assert float(ratio.min()) > 0.01


def test_deployed_linear_rows_are_orthonormal() -> None:
    torch.manual_seed(4)
    layer = OrthogonalLinear(7, 3)
    constrain(layer)
    with torch.no_grad():
        layer.parametrizations.weight.original.add_(torch.randn(3, 7))
    release(layer)
    torch.testing.assert_close(layer.weight @ layer.weight.T, torch.eye(3))


def test_release_leaves_the_plain_state_that_the_architecture_loads() -> None:
    model, fresh = encoder(), encoder()
    constrain(model)
    release(model)
    fresh.load_state_dict(model.state_dict())
    images = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(fresh(images), model(images), rtol=0, atol=0)


def test_an_odd_number_of_channels_has_no_halves_and_is_refused() -> None:
    with pytest.raises(ValueError, match="even number of channels, got 3"):
        OrthogonalConv(3)


def test_more_orthonormal_rows_than_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 3 outputs, got 4"):
        OrthogonalLinear(3, 4)
