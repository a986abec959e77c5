"""Convolutional encoders and the convolutional residual network.

All of them are small enough to be trained on one core of an ordinary computer.
"""

import math
from typing import cast

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from robustness.nets.encoders import Normalise

_KERNEL, _PADDING = 3, 1


def after_stride(size: int, stride: int, kernel: int = _KERNEL) -> int:
    """Height or width behind a convolution of padding (kernel - 1) // 2 and the given stride."""
    return (size + 2 * ((kernel - 1) // 2) - kernel) // stride + 1


def normalised_convolution(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    """A 3x3 convolution of padding 1 and its batch norm."""
    # The batch norm's shift replaces the convolution's bias.
    convolution = nn.Conv2d(inputs, outputs, _KERNEL, stride, _PADDING, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


def plain_convolution(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    """A 3x3 convolution of padding 1 with its bias, for interval bounds."""
    return [nn.Conv2d(inputs, outputs, _KERNEL, stride, _PADDING)]


def draw_for_boxes(layer: nn.Conv2d | nn.Linear) -> None:
    """Draw weights of std sqrt(2 pi) / n for n inputs, and biases of 0.

    At the start the sides of a box then keep their mean length from layer to layer (Shi et al.,
    arXiv 2103.17268, section 3.2).
    """
    nn.init.normal_(layer.weight, std=math.sqrt(2 * math.pi) / layer.weight[0].numel())
    nn.init.zeros_(cast(Tensor, layer.bias))


class ConvEncoder(nn.Sequential):
    """3x3 convolutions with batch norm and ReLU, then one linear layer onto the features.

    Args:
        shape: channels, height and width of an image.
        widths: channels behind each convolution.
        strides: stride of each convolution.
        outputs: number of features.
    """

    def __init__(
        self, shape: tuple[int, int, int], widths: list[int], strides: list[int], outputs: int
    ) -> None:
        channels, height, width = shape
        layers: list[nn.Module] = []
        for outs, stride in zip(widths, strides, strict=True):
            layers += [*normalised_convolution(channels, outs, stride), nn.ReLU()]
            channels = outs
            height, width = after_stride(height, stride), after_stride(width, stride)
        super().__init__(*layers, nn.Flatten(), nn.Linear(channels * height * width, outputs))


class ConvReLUEncoder(nn.Sequential):
    """Convolutions and one linear layer, each with ReLU: what interval bounds pass through.

    Without batch norm the function that is trained on bounds is the one that is certified.
    Weights are drawn by `draw_for_boxes`.

    Args:
        shape: channels, height and width of an image.
        widths: channels behind each convolution.
        strides: stride of each convolution.
        outputs: number of features.
        kernel: height and width of each convolution's kernel.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        widths: list[int],
        strides: list[int],
        outputs: int,
        kernel: int,
    ) -> None:
        channels, height, width = shape
        layers: list[nn.Module] = []
        for outs, stride in zip(widths, strides, strict=True):
            layers += [nn.Conv2d(channels, outs, kernel, stride, (kernel - 1) // 2), nn.ReLU()]
            channels = outs
            height = after_stride(height, stride, kernel)
            width = after_stride(width, stride, kernel)
        dense = nn.Linear(channels * height * width, outputs)
        super().__init__(*layers, nn.Flatten(), dense, nn.ReLU())
        for layer in self:
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                draw_for_boxes(layer)


class ConvResidualBlock(nn.Module):
    """relu(shortcut(z) + two normalised 3x3 convolutions of z) (He et al., arXiv 1512.03385).

    The shortcut is the identity, or a normalised 1x1 convolution where the shape changes.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *normalised_convolution(inputs, outputs, stride),
            nn.ReLU(),
            *normalised_convolution(outputs, outputs, 1),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, z: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d p q"]:
        """The block's output, with `outputs` channels and 1/stride of the height and width."""
        return functional.relu(self.shortcut(z) + self.residual(z))


class ConvResidualClassifier(nn.Module):
    """The discrete baseline for images: a small residual network of 3x3 convolutions.

    Args:
        normalise: the first layer, from pixels to normalised pixels.
        channels: channels of an image.
        widths: channels of each stage; each stage but the first halves height and width.
        blocks: residual blocks per stage.
        stem_stride: stride of the first convolution.
        classes: number of logits.
    """

    def __init__(
        self,
        normalise: Normalise,
        channels: int,
        widths: list[int],
        blocks: int,
        stem_stride: int,
        classes: int,
    ) -> None:
        super().__init__()
        self.normalise = normalise
        layers = [*normalised_convolution(channels, widths[0], stem_stride), nn.ReLU()]
        inputs = widths[0]
        for stage, outputs in enumerate(widths):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(ConvResidualBlock(inputs, outputs, stride))
                inputs = outputs
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
        self.body = nn.Sequential(*layers, *head)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits, shape (n, classes)."""
        return self.body(self.normalise(images))
