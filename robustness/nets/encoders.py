"""Encoders: from normalised pixels to the features that condition a vector field."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from robustness.numerics.norms import conv_spectral_bound


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
        """Normalised images of the same shape.

        Raises:
            ValueError: the images have another number of channels than the means.
        """
        if self.mean.shape[1] not in (1, images.shape[1]):
            raise ValueError(
                f"expected images of {self.mean.shape[1]} channels, got {images.shape[1]}"
            )
        return (images - self.mean) / self.std


class MLPEncoder(nn.Sequential):
    """A perceptron over flattened pixels: `inputs -> widths... -> outputs`, ReLU between."""

    def __init__(self, inputs: int, widths: list[int], outputs: int) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in zip([inputs, *widths[:-1]], widths, strict=True):
            layers += [nn.Linear(before, after), nn.ReLU()]
        super().__init__(*layers, nn.Linear(widths[-1], outputs))


class Constrained(nn.Module):
    """A module whose `weight` obeys a constraint; see `constrain` and `release`."""

    weight: Tensor

    def parametrisation(self) -> nn.Module:
        """Maps free parameters to a weight within the constraint while the model is trained."""
        raise NotImplementedError

    def settle(self) -> None:
        """Puts the plain weight, as it will be deployed, within the constraint for certain."""


class ContractiveStep(Constrained):
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

    def parametrisation(self) -> nn.Module:
        """Rescales the matrix into the ball of its bound."""
        return _SpectralBall(math.sqrt(2))

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


class ConvContractiveStep(Constrained):
    """`ContractiveStep` with a convolution as W: z -> z - W^T relu(W z + b).

    W is a convolution with zero padding that keeps height and width, W^T the transposed
    convolution with the same padding, so that the Jacobian is symmetric as before and the step
    non-expansive in l2 as long as the operator norm satisfies |W|^2 <= 2.

    While training, W is rescaled by an estimate of its norm (`constrain`). What is deployed is
    the plain kernel, rescaled once more by a proven bound on its norm (`release`).

    Args:
        channels: channels of the state.
        hidden: channels of W z.
        kernel: height and width of the kernel, an odd number.
        size: height and width of the state; the norm of W depends on it.
    """

    def __init__(self, channels: int, hidden: int, kernel: int, size: tuple[int, int]) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"expected an odd kernel, which keeps the image's size, got {kernel}")
        self.size, self.padding = size, kernel // 2
        self.weight = nn.Parameter(torch.empty(hidden, channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(hidden))
        nn.init.orthogonal_(self.weight, gain=math.sqrt(2))

    def parametrisation(self) -> nn.Module:
        """Rescales the kernel by an estimate of its norm."""
        return _ConvSpectralSphere(math.sqrt(2), self)

    @torch.no_grad()
    def settle(self) -> None:
        """Rescale the kernel so that a proven bound on its norm is at most sqrt(2)."""
        # A margin over the rounding of the rescaled entries to float32.
        target = math.sqrt(2) * (1 - 1e-6)
        norm = conv_spectral_bound(self.weight, self.size, self.padding)
        if norm > target:
            self.weight.copy_(self.weight.double() * (target / norm))

    def forward(self, z: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The state after the step, of the same shape."""
        weight = self.weight
        pushed = functional.relu(functional.conv2d(z, weight, self.bias, padding=self.padding))
        return z - functional.conv_transpose2d(pushed, weight, padding=self.padding)


class ChannelPad(nn.Module):
    """Appends channels of zeros: an isometry that gives a flow more room to move in.

    Args:
        extra: number of channels appended.
    """

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, z: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        """The padded state, with `extra` channels more."""
        return functional.pad(z, (0, 0, 0, 0, 0, self.extra))


@dataclass(frozen=True)
class FlowStage:
    """One resolution of a convolutional contractive flow.

    Attributes:
        unshuffle: side of the blocks of pixels that become channels; 1 keeps the resolution.
        channels: channels of the state, filled up with zeros.
        steps: number of Euler steps.
        hidden: channels of each step's W z.
        kernel: height and width of each step's kernel, an odd number.
    """

    unshuffle: int
    channels: int
    steps: int
    hidden: int
    kernel: int


class ConvContractiveFlowEncoder(nn.Sequential):
    """A flow of convolutional contractive steps, 1-Lipschitz in l2 by construction.

    Between resolutions blocks of pixels become channels, which permutes the entries of the
    state and so changes no distance.

    Args:
        shape: channels, height and width of an image.
        stages: the flow at each resolution.

    Attributes:
        outputs: number of features.

    Raises:
        ValueError: a block does not divide the image, or a stage has too few channels.
    """

    def __init__(self, shape: tuple[int, int, int], stages: Sequence[FlowStage]) -> None:
        channels, height, width = shape
        layers: list[nn.Module] = []
        for stage in stages:
            side = stage.unshuffle
            if height % side or width % side:
                raise ValueError(
                    f"expected blocks that divide {height} x {width} pixels, got unshuffle {side}"
                )
            channels, height, width = channels * side**2, height // side, width // side
            if side > 1:
                layers.append(nn.PixelUnshuffle(side))
            if stage.channels < channels:
                raise ValueError(f"expected {channels} channels or more, got {stage.channels}")
            if stage.channels > channels:
                layers.append(ChannelPad(stage.channels - channels))
            channels = stage.channels
            layers += [
                ConvContractiveStep(channels, stage.hidden, stage.kernel, (height, width))
                for _ in range(stage.steps)
            ]
        super().__init__(*layers, nn.Flatten())
        self.outputs = channels * height * width


class _SpectralBall(nn.Module):
    """Rescales a matrix so that its largest singular value is at most `bound`."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        # Room for float32 rounding, so that the deployed matrix passes the float64 check.
        self.bound = bound * (1 - 1e-6)

    @torch.autocast("cpu", enabled=False)
    def forward(self, weight: Tensor) -> Tensor:
        return weight * (self.bound / torch.linalg.matrix_norm(weight, 2).clamp_min(self.bound))


class _ConvSpectralSphere(nn.Module):
    """Rescales a kernel so that its operator norm is about `bound`, estimated from below.

    One power iteration per forward pass while training, from the vector of the last; the
    kernel moves little between two steps. The estimate proves nothing, and need not.
    """

    vector: Tensor

    def __init__(self, bound: float, step: ConvContractiveStep) -> None:
        super().__init__()
        self.bound, self.padding = bound, step.padding
        channels = step.weight.shape[1]
        self.register_buffer("vector", torch.randn(1, channels, *step.size))
        self._iterate(step.weight.detach(), 30)

    @torch.no_grad()
    def _iterate(self, weight: Tensor, count: int) -> Tensor:
        vector = self.vector
        for _ in range(count):
            image = functional.conv2d(vector, weight, padding=self.padding)
            vector = functional.conv_transpose2d(image, weight, padding=self.padding)
            vector = vector / vector.norm().clamp_min(1e-12)
        if self.training:
            self.vector.copy_(vector)
        return vector

    @torch.autocast("cpu", enabled=False)
    def forward(self, weight: Tensor) -> Tensor:
        # The copy keeps the graph of this pass apart from the next update of the buffer.
        vector = self._iterate(weight, 1 if self.training else 30).clone()
        norm = functional.conv2d(vector, weight, padding=self.padding).norm()
        return weight * (self.bound / norm.clamp_min(1e-12))


def constrain(model: nn.Module) -> None:
    """Keep the constraints of `model`'s modules while it is trained."""
    for module in list(model.modules()):
        if isinstance(module, Constrained):
            parametrisation = module.parametrisation()
            parametrize.register_parametrization(module, "weight", parametrisation, unsafe=True)


def release(model: nn.Module) -> None:
    """Bake the constraints in: afterwards weights are plain tensors, as deployed.

    Kernels of convolutional contractive steps are rescaled so that a proven bound on their norm,
    not the estimate of training, satisfies |W|^2 <= 2.
    """
    for module in model.modules():
        if isinstance(module, Constrained):
            if parametrize.is_parametrized(module):
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
            module.settle()
