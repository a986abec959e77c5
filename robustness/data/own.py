"""A user's own images that are no file of arrays: a folder, a torch data set, Hugging Face's.

They are read into memory as floats of [0, 1] and shape (n, channels, height, width). What they
are not is answered by the line that makes them so; nothing is scaled or resized in silence but
8-bit pixels of image files, whose range is known.
"""

import importlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustness.data.files import fault, unit_pixels
from robustness.data.images import ImageSet
from robustness.errors import UsageError, in_words, is_exhausted, is_interruption, one_line
from robustness.inputs import require_memory

HUB = "hf:"
FORMS = "an .npz file, a folder of images, module:function of a data set, or hf:NAME"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff")
_LABELS = ("label", "labels", "fine_label", "class", "target")


def is_own(name: str) -> bool:
    """Whether a name is of a folder, of a factory or of Hugging Face's."""
    return name.startswith(HUB) or os.path.isdir(name) or _is_factory(name)


def load(name: str, split: str) -> ImageSet:
    """Read a user's images.

    Args:
        name: `hf:NAME`, a folder of a folder per class, or `package.module:function`.
        split: `train` or `test`; a folder has them as folders if it has both, and a factory that
            takes an argument is given it.

    Raises:
        UsageError: there are none, or they are no labelled images of [0, 1] of one shape.
    """
    if name.startswith(HUB):
        return _of_hub(name, split)
    return _of_folder(Path(name), split) if os.path.isdir(name) else _of_factory(name, split)


def _is_factory(name: str) -> bool:
    module, is_given, function = name.partition(":")
    words = [*module.split("."), *function.split(".")]
    return bool(is_given) and all(word.isidentifier() for word in words)


def _of_folder(folder: Path, split: str) -> ImageSet:
    from PIL import Image, UnidentifiedImageError

    chosen = folder / split if (folder / split).is_dir() else folder
    classes = sorted(entry.name for entry in chosen.iterdir() if entry.is_dir())
    found = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((chosen / name).iterdir())
        if file.suffix.lower() in _SUFFIXES
    ]
    if not found:
        raise fault(
            folder,
            f"a folder per class with images ({', '.join(_SUFFIXES[:3])}, ...)",
            f"{len(classes)} folders without any" if classes else "none",
            "sort them as folder/cat/1.png, folder/dog/2.png",
        )
    pictures = []
    for file, _ in found:
        try:
            with Image.open(file) as picture:
                coloured = picture.mode not in ("1", "L", "I;16")
                pictures.append(np.asarray(picture.convert("RGB" if coloured else "L")))
        except (OSError, UnidentifiedImageError, ValueError) as error:
            raise fault(
                file, "an image", one_line(str(error), 80), "replace or remove it"
            ) from None
    if any(picture.ndim == 3 for picture in pictures):  # grey among coloured ones
        pictures = [
            picture if picture.ndim == 3 else np.repeat(picture[:, :, None], 3, 2)
            for picture in pictures
        ]
    _require_one_size(str(folder), [picture.shape[:2] for picture in pictures])
    stack = np.stack(pictures)
    require_memory(5 * stack.size, f"the images of {folder}")
    images = unit_pixels(stack)
    images = images.movedim(3, 1).contiguous() if images.ndim == 4 else images[:, None]
    labels = torch.tensor([label for _, label in found])
    return ImageSet(folder.name, split, images, labels, len(classes))


def _require_one_size(where: str, sizes: list[tuple[int, ...]]) -> None:
    other = next((size for size in sizes if size != sizes[0]), None)
    if other is not None:
        side = f"({sizes[0][0]}, {sizes[0][1]})" if len(sizes[0]) > 1 else str(sizes[0])
        raise fault(
            where,
            "images of one size",
            f"{sizes[0]} and {other}",
            f"resize them: torchvision.transforms.Resize({side})",
        )


def _of_factory(name: str, split: str) -> ImageSet:
    # A console script does not search the working folder, where a user's own code lies.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    module, _, function = name.partition(":")
    try:
        factory: Any = importlib.import_module(module)
        for word in function.split("."):
            factory = getattr(factory, word)
        made = factory(split) if _takes_a_split(factory) else factory()
        pairs = [made[index] for index in range(len(made))] if _is_indexed(made) else list(made)
    except BaseException as error:  # SystemExit too: it is a user's code that runs
        if is_interruption(error) or is_exhausted(error):
            raise
        raise UsageError(
            f"expected module:function that gives a torch.utils.data.Dataset, got {name!r}, which "
            f"raised {one_line(in_words(error), 120)}; check the name, and that it can be called"
        ) from error
    classes = getattr(made, "classes", None)
    count = len(classes) if isinstance(classes, list | tuple) else None
    return of_pairs(name, name.partition(":")[2], split, pairs, count)


def _is_indexed(made: object) -> bool:
    return hasattr(made, "__len__") and hasattr(made, "__getitem__")


def _takes_a_split(factory: Any) -> bool:
    code = getattr(factory, "__code__", None)
    return code is not None and code.co_argcount > len(factory.__defaults__ or ())


def of_pairs(
    where: str, name: str, split: str, pairs: Iterable[Any], classes: int | None
) -> ImageSet:
    """The image set of pairs of image and label.

    Args:
        where: they come from, for messages.
        name: of the set.
        split: `train` or `test`.
        pairs: (image, label), as a `Dataset` gives them.
        classes: how many; None for one more than the largest label.

    Raises:
        UsageError: they are no labelled images of [0, 1] of one shape.
    """
    images, labels = [], []
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            got = f"{len(pair)} parts" if isinstance(pair, tuple | list) else type(pair).__name__
            raise fault(where, "items (image, label)", got, "return image, label in __getitem__")
        images.append(_image(where, pair[0]))
        labels.append(_label(where, pair[1]))
    if not images:
        raise fault(where, "at least one image", "none", "check its files")
    _require_one_size(where, [tuple(image.shape) for image in images])
    stack = torch.stack(images).float()
    _require_units(where, stack)
    if min(labels) < 0:
        raise fault(where, "labels from 0 up", str(min(labels)), "number the classes from 0")
    return ImageSet(name, split, stack, torch.tensor(labels), classes or max(labels) + 1)


def of_tensors(where: str, images: Tensor, labels: object) -> ImageSet:
    """The image set of a batch of images and their labels.

    Args:
        where: they come from, for messages.
        images: floats of [0, 1], shape (n, c, h, w).
        labels: integers, shape (n,).

    Raises:
        UsageError: they are none.
    """
    if images.ndim != 4 or len(images) == 0:
        got = f"shape {tuple(images.shape)}"
        raise fault(where, "images of shape (n, channels, height, width)", got, "reshape them")
    if not isinstance(labels, Tensor) or labels.shape != images.shape[:1]:
        got = f"{tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise fault(where, f"labels of shape ({len(images)},)", got, "give each image one label")
    pairs = zip(images.detach().cpu(), labels.cpu(), strict=True)
    return of_pairs(where, "images", "test", pairs, None)


def _image(where: str, image: object) -> Tensor:
    expected = "images as float tensors (channels, height, width) of [0, 1]"
    if not isinstance(image, Tensor):
        got, fix = type(image).__name__, "add transform=torchvision.transforms.ToTensor()"
        if isinstance(image, np.ndarray):
            got, fix = "a numpy array", "return torch.from_numpy(image).float()"
        raise fault(where, expected, got, fix)
    if not image.is_floating_point():
        raise fault(where, expected, f"{image.dtype}", "return image.float() / 255, label")
    if image.ndim == 2:
        return image[None]
    if image.ndim != 3:
        raise fault(where, expected, f"shape {tuple(image.shape)}", "return image[0], label")
    if image.shape[2] in (1, 3) and min(image.shape[:2]) > 3:
        got = f"shape {tuple(image.shape)}, channels last"
        raise fault(where, expected, got, "return image.movedim(2, 0), label")
    return image


def _require_units(where: str, images: Tensor) -> None:
    if not bool(images.isfinite().all()):
        raise fault(where, "finite pixels", "NaN or infinite ones", "correct the images")
    low, high = float(images.min()), float(images.max())
    if low < 0:
        fix = "remove transforms.Normalize: normalising belongs inside the model"
    elif high > 1:
        fix = "return image / 255, label"
    else:
        return
    raise fault(where, "pixels in [0, 1]", f"values from {low:g} to {high:g}", fix)


def _label(where: str, label: object) -> int:
    single = isinstance(label, np.generic) or (isinstance(label, Tensor) and label.numel() == 1)
    value = label.item() if single else label  # type: ignore[attr-defined]
    if isinstance(value, bool) or not isinstance(value, int):
        raise fault(
            where, "labels as class indices", type(label).__name__, "return image, int(label)"
        )
    return value


def _of_hub(name: str, split: str) -> ImageSet:
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError:
        raise UsageError(
            f"expected the package datasets for {name}, got none; install it: "
            "pip install 'lyanet-robustness[hf]'"
        ) from None
    try:
        rows = datasets.load_dataset(name.removeprefix(HUB), split=split)
        columns: dict[str, Any] = dict(rows.features)
    except Exception as error:  # a dozen unrelated kinds: no network, no such name, no such split
        raise UsageError(
            f"expected a data set of Hugging Face with the split {split}, got {name}, which raised "
            f"{one_line(in_words(error), 120)}; correct the name or download it first"
        ) from error
    image = next((c for c in columns if type(columns[c]).__name__ == "Image"), None)
    label = next((c for c in _LABELS if c in columns), None)
    if image is None or label is None:
        raise fault(
            name,
            f"a column of images and one of labels ({', '.join(_LABELS)})",
            ", ".join(columns) or "no column",
            "write module:function that gives a Dataset of (image, label)",
        )
    pairs = []
    for row in rows:
        picture = row[image]
        pixels = np.asarray(picture if picture.mode == "L" else picture.convert("RGB"))
        tensor = unit_pixels(pixels)
        pairs.append((tensor if tensor.ndim == 2 else tensor.movedim(2, 0), row[label]))
    count = getattr(columns[label], "num_classes", None)
    return of_pairs(name, name.rpartition("/")[2].removeprefix(HUB), split, pairs, count)
