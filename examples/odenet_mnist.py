"""A classifier in the style of torchdiffeq's `odenet_mnist.py`, with its kind of checkpoint."""

import argparse

import torch
from torch import nn
from torchdiffeq import odeint_adjoint as odeint

CHECKPOINT = "experiment1/model.pth"


class TimedConv(nn.Module):
    """A convolution that is told the time, as a channel more."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels + 1, channels, 3, padding=1)

    def forward(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.cat([t.expand_as(x[:, :1]), x], 1))


class Dynamics(nn.Module):
    """dx/dt of the feature maps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(min(8, channels), channels)
        self.conv = TimedConv(channels)

    def forward(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.conv(t, self.norm(x).relu())


class ODEBlock(nn.Module):
    """The flow from time 0 to 1."""

    def __init__(self, dynamics: nn.Module, tolerance: float) -> None:
        super().__init__()
        self.dynamics, self.tolerance = dynamics, tolerance

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        times = torch.tensor([0.0, 1.0])
        return odeint(self.dynamics, x, times, rtol=self.tolerance, atol=self.tolerance)[-1]


def odenet(channels: int, tolerance: float) -> nn.Sequential:
    """Downsampling, an ODE block, and a head."""
    down = nn.Conv2d(1, channels, 3, stride=2)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 10))
    return nn.Sequential(down, ODEBlock(Dynamics(channels), tolerance), head)


class EachAlone(nn.Sequential):
    """Every image of a batch by itself: an adaptive solver takes the same steps for a batch."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([super(EachAlone, self).forward(image) for image in images.split(1)])


def model() -> nn.Module:
    with torch.serialization.safe_globals([argparse.Namespace]):  # the arguments, and no other code
        saved = torch.load(CHECKPOINT, map_location="cpu", weights_only=True)
    net = odenet(saved["args"].channels, saved["args"].tol)
    net.load_state_dict(saved["state_dict"])
    return EachAlone(*net)
