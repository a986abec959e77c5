"""Data sets as labelled images in [0, 1] pixels."""

from pathlib import Path

from robustness.data import digits
from robustness.data.images import ImageSet
from robustness.errors import UsageError

__all__ = ["ImageSet", "load_images"]

SPLITS = ("train", "test")


def load_images(name: str, split: str = "test", data_dir: Path | None = None) -> ImageSet:
    """Read one split of a data set by name.

    Raises:
        UsageError: the data set or the split is unknown.
    """
    del data_dir
    if split not in SPLITS:
        raise UsageError(f"expected a split, train or test, got {split!r}; correct it")
    if name == "digits":
        return digits.load(split)
    raise UsageError(f"expected a data set, one of digits, got {name!r}; correct it")
