"""A data set: labelled images in [0, 1]."""

from pathlib import Path

import torch

from robustness.data import DATASETS, DataSet, ImageSet

_IMAGES, _SIDE = 40, 8


def read(split: str, data_dir: Path | None) -> ImageSet:
    """Grey images of which one half is a little brighter; the label says which."""
    del data_dir
    generator = torch.Generator().manual_seed(len(split))
    labels = torch.randint(2, (_IMAGES,), generator=generator)
    images = 0.4 + 0.2 * torch.rand(_IMAGES, 1, _SIDE, _SIDE, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[..., 4 * label : 4 * (label + 1)] += 0.1
    return ImageSet("sides", split, images, labels, 2)


DATASETS.register(DataSet("sides", read, embedded=True))
