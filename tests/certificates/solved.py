"""A neural ODE as users write it, which the package knows nothing of."""

import torch
import torchdiffeq
from torch import Tensor, nn


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, t: Tensor, state: Tensor) -> Tensor:
        return torch.tanh(self.layer(state)) * (1 + t)


class Solved(nn.Module):
    """A user's neural ODE: `torchdiffeq.odeint` called in `forward`."""

    def __init__(self, method: str = "rk4") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.field, self.head = nn.Linear(16, 6), Field(), nn.Linear(6, 3)
        self.method = method

    def forward(self, images: Tensor) -> Tensor:
        start = self.encoder(images.flatten(1))
        times = torch.linspace(0, 1, 4)
        return self.head(torchdiffeq.odeint(self.field, start, times, method=self.method)[-1])
