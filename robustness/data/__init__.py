"""Data sets as labelled images in [0, 1] pixels."""

import os
from pathlib import Path

from robustness.data import (
    cifar,  # noqa: F401  (registers CIFAR-10 and CIFAR-100)
    digits,  # noqa: F401  (registers the embedded digits)
    idx,  # noqa: F401  (registers MNIST and Fashion-MNIST)
    npz,
    own,
)
from robustness.data.base import DATASETS, DataSet
from robustness.data.images import ImageSet
from robustness.errors import UsageError

__all__ = [
    "DATASETS",
    "DataSet",
    "ImageSet",
    "load_images",
    "require_known",
    "require_source",
]

SPLITS = ("train", "test")


def load_images(name: str, split: str = "test", data_dir: Path | None = None) -> ImageSet:
    """Read one split of a data set.

    Args:
        name: `digits`, which comes with the package; `mnist`, `fashion-mnist`, `cifar-10`,
            `cifar-100` or another that is registered; or the path of a user's own file, ending in
            `.npz`. Such a file is a test set: it has no splits, and `train` reads the same images
            as `test`. A folder of a folder per class, `package.module:function` of a
            `torch.utils.data.Dataset`, and `hf:NAME` of Hugging Face are other images of one's own.
        split: `train` or `test`.
        data_dir: the folder that holds the official files, in its folders `mnist`,
            `fashion-mnist`, `cifar-10-batches-bin` and `cifar-100-binary`. Their form is
            checked, not their checksums, so that re-encoded files will do. Without it the
            official files are downloaded, once, to the user's cache. It has no bearing on
            `digits` and on `.npz` files.

    Raises:
        UsageError: the data set or the split is unknown; a file is missing, truncated,
            corrupt or not what its name says; or a download failed. The message is one line
            and names the file.
    """
    if split not in SPLITS:
        raise UsageError(f"expected a split, train or test, got {split!r}; correct it")
    require_source(name, data_dir)
    if is_file(name):
        return npz.load(Path(name), split)
    if name not in DATASETS and own.is_own(name):
        return own.load(name, split)
    return DATASETS[name].read(split, data_dir)


def is_file(name: str) -> bool:
    """Whether a data set is a user's own file."""
    return name.lower().endswith(npz.SUFFIX)


def require_known(name: str) -> str:
    """The name of a data set.

    Raises:
        UsageError: it is none.
    """
    if not is_file(name) and (name in DATASETS or not own.is_own(name)):
        DATASETS.require(name, f" or {own.FORMS}")
    return name


def require_source(name: str, data_dir: Path | None) -> None:
    """Refuse a data set that is not known, or whose file or folder is not there.

    Raises:
        UsageError: it is refused.
    """
    if is_file(require_known(name)):
        if not os.path.isfile(name):
            got = "something else" if os.path.exists(name) else "no such file"
            raise UsageError(f"{name}: expected an .npz file, got {got}; correct the path")
    elif (
        name in DATASETS
        and not DATASETS[name].embedded
        and data_dir is not None
        and not data_dir.is_dir()
    ):
        raise UsageError(
            f"{data_dir}: expected a folder with the files of {name}, got "
            f"{'a file' if data_dir.exists() else 'nothing there'}; correct the path"
        )
