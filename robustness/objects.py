"""Modules and tensors in the place of names, for as long as a call takes."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from robustness.data import DATASETS, DataSet, ImageSet
from robustness.data.own import of_pairs, of_tensors
from robustness.errors import UsageError
from robustness.zoo import is_factory, load_model, named

P = ParamSpec("P")
R = TypeVar("R")

# Whose form is that of a factory's name, so that a store which holds it can be read again.
_DATA = "given:images"


def takes_objects(function: Callable[P, R]) -> Callable[..., R]:
    """Let a function of names take modules as `model` or in `models` and `add`, images as `data`.

    Images are an `ImageSet`, a pair of tensors, or a `torch.utils.data.Dataset`. What is given so
    is in this process alone, so that the call stays in it, as with `in_process=True`.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # which says it by its own name
        given = bound.arguments
        with ExitStack() as stack:
            here = False
            if isinstance(given.get("model"), nn.Module):
                given["model"] = stack.enter_context(named(given["model"]))
                here = True
            for several in ("models", "add"):
                models = given.get(several)
                if models is None or isinstance(models, str):
                    continue
                here = here or any(isinstance(model, nn.Module) for model in models)
                given[several] = [
                    stack.enter_context(named(model)) if isinstance(model, nn.Module) else model
                    for model in models
                ]
            if given.get("data") is not None and not isinstance(given["data"], str):
                asked = [given["model"]] if given.get("model") else list(given.get("models") or [])
                asked = asked or list(getattr(given.get("suite"), "models", []))
                given["data"] = stack.enter_context(_images(given["data"], asked))
                here = True
            if here and "in_process" in signature.parameters:
                given["in_process"] = True
            return function(*bound.args, **bound.kwargs)

    return call


@contextmanager
def _images(data: object, models: list[str]) -> Iterator[str]:
    images = _image_set(data, models)

    def read(*_: object) -> ImageSet:
        return images

    with DATASETS.having(DataSet(_DATA, read, embedded=True)):
        yield _DATA


def _image_set(data: object, models: list[str]) -> ImageSet:
    if isinstance(data, ImageSet):
        return data
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor):
        images, labels = data
        read = of_tensors("data", images, labels)
    elif hasattr(data, "__len__") and hasattr(data, "__getitem__") and not isinstance(data, tuple):
        pairs = [data[index] for index in range(len(data))]
        read = of_pairs("data", "images", "test", pairs, None)
    else:
        raise UsageError(
            f"expected data as a name, (images, labels), an ImageSet or a Dataset, got "
            f"{type(data).__name__}; give one of them"
        )
    # The largest label of a few images says little of how many classes there are.
    classes = max([read.classes, *(_width(model, read) for model in models)])
    return ImageSet(read.name, read.split, read.images, read.labels, classes)


def _width(model: str, images: ImageSet) -> int:
    """How many logits a model gives, 0 where that is another's to find fault with."""
    if not is_factory(model):
        recipe = load_model(model).recipe
        return 0 if recipe is None else recipe.data.classes
    module = load_model(model).module
    try:
        with torch.no_grad():
            logits = module(images.images[:1])
    except Exception:
        return 0
    return int(logits.shape[1]) if isinstance(logits, Tensor) and logits.ndim == 2 else 0
