"""What a data set is: a name, and a reader of its splits."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from robustness.data.images import ImageSet
from robustness.registry import Registry


@dataclass(frozen=True)
class DataSet:
    """A data set that can be asked for by name.

    Attributes:
        name: what it is called.
        read: from a split, `train` or `test`, and the folder of the official files, or None where
            they are to be downloaded, to the images. Raises `UsageError` with the file's name.
        embedded: whether it needs no files.
    """

    name: str
    read: Callable[[str, Path | None], ImageSet]
    embedded: bool = False


DATASETS: Registry[DataSet] = Registry("a data set", "robustness.datasets")
