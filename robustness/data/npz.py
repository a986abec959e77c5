"""A user's own images, from a NumPy `.npz` archive.

The archive holds `images`, floats in [0, 1] of shape (n, channels, height, width) or
(n, height, width), and `labels`, integers of shape (n,). The number of classes is the
integer `classes` if the archive holds one, else one more than the largest label. Other
arrays are left alone, but one of pickled Python objects has the whole file refused.
"""

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int

from robustness.data.files import fault, read_bytes
from robustness.data.images import ImageSet
from robustness.errors import UsageError, one_line
from robustness.inputs import require_memory

SUFFIX = ".npz"
REQUIRED = ("images", "labels")


def load(path: Path, split: str) -> ImageSet:
    """Read a user's images.

    Args:
        path: the `.npz` file.
        split: the name to give the split; the file has only one, so that either name reads
            the same images.

    Returns:
        Images of shape (n, channels, height, width), named after the file's stem.

    Raises:
        UsageError: the file is missing or damaged, lacks an array or holds pickled objects;
            the images are not finite floats in [0, 1]; or the labels do not fit.
    """
    arrays = read(path)
    images = checked_images(path, arrays["images"])
    labels = checked_labels(path, arrays["labels"], len(images))
    classes = class_count(path, labels, arrays.get("classes"))
    return ImageSet(path.stem, split, torch.from_numpy(images), torch.from_numpy(labels), classes)


def read(path: Path) -> dict[str, np.ndarray]:
    """Every array of the archive, by name.

    Raises:
        UsageError: the file is missing or damaged, lacks `images` or `labels`, or holds
            pickled objects.
    """
    content = read_bytes(path, "an .npz file", "correct the path")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(member.file_size for member in archive.infolist())
            require_memory(3 * size, f"the arrays of {path}")
            members = {name: archive.read(name) for name in archive.namelist()}
    except UsageError:
        raise
    # The bytes are in memory, so that whatever is raised here is the file's doing; zipfile
    # raises a dozen unrelated types on damaged bytes.
    except Exception as error:
        got = f"a damaged file or another format ({one_line(str(error), 60)})"
        raise fault(path, "an .npz file", got, "write it anew with numpy.savez") from error
    arrays = {name.removesuffix(".npy"): parse(path, name, raw) for name, raw in members.items()}
    if not arrays.keys() >= set(REQUIRED):
        held = ", ".join(map(repr, sorted(arrays))) or "no array"
        expected = " and ".join(map(repr, REQUIRED))
        raise fault(path, f"arrays {expected}", held, "save both with numpy.savez")
    return arrays


def parse(path: Path, name: str, raw: bytes) -> np.ndarray:
    """One array of the archive.

    Args:
        path: the archive, for messages.
        name: the array's file in the archive.
        raw: that file's content.

    Raises:
        UsageError: the array is one of pickled objects, or no array at all.
    """
    try:
        return np.lib.format.read_array(io.BytesIO(raw), allow_pickle=False)
    # As above; besides, a header can ask for more memory than there is.
    except Exception as error:
        raise fault(
            path,
            "arrays of plain numbers only",
            f"{name!r}, which is pickled or malformed",
            "save plain arrays with numpy.savez",
        ) from error


def checked_images(path: Path, raw: np.ndarray) -> Float[np.ndarray, "n c h w"]:
    """The images as float32 of shape (n, channels, height, width).

    Raises:
        UsageError: they are not floats, not of a usable shape, not finite, or outside [0, 1].
    """
    if not np.issubdtype(raw.dtype, np.floating):
        raise fault(
            path,
            "array 'images' of floats in [0, 1]",
            f"{raw.dtype}",
            "convert it to float32, dividing 8-bit pixels by 255",
        )
    checked_shape(path, raw.shape)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, refused below
        images = raw.astype(np.float32, order="C")
    if not np.isfinite(images).all():
        strange = int(np.count_nonzero(~np.isfinite(images)))
        raise fault(
            path, "finite pixels", f"{strange} that are NaN or infinite", "correct the images"
        )
    low, high = float(images.min()), float(images.max())
    if low < 0.0 or high > 1.0:
        raise fault(
            path,
            "pixels in [0, 1]",
            f"values from {low:g} to {high:g}",
            "rescale the images (divide 8-bit pixels by 255)"
            if low >= 0
            else "undo their normalisation, which belongs inside the model",
        )
    if images.ndim == 3:
        images = images[:, None]
    return images


def checked_shape(path: Path, shape: tuple[int, ...]) -> None:
    """Refuse a shape that is not one of images, or has the channels last.

    Raises:
        UsageError: the shape is refused.
    """
    expected = "array 'images' of shape (n, channels, height, width) or (n, height, width)"
    if len(shape) not in (3, 4) or 0 in shape:
        raise fault(path, expected, f"shape {shape}", "reshape it")
    # Read as it stands, such an array would be 32 channels of 32x3 without anyone noticing.
    if len(shape) == 4 and shape[3] in (1, 3) and min(shape[1:3]) > 3:
        got = f"shape {shape}, channels last"
        raise fault(path, expected, got, "use images.transpose(0, 3, 1, 2)")


def checked_labels(path: Path, raw: np.ndarray, count: int) -> Int[np.ndarray, " n"]:
    """The labels as int64, shape (n,).

    Args:
        path: the file, for messages.
        raw: the array as it came.
        count: the number of images.

    Raises:
        UsageError: they are not integers, not one to an image, or negative.
    """
    if not np.issubdtype(raw.dtype, np.integer):
        raise fault(
            path, "array 'labels' of integers", f"{raw.dtype}", "convert it to class indices"
        )
    if raw.shape != (count,):
        raise fault(
            path,
            f"array 'labels' of shape ({count},), one label to an image",
            f"shape {raw.shape}",
            "give every image one label",
        )
    labels = raw.astype(np.int64)
    if labels.min() < 0:
        raise fault(path, "labels from 0 up", f"{labels.min()}", "number the classes from 0")
    return labels


def class_count(path: Path, labels: Int[np.ndarray, " n"], stated: np.ndarray | None) -> int:
    """The number of classes: the one stated, else one more than the largest label.

    Raises:
        UsageError: what is stated is no single integer, or too small for a label.
    """
    most = int(labels.max())
    if stated is None:
        return most + 1
    if stated.shape != () or not np.issubdtype(stated.dtype, np.integer):
        got = f"{stated.dtype} of shape {stated.shape}"
        raise fault(path, "'classes' to be one integer", got, "save it as a plain int")
    classes = int(stated)
    if most >= classes:
        raise fault(
            path,
            f"labels from 0 to {classes - 1}, as 'classes' is {classes}",
            f"{most}",
            "correct 'classes' or the labels",
        )
    return classes
