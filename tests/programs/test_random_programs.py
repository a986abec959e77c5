"""Programs put together at random from operations that have rules: bounds hold at samples."""

from collections.abc import Callable
from random import Random

import pytest
import torch
from small import both, bounds_of
from torch import Tensor, nn
from torch.nn import functional

from robustness.threat import Norm

SHAPE = (2, 4, 4)
ENTRIES, LENGTH, CLASSES = 32, 14, 3
SPREAD = (0.0, 0.004)


def _positive(x: Tensor) -> Tensor:
    return functional.softplus(x) + 0.25


def _direction(x: Tensor) -> Tensor:
    return functional.normalize(x.flatten(1), dim=1).view(x.shape)


def _sorted(x: Tensor) -> Tensor:
    return x.sort(dim=3).values


def _written(x: Tensor) -> Tensor:
    z = x.clone()
    z[:, 0] += 2 * x[:, 1]
    z[:, 1, :2] = 1.5
    return z


UNARY: tuple[Callable[[Tensor], Tensor], ...] = (
    *(torch.relu, torch.tanh, torch.sigmoid, torch.abs, torch.sin, torch.neg, torch.square),
    *(functional.gelu, functional.silu, functional.softplus, functional.elu),
    *(_direction, _sorted, _written),
    lambda x: functional.leaky_relu(x, 0.2),
    lambda x: x.clamp(-0.3, 0.4),
    lambda x: torch.tanh(x).exp(),
    lambda x: _positive(x).log(),
    lambda x: _positive(x).sqrt(),
    lambda x: 0.7 / _positive(x),
    lambda x: x.softmax(dim=1),
    lambda x: x.flatten(2).log_softmax(dim=2).view(x.shape) / 3,
    lambda x: functional.group_norm(x, 1),
    lambda x: functional.layer_norm(x, (4,)),
    lambda x: functional.max_pool2d(x, 3, 1, 1),
    lambda x: functional.avg_pool2d(functional.pad(x, (1, 1, 1, 1), value=1.0), 3, 1),
    lambda x: torch.where(x > 0.1, x, -0.5 * x),
    lambda x: x * (x > 0).float(),
    lambda x: x.transpose(2, 3).flip(1),
    lambda x: x.cumsum(dim=2) / 2,
    lambda x: x - x.mean(dim=(2, 3), keepdim=True),
)
BINARY: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    torch.add,
    torch.maximum,
    torch.minimum,
    lambda x, y: torch.sub(x, y, alpha=0.3),
    lambda x, y: torch.tanh(x) * y,
    lambda x, y: x / _positive(y),
    lambda x, y: x @ y.sigmoid() / 2,
    lambda x, y: torch.cat([x[:, 1:], y[:, :1]], dim=1),
)


class Drawn(nn.Module):
    """Operations on a growing list of values, some of them layers with weights."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = Random(seed)
        torch.manual_seed(seed)
        self.steps: list[tuple[Callable[..., Tensor], tuple[int, ...]]] = []
        self.layers = nn.ModuleList()
        for known in range(1, LENGTH + 1):
            # Mostly of what is new, so that programs are deep.
            of = max(draw.randrange(known), draw.randrange(known))
            kind = draw.random()
            if kind < 0.25:
                self.layers.append(nn.Conv2d(2, 2, 3, padding=1))
                self.steps.append((self.layers[-1], (of,)))
            elif kind < 0.7:
                self.steps.append((draw.choice(UNARY), (of,)))
            else:
                self.steps.append((draw.choice(BINARY), (of, draw.randrange(known))))
        self.last = nn.Linear(2 * ENTRIES, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        values = [images]
        for function, of in self.steps:
            values.append(function(*(values[i] for i in of)))
        return self.last(torch.cat([values[-1], values[len(values) // 2]], dim=1).flatten(1))


@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.parametrize("seed", range(4))
def test_bounds_of_programs_drawn_at_random_hold(seed: int, norm: Norm) -> None:
    model = Drawn(seed).eval()
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand((2, *SHAPE), generator=generator)
    rows = torch.randn((2, 3, 1, CLASSES), generator=generator, dtype=torch.float64)
    rows = torch.cat([rows, -rows], dim=1)
    proved = 0
    for eps in SPREAD:
        with torch.no_grad():
            bounds = bounds_of(model, images, eps, norm)
            by_lines, raised = both(bounds, rows, 2)
            lower = bounds.lower(len(bounds.network) - 1, rows)
            assert (lower >= by_lines).all()
            moves = torch.randn((10, *images.shape), generator=generator)
            moves[:4] = moves[:4].sign()
            size = moves.flatten(2).norm(p=torch.inf if norm is Norm.LINF else 2, dim=2)
            points = images + moves * (eps / size).view(10, 2, 1, 1, 1) * (1 - 1e-6)
            points[0] = images
            for point in points.clamp(0, 1):
                logits = torch.cat([model(image.unsqueeze(0)) for image in point]).double()
                values = (rows.squeeze(2) @ logits.unsqueeze(2)).squeeze(2)
                assert (values >= torch.maximum(lower, raised)).all()
        proved += int(lower.isfinite().all())
    assert proved > 0
