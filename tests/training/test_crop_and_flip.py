import torch

from robustness.recipe import AugmentationConfig
from robustness.training.augmentation import augment, crop, distort


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_crop_is_a_shift_by_whole_pixels_with_black_moving_in() -> None:
    images = torch.arange(1.0, 10.0).view(1, 1, 3, 3).repeat(200, 1, 1, 1) / 10
    padded = torch.zeros(5, 5)
    padded[1:4, 1:4] = images[0, 0]
    windows = [padded[r : r + 3, c : c + 3] for r in range(3) for c in range(3)]
    seen = set()
    for image in crop(images, 1, generator()):
        matches = [i for i, window in enumerate(windows) if torch.equal(window, image[0])]
        assert len(matches) == 1
        seen.add(matches[0])
    assert seen == set(range(9))


def test_a_crop_moves_all_channels_alike() -> None:
    images = torch.rand(30, 1, 6, 6).repeat(1, 3, 1, 1)
    cropped = crop(images, 2, generator())
    torch.testing.assert_close(cropped[:, :1].repeat(1, 3, 1, 1), cropped, rtol=0, atol=0)


def test_about_half_of_the_images_are_mirrored_and_the_others_untouched() -> None:
    images = torch.rand(400, 1, 2, 3)
    changed = augment(images, AugmentationConfig(flip=True), generator())
    same = (changed == images).flatten(1).all(dim=1)
    mirrored = (changed == images.flip(3)).flatten(1).all(dim=1)
    assert bool((same | mirrored).all())
    assert 160 < int(mirrored.sum()) < 240


def test_an_augmentation_that_was_not_asked_for_draws_nothing() -> None:
    images = torch.rand(8, 1, 4, 4)
    config = AugmentationConfig(rotate=5.0, shift=0.5)
    one, other = generator(), generator()
    torch.testing.assert_close(
        augment(images, config, one), distort(images, config, other), rtol=0, atol=0
    )
    assert torch.equal(one.get_state(), other.get_state())


def test_nothing_asked_for_returns_the_images() -> None:
    images = torch.rand(3, 1, 4, 4)
    assert augment(images, AugmentationConfig(), generator()) is images
