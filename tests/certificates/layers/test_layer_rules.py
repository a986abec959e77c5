"""The rules of ordinary layers against exact operators, dense sampling and float32 programs."""

import contextlib
import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_models import in_double
from torch import nn
from torch.nn import functional

from robustness.certificates.layers import bounds
from robustness.certificates.layers.bounds import Tube, lipschitz, propagate
from robustness.certificates.layers.layer_rules import lipschitz_at
from robustness.nets.classifiers import ResidualBlock, ResidualClassifier
from robustness.nets.convolutions import (
    ConvEncoder,
    ConvReLUEncoder,
    ConvResidualBlock,
    ConvResidualClassifier,
)
from robustness.nets.encoders import Normalise
from robustness.numerics import norms
from robustness.numerics.norms import conv_spectral_bound, convolution_norm, gram_iteration
from robustness.threat import Norm


def unrolled(
    kernel: torch.Tensor, size: tuple[int, int], stride: int, padding: int
) -> torch.Tensor:
    """The matrix of a convolution on images of `size`."""
    basis = torch.eye(kernel.shape[1] * size[0] * size[1], dtype=torch.float64)
    images = basis.unflatten(1, (kernel.shape[1], *size))
    return functional.conv2d(images, kernel.double(), stride=stride, padding=padding).flatten(1)


def random_kernel(outs: int, ins: int, side: int, seed: int) -> torch.Tensor:
    return torch.randn(outs, ins, side, side, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25)
@given(
    channels=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    side=st.integers(1, 5),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    size=st.tuples(st.integers(5, 8), st.integers(5, 8)),
    seed=st.integers(0, 2**31),
)
def test_a_convolution_is_bounded_for_every_size_stride_and_padding(
    channels, side, stride, padding, size, seed
):
    kernel = random_kernel(*channels, side, seed)
    exact = np.linalg.norm(unrolled(kernel, size, stride, padding), 2)
    assert exact <= convolution_norm(kernel, stride).value


@settings(max_examples=25)
@given(
    channels=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    side=st.integers(1, 5),
    padding=st.integers(0, 4),
    size=st.tuples(st.integers(5, 8), st.integers(5, 8)),
    seed=st.integers(0, 2**31),
)
def test_the_bound_for_one_size_is_exact_and_below_the_bound_for_all(
    channels, side, padding, size, seed
):
    padding = min(padding, side - 1)
    kernel = random_kernel(*channels, side, seed)
    exact = np.linalg.norm(unrolled(kernel, size, 1, padding), 2)
    sized = conv_spectral_bound(kernel, size, padding)
    assert exact <= sized <= exact * (1 + 1e-8)
    assert sized <= convolution_norm(kernel, 1).value * (1 + 1e-9)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [3, 5])
def test_the_bound_lies_within_a_few_per_cent_of_the_norm_on_a_large_image(side, stride):
    kernel = random_kernel(5, 3, side, 1).double()
    vector = random_kernel(1, 3, 64, 2).double()
    for _ in range(150):
        image = functional.conv2d(vector, kernel, stride=stride, padding=1)
        back = functional.conv_transpose2d(
            image, kernel, stride=stride, padding=1, output_padding=(62 - side + 4) % stride
        )
        vector = back / back.norm()
    found = float(functional.conv2d(vector, kernel, stride=stride, padding=1).norm())
    assert found <= convolution_norm(kernel, stride).value <= 1.06 * found


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_convolution_whose_windows_share_no_pixel_has_the_norm_of_its_matrix(stride):
    kernel = random_kernel(4, 3, stride, 3)
    exact = float(torch.linalg.matrix_norm(kernel.double().flatten(1), 2))
    assert exact <= convolution_norm(kernel, stride).value <= exact * (1 + 1e-8)


def test_a_symbol_that_peaks_between_the_frequencies_is_not_missed(monkeypatch):
    """The symbol 2 cos(w - pi / 6) on the grid 0, 2 pi / 3, 4 pi / 3 is at most sqrt(3)."""
    monkeypatch.setattr(norms, "_FREQUENCIES", 3)
    kernel = torch.zeros(2, 2, 1, 3)
    turn = math.pi / 6
    rotation = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    # A rotation of two channels is a phase: its eigenvalues are exp(+-i pi / 6).
    kernel[:, :, 0, 0], kernel[:, :, 0, 2] = rotation, rotation.T
    square = torch.zeros(2, 2, 3, 3)
    square[:, :, 1:2] = kernel
    grid = torch.fft.fft2(square.double(), s=(3, 3)).permute(2, 3, 0, 1)
    on_the_grid = float(torch.linalg.matrix_norm(grid, 2).max())
    assert on_the_grid == pytest.approx(math.sqrt(3), rel=1e-6)
    # The peak itself, but for the rounding of the kernel to float32.
    assert convolution_norm(square, 1).value >= 2 * (1 - 1e-6)


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
    scale=st.sampled_from([1e-150, 1.0, 1e150]),
    seed=st.integers(0, 2**31),
)
def test_gram_iteration_is_an_upper_bound_at_every_round_and_falls_to_the_norm(shape, scale, seed):
    matrices = torch.randn(
        *shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed)
    )
    matrices = scale * matrices
    exact = float(torch.linalg.matrix_norm(matrices, 2).max())
    found = [gram_iteration(matrices, rounds) for rounds in range(12)]
    assert all(exact <= bound * (1 + 1e-12) for bound in found)
    assert all(later <= bound * (1 + 1e-12) for bound, later in itertools.pairwise(found))
    assert found[-1] == pytest.approx(exact, rel=1e-3)
    assert found[0] == pytest.approx(float(torch.linalg.matrix_norm(matrices).max()))


def test_gram_iteration_gives_its_floor_where_nothing_exceeds_it():
    matrices = torch.eye(3, dtype=torch.complex128).unsqueeze(0)
    assert gram_iteration(matrices, floor=5.0) == 5.0
    assert gram_iteration(0 * matrices) == 0.0


def trained(module: nn.Module, seed: int, scale: float = 1.0, offset: float = 0.3) -> nn.Module:
    """`module` in evaluation mode, its batch norms with statistics of their own."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for values, low in ((part.running_var, 0.05), (part.running_mean, -0.5)):
                values.copy_(low + torch.rand(values.shape, generator=generator))
            if part.weight is not None:
                part.weight.data.copy_(torch.randn(part.weight.shape, generator=generator))
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(scale)
        else:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.add_(offset * noise)
    return module.eval().requires_grad_(False)


SHAPE = (2, 6, 6)
NORMALISE = {"mean": [0.3, 0.4], "std": [0.5, 0.2]}


def residual_layers(model: nn.Module) -> nn.Sequential:
    return nn.Sequential(model.normalise, *model.body)


NETWORKS = {
    "encoder with batch norm": lambda: ConvEncoder(SHAPE, [3, 4], [1, 2], 5),
    "encoder without": lambda: ConvReLUEncoder(SHAPE, [3, 4], [2, 1], 5, 3),
    "residual perceptron": lambda: residual_layers(
        ResidualClassifier(Normalise(**NORMALISE), 72, 6, 2, 3)
    ),
    "residual convolutions": lambda: residual_layers(
        ConvResidualClassifier(Normalise(**NORMALISE), 2, [3, 4], 1, 1, 3)
    ),
    "a user's": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.BatchNorm2d(3, affine=False),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Dropout(),
        nn.Identity(),
        nn.Conv2d(3, 4, 2, stride=2),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
        nn.Linear(4, 3),
    ),
}


def build(kind: str, seed: int, scale: float, offset: float) -> nn.Sequential:
    torch.manual_seed(seed)
    return trained(NETWORKS[kind](), seed, scale, offset)


@pytest.mark.parametrize("kind", NETWORKS)
@settings(max_examples=4)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.3, 1.0, 5.0]))
def test_the_constant_of_a_network_holds_at_densely_sampled_points(kind, seed, scale):
    network = build(kind, seed, scale, 0.3).double()
    points = torch.rand(40, 1, *SHAPE, dtype=torch.float64)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda z: network(z).flatten()))(points)
    steepest = float(torch.linalg.matrix_norm(jacobian.flatten(2), 2).max())
    assume(steepest > 0)  # few units of a drawn network live, perhaps none at these points
    sized = lipschitz_at(network, SHAPE).value
    assert steepest <= sized <= lipschitz(network).value * (1 + 1e-12)


@contextlib.contextmanager
def denormals(flushed: bool) -> Iterator[None]:
    torch.set_flush_denormal(flushed)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def lengths(difference: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(difference.flatten(1), dim=1)


@pytest.mark.parametrize("kind", NETWORKS)
@settings(max_examples=6)
@given(
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1e-6, 0.3, 1.0, 30.0]),
    offset=st.sampled_from([0.0, 0.3, 1e3]),
    radius=st.sampled_from([0.0, 1e-3, 0.5]),
    flushed=st.booleans(),
    count=st.sampled_from([1, 20]),
)
def test_computed_activations_stay_within_the_tube(
    kind, seed, scale, offset, radius, flushed, count
):
    network = build(kind, seed, scale, offset)
    exact, generator = in_double(network), torch.Generator().manual_seed(seed)
    images = torch.rand(count, *SHAPE, generator=generator)
    delta = torch.randn(images.shape, generator=generator).double()
    delta = radius * delta / lengths(delta).view(-1, 1, 1, 1)
    moved = Norm.L2.project((images + delta).float(), images, radius)
    tube = Tube.around(images, torch.full((count,), radius))
    with denormals(flushed):
        computed, truth, centre = moved, moved.double(), images.double()
        for layer, twin in zip(network, exact, strict=True):
            tube = propagate(layer, tube)
            computed, truth, centre = layer(computed), twin(truth), twin(centre)
            # The float64 activations round as well.
            room = 1e-9 * (tube.reach + lengths(centre))
            assert (lengths(computed.double() - truth) <= tube.error + room).all()
            assert (lengths(truth - centre) <= tube.reach + room).all()
            assert (lengths(tube.centre - centre) <= room).all()


def smallest(kind: str) -> nn.Module:
    if kind == "convolution":
        return nn.Conv2d(1, 1, 1)
    if kind == "strided convolution":
        return nn.Conv2d(1, 1, 2, stride=2, bias=False)
    if kind == "batch norm":
        layer = nn.BatchNorm2d(1)
        layer.running_mean.uniform_(-1, 1)
        layer.running_var.uniform_(0.1, 1)
        nn.init.uniform_(layer.weight)
        nn.init.uniform_(layer.bias, -1, 1)
        return layer
    if kind == "mean":
        return nn.AdaptiveAvgPool2d(1)
    block = ResidualBlock(1)
    nn.init.constant_(block.outer.weight, 1e-4)
    return block


@pytest.mark.parametrize(
    ("kind", "tightness"),
    [
        ("convolution", 0.15),
        ("strided convolution", 0.15),
        ("batch norm", 0.1),
        ("mean", 0.1),
        ("residual block", 0.15),
    ],
)
def test_the_error_of_the_smallest_layers_comes_near_its_bound(kind, tightness):
    """A bound that is a few times too small would be broken here."""
    worst = 0.0
    for seed in range(40):
        torch.manual_seed(seed)
        module = smallest(kind).eval().requires_grad_(False)
        points = torch.rand(500, 1, 2, 2)
        if kind in ("convolution", "batch norm"):
            points = points[:, :, :1, :1]
        if kind == "residual block":
            points = points[:, 0, 0, :1]
        tube = propagate(module, Tube.around(points, torch.zeros(500)))
        error = lengths(module(points).double() - in_double(module)(points.double()))
        assert (error <= tube.error).all()
        worst = max(worst, float((error / tube.error).max()))
    assert worst > tightness


def test_no_bound_is_given_for_convolutions_that_might_overflow():
    layer = nn.Conv2d(1, 1, 3, padding=1).requires_grad_(False)
    layer.weight.fill_(1e20)
    network = nn.Sequential(layer, layer).requires_grad_(False)
    images = torch.rand(2, 1, 5, 5)
    assert not network(images).isfinite().all()
    assert propagate(network, Tube.around(images, torch.zeros(2))).error.isinf().all()


def test_a_batch_norm_has_the_slope_of_its_steepest_channel():
    layer = nn.BatchNorm2d(3, eps=0.0).eval().requires_grad_(False)
    layer.running_var.copy_(torch.tensor([4.0, 1.0, 0.25]))
    layer.weight.copy_(torch.tensor([1.0, -3.0, 1.0]))
    assert 3.0 <= lipschitz(layer).value <= 3.0 * (1 + 1e-8)
    layer.weight.copy_(torch.tensor([1.0, 0.0, 1.0]))
    assert 2.0 <= lipschitz(layer).value <= 2.0 * (1 + 1e-8)


def test_a_mean_over_an_image_shrinks_distances_by_the_root_of_its_pixels():
    layer = nn.AdaptiveAvgPool2d(1)
    assert lipschitz(layer).value == 1.0
    assert lipschitz_at(layer, (3, 4, 4)).value == pytest.approx(0.25, rel=1e-8)
    assert lipschitz_at(layer, (3, 4, 4)).value > 0.25


def test_a_residual_block_is_bounded_by_the_sum_of_its_branches():
    block = ResidualBlock(2).requires_grad_(False)
    for layer, gain in ((block.inner, 2.0), (block.outer, 3.0)):
        layer.weight.copy_(gain * torch.eye(2))
        layer.bias.fill_(1.0)
    # Where every unit is active the block is z -> 7 z + c.
    assert lipschitz(block).value == pytest.approx(7.0, rel=1e-8)
    step = block(torch.tensor([[2.0, 1.0]])) - block(torch.tensor([[1.0, 1.0]]))
    assert step.tolist() == [[7.0, 0.0]]


def with_training_batch_norm() -> nn.Module:
    return ConvEncoder(SHAPE, [3], [2], 5).train()


def with_in_place_branch() -> nn.Module:
    block = ConvResidualBlock(2, 2, 1).eval()
    block.residual.insert(0, nn.ReLU(inplace=True))
    return block


def with_vanishing_variance() -> nn.Module:
    layer = nn.BatchNorm2d(2, eps=0.0).eval()
    layer.running_var.zero_()
    return layer


def with_infinite_weight() -> nn.Module:
    layer = nn.Conv2d(2, 2, 3)
    layer.weight.data[0, 0, 0, 0] = math.inf
    return layer


UNPROVED = {
    "batch norm of its own batch": with_training_batch_norm,
    "batch norm without statistics": lambda: nn.BatchNorm2d(2, track_running_stats=False).eval(),
    "vanishing variance": with_vanishing_variance,
    "grouped convolution": lambda: nn.Conv2d(2, 2, 3, groups=2),
    "dilated convolution": lambda: nn.Conv2d(2, 2, 3, dilation=2),
    "circular padding": lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
    "padding by name": lambda: nn.Conv2d(2, 2, 3, padding="same"),
    "uneven stride": lambda: nn.Conv2d(2, 2, 3, stride=(1, 2)),
    "uneven kernel": lambda: nn.Conv2d(2, 2, (1, 3)),
    "infinite weight": with_infinite_weight,
    "means over parts": lambda: nn.AdaptiveAvgPool2d(2),
    "overlapping windows": lambda: nn.MaxPool2d(3, stride=2),
    "dropout while training": lambda: nn.Dropout().train(),
    "a branch that works in place": with_in_place_branch,
    "a group norm": lambda: nn.GroupNorm(1, 2),
}


@pytest.mark.parametrize("kind", UNPROVED)
def test_nothing_is_proved_about_other_forms_of_these_layers(kind):
    module = UNPROVED[kind]().requires_grad_(False)
    assert lipschitz(module) is None
    assert lipschitz_at(module, SHAPE) is None
    with pytest.raises(NotImplementedError, match="no rounding bound"):
        propagate(module, Tube.around(torch.rand(1, *SHAPE), torch.zeros(1)))


@pytest.mark.skipif(not torch.backends.nnpack.is_available(), reason="NNPACK is not there")
def test_convolutions_by_winograds_transform_are_refused(monkeypatch):
    convolution = nn.Conv2d(1, 32, 3, padding=1).requires_grad_(False)
    assert bounds.refusal_of_arithmetic(convolution) is None
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert "Winograd" in bounds.refusal_of_arithmetic(convolution)
    assert bounds.refusal_of_arithmetic(nn.Linear(2, 2)) is None
    with torch.backends.nnpack.flags(enabled=False):
        assert bounds.refusal_of_arithmetic(convolution) is None
