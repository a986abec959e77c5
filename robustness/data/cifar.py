"""CIFAR-10 and CIFAR-100 from their binary version.

A file is a run of records without a header: one label byte (CIFAR-10) or a coarse and a fine
one (CIFAR-100, where the fine label is the class), then the red, green and blue plane of a
32x32 image. The download is read from its archive without unpacking it, so that no
half-unpacked folder can ever be taken for the data.
"""

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from robustness.data import download
from robustness.data.base import DATASETS, DataSet
from robustness.data.files import class_labels, fault, read_bytes, unit_pixels
from robustness.data.images import ImageSet
from robustness.errors import one_line

CHANNELS, SIDE = 3, 32
PIXELS = CHANNELS * SIDE * SIDE


@dataclass(frozen=True)
class Layout:
    """How one of the CIFAR data sets is laid out.

    Attributes:
        folder: the folder of its files, in a data folder and in the archive alike.
        archive: the official archive.
        files: the files of each split, in order.
        labels: how many values each label byte of a record can take; the last label byte
            is the class.
    """

    folder: str
    archive: str
    files: dict[str, tuple[str, ...]]
    labels: tuple[int, ...]

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.labels[-1]

    @property
    def record(self) -> int:
        """The number of bytes of one image with its labels."""
        return len(self.labels) + PIXELS


LAYOUTS = {
    "cifar-10": Layout(
        folder="cifar-10-batches-bin",
        archive="cifar-10-binary.tar.gz",
        files={
            "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
            "test": ("test_batch.bin",),
        },
        labels=(10,),
    ),
    "cifar-100": Layout(
        folder="cifar-100-binary",
        archive="cifar-100-binary.tar.gz",
        files={"train": ("train.bin",), "test": ("test.bin",)},
        labels=(20, 100),
    ),
}
NAMES = tuple(LAYOUTS)


def load(name: str, split: str, data_dir: Path | None) -> ImageSet:
    """Read one split of CIFAR-10 or CIFAR-100.

    Args:
        name: `cifar-10` or `cifar-100`.
        split: `train` or `test`.
        data_dir: the folder that holds `cifar-10-batches-bin` or `cifar-100-binary`;
            without it the official archive comes from the cache, downloaded if need be.

    Returns:
        Images of shape (n, 3, 32, 32).

    Raises:
        UsageError: a file is missing, is no whole number of records, or holds a label out
            of range.
    """
    layout = LAYOUTS[name]
    if data_dir is None:
        archive = download.fetch(name, layout.archive)
        contents = archived(archive, [f"{layout.folder}/{file}" for file in layout.files[split]])
    else:
        contents = unpacked([data_dir / layout.folder / file for file in layout.files[split]])
    records = np.concatenate([decode(where, raw, layout) for where, raw in contents])
    count = len(layout.labels)
    images = records[:, count:].reshape(-1, CHANNELS, SIDE, SIDE)
    labels = records[:, count - 1]
    return ImageSet(name, split, unit_pixels(images), class_labels(labels), layout.classes)


def unpacked(paths: list[Path]) -> Iterator[tuple[str, bytes]]:
    """The content of each file of a folder, after its path.

    Raises:
        UsageError: a file is missing or unreadable.
    """
    remedy = "put the official file there, or leave the folder out to download it"
    for path in paths:
        yield str(path), read_bytes(path, "a file of the binary version", remedy)


def archived(archive: Path, members: list[str]) -> Iterator[tuple[str, bytes]]:
    """The content of each member of a `.tar.gz`, in the order asked for, after its name.

    Raises:
        UsageError: the archive is damaged or lacks a member.
    """
    found: dict[str, bytes] = {}
    try:
        # One pass from front to back: going back means to decompress from the start.
        with tarfile.open(archive, "r|gz") as tar:
            for entry in tar:
                file = tar.extractfile(entry) if entry.name in members else None
                if file is not None:
                    found[entry.name] = file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        got = f"a damaged one ({one_line(str(error), 60)})"
        raise fault(archive, "a sound archive", got, "delete it to download it again") from error
    for member in members:
        if member not in found:
            raise fault(archive, f"a file {member}", "none", "delete it to download it again")
        yield f"{archive}:{member}", found[member]


def decode(where: str, raw: bytes, layout: Layout) -> UInt8[np.ndarray, "n record"]:
    """The records of one file, one to a row: its label bytes, then its pixels.

    Raises:
        UsageError: the file is empty or no whole number of records, or a label is out of
            range.
    """
    if len(raw) == 0 or len(raw) % layout.record:
        raise fault(
            where,
            f"a whole number of records of {layout.record} bytes",
            f"{len(raw)} bytes",
            "the file is truncated or of another data set: replace it with the official file",
        )
    records = np.frombuffer(raw, dtype=np.uint8).reshape(-1, layout.record)
    for column, values in enumerate(layout.labels):
        above = np.flatnonzero(records[:, column] >= values)
        if above.size:
            index = int(above[0])
            raise fault(
                where,
                f"labels from 0 to {values - 1}",
                f"{records[index, column]} in record {index}",
                "replace it with the official file",
            )
    return records


for _name in NAMES:
    DATASETS.register(DataSet(_name, partial(load, _name)))
