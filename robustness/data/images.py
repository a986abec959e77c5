"""A labelled set of images in pixel units, and the checks that make it one."""

import hashlib
import pickle
import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustness.errors import UsageError


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one split of one data set.

    Attributes:
        name: the data set's name, such as `mnist`.
        split: `train` or `test`.
        images: float32 pixels in [0, 1], shape (n, channels, height, width).
        labels: int64 class indices, shape (n,).
        classes: number of classes.

    Raises:
        UsageError: a pixel lies outside [0, 1] or is not finite, or a label is not a
            class index.
    """

    name: str
    split: str
    images: Float[Tensor, "n channels height width"]
    labels: Int[Tensor, " n"]
    classes: int

    def __post_init__(self) -> None:
        if len(self.images) == 0:
            raise UsageError(f"{self.name}: expected at least one image, got none; check the file")
        low, high = float(self.images.min()), float(self.images.max())
        if not (low >= 0.0 and high <= 1.0):
            raise UsageError(
                f"{self.name}: expected pixels in [0, 1], got values from {low:g} to {high:g}; "
                "rescale the images (divide 8-bit pixels by 255)"
            )
        least, most = int(self.labels.min()), int(self.labels.max())
        if least < 0 or most >= self.classes:
            raise UsageError(
                f"{self.name}: expected labels from 0 to {self.classes - 1}, "
                f"got {least} to {most}; check the label file"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        channels, height, width = self.images.shape[1:]
        return int(channels), int(height), int(width)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of pixels and labels, the part of a result's key that names the data."""
        sha = hashlib.sha256()
        sha.update(str(tuple(self.images.shape)).encode())
        sha.update(np.ascontiguousarray(self.images.numpy()).tobytes())
        sha.update(np.ascontiguousarray(self.labels.to(torch.int64).numpy()).tobytes())
        return sha.hexdigest()

    def packed(self) -> bytes:
        """All of it, to be sent to another machine: pixels as bytes where they are 8-bit pixels."""
        pixels = self.images.numpy()
        levels = np.rint(pixels * 255).astype(np.uint8)
        exact = np.array_equal((torch.from_numpy(levels).float() / 255).numpy(), pixels)
        labels = self.labels.numpy()
        content = (self.name, self.split, levels if exact else pixels, labels, self.classes)
        return zlib.compress(pickle.dumps(content), 1)

    @classmethod
    def unpacked(cls, content: bytes) -> "ImageSet":
        """What `packed` gave, from one's own process: what is unpickled can run code."""
        name, split, pixels, labels, classes = pickle.loads(zlib.decompress(content))
        images = torch.from_numpy(pixels)
        images = images.float() / 255 if pixels.dtype == np.uint8 else images
        return cls(name, split, images, torch.from_numpy(labels), classes)

    def take(self, indices: Int[Tensor, " k"]) -> "ImageSet":
        """The images at `indices`, in that order."""
        return ImageSet(
            self.name, self.split, self.images[indices], self.labels[indices], self.classes
        )
