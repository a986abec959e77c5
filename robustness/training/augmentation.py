"""Random affine distortion of training images."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from robustness.recipe import AugmentationConfig


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
