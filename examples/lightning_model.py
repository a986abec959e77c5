"""The inner module of a Lightning checkpoint: normalised input, an answer that is a tuple."""

import torch
from torch import nn

from robustness.nets.encoders import Normalise

CHECKPOINT = "last.ckpt"


class LyapunovNet(nn.Module):
    """As its authors wrote it: of normalised images, to logits and what a loss is made of."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh())
        self.field = nn.Linear(width + 10, 10)

    def forward(self, normalised: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.encoder(normalised)
        state = features.new_zeros(len(features), 10)
        for _ in range(4):
            state = state + 0.25 * self.field(torch.cat([features, state], 1))
        return state, features


class LogitsOfPixels(nn.Sequential):
    """Pixels of [0, 1] to logits alone."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images)[0]


def model() -> nn.Module:
    net = LyapunovNet()
    state = torch.load(CHECKPOINT, map_location="cpu", weights_only=True)["state_dict"]
    inner = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    net.load_state_dict(inner)
    return LogitsOfPixels(Normalise([0.3], [0.38]), net)
