"""Models with one fault each, as they come in practice, and one without."""

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchdiffeq import odeint

from robustness.data import ImageSet, load_images


@functools.cache
def images() -> ImageSet:
    """Images of three classes that a linear model tells apart."""
    digits = load_images("digits")
    kept = digits.labels < 3
    return ImageSet("toys", "test", digits.images[kept], digits.labels[kept], 3)


class Healthy(nn.Module):
    """Nearest mean of the classes by waves of the pixels: right in these units and no others."""

    def __init__(self) -> None:
        super().__init__()
        given = images()
        seen = self.features(given.images)
        means = torch.stack([seen[given.labels == k].mean(0) for k in range(3)])
        self.register_buffer("weight", means.T)
        self.register_buffer("bias", -means.square().sum(1) / 2)

    @staticmethod
    def features(x: Tensor) -> Tensor:
        return torch.stack([torch.sin(6 * x), torch.cos(6 * x)], 1).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return 5 * (self.features(x) @ self.weight + self.bias)


class Fault(Healthy):
    """A healthy model whose images and logits are changed by functions."""

    def __init__(self, before=lambda x: x, after=lambda y: y) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(super().forward(self.before(x)))


class Wakes(Healthy):
    def forward(self, x: Tensor) -> Tensor:
        self.train()
        return super().forward(x)


class Remembers(Healthy):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * (1 + self.calls)


class Attribute(Healthy):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.tensor(2.0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


class Elsewhere(Healthy):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(3, device="meta"))


class Ends(nn.Module):
    """A healthy model with a softmax as its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Healthy(), nn.Softmax(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class BatchStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.net = nn.BatchNorm2d(1, track_running_stats=False), Healthy()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0.01 * self.norm(x))


class Solved(nn.Module):
    """A healthy model whose logits turn by an ODE; the larger they are, the faster.

    Args:
        alone: whether each image is solved alone.
        settings: of the solver.
    """

    def __init__(self, alone: bool = True, speed: float = 1.0, **settings: object) -> None:
        super().__init__()
        self.net, self.settings, self.alone, self.speed = Healthy(), settings, alone, speed

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(1) if self.alone else [x]
        return torch.cat([self.flow(self.net(part)) for part in parts])

    def flow(self, y: Tensor) -> Tensor:
        times = torch.tensor([0.0, 1.0])
        return odeint(
            lambda t, y: self.speed * torch.cos(self.speed * t + y), y, times, **self.settings
        )[-1]


def three_channels(x: Tensor) -> Tensor:
    if x.shape[1] != 3:
        raise ValueError(f"expected 3 channels, got {x.shape[1]}")
    return x[:, :1]


def large(x: Tensor) -> Tensor:
    if x.shape[-1] != 32:
        raise ValueError("expected 32x32")
    return functional.interpolate(x, size=(8, 8), mode="bilinear")


MEAN, STD = 0.3, 0.37


def toys() -> dict[str, tuple[nn.Module, str, str]]:
    """By name: a model, the check that catches it, and a part of the line that mends it."""
    return {
        "channels": (Fault(three_channels), "channels and size", "expand(-1, 3"),
        "size": (Fault(large), "channels and size", "size=(32, 32)"),
        "tuple": (Fault(after=lambda y: (y, 0)), "output", "(images)[0]"),
        "table": (Fault(after=lambda y: {"loss": 0, "logits": y}), "output", "['logits']"),
        "classes": (Fault(after=lambda y: y.argmax(1)), "output", "argmax"),
        "trajectory": (Fault(after=lambda y: torch.stack([y, y])), "output", "[-1]"),
        "array": (Fault(after=lambda y: y.numpy()), "output", "numpy()"),
        "too many classes": (Fault(after=lambda y: y.repeat(1, 2)), "classes", "[:, :3]"),
        "too few classes": (Fault(after=lambda y: y[:, :2]), "classes", "nn.Linear(features, 3)"),
        "train mode": (Wakes(), "train mode", "model.eval()"),
        "dropout": (
            Fault(lambda x: functional.dropout(x, 0.1)),
            "dropout",
            "training=self.training",
        ),
        "random": (Fault(lambda x: x + 0.01 * torch.randn_like(x)), "determinism", "buffer"),
        "memory": (Remembers(), "determinism", "keep nothing"),
        "batch mean": (Fault(lambda x: x - 0.1 * x.mean(0)), "batch coupling", "split(1)"),
        "batch norm": (BatchStatistics(), "batch coupling", "track_running_stats=True"),
        "solved together": (Solved(False, rtol=1e-6, atol=1e-6), "batch coupling", "split(1)"),
        "nan": (Fault(after=lambda y: y / (y[:, :1] > y.median())), "finite logits", "anomaly"),
        "softmax": (Fault(after=lambda y: y.softmax(1)), "probabilities", "no softmax"),
        "softmax layer": (Ends(), "probabilities", "set_submodule('layers.1'"),
        "255": (Fault(lambda x: x / 255), "input range", "images * 255"),
        "-1 to 1": (Fault(lambda x: (x + 1) / 2), "input range", "images * 2 - 1"),
        "unnormalised": (Fault(lambda x: x * STD + MEAN), "input range", "(images - "),
        "twice": (Fault(lambda x: (x - MEAN) / STD), "normalised twice", "remove one"),
        "untrained": (Fault(after=lambda y: (1e4 * y).sin()), "accuracy", "load_state_dict"),
        "detached": (Fault(lambda x: x.detach()), "gradients", "detach()"),
        "rounded": (Fault(lambda x: (x * 255).round() / 255), "gradients", "rounding"),
        "root": (Fault(lambda x: x.sqrt() ** 2), "gradients", "clamp_min"),
        "tolerance": (Solved(speed=4.0, rtol=3.0, atol=3.0), "adaptive tolerance", "rtol=1e-5"),
        "adaptive": (Solved(rtol=1e-6, atol=1e-6), "adaptive tolerance", "rk4"),
        "device": (Elsewhere(), "device", 'model.to("cpu")'),
        "attribute": (Attribute(), "device", 'register_buffer("scale"'),
    }
