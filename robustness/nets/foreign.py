"""Models of other formats, with their normalisation put inside: ONNX files and timm's.

Nothing is unpickled: an ONNX file is a protocol buffer, and timm's weights are read from
safetensors.
"""

import importlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from robustness.config import Config
from robustness.errors import UsageError, in_words, is_exhausted, one_line
from robustness.files import read_file, read_toml
from robustness.nets.encoders import Normalise

ONNX, TIMM = ".onnx", "timm:"


def is_foreign(name: str) -> bool:
    """Whether a name is of an ONNX file or of timm's."""
    return name.lower().endswith(ONNX) or name.startswith(TIMM)


def load_foreign(name: str, weights: Path | None) -> nn.Module:
    """A model of pixels in [0, 1].

    Args:
        name: `FILE.onnx` or `timm:NAME`.
        weights: folder that may hold `NAME.safetensors` of timm's; without it they are downloaded.

    Raises:
        UsageError: the optional package is missing, or it cannot read the model.
    """
    return _of_timm(name, weights) if name.startswith(TIMM) else _of_onnx(Path(name))


class Normalisation(Config):
    """What stands beside `model.onnx` as `model.toml`: what its images are normalised by.

    Attributes:
        mean: of each channel, in pixels of [0, 1].
        std: of each channel.
    """

    mean: list[float] = Field(min_length=1, max_length=100)
    std: list[float] = Field(min_length=1, max_length=100)


class OneByOne(nn.Module):
    """A model of one image at a time, given several.

    Args:
        module: takes images of shape (1, c, h, w).
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Logits, each image's computed alone."""
        return torch.cat([self.module(image) for image in images.split(1)])


def _of_onnx(file: Path) -> nn.Module:
    if not file.is_file():
        raise UsageError(f"expected an ONNX file at {file}, got none; correct the path")
    onnx = _package("onnx", "onnx", str(file))
    onnx2torch = _package("onnx2torch", "onnx", str(file))
    try:
        graph = onnx.load_model_from_string(read_file(file))
        onnx.checker.check_model(graph)
        with _quiet():
            module: nn.Module = onnx2torch.convert(graph)
    except Exception as error:
        if is_exhausted(error):
            raise
        raise UsageError(
            f"{file}: expected an ONNX model that onnx2torch can read, got "
            f"{one_line(in_words(error), 130)}; export it anew, or write a factory"
        ) from error
    weights = {tensor.name for tensor in graph.graph.initializer}
    given = [value for value in graph.graph.input if value.name not in weights]
    if len(given) != 1:
        raise UsageError(
            f"{file}: expected a model of one input, got {len(given)}; export one of images alone"
        )
    sizes = given[0].type.tensor_type.shape.dim
    if sizes and sizes[0].dim_value == 1:  # as exporters have it by default
        module = OneByOne(module)
    beside = file.with_suffix(".toml")
    return _normalised(module, read_toml(beside, Normalisation)) if beside.is_file() else module


def _normalised(module: nn.Module, by: Normalisation) -> nn.Module:
    try:
        return nn.Sequential(Normalise(by.mean, by.std), module)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _of_timm(name: str, folder: Path | None) -> nn.Module:
    timm = _package("timm", "timm", name)
    short = name.removeprefix(TIMM)
    try:
        with _quiet():
            module: nn.Module = timm.create_model(short, pretrained=False)
    except Exception as error:
        if is_exhausted(error):
            raise
        raise UsageError(
            f"expected a model of timm, got {name}, which raised {one_line(in_words(error), 120)}; "
            "timm.list_models() names all"
        ) from error
    settings: dict[str, Any] = dict(module.pretrained_cfg)  # type: ignore[arg-type]
    file = _weights_of(short, settings, folder)
    try:
        module.load_state_dict(safetensors.torch.load(read_file(file)))
    except Exception as error:
        if is_exhausted(error):
            raise
        raise UsageError(
            f"{file}: expected weights of {name}, got {one_line(in_words(error), 120)}; download "
            "them again"
        ) from error
    return _normalised(
        module, Normalisation(mean=list(settings["mean"]), std=list(settings["std"]))
    )


def _weights_of(short: str, settings: dict[str, Any], folder: Path | None) -> Path:
    """The safetensors file of a model: in a folder that is named, else from the hub."""
    given = folder / f"{short}.safetensors" if folder is not None else None
    if given is not None and os.path.isfile(given):
        return given
    repository = settings.get("hf_hub_id")
    got = "no repository of its weights"
    if repository:
        try:
            hub: Any = importlib.import_module("huggingface_hub")
            return Path(hub.hf_hub_download(repository, "model.safetensors"))
        except Exception as error:  # no network, no such file, ...
            got = one_line(in_words(error), 100)
    raise UsageError(
        f"expected weights of timm:{short} as safetensors, got {got}; put {short}.safetensors "
        "into a folder and name that by ROBUSTNESS_WEIGHTS_DIR"
    )


def _package(module: str, extra: str, needed_by: str) -> Any:
    try:
        with _quiet():
            return importlib.import_module(module)
    except Exception as error:  # torchvision of another torch raises RuntimeError
        if is_exhausted(error):
            raise
        raise UsageError(
            f"expected the package {module} for {needed_by}, got {one_line(in_words(error), 90)}; "
            f"install it: pip install 'lyanet-robustness[{extra}]'"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the words that libraries have for their own authors."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
