"""Models small enough to know everything about."""

import torch
from torch import Tensor, nn

from robustness.threat import Norm, ThreatModel

# Square in l2 needs images of at least 5 pixels a side.
CLASSES, SIDE = 5, 6


class Linear(nn.Module):
    def __init__(self, classes: int = CLASSES, scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        weight = scale * torch.randn(classes, SIDE * SIDE, generator=generator)
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images.flatten(1) - 0.5) @ self.weight.T


class Perceptron(nn.Module):
    """A small honest network with kinks, untrained: its gradients are what they should be."""

    def __init__(self, classes: int = CLASSES, width: int = 24) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        for name, shape in {"first": (width, SIDE * SIDE), "second": (classes, width)}.items():
            weight = torch.randn(shape, generator=generator) / shape[1] ** 0.5
            setattr(self, name, nn.Parameter(weight, requires_grad=False))

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(4 * (images.flatten(1) - 0.5) @ self.first.T)
        return 4 * hidden @ self.second.T


class Raises(nn.Module):
    """A linear model that raises on some image of its batch: bright ones, or all."""

    def __init__(self, above: float) -> None:
        super().__init__()
        self.linear, self.above = Linear(), above

    def forward(self, images: Tensor) -> Tensor:
        if bool((images.flatten(1).mean(dim=1) > self.above).any()):
            raise ArithmeticError("underflow in dt nan")
        return self.linear(images)


class Wraps(nn.Module):
    """A linear model behind some change of its input or output."""

    def __init__(self, before: object = None, after: object = None) -> None:
        super().__init__()
        self.linear, self.before, self.after = Linear(), before, after

    def forward(self, images: Tensor) -> Tensor:
        logits = self.linear(self.before(images) if self.before else images)
        return self.after(logits) if self.after else logits


class Noisy(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return Linear()(images) + 1e-3 * torch.randn(len(images), 5)


class BrighterThanItsBatch(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        mean = images.flatten(1).mean(dim=1)
        return torch.stack([torch.full_like(mean, 1e-4), mean - mean.mean()], dim=1)


class Broken(nn.Module):
    """No finite logits for images brighter than one half."""

    def forward(self, images: Tensor) -> Tensor:
        bright = images.flatten(1).mean(dim=1, keepdim=True) > 0.5
        return torch.where(bright, torch.nan, Linear()(images))


def make_problem(classes: int, count: int = 12) -> tuple[Linear, Tensor, Tensor]:
    """A model and images near mid-grey, so that the box never binds."""
    model, images = Linear(classes), grey_images(count)
    return model, images, model(images).argmax(dim=1)


def grey_images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return 0.5 + 0.4 * (torch.rand(count, 1, SIDE, SIDE, generator=generator) - 0.5)


def minimal_distance(model: Linear, images: Tensor, labels: Tensor, norm: Norm) -> Tensor:
    """min_j (margin over j) / dual norm of (w_y - w_j), in float64."""
    weight, scores = model.weight.detach().double(), model(images).detach().double()
    difference = weight[labels].unsqueeze(1) - weight
    dual = difference.norm(dim=2) if norm is Norm.L2 else difference.abs().sum(dim=2)
    margins = scores.gather(1, labels.unsqueeze(1)) - scores
    distance = margins / dual.clamp_min(1e-12)
    return distance.scatter(1, labels.unsqueeze(1), torch.inf).amin(dim=1)


# What the checks are tried on, and within reach of an attack on about half of it.
IMAGES = grey_images(24)
LABELS = Linear()(IMAGES).argmax(dim=1)
NEAR = ThreatModel(Norm.LINF, float(minimal_distance(Linear(), IMAGES, LABELS, Norm.LINF).median()))
