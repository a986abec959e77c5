"""MNIST and Fashion-MNIST from their IDX files, gzipped or plain.

An IDX file is two zero bytes, a byte that names the element type, a byte that counts the
dimensions, each dimension as a big-endian 32-bit integer, and then the elements. The reader
is strict: a header or a length that does not fit is a fault, never a guess.
"""

import gzip
import io
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from robustness.data import download
from robustness.data.base import DATASETS, DataSet
from robustness.data.files import class_labels, fault, read_bytes, unit_pixels
from robustness.data.images import ImageSet
from robustness.inputs import require_memory

NAMES = ("mnist", "fashion-mnist")
CLASSES = 10
SIDE = 28

# The image and the label file of each split, less the `.gz` of the official, gzipped ones.
STEMS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}

UINT8 = 0x08
KINDS = {1: "a label file (1 dimension)", 3: "an image file (3 dimensions)"}
REPLACE = "replace it with the official file"


def load(name: str, split: str, data_dir: Path | None) -> ImageSet:
    """Read one split of MNIST or Fashion-MNIST.

    Args:
        name: `mnist` or `fashion-mnist`.
        split: `train` or `test`.
        data_dir: the folder that holds the folder `name` with the IDX files; without it
            they come from the cache, downloaded if need be.

    Returns:
        Images of shape (n, 1, 28, 28).

    Raises:
        UsageError: a file is missing, damaged, or not what its name says.
    """
    images_path, labels_path = (locate(name, stem, data_dir) for stem in STEMS[split])
    images = read_images(images_path)
    labels = read_labels(labels_path)
    if len(images) != len(labels):
        raise fault(
            labels_path,
            f"{len(images)} labels, one for each image of {images_path.name}",
            f"{len(labels)}",
            "take both files from the same split",
        )
    return ImageSet(name, split, unit_pixels(images[:, None]), class_labels(labels), CLASSES)


def locate(name: str, stem: str, data_dir: Path | None) -> Path:
    """The path of one IDX file; the gzipped file is taken where a plain one lies beside it.

    Raises:
        UsageError: the folder holds neither, or the download failed.
    """
    if data_dir is None:
        return download.fetch(name, f"{stem}.gz")
    plain = data_dir / name / stem
    gzipped = data_dir / name / f"{stem}.gz"
    for path in (gzipped, plain):
        if os.path.exists(path):  # unlike Path.exists, no exception where access is denied
            return path
    raise fault(
        gzipped,
        "this file, or the same without .gz",
        "neither",
        "put the official file there, or leave the folder out to download it",
    )


def read_images(path: Path) -> UInt8[np.ndarray, "n 28 28"]:
    """The images of an IDX file, shape (n, 28, 28).

    Raises:
        UsageError: the file is unreadable, damaged, not an image file, or of another size.
    """
    images = read(path, dimensions=3)
    height, width = images.shape[1:]
    if (height, width) != (SIDE, SIDE):
        raise fault(path, f"images of {SIDE}x{SIDE}", f"{height}x{width}", REPLACE)
    return images


def read_labels(path: Path) -> UInt8[np.ndarray, " n"]:
    """The labels of an IDX file, from 0 to 9, shape (n,).

    Raises:
        UsageError: the file is unreadable, damaged, not a label file, or holds a label
            above 9.
    """
    labels = read(path, dimensions=1)
    above = np.flatnonzero(labels >= CLASSES)
    if above.size:
        index = int(above[0])
        raise fault(
            path,
            f"labels from 0 to {CLASSES - 1}",
            f"{labels[index]} at index {index}",
            REPLACE,
        )
    return labels


def read(path: Path, dimensions: int) -> UInt8[np.ndarray, "*shape"]:
    """The array of an IDX file of unsigned bytes.

    Args:
        path: the file; it is unpacked if its name ends in `.gz`.
        dimensions: the number of dimensions it must have.

    Raises:
        UsageError: the file is unreadable or damaged, or has other dimensions.
    """
    content = read_bytes(path, "an IDX file", REPLACE)
    packed = path.suffix == ".gz"
    stream = gzip.GzipFile(fileobj=io.BytesIO(content)) if packed else io.BytesIO(content)
    with stream, sound(path, content):
        shape = header(path, stream.read(header_size(dimensions)), dimensions)
        needed = math.prod(shape)
        # A byte more than there should be: a small packed file can hold any number of them.
        require_memory(5 * needed, f"the {needed:,} pixels or labels of {path}")
        data = stream.read(needed + 1)
    if len(data) != needed:
        told = " x ".join(map(str, shape))
        held, state = f"{len(data)}", "the file is truncated"
        if len(data) > needed:
            held, state = "more", "the file has bytes to spare"
        raise fault(path, f"{needed} bytes of data ({told})", held, f"{state}: download it again")
    if shape[0] == 0:
        raise fault(path, "at least one element", "none", REPLACE)
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


@contextmanager
def sound(path: Path, content: bytes) -> Iterator[None]:
    """Name what is wrong with a gzipped file that is read; its checksum is verified at its end.

    Raises:
        UsageError: the file is truncated, corrupt or not gzipped.
    """
    again = "download it again"
    try:
        yield
    except EOFError as error:
        raise fault(path, "a whole gzip file", "a truncated one", again) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        if content[:2] != b"\x1f\x8b":
            again = "drop .gz from its name if it is unpacked, or download it again"
            raise fault(path, "a gzip file", "other bytes", again) from error
        raise fault(path, "a sound gzip file", f"a corrupt one ({error})", again) from error


def header_size(dimensions: int) -> int:
    """The number of bytes before the data: the magic, and four bytes for each dimension."""
    return 4 + 4 * dimensions


def header(path: Path, content: bytes, dimensions: int) -> tuple[int, ...]:
    """The dimensions that an IDX header states.

    Raises:
        UsageError: the header is cut short, is not one of IDX, or states another element
            type or number of dimensions.
    """
    if len(content) < 4 or content[:2] != b"\x00\x00":
        shown = f"0x{content[:4].hex()}" if content else "nothing"
        raise fault(path, f"an IDX file (it begins 0x000008{dimensions:02x})", f"{shown}", REPLACE)
    kind, counted = content[2], content[3]
    if kind != UINT8:
        raise fault(path, f"unsigned bytes (IDX type 0x{UINT8:02x})", f"0x{kind:02x}", REPLACE)
    if counted != dimensions:
        raise fault(
            path,
            KINDS[dimensions],
            KINDS.get(counted, f"{counted} dimensions"),
            "see whether the image and the label file are swapped",
        )
    size = header_size(dimensions)
    if len(content) < size:
        raise fault(
            path,
            f"a header of {size} bytes",
            f"{len(content)}",
            "the file is truncated: download it again",
        )
    return tuple(int(n) for n in np.frombuffer(content, dtype=">u4", count=dimensions, offset=4))


for _name in NAMES:
    DATASETS.register(DataSet(_name, partial(load, _name)))
