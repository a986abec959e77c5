"""The embedded data set: scikit-learn's copy of the UCI optical digits, 1,797 images of 8x8.

The split is fixed: every third image (index 2, 5, 8, ...) is a test image. The data set
lists its digits writer by writer, in runs of 0 to 9, so a period of three gives both splits
every writer and every class alike (599 test and 1,198 training images). The test set is
therefore in-distribution: it measures robustness, not generalisation to unseen writers.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustness.data.base import DATASETS, DataSet
from robustness.data.images import ImageSet


def load(split: str) -> ImageSet:
    """Read one split of the digits, pixels scaled from 0..16 to [0, 1].

    Args:
        split: `train` (1,198 images) or `test` (599).

    Returns:
        Images of shape (n, 1, 8, 8).
    """
    table = _table()
    images = torch.tensor(table[:, :-1] / 16.0, dtype=torch.float32).view(-1, 1, 8, 8)
    labels = torch.tensor(table[:, -1], dtype=torch.int64)
    is_test = torch.arange(len(images)) % 3 == 2
    chosen = is_test if split == "test" else ~is_test
    return ImageSet("digits", split, images[chosen], labels[chosen], classes=10)


def _table() -> Any:
    """What scikit-learn's `load_digits` gives: a row of 64 pixels and the class for each image.

    The file is read where it lies, since to import scikit-learn takes longer than most of what is
    computed of digits.
    """
    found = find_spec("sklearn")
    if found is not None and found.origin is not None:
        file = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    raw = load_digits()
    return np.column_stack([raw.data, raw.target])


DATASETS.register(DataSet("digits", lambda split, _: load(split), embedded=True))
