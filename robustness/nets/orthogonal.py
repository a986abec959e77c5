"""An orthogonal encoder: convolutions that change no length, and are 1-Lipschitz when padded."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from robustness.nets.encoders import ChannelPad, Constrained

_KERNEL, _PADDING = 3, 1
# Four shifts, and one rotation of the channels.
_FACTORS = 5


class MaxMin(nn.Module):
    """Sorts pairs of channels: 1-Lipschitz, and no length is lost (Anil et al., arXiv 1811.05381).

    The channels are split into halves; the k-th channel of one is paired with that of the other.
    """

    def forward(self, z: Float[Tensor, "n c *size"]) -> Float[Tensor, "n c *size"]:
        """The maxima of all pairs, then their minima; of the same shape.

        Raises:
            ValueError: a channel has no partner.
        """
        if z.shape[1] % 2:
            raise ValueError(f"expected an even number of channels, got {z.shape[1]}")
        first, second = z.chunk(2, dim=1)
        return torch.cat([torch.maximum(first, second), torch.minimum(first, second)], dim=1)


def cayley(generators: Float[Tensor, "*batch c c"]) -> Float[Tensor, "*batch c c"]:
    """Orthogonal matrices (I - S)(I + S)^-1 from the skew parts S of arbitrary matrices."""
    skew = (generators - generators.mT) / 2
    identity = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    # I + S is never singular: S has imaginary eigenvalues. Both factors commute.
    return torch.linalg.solve(identity + skew, identity - skew)


def orthogonal_kernel(generators: Float[Tensor, "5 c c"]) -> Float[Tensor, "c c 3 3"]:
    """A 3x3 kernel whose circular convolution is an orthogonal map.

    Half of an orthonormal basis spans a projector P. To shift the part P z of an image by one
    pixel and leave the rest in place, z -> (I - P) z + shift(P z), is orthogonal on the torus
    (Li et al., arXiv 1911.00937). One such factor for each of up, down, left and right, and a
    rotation of the channels, compose to the kernel.

    With zero padding the convolution is a restriction of the circular one on a larger torus, and
    so 1-Lipschitz.

    Args:
        generators: one matrix per factor, shape (5, c, c).

    Returns:
        The kernel, shape (c, c, 3, 3).
    """
    bases = cayley(generators)
    half = bases.shape[1] // 2
    frames = bases[:4, :, :half]
    moved = frames @ frames.mT
    kept = torch.eye(bases.shape[1], dtype=bases.dtype, device=bases.device) - moved
    # Each axis: kernels over the offsets -1, 0 and 1, as polynomials in the shift.
    vertical = _compose(kept[0], moved[0], kept[1], moved[1])
    horizontal = _compose(kept[2], moved[2], kept[3], moved[3])
    return torch.einsum("ab,hbc,wcd->adhw", bases[4], vertical, horizontal)


def _compose(kept0: Tensor, moved0: Tensor, kept1: Tensor, moved1: Tensor) -> Tensor:
    """(kept0 + moved0 s)(kept1 + moved1 / s), the coefficients of 1/s, 1 and s; (3, c, c)."""
    return torch.stack([kept0 @ moved1, kept0 @ kept1 + moved0 @ moved1, moved0 @ kept1])


class OrthogonalConv(Constrained):
    """A 3x3 convolution with an orthogonal kernel, zero padding and a bias.

    The kernel is built from unconstrained matrices while training (`encoders.constrain`); what
    is deployed is the plain kernel, whose norm a certificate would establish for itself.

    Args:
        channels: channels of input and output, an even number.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % 2:
            raise ValueError(f"expected an even number of channels, got {channels}")
        generators = torch.randn(_FACTORS, channels, channels)
        self.weight = nn.Parameter(orthogonal_kernel(generators).detach())
        self.bias = nn.Parameter(torch.zeros(channels))

    def parametrisation(self) -> nn.Module:
        """A kernel made of five free matrices by Cayley's transform."""
        return _CayleyKernel()

    def forward(self, z: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The convolved image, of the same shape."""
        return functional.conv2d(z, self.weight, self.bias, padding=_PADDING)


class OrthogonalLinear(Constrained):
    """A linear map with orthonormal rows, and a bias; 1-Lipschitz.

    Args:
        inputs: number of inputs.
        outputs: number of outputs, at most `inputs`.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        if outputs > inputs:
            raise ValueError(f"expected at most {inputs} outputs, got {outputs}")
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.orthogonal_(self.weight)

    def parametrisation(self) -> nn.Module:
        """Rows made orthonormal."""
        return _OrthonormalRows()

    def forward(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n f"]:
        """The image, shape (n, outputs)."""
        return functional.linear(z, self.weight, self.bias)


class OrthogonalEncoder(nn.Sequential):
    """Orthogonal convolutions on ever coarser images, then orthonormal features.

    Blocks of 2x2 pixels become channels in front of each stage, channels are filled up with
    zeros, and every convolution is followed by `MaxMin`: all of it 1-Lipschitz.

    Args:
        shape: channels, height and width of an image.
        widths: channels of each stage.
        layers: convolutions per stage.
        outputs: number of features.

    Raises:
        ValueError: a stage has an odd height or width, or fewer channels than come in.
    """

    def __init__(
        self, shape: tuple[int, int, int], widths: list[int], layers: int, outputs: int
    ) -> None:
        channels, height, width = shape
        modules: list[nn.Module] = []
        for stage in widths:
            if height % 2 or width % 2:
                raise ValueError(f"expected an even height and width, got {height} x {width}")
            channels, height, width = 4 * channels, height // 2, width // 2
            modules.append(nn.PixelUnshuffle(2))
            if stage < channels:
                raise ValueError(f"expected widths of {channels} or more, got {stage}")
            if stage > channels:
                modules.append(ChannelPad(stage - channels))
            channels = stage
            for _ in range(layers):
                modules += [OrthogonalConv(channels), MaxMin()]
        head = OrthogonalLinear(channels * height * width, outputs)
        super().__init__(*modules, nn.Flatten(), head)


class _CayleyKernel(nn.Module):
    """Makes an orthogonal kernel of five free matrices."""

    def forward(self, generators: Tensor) -> Tensor:
        return orthogonal_kernel(generators)

    def right_inverse(self, kernel: Tensor) -> Tensor:
        # A start for training: other matrices of the distribution that the kernel came from.
        return torch.randn(_FACTORS, *kernel.shape[:2])


class _OrthonormalRows(nn.Module):
    """Replaces a wide matrix by one with orthonormal rows that span the same space."""

    def forward(self, weight: Tensor) -> Tensor:
        # Q R = W^T with a positive diagonal of R is unique, and so continuous in W.
        columns, triangle = torch.linalg.qr(weight.mT)
        return (columns * triangle.diagonal().sign()).mT
