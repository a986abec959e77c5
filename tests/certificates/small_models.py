"""Small random models of every kind that a proof is known for, from tame to ill-scaled."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.convolutions import ConvReLUEncoder
from robustness.nets.encoders import (
    ContractiveFlowEncoder,
    ContractiveStep,
    ConvContractiveFlowEncoder,
    ConvContractiveStep,
    FlowStage,
    MLPEncoder,
    Normalise,
    release,
)
from robustness.nets.fields import TargetSeekingField, lyapunov_rate
from robustness.nets.solvers import FixedStepSolver

SHAPE = (1, 4, 4)
PIXELS = 16
# Certificates of target-seeking flows by their margins, and all that apply to such flows.
BY_MARGINS = ("lyapunov", "lyapunov-sharp", "target-seeking")
SEEKING = (*BY_MARGINS, "contraction")


@dataclass(frozen=True)
class Blueprint:
    """What a model is made of; `share` is h * kappa."""

    encoder: str = "flow"
    depth: int = 2
    method: Any = "euler"
    steps: int = 4
    share: float = 0.5
    gain: float = 5.0
    coupling: float = 1.0
    classes: int = 3
    std: float = 1.0
    initial: float = 0.0
    scale: float = 1.0
    offsets: float = 0.0
    seed: int = 0

    def build(self) -> NeuralODEClassifier:
        """The model, frozen, with weights drawn from `seed`."""
        torch.manual_seed(self.seed)
        encoder: nn.Module
        features = 5
        if self.encoder == "flow":
            encoder, features = ContractiveFlowEncoder(PIXELS, self.depth, 7), PIXELS
        elif self.encoder == "conv":
            fine = FlowStage(unshuffle=1, channels=2, steps=self.depth, hidden=3, kernel=3)
            coarse = FlowStage(unshuffle=2, channels=8, steps=1, hidden=3, kernel=3)
            encoder = ConvContractiveFlowEncoder(SHAPE, [fine, coarse])
            features = encoder.outputs
        elif self.encoder == "conv-relu":
            encoder = ConvReLUEncoder(SHAPE, [3] * self.depth, [2] + [1] * (self.depth - 1), 5, 3)
        elif self.encoder == "mlp":
            encoder = MLPEncoder(PIXELS, [6] * max(self.depth, 1), features)
        else:
            inner = [
                layer for _ in range(self.depth) for layer in (ContractiveStep(6, 4), nn.ReLU())
            ]
            linear = nn.Linear(PIXELS, 6, bias=False)
            encoder = nn.Sequential(nn.Flatten(), linear, *inner, nn.Linear(6, features))
        horizon = self.steps * self.share / lyapunov_rate(self.classes)
        model = NeuralODEClassifier(
            Normalise([0.3], [self.std]),
            encoder,
            TargetSeekingField(self.classes, features, self.gain, self.coupling),
            FixedStepSolver(self.method, self.steps, horizon),
            self.classes,
            self.initial,
        )
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(self.scale)
                else:
                    parameter.add_(self.offsets * torch.randn_like(parameter))
        return model.eval().requires_grad_(False)


def magnitudes(low: float, high: float) -> st.SearchStrategy[float]:
    """Positive numbers, spread over their orders of magnitude."""
    return st.floats(math.log10(low), math.log10(high)).map(lambda power: 10.0**power)


@st.composite
def blueprints(draw: st.DrawFn, wild: bool = True) -> Blueprint:
    """Every provable kind of model; `wild` ones are ill-scaled as well."""
    low = 2e-4 if wild else 0.05
    coupling = draw(st.one_of(st.just(0.0), st.floats(0, 5)))
    methods = ["euler", "heun2"] if coupling else ["euler", "heun2", "midpoint", "rk4"]
    return Blueprint(
        encoder=draw(st.sampled_from(["flow", "conv", "mlp", "mixed"])),
        depth=draw(st.integers(1, 4)),
        method=draw(st.sampled_from(methods)),
        steps=draw(st.sampled_from([1, 2, 3, 10, 40])),
        share=draw(st.one_of(st.sampled_from([0.9998, 0.5]), st.floats(low, 0.9998))),
        gain=draw(magnitudes(1e-4, 1e6) if wild else magnitudes(0.3, 100)),
        coupling=coupling,
        classes=draw(st.sampled_from([2, 3, 7])),
        std=draw(magnitudes(1e-3, 10)) if wild else 1.0,
        initial=draw(st.sampled_from([0.0, 0.0, -3.0, 1e4])) if wild else 0.0,
        scale=draw(st.one_of(st.just(1.0), magnitudes(1e-3, 30))) if wild else 1.0,
        offsets=draw(st.one_of(st.just(0.0), magnitudes(1e-2, 1e4))) if wild else 0.1,
        seed=draw(st.integers(0, 2**31)),
    )


def random_images(count: int, seed: int) -> Tensor:
    """Random images, the last two of them black and of 8-bit pixels."""
    images = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
    images[-1] = (255 * images[-1]).round() / 255
    images[-2] = 0.0
    return images


@torch.no_grad()
def bring_near_a_tie(model: NeuralODEClassifier, image: Tensor, margin: float) -> None:
    """Move the head's bias until the runner-up trails by about `margin` feature units."""
    head = model.field.head
    features = in_double(model).features(image.unsqueeze(0).double())
    scores = (features @ head.weight.double().T + head.bias.double())[0]
    first, second = scores.topk(2).indices.tolist()
    head.bias[second] += (scores[first] - scores[second] - margin).float()


def in_double(model: nn.Module) -> Any:
    """A copy that computes the same function in float64 arithmetic."""
    return copy.deepcopy(model).double()


def conv_flow_encoder() -> ConvContractiveFlowEncoder:
    """A released flow of two stages over one channel of 8 x 8 pixels."""
    torch.manual_seed(0)
    stages = [FlowStage(2, 6, 2, 5, 3), FlowStage(2, 32, 2, 8, 3)]
    encoder = ConvContractiveFlowEncoder((1, 8, 8), stages)
    for step in encoder.modules():
        if isinstance(step, ConvContractiveStep):
            nn.init.normal_(step.bias, std=0.1)
    release(encoder)
    return encoder
