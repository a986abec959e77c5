"""Encoders: from normalised pixels to the features that condition a vector field."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize


class Normalise(nn.Module):
    """The first layer of every model: (x - mean) / std per channel, so that inputs are pixels.

    Args:
        mean: mean of each channel, in pixels of [0, 1].
        std: standard deviation of each channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(f"expected as many positive stds as means, got {mean} and {std}")
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Normalised images of the same shape."""
        return (images - self.mean) / self.std


class MLPEncoder(nn.Sequential):
    """A perceptron over flattened pixels: `inputs -> widths... -> outputs`, ReLU between."""

    def __init__(self, inputs: int, widths: list[int], outputs: int) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in zip([inputs, *widths[:-1]], widths, strict=True):
            layers += [nn.Linear(before, after), nn.ReLU()]
        super().__init__(*layers, nn.Linear(widths[-1], outputs))


class ContractiveStep(nn.Module):
    """One explicit Euler step of the gradient flow of a convex potential.

    z -> z - W^T relu(W z + b). The Jacobian is I - W^T D W with 0 <= D <= I, symmetric with
    eigenvalues in [1 - |W|^2, 1], so that the step is non-expansive in l2 as long as
    |W|_2^2 <= 2 (Meunier et al., arXiv 2110.12690, with the step size folded into W).

    While training, W is rescaled to that bound by a parametrisation (`constrain`); what is
    deployed is the plain matrix, whose norm the certificates establish for themselves.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden, width))
        self.bias = nn.Parameter(torch.zeros(hidden))
        nn.init.orthogonal_(self.weight, gain=math.sqrt(2))

    def forward(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The state after the step, shape (n, d)."""
        weight = self.weight
        return z - functional.relu(functional.linear(z, weight, self.bias)) @ weight


class ContractiveFlowEncoder(nn.Sequential):
    """A flow of contractive steps over flattened pixels, 1-Lipschitz in l2 by construction.

    Args:
        inputs: number of pixels, which is also the number of features.
        steps: number of Euler steps.
        hidden: rows of each step's matrix.
    """

    def __init__(self, inputs: int, steps: int, hidden: int) -> None:
        super().__init__(nn.Flatten(), *(ContractiveStep(inputs, hidden) for _ in range(steps)))


class _SpectralBall(nn.Module):
    """Rescales a matrix so that its largest singular value is at most `bound`."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        # Room for float32 rounding, so that the deployed matrix passes the float64 check.
        self.bound = bound * (1 - 1e-6)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * (self.bound / torch.linalg.matrix_norm(weight, 2).clamp_min(self.bound))


def constrain(model: nn.Module) -> None:
    """Keep every `ContractiveStep` of `model` non-expansive while it is trained."""
    for module in model.modules():
        if isinstance(module, ContractiveStep):
            parametrize.register_parametrization(module, "weight", _SpectralBall(math.sqrt(2)))


def release(model: nn.Module) -> None:
    """Bake the constraints in: afterwards weights are plain tensors, as deployed."""
    for module in model.modules():
        if isinstance(module, ContractiveStep) and parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
