"""torchvision, which onnx2torch and timm import, may be built for another torch: then its
operations, of which nothing here makes use, are declared in its place.
"""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def torchvision_operations() -> object:
    """Keeps what is declared; None where nothing had to be."""
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    try:
        import torchvision
    except RuntimeError:
        text = (Path(spec.origin).parent / "_meta_registrations.py").read_text(encoding="utf-8")
        library = torch.library.Library("torchvision", "DEF")
        for name in set(re.findall(r'register_(?:fake|meta)\("(?:torchvision::)?(\w+)"', text)):
            library.define(f"{name}(Tensor x) -> Tensor")
        return library
    return torchvision
