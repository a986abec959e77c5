"""Random changes of training images that keep their classes."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from robustness.recipe import AugmentationConfig


def augment(
    images: Float[Tensor, "n c h w"], config: AugmentationConfig, generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """Distort, crop and mirror each image at random, as far as the recipe asks for it.

    What the recipe does not ask for draws nothing from the generator.

    Args:
        images: pixels in [0, 1], shape (n, c, h, w).
        config: what is done, and how far.
        generator: source of the draws.

    Returns:
        Images of the same shape, in [0, 1].
    """
    images = distort(images, config, generator)
    if config.crop:
        images = crop(images, config.crop, generator)
    if config.flip:
        mirrored = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    return images


def crop(
    images: Float[Tensor, "n c h w"], border: int, generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """Shift each image by whole pixels, up to `border` each way; black moves in."""
    padded = functional.pad(images, (border, border, border, border))
    count, channels, height, width = images.shape
    starts = torch.randint(0, 2 * border + 1, (2, count), generator=generator)
    rows = (starts[0].unsqueeze(1) + torch.arange(height)).view(count, 1, height, 1)
    columns = (starts[1].unsqueeze(1) + torch.arange(width)).view(count, 1, 1, width)
    which = torch.arange(count).view(count, 1, 1, 1)
    channel = torch.arange(channels).view(1, channels, 1, 1)
    return padded[which, channel, rows, columns]


def distort(
    images: Float[Tensor, "n c h w"], config: AugmentationConfig, generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """Rotate, shift, scale and shear each image at random, by bilinear interpolation.

    Args:
        images: pixels in [0, 1], shape (n, c, h, w).
        config: largest rotation in degrees, shift in pixels, and relative scale and shear;
            each is drawn uniformly between plus and minus its value.
        generator: source of the draws.

    Returns:
        Distorted images of the same shape, in [0, 1].
    """
    if not (config.rotate or config.shift or config.scale or config.shear):
        return images
    draws = 2 * torch.rand(5, len(images), generator=generator) - 1
    angle = math.radians(config.rotate) * draws[0]
    scale = 1 + config.scale * draws[1]
    shear = config.shear * draws[2]
    # Affine grids run from -1 to 1 across the image.
    shift_x = config.shift * draws[3] * 2 / images.shape[3]
    shift_y = config.shift * draws[4] * 2 / images.shape[2]
    rows = [
        torch.stack([angle.cos() * scale, (shear - angle.sin()) * scale, shift_x], dim=1),
        torch.stack([angle.sin() * scale, angle.cos() * scale, shift_y], dim=1),
    ]
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False).clamp(0, 1)
