"""What affine forms know that intervals forget: softmax sums to 1, and lengths cancel."""

import pytest
import torch
from small import ONE, bounds_of
from torch import Tensor, nn
from torch.nn import functional

from robustness.programs.network import Ball, Bounds, Network
from robustness.programs.record import record
from robustness.threat import Norm


class Behind(nn.Module):
    """A function of a few features, behind the cut that a layer of 300 units makes."""

    def __init__(self, features: int, rise: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(1, 300), nn.Linear(300, features)
        with torch.no_grad():
            self.first.weight.fill_(1.0)
            self.first.bias.zero_()
            self.second.weight.fill_(rise / 300)
            self.second.bias.zero_()

    def features(self, images: Tensor) -> Tensor:
        return self.second(self.first(images.flatten(1)))


class Weighted(Behind):
    """Values near 50, weighted by a softmax, beside a constant."""

    def __init__(self) -> None:
        super().__init__(3, 1.0)
        self.register_buffer("slopes", torch.tensor([4.0, -4.0, 3.0]))
        self.register_buffer("values", torch.tensor([50.0, 50.5, 50.25]))

    def forward(self, images: Tensor) -> Tensor:
        z = self.features(images)
        mean = ((z + self.values) * (z * self.slopes).softmax(dim=1)).sum(dim=1, keepdim=True)
        return torch.cat([mean, torch.zeros_like(mean)], dim=1)


class Directed(Behind):
    """The direction of a vector whose length alone depends on the image."""

    def __init__(self) -> None:
        super().__init__(1, 4.0)
        self.register_buffer("vector", torch.tensor([3.0, 4.0]))

    def forward(self, images: Tensor) -> Tensor:
        return functional.normalize(self.features(images) * self.vector, dim=1)


def behind_the_cut(model: nn.Module, eps: float, forms: bool = True) -> Bounds:
    network = Network(record(model.eval(), (1, 1, 1)))
    assert network.cut is not None
    ball = Ball(ONE.double().unsqueeze(1), torch.tensor([eps], dtype=torch.float64), Norm.LINF)
    return Bounds(network, ball, network.bends, forms)


def test_a_mean_weighted_by_softmax_varies_as_its_values_do() -> None:
    model, eps = Weighted(), 0.25
    box = behind_the_cut(model, eps).boxes[-1]
    apart = behind_the_cut(model, eps, forms=False).boxes[-1]
    images = torch.linspace(0.5 - eps, 0.5 + eps, 401).view(-1, 1, 1, 1)
    with torch.no_grad():
        means = model(images)[:, 0].double()
    low, high = float(box.low.flatten()[0]), float(box.high.flatten()[0])
    assert low <= float(means.min())
    assert float(means.max()) <= high
    # Values differ by 0.5, weights by almost 1: intervals see that of 50.
    assert high - low < 2.0
    assert 2 * float(apart.half.flatten()[0]) > 20.0


def test_lines_of_a_softmax_leave_out_what_its_entries_have_in_common() -> None:
    class Alone(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1).softmax(dim=1)

    images = torch.tensor([0.2, 0.8, 0.5]).view(1, 3, 1, 1)
    bounds = bounds_of(Alone().eval(), images, 0.2)
    last = len(bounds.network) - 1
    rows = torch.tensor([[[[7.0, 7.0, 7.0]], [[7.0, 8.0, 7.0]]]], dtype=torch.float64)
    with torch.no_grad():
        same, one = bounds.by_lines(last, rows)[0].tolist()
        (alone,) = bounds.by_lines(last, rows[:, 1:] - rows[:, :1])[0].tolist()
    assert same == pytest.approx(7.0, abs=1e-4)
    assert one == pytest.approx(7.0 + alone, abs=1e-4)


def test_the_direction_of_a_vector_does_not_vary_with_its_length() -> None:
    eps = 0.25
    box = behind_the_cut(Directed(), eps).boxes[-1]
    # The length goes from 5 to 15.
    assert float(box.half.max()) < 0.05
    expected = torch.tensor([0.6, 0.8], dtype=torch.float64)
    assert torch.allclose(box.centre.flatten(), expected, atol=0.05)
    apart = behind_the_cut(Directed(), eps, forms=False).boxes[-1]
    assert float(apart.half.max()) > 0.3


def test_narrowing_does_not_depend_on_company_or_on_how_many_units_are_open() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Flatten(), nn.Linear(4, 400), nn.ReLU(), nn.Linear(400, 300), nn.ReLU()),
        *(nn.Linear(300, 8), nn.Sigmoid(), nn.Linear(8, 3)),
    ).eval()
    images = torch.rand((3, 1, 2, 2), generator=torch.Generator().manual_seed(1))
    together = bounds_of(model, images, 0.3)
    (at,) = together.network.bends
    widths = bounds_of(model, images, 0.3).boxes[at].half
    plain = Bounds(together.network, together.ball)
    open_ = (plain.boxes[at].low < 0) & (plain.boxes[at].high > 0)
    assert int(open_[0].sum()) > 256
    # Every undecided unit is narrowed, and no other one.
    assert ((plain.boxes[at].half - widths)[open_] > 0).double().mean() > 0.95
    for i in range(3):
        alone = bounds_of(model, images[i : i + 1], 0.3)
        assert torch.allclose(alone.boxes[at].low[0], together.boxes[at].low[i], atol=1e-12)
