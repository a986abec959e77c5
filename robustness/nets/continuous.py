"""Networks whose stages are neural ODEs on images of features: ContinuousNet, ConvODENet."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from robustness.nets.convolutions import (
    after_stride,
    draw_for_boxes,
    normalised_convolution,
    plain_convolution,
)
from robustness.nets.encoders import ChannelPad, Normalise
from robustness.nets.solvers import Solver

# Channels per group of the group norms inside a field.
_GROUP = 8


class ConvField(nn.Module):
    """dz/dt = conv(relu(norm(conv(relu(norm(z)))))), autonomous.

    Group norms keep a sample's velocity free of its neighbours in the batch, while training as
    well, which batch norms in a vector field would not.

    Args:
        channels: channels of the state, a multiple of 8 or fewer than 8.
        norms: whether there are group norms, which interval bounds do not pass through in earnest.
        kernel: height and width of the kernels, an odd number; without norms alone.
    """

    def __init__(self, channels: int, norms: bool = True, kernel: int = 3) -> None:
        super().__init__()
        groups, padding = max(1, channels // _GROUP), kernel // 2
        if not norms:
            self.layers = nn.Sequential(
                nn.ReLU(),
                nn.Conv2d(channels, channels, kernel, padding=padding),
                nn.ReLU(),
                nn.Conv2d(channels, channels, kernel, padding=padding),
            )
            return
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


class StagedODE(nn.Module):
    """Stages of ODE blocks on images of features, each behind a transition; then a head.

    Args:
        normalise: the first layer, from pixels to normalised pixels.
        solver: how every block is solved.
        classes: number of logits.
    """

    def __init__(self, normalise: Normalise, solver: Solver, classes: int) -> None:
        super().__init__()
        self.normalise, self.solver, self.classes = normalise, solver, classes

    @property
    def stages(self) -> int:
        """Number of ODE blocks."""
        raise NotImplementedError

    def field_of(self, stage: int) -> nn.Module:
        """The vector field of one block."""
        raise NotImplementedError

    def transition(
        self, stage: int, state: Float[Tensor, "n c h w"]
    ) -> Float[Tensor, "n d height width"]:
        """The state that block `stage` starts from, of what stands in front of it."""
        raise NotImplementedError

    def scores(self, state: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of the state behind the last block, shape (n, classes)."""
        raise NotImplementedError

    def flow(self, stage: int, state: Float[Tensor, "n c h w"]) -> Float[Tensor, "t n c h w"]:
        """Solve one block; all states that its solver gives, shape (t, n, c, h, w)."""
        nothing = state.new_zeros((len(state), 0))
        return self.solver.solve(self.field_of(stage), state, nothing).states

    def remaining(self, stage: int, state: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of a state that has left block `stage`, shape (n, classes)."""
        for later in range(stage + 1, self.stages):
            state = self.flow(later, self.transition(later, state))[-1]
        return self.scores(state)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits, shape (n, classes)."""
        state = self.transition(0, self.normalise(images))
        return self.remaining(0, self.flow(0, state)[-1])


class ContinuousNet(StagedODE):
    """Stages of convolutional ODE blocks (Queiruga et al., arXiv 2008.02389; LyaNet's baseline).

    Each stage is a strided convolution with batch norm, which sets the initial state, and an ODE
    block over the horizon. Behind the last stage the mean over the image gives the logits.

    With `filled` channels the last block decides: these channels of its state start at zero, as in
    an augmented neural ODE (Dupont et al., arXiv 1904.01681), and the head reads them alone, entry
    by entry. What the logits know of the image has then come through the flow; the head on the
    initial state gives every image the same logits.

    Args:
        normalise: the first layer, from pixels to normalised pixels.
        channels: channels of an image.
        widths: channels of each stage.
        strides: stride of the convolution that leads into each stage.
        stem: channels of further convolutions of stride 2 in front of the first stage.
        solver: how every block is solved.
        classes: number of logits.
        norms: whether there are batch norms in front of the blocks and group norms in their fields.
            Without, the weights of transitions are drawn so that boxes keep their size, as for
            `ConvReLUEncoder`; those of fields and head are not, through which images would be told
            apart by next to nothing at the start.
        filled: channels of the last state that only the flow fills, and the head reads alone; 0 for
            a state that the transition sets whole, and a head on its mean over the image.
        gathered: whether the last transition's convolution spans all that it sees, so that the last
            block's state is an image of one pixel; without norms alone.
        size: height and width of an image, which `filled` and `gathered` depend on.

    Raises:
        ValueError: as many channels are filled as there are, or norms are gathered.
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
        norms: bool = True,
        filled: int = 0,
        gathered: bool = False,
        size: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__(normalise, solver, classes)
        if filled >= widths[-1]:
            raise ValueError(
                f"expected fewer filled channels than the last width {widths[-1]}, got {filled}"
            )
        if gathered and norms:
            raise ValueError("expected norms = false with gathered = true, got norms")
        self.filled = filled
        height, width = size
        for factor in [2] * len(stem) + (strides[:-1] if gathered else strides):
            height, width = after_stride(height, factor), after_stride(width, factor)
        self.transitions, self.fields = nn.ModuleList(), nn.ModuleList()
        inputs, before = channels, nn.Sequential()
        led = normalised_convolution if norms else plain_convolution
        for outputs in stem:
            before.extend([*led(inputs, outputs, 2), nn.ReLU()])
            inputs = outputs
        for stage, (outputs, stride) in enumerate(zip(widths, strides, strict=True)):
            last = stage == len(widths) - 1
            zeros = filled if last else 0
            layers = led(inputs, outputs - zeros, stride)
            if last and gathered:
                layers = [nn.Conv2d(inputs, outputs - zeros, (height, width))]
            transition = nn.Sequential(*before, *layers, nn.ReLU())
            if zeros:
                transition.append(ChannelPad(zeros))
            self.transitions.append(transition)
            before = nn.Sequential()
            self.fields.append(ConvField(outputs, norms, 1 if last and gathered else 3))
            inputs = outputs
        if not norms:
            for module in self.transitions.modules():
                if isinstance(module, nn.Conv2d):
                    draw_for_boxes(module)
        if not filled:
            self.head = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)
            )
            return
        pixels = 1 if gathered else height * width
        dense = nn.Linear(filled * pixels, classes)
        self.head = nn.Sequential(nn.Flatten(), dense)

    @property
    def stages(self) -> int:
        """Number of ODE blocks."""
        return len(self.fields)

    def field_of(self, stage: int) -> nn.Module:
        """The vector field of one block."""
        return self.fields[stage]

    def transition(
        self, stage: int, state: Float[Tensor, "n c h w"]
    ) -> Float[Tensor, "n d height width"]:
        """The state that block `stage` starts from, of what stands in front of it."""
        return self.transitions[stage](state)

    def scores(self, state: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of the state behind the last block, shape (n, classes)."""
        return self.head(state[:, -self.filled :] if self.filled else state)


class TimeConvField(nn.Module):
    """dz/dt = relu(conv([t, relu(conv([t, z]))])), the time as a first channel of each input.

    Args:
        channels: channels of the state.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels + 1, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels + 1, channels, 3, padding=1)

    def forward(
        self, t: Tensor, state: Float[Tensor, "n c h w"], features: Float[Tensor, "n _"]
    ) -> Float[Tensor, "n c h w"]:
        """Velocity of the state, of the same shape; conditioned on the time alone."""
        del features
        time = t.to(state.dtype).expand(len(state), 1, *state.shape[2:])
        hidden = functional.relu(self.conv1(torch.cat([time, state], dim=1)))
        return functional.relu(self.conv2(torch.cat([time, hidden], dim=1)))


class ConvODENet(StagedODE):
    """The classifier of GAINS (Zeqiri et al., ICLR 2023): two convolutions, one ODE block.

    Two strided convolutions without padding, each with ReLU, set the initial state; the block's
    field sees the time; the mean over the image and a linear layer give the logits. Without
    norms, so that intervals pass through every layer.

    Args:
        normalise: the first layer, from pixels to normalised pixels.
        channels: channels of an image.
        width: channels of the state.
        kernel: height and width of the kernels in front of the block.
        stride: of the convolutions in front of the block.
        solver: how the block is solved.
        classes: number of logits.
    """

    def __init__(
        self,
        normalise: Normalise,
        channels: int,
        width: int,
        kernel: int,
        stride: int,
        solver: Solver,
        classes: int,
    ) -> None:
        super().__init__(normalise, solver, classes)
        self.conv1 = nn.Conv2d(channels, width, kernel, stride)
        self.conv2 = nn.Conv2d(width, width, kernel, stride)
        self.field = TimeConvField(width)
        self.head = nn.Linear(width, classes)

    @property
    def stages(self) -> int:
        """Number of ODE blocks: one."""
        return 1

    def field_of(self, stage: int) -> nn.Module:
        """The vector field of the block."""
        del stage
        return self.field

    def transition(
        self, stage: int, state: Float[Tensor, "n c h w"]
    ) -> Float[Tensor, "n d height width"]:
        """The state that the block starts from, of normalised pixels."""
        del stage
        return functional.relu(self.conv2(functional.relu(self.conv1(state))))

    def scores(self, state: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of the state behind the block, shape (n, classes)."""
        return self.head(state.mean(dim=(2, 3)))
