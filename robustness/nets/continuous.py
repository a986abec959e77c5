"""ContinuousNet: a residual network whose stages are neural ODEs on images of features."""

from jaxtyping import Float
from torch import Tensor, nn

from robustness.nets.convolutions import normalised_convolution
from robustness.nets.encoders import Normalise
from robustness.nets.solvers import Solver

# Channels per group of the group norms inside a field.
_GROUP = 8


class ConvField(nn.Module):
    """dz/dt = conv(relu(norm(conv(relu(norm(z)))))), autonomous.

    Group norms keep a sample's velocity free of its neighbours in the batch, while training as
    well, which batch norms in a vector field would not.

    Args:
        channels: channels of the state, a multiple of 8 or fewer than 8.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        groups = max(1, channels // _GROUP)
        self.layers = nn.Sequential(
            nn.GroupNorm(groups, channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.GroupNorm(groups, channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(
        self, t: Tensor, state: Float[Tensor, "n c h w"], features: Float[Tensor, "n _"]
    ) -> Float[Tensor, "n c h w"]:
        """Velocity of the state, of the same shape; conditioned on nothing."""
        del t, features
        return self.layers(state)


class ContinuousNet(nn.Module):
    """Stages of convolutional ODE blocks (Queiruga et al., arXiv 2008.02389; LyaNet's baseline).

    Each stage is a strided convolution with batch norm, which sets the initial state, and an ODE
    block over the horizon. Behind the last stage the mean over the image gives the logits.

    Args:
        normalise: the first layer, from pixels to normalised pixels.
        channels: channels of an image.
        widths: channels of each stage.
        strides: stride of the convolution that leads into each stage.
        stem: channels of further convolutions of stride 2 in front of the first stage.
        solver: how every block is solved.
        classes: number of logits.
    """

    def __init__(
        self,
        normalise: Normalise,
        channels: int,
        widths: list[int],
        strides: list[int],
        stem: list[int],
        solver: Solver,
        classes: int,
    ) -> None:
        super().__init__()
        self.normalise, self.solver, self.classes = normalise, solver, classes
        self.transitions, self.fields = nn.ModuleList(), nn.ModuleList()
        inputs, before = channels, nn.Sequential()
        for outputs in stem:
            before.extend([*normalised_convolution(inputs, outputs, 2), nn.ReLU()])
            inputs = outputs
        for outputs, stride in zip(widths, strides, strict=True):
            convolution = normalised_convolution(inputs, outputs, stride)
            self.transitions.append(nn.Sequential(*before, *convolution, nn.ReLU()))
            before = nn.Sequential()
            self.fields.append(ConvField(outputs))
            inputs = outputs
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))

    @property
    def stages(self) -> int:
        """Number of ODE blocks."""
        return len(self.fields)

    def flow(self, stage: int, state: Float[Tensor, "n c h w"]) -> Float[Tensor, "t n c h w"]:
        """Solve one block; all states that its solver gives, shape (t, n, c, h, w)."""
        nothing = state.new_zeros((len(state), 0))
        return self.solver.solve(self.fields[stage], state, nothing).states

    def remaining(self, stage: int, state: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of a state that has left block `stage`, shape (n, classes)."""
        for later in range(stage + 1, self.stages):
            state = self.flow(later, self.transitions[later](state))[-1]
        return self.head(state)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits, shape (n, classes)."""
        state = self.transitions[0](self.normalise(images))
        return self.remaining(0, self.flow(0, state)[-1])
