"""Small image files that the tests write, in the publishers' formats."""

import gzip
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from robustness.data import load_images
from robustness.errors import UsageError

STEMS = {"train": "train", "test": "t10k"}


def idx_bytes(array: np.ndarray, kind: int = 0x08) -> bytes:
    """An IDX file of unsigned bytes."""
    dims = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, kind, array.ndim]) + dims + array.astype(np.uint8).tobytes()


def images_28(count: int, seed: int = 0) -> np.ndarray:
    """Random 28x28 images that include the pixels 0 and 255."""
    images = np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    images[:, 0, 0], images[:, 0, 1] = 0, 255
    return images


def idx_paths(root: Path, split: str = "test", name: str = "mnist", ext: str = ".gz") -> list[Path]:
    """The image and the label file of one split."""
    stem = STEMS[split]
    return [
        root / name / f"{stem}-images-idx3-ubyte{ext}",
        root / name / f"{stem}-labels-idx1-ubyte{ext}",
    ]


def write_idx(
    root: Path,
    images: np.ndarray,
    labels: Sequence[int],
    split: str = "test",
    name: str = "mnist",
    ext: str = ".gz",
) -> list[Path]:
    """Write the image and the label file of one split, and return their paths."""
    paths = idx_paths(root, split, name, ext)
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    for path, array in zip(paths, (images, np.array(labels)), strict=True):
        raw = idx_bytes(array)
        path.write_bytes(gzip.compress(raw, mtime=0) if ext else raw)
    return paths


def cifar_bytes(labels: Sequence[Sequence[int]], pixels: np.ndarray) -> bytes:
    """A file of CIFAR records: each image's label bytes, then its pixels."""
    rows = [bytes(label) + image.tobytes() for label, image in zip(labels, pixels, strict=True)]
    return b"".join(rows)


def pixels_32(count: int, seed: int = 0) -> np.ndarray:
    """Random 3x32x32 images."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


def refusal(name: str, *wanted: str, split: str = "test", data_dir: Path | None = None) -> str:
    """The one line with which a data set is refused, which holds every string wanted."""
    with pytest.raises(UsageError) as caught:
        load_images(name, split, data_dir)
    line = str(caught.value)
    assert "\n" not in line
    assert "; " in line, "the line says what to do"
    for part in wanted:
        assert str(part) in line
    return line


def digest_or_line(name: str, data_dir: Path | None = None) -> str:
    """The digest of a data set, or the message with which it is refused."""
    try:
        return load_images(name, "test", data_dir).digest
    except UsageError as error:
        return str(error)


def sound_or_named(name: str, path: Path, intact: str, data_dir: Path | None = None) -> bool:
    """Whether a damaged file reads as it did intact, or is refused by name in one line."""
    outcome = digest_or_line(name, data_dir)
    return outcome == intact or (str(path) in outcome and "\n" not in outcome)
