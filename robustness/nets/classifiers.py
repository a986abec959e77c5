"""Classifiers: pixels of [0, 1] in, logits out."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from robustness.nets.encoders import Normalise
from robustness.nets.solvers import Solution, Solver


class NeuralODEClassifier(nn.Module):
    """A neural ODE on the class state: d eta/dt = f(eta, E(x)); the final state is the logits.

    Features are passed as arguments from `features` to `solve`; nothing of one forward pass is
    kept on the module.

    Args:
        normalise: the first layer, from pixels to normalised pixels.
        encoder: from normalised pixels, shape (n, c, h, w), to features, shape (n, f).
        field: the vector field, called as `field(t, state, features)`.
        solver: how the field is solved; the one that predicts is the one in the proofs.
        classes: dimension of the state.
        initial: the value of every entry of eta(0). Equal entries favour no class.

    The precision of the weights is that of the whole computation: images are converted to it on
    the way in, and logits to that of the images on the way out. A model in float64 (`.double()`)
    rounds 2^29 times less than one in float32, which its certificates need not allow for.
    """

    def __init__(
        self,
        normalise: Normalise,
        encoder: nn.Module,
        field: nn.Module,
        solver: Solver,
        classes: int,
        initial: float = 0.0,
    ) -> None:
        super().__init__()
        self.normalise, self.encoder, self.field = normalise, encoder, field
        self.solver, self.classes, self.initial = solver, classes, initial

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights and of the computation."""
        return self.normalise.mean.dtype

    def features(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        """The features E(x), shape (n, f), in the model's precision."""
        return self.encoder(self.normalise(images.to(self.dtype)))

    def initial_state(self, features: Float[Tensor, "n f"]) -> Float[Tensor, "n k"]:
        """eta(0), shape (n, classes), the same for every image."""
        return features.new_full((len(features), self.classes), self.initial)

    def solve(self, features: Float[Tensor, "n f"], points: int | None = None) -> Solution:
        """Solve the class state over the horizon, given features."""
        return self.solver.solve(self.field, self.initial_state(features), features, points)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits, shape (n, classes). A sample whose solve failed has NaN logits."""
        return self.solve(self.features(images)).final.to(images.dtype)


class ResidualBlock(nn.Module):
    """z + outer(relu(inner(relu(z)))), with linear layers that keep the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The block's output, of the same shape."""
        return z + self.outer(functional.relu(self.inner(functional.relu(z))))


class ResidualClassifier(nn.Module):
    """The discrete baseline: a residual perceptron over flattened pixels.

    Args:
        normalise: the first layer, from pixels to normalised pixels.
        inputs: number of pixels.
        width: width of the residual stream.
        blocks: number of residual blocks.
        classes: number of logits.
    """

    def __init__(
        self, normalise: Normalise, inputs: int, width: int, blocks: int, classes: int
    ) -> None:
        super().__init__()
        self.normalise = normalise
        self.body = nn.Sequential(
            nn.Flatten(),
            nn.Linear(inputs, width),
            *(ResidualBlock(width) for _ in range(blocks)),
            nn.ReLU(),
            nn.Linear(width, classes),
        )

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits, shape (n, classes)."""
        return self.body(self.normalise(images))


def potential(state: Float[Tensor, "n k"], labels: torch.Tensor) -> Float[Tensor, " n"]:
    """LyaNet's potential V_y(eta) = -log softmax(eta)_y, the cross-entropy of the state."""
    return functional.cross_entropy(state, labels, reduction="none")
