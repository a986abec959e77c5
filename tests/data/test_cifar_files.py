from pathlib import Path

import numpy as np
import pytest
import torch
from imagefiles import cifar_bytes, pixels_32, refusal

from robustness.data import load_images

BATCHES = [f"data_batch_{i}.bin" for i in range(1, 6)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images in each CIFAR-10 file but the first, which has one, and in CIFAR-100's."""
    ten, hundred = tmp_path / "cifar-10-batches-bin", tmp_path / "cifar-100-binary"
    ten.mkdir()
    hundred.mkdir()
    for seed, file in enumerate([*BATCHES, "test_batch.bin"]):
        labels = [[seed], [9], [0]] if seed else [[5]]
        (ten / file).write_bytes(cifar_bytes(labels, pixels_32(len(labels), seed)))
    for file in ("train.bin", "test.bin"):
        raw = cifar_bytes([[19, 0], [0, 99], [3, 42]], pixels_32(3))
        (hundred / file).write_bytes(raw)
    return tmp_path


def test_cifar_10_is_read_as_unit_pixels_plane_by_plane(root):
    data = load_images("cifar-10", "test", root)
    assert (data.name, data.split, data.classes, data.shape) == (
        "cifar-10",
        "test",
        10,
        (3, 32, 32),
    )
    assert data.images.dtype == torch.float32
    raw = torch.from_numpy(pixels_32(3, seed=5))
    assert torch.equal(data.images, raw.to(torch.float32) / 255)
    assert data.labels.tolist() == [5, 9, 0]


def test_the_training_batches_are_joined_in_order(root):
    data = load_images("cifar-10", "train", root)
    assert data.labels.tolist() == [5, 1, 9, 0, 2, 9, 0, 3, 9, 0, 4, 9, 0]
    raw = np.concatenate([pixels_32(3 if seed else 1, seed) for seed in range(5)])
    assert torch.equal((data.images * 255).round().to(torch.uint8), torch.from_numpy(raw))


@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar_100_takes_the_fine_label(root, split):
    data = load_images("cifar-100", split, root)
    assert (data.classes, data.shape, data.split) == (100, (3, 32, 32), split)
    assert data.labels.tolist() == [0, 99, 42]
    assert torch.equal((data.images * 255).round().to(torch.uint8), torch.from_numpy(pixels_32(3)))


@pytest.mark.parametrize("file", [*BATCHES, "test_batch.bin"])
def test_a_missing_cifar_file_is_named(root, file):
    path = root / "cifar-10-batches-bin" / file
    path.unlink()
    split = "test" if file.startswith("test") else "train"
    refusal("cifar-10", path, "no such file", split=split, data_dir=root)


@pytest.mark.parametrize("keep", [0, 1, 3072, 3074, -1])
def test_a_truncated_cifar_file_is_refused_by_name(root, keep):
    path = root / "cifar-10-batches-bin" / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:keep])
    got = f"got {path.stat().st_size} bytes"
    refusal("cifar-10", path, "3073 bytes", got, "truncated", split="train", data_dir=root)


def test_a_cifar_10_label_above_nine_is_refused(root):
    path = root / "cifar-10-batches-bin" / "test_batch.bin"
    path.write_bytes(cifar_bytes([[1], [10]], pixels_32(2)))
    refusal("cifar-10", path, "labels from 0 to 9", "got 10 in record 1", data_dir=root)


@pytest.mark.parametrize(("label", "most", "got"), [([20, 5], 19, 20), ([5, 100], 99, 100)])
def test_a_cifar_100_label_out_of_range_is_refused(root, label, most, got):
    path = root / "cifar-100-binary" / "test.bin"
    path.write_bytes(cifar_bytes([[1, 1], label], pixels_32(2)))
    refusal("cifar-100", path, f"from 0 to {most}", f"got {got} in record 1", data_dir=root)


def test_files_of_the_other_cifar_are_refused(root):
    ten = root / "cifar-10-batches-bin" / "test_batch.bin"
    hundred = root / "cifar-100-binary" / "test.bin"
    ten_raw, hundred_raw = ten.read_bytes(), hundred.read_bytes()
    ten.write_bytes(hundred_raw)
    hundred.write_bytes(ten_raw)
    refusal("cifar-10", ten, "of another data set", data_dir=root)
    refusal("cifar-100", hundred, "of another data set", data_dir=root)
