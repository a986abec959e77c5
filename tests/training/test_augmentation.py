"""Distortion of training images, checked where the result is known exactly."""

import pytest
import torch

from robustness.recipe import AugmentationConfig
from robustness.training.augmentation import distort


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def digit_like(count: int = 200, side: int = 9) -> torch.Tensor:
    return torch.rand(count, 1, side, side, generator=seeded(5))


def test_no_distortion_leaves_the_very_same_images_and_draws_nothing():
    images, generator = digit_like(), seeded()
    assert distort(images, AugmentationConfig(), generator) is images
    assert torch.equal(generator.get_state(), seeded().get_state())


@pytest.mark.parametrize("kind", ["rotate", "shift", "scale", "shear"])
def test_distorted_images_keep_shape_and_box_and_are_repeatable(kind):
    images, config = digit_like(), AugmentationConfig(**{kind: 0.7})
    distorted = distort(images, config, seeded())
    assert distorted.shape == images.shape
    assert distorted.min() >= 0
    assert distorted.max() <= 1
    assert not torch.equal(distorted, images)
    assert torch.equal(distort(images, config, seeded()), distorted)
    assert not torch.equal(distort(images, config, seeded(1)), distorted)


def centre_of_mass(images: torch.Tensor) -> torch.Tensor:
    """Column and row of the centre of mass, from the image's centre, shape (n, 2)."""
    side = images.shape[2]
    axis = torch.arange(side) - (side - 1) / 2
    mass = images.sum(dim=(1, 2, 3))
    columns = (images.sum(dim=(1, 2)) * axis).sum(dim=1) / mass
    rows = (images.sum(dim=(1, 3)) * axis).sum(dim=1) / mass
    return torch.stack([columns, rows], dim=1)


def spot(row: int, column: int, count: int = 400, side: int = 15) -> torch.Tensor:
    images = torch.zeros(count, 1, side, side)
    images[:, :, row - 1 : row + 2, column - 1 : column + 2] = 1.0
    return images


def test_a_shift_moves_a_spot_by_at_most_its_number_of_pixels_either_way():
    moved = centre_of_mass(distort(spot(7, 7), AugmentationConfig(shift=2.0), seeded()))
    assert moved.abs().max() <= 2 + 1e-4
    for axis in range(2):
        assert moved[:, axis].min() < -1.8
        assert moved[:, axis].max() > 1.8


def test_a_rotation_turns_a_spot_by_at_most_its_angle_about_the_centre():
    moved = centre_of_mass(distort(spot(7, 12), AugmentationConfig(rotate=30.0), seeded()))
    angles = torch.rad2deg(torch.atan2(moved[:, 1], moved[:, 0]))
    torch.testing.assert_close(moved.norm(dim=1), torch.full((400,), 5.0), atol=0.15, rtol=0)
    assert angles.abs().max() <= 31
    assert angles.min() < -27
    assert angles.max() > 27


def test_a_scale_moves_a_spot_along_its_ray():
    moved = centre_of_mass(distort(spot(7, 11), AugmentationConfig(scale=0.25), seeded()))
    # The grid is scaled by 1 + s, and so the image by 1 / (1 + s), with s within 0.25 of 0.
    assert moved[:, 0].min() == pytest.approx(4 / 1.25, abs=0.15)
    assert moved[:, 0].max() == pytest.approx(4 / 0.75, abs=0.15)
    assert moved[:, 1].abs().max() < 0.15
