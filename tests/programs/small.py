"""Small programs, their bounds, and the least value of a planar one."""

from itertools import combinations

import torch
from torch import Tensor, nn

from robustness.programs.boxes import Box
from robustness.programs.network import Ball, Bounds, Network
from robustness.programs.record import record
from robustness.programs.slopes import climbed
from robustness.threat import Norm

ONE = torch.full((1, 1, 1, 1), 0.5)


def bounds_of(model: nn.Module, images: Tensor, eps: float, norm: Norm = Norm.LINF) -> Bounds:
    network = Network(record(model, tuple(images.shape[1:])))
    radii = torch.full((len(images),), eps, dtype=torch.float64)
    return Bounds(network, Ball(images.double().unsqueeze(1), radii, norm), network.bends)


class Flat(nn.Module):
    """A module whose result is flattened to what a recording takes for logits."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*modules)

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images).flatten(1)


def boxed(images: Tensor, eps: float, *modules: nn.Module) -> Bounds:
    """Boxes by intervals alone of modules one behind the other; the last is of the flat result."""
    network = Network(record(Flat(*modules).eval(), tuple(images.shape[1:])))
    radii = torch.full((len(images),), eps, dtype=torch.float64)
    ball = Ball(images.double().unsqueeze(1), radii, Norm.LINF)
    return Bounds(network, ball, forms=False)


def last_box(bounds: Bounds) -> Box:
    """The box of the flat result, shape (n, d)."""
    box = bounds.boxes[-1]
    return Box(box.low.flatten(1), box.high.flatten(1))


def both(bounds: Bounds, rows: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    last = len(bounds.network) - 1
    with torch.no_grad():
        found = bounds.by_lines(last, rows)
    return found, climbed(bounds, last, rows, found, steps)


def planar(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)).eval()


def least_of(model: nn.Sequential, low: Tensor, high: Tensor, row: Tensor) -> float:
    """The least value over a rectangle, in float64.

    A piecewise linear function is least at a vertex: where two of its kinks and the edges meet.
    """
    first, last = model[1], model[3]
    normals = torch.cat([first.weight.double(), torch.eye(2).double().repeat(2, 1)])
    levels = torch.cat([-first.bias.double(), low, high])
    corners = [torch.stack([x, y]) for x in (low[0], high[0]) for y in (low[1], high[1])]
    pairs = map(list, combinations(range(len(levels)), 2))
    crossing = [pair for pair in pairs if abs(float(torch.linalg.det(normals[pair]))) > 1e-9]
    corners += [torch.linalg.solve(normals[pair], levels[pair]) for pair in crossing]
    points = torch.stack(corners)
    points = points[((points >= low - 1e-12) & (points <= high + 1e-12)).all(dim=1)]
    hidden = (points @ first.weight.double().T + first.bias.double()).relu()
    logits = hidden @ last.weight.double().T + last.bias.double()
    return float((logits @ row).amin())


def mixed() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3, padding=1), nn.LeakyReLU(0.1), nn.AvgPool2d(2), nn.Softplus()),
        *(nn.Flatten(), nn.Linear(12, 8), nn.ReLU6(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)),
    ).eval()
