"""Linear bounds against hand-worked relaxations, exact minima of toys, corners and sampling."""

import copy
import itertools

import numpy as np
import pytest
import torch
from small import boxed, last_box
from torch import Tensor, nn

from robustness.nets.convolutions import ConvReLUEncoder
from robustness.nets.encoders import MLPEncoder, Normalise
from robustness.programs.boxes import Box
from robustness.programs.network import Bounds


def in_double(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).double()


def lower(bounds: Bounds, rows: Tensor) -> Tensor:
    """Lower bounds of linear functions of the flat result, rows of shape (n, r, d)."""
    return bounds.by_lines(len(bounds.network) - 1, rows.unsqueeze(2))


def dense(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight)).requires_grad_(False)
    layer.weight.copy_(torch.tensor(weight))
    layer.bias.copy_(torch.tensor(bias))
    return layer


def outputs_of(network: nn.Module, point: list[float], eps: float) -> Tensor:
    """Lower bounds of every output and of its negative, near a point of [0, 1]^d."""
    bounds = boxed(torch.tensor(point).view(1, 1, 1, -1), eps, nn.Flatten(), network)
    size = last_box(bounds).low.shape[1]
    return lower(bounds, torch.cat([torch.eye(size), -torch.eye(size)]).double().unsqueeze(0))[0]


def test_without_a_relu_the_bound_is_exact():
    network = nn.Sequential(dense([[1.0, -2.0]], [0.5]), dense([[3.0]], [0.0]))
    # 3 (x - 2 y + 0.5) around (0.5, 0.5), each moved by 0.1.
    least, greatest = outputs_of(network, [0.5, 0.5], 0.1).tolist()
    assert least == pytest.approx(-0.9, abs=3e-6)
    assert -greatest == pytest.approx(0.9, abs=3e-6)


@pytest.mark.parametrize(
    ("shift", "least", "greatest"),
    [
        # z = 4 x - shift for x in [0, 1]; the chord of relu is u (z - l) / (u - l).
        (-1.0, 1.0, 5.0),  # z in [1, 5] is passed on
        (5.0, 0.0, 0.0),  # z in [-5, -1] is blocked
        (1.0, -1.0, 3.0),  # z in [-1, 3]: below, the line of slope 1
        (3.0, 0.0, 1.0),  # z in [-3, 1]: below, the line of slope 0
    ],
)
def test_one_relu_lies_between_the_lines_of_the_paper(shift, least, greatest):
    network = nn.Sequential(dense([[4.0]], [-shift]), nn.ReLU())
    found = outputs_of(network, [0.5], 0.5).tolist()
    assert found[0] == pytest.approx(least, abs=2e-6)
    assert -found[1] == pytest.approx(greatest, abs=2e-6)


def test_a_hand_worked_case_where_lines_beat_intervals():
    # relu(2x - 1) - relu(2x + 1) for x in [0, 1], truly from -2 to -1. Intervals say
    # [0, 1] - [1, 3] = [-3, 0]. The chord relu(2x - 1) <= x gives x - (2x + 1) <= -1.
    first, last = dense([[2.0], [2.0]], [-1.0, 1.0]), dense([[1.0, -1.0]], [0.0])
    _, greatest = outputs_of(nn.Sequential(first, nn.ReLU(), last), [0.5], 0.5).tolist()
    assert -greatest == pytest.approx(-1, abs=1e-5)


def exact_minimum(network: nn.Sequential, row: Tensor, box: Box) -> float:
    """Least value of row . network(x) for two pixels, by enumeration of activation patterns.

    On the cell of a pattern the function is linear, so its least value is at a vertex of the
    arrangement of the neurons' lines and the box's edges. The lines of a second layer depend on
    the pattern of the first: all patterns are gone through.
    """
    layers = [layer for layer in in_double(network) if isinstance(layer, nn.Linear)]
    weights = [(layer.weight.numpy(), layer.bias.numpy()) for layer in layers]
    low, high = box.low[0].numpy(), box.high[0].numpy()
    lines = [(np.eye(2)[axis], -end[axis]) for axis in (0, 1) for end in (low, high)]
    first, shift = weights[0]
    lines += list(zip(first, shift, strict=True))
    if len(weights) == 3:
        second, offset = weights[1]
        for active in itertools.product((0, 1), repeat=len(first)):
            mask = np.array(active)
            slope = second @ (mask[:, None] * first)
            lines += list(zip(slope, second @ (mask * shift) + offset, strict=True))
    vertices = []
    for (a, c), (b, d) in itertools.combinations(lines, 2):
        matrix = np.array([a, b])
        if abs(np.linalg.det(matrix)) > 1e-9:
            point = np.linalg.solve(matrix, [-c, -d])
            if (point >= low - 1e-9).all() and (point <= high + 1e-9).all():
                vertices.append(point)
    values = in_double(network)(torch.tensor(np.array(vertices))) @ row
    return float(values.min())


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("widths", [(6,), (4, 3)])
def test_the_bound_never_exceeds_the_exact_minimum_of_a_toy(seed, widths):
    torch.manual_seed(seed)
    sizes, layers = [2, *widths], []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Linear(widths[-1], 2)).requires_grad_(False)
    for layer in network[::2]:
        layer.weight.mul_(2)
    row = torch.tensor([1.0, -1.0]).double()
    gaps = []
    for eps in (1e-3, 0.02, 0.1, 0.4):
        bounds = boxed(torch.tensor([[[[0.4, 0.6]]]]), eps, nn.Flatten(), network)
        pixels = bounds.boxes[0]
        box = Box(pixels.low.flatten(1), pixels.high.flatten(1))
        exact = exact_minimum(network, row, box)
        found = float(lower(bounds, row.view(1, 1, -1)))
        assert found <= exact
        gaps.append(exact - found)
    assert gaps[0] < 1e-4  # A small box crosses few kinks.


def test_the_enumeration_of_the_toys_is_itself_right():
    torch.manual_seed(5)
    layers = [nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)]
    network = nn.Sequential(*layers).requires_grad_(False)
    box = Box.around(torch.tensor([[0.4, 0.6]]), torch.tensor([0.4]))
    row = torch.tensor([1.0, -1.0]).double()
    sides = [torch.linspace(float(box.low[0, i]), float(box.high[0, i]), 401) for i in (0, 1)]
    grid = torch.cartesian_prod(*sides).double()
    values = in_double(network)(grid) @ row
    exact = exact_minimum(network, row, box)
    assert exact <= float(values.min()) + 1e-12
    assert exact == pytest.approx(float(values.min()), abs=2e-3)


@pytest.mark.parametrize("kind", ["conv-relu", "mlp"])
@pytest.mark.parametrize("eps", [0.01, 0.1, 0.5])
def test_no_image_of_the_box_falls_below_the_bound(kind, eps):
    torch.manual_seed(int(100 * eps))
    encoder = MLPEncoder(16, [6] * 3, 5)
    if kind == "conv-relu":
        encoder = ConvReLUEncoder((1, 4, 4), [3] * 3, [2, 1, 1], 5, 3)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(3.0)
    model = nn.Sequential(Normalise([0.3], [1.0]), encoder).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(3, 1, 4, 4, generator=generator)
    bounds = boxed(images, eps, model)
    rows = torch.randn(3, 8, 5, generator=generator).double()
    floor, box, pixels = lower(bounds, rows), last_box(bounds), bounds.boxes[0]
    precise = in_double(model)
    for draw in range(200):
        share = torch.rand(images.shape, generator=generator).double()
        share = (share.round() if draw % 2 else share).unsqueeze(1)
        features = precise((pixels.low + share * (pixels.high - pixels.low)).squeeze(1))
        values = torch.bmm(rows, features.unsqueeze(2)).squeeze(2)
        assert (values >= floor).all()
        assert (features >= box.low).all()
        assert (features <= box.high).all()


def test_the_backward_step_of_a_convolution_is_its_transpose_for_every_stride_and_padding():
    generator = torch.Generator().manual_seed(0)
    for kernel, stride, padding, side in itertools.product((2, 3, 4), (1, 2, 3), (0, 1), (6, 7)):
        layer = nn.Conv2d(2, 3, kernel, stride, padding).requires_grad_(False)
        image = torch.rand(1, 2, side, side, generator=generator)
        exact = in_double(layer)(image.double()).flatten(1)
        rows = torch.randn(1, 4, exact.shape[1], generator=generator).double()
        found = lower(boxed(image, 0.0, layer), rows)
        torch.testing.assert_close(found, (rows @ exact.unsqueeze(2)).squeeze(2), rtol=0, atol=1e-3)
