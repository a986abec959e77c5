import os
from pathlib import Path

import pytest
import torch

from robustness.data import cifar, idx, load_images
from robustness.data.images import ImageSet

pytestmark = pytest.mark.datasets

MNIST_TEST_BALANCE = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
COUNTS = {
    ("mnist", "train"): 60000,
    ("mnist", "test"): 10000,
    ("fashion-mnist", "train"): 60000,
    ("fashion-mnist", "test"): 10000,
    ("cifar-10", "train"): 50000,
    ("cifar-10", "test"): 10000,
    ("cifar-100", "train"): 50000,
    ("cifar-100", "test"): 10000,
}


def official(name: str, split: str) -> ImageSet:
    """One split of the official files, or a skip that says what is lacking."""
    root = os.environ.get("ROBUSTNESS_DATA_DIR")
    if not root:
        pytest.skip("ROBUSTNESS_DATA_DIR is not set")
    folder = Path(root) / (name if name in idx.NAMES else cifar.LAYOUTS[name].folder)
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return load_images(name, split, Path(root))


@pytest.mark.parametrize(("name", "split"), COUNTS)
def test_the_official_files_hold_their_published_counts_and_full_range(name, split):
    data = official(name, split)
    shape = (1, 28, 28) if name in idx.NAMES else (3, 32, 32)
    assert len(data) == COUNTS[name, split]
    assert data.shape == shape
    assert (float(data.images.min()), float(data.images.max())) == (0.0, 1.0)
    assert sorted(set(data.labels.tolist())) == list(range(data.classes))


def test_the_mnist_test_set_has_its_published_class_balance():
    assert torch.bincount(official("mnist", "test").labels).tolist() == MNIST_TEST_BALANCE


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar-10", "cifar-100"])
def test_the_other_test_sets_are_balanced(name):
    data = official(name, "test")
    assert set(torch.bincount(data.labels).tolist()) == {10000 // data.classes}


def test_the_first_mnist_test_image_is_the_well_known_seven():
    data = official("mnist", "test")
    assert data.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    ink = data.images[0, 0] > 0.5
    # A seven: a bar across the upper part, a stem through the lower.
    assert ink[8].sum() > 10
    assert 1 <= ink[20].sum() <= 5
