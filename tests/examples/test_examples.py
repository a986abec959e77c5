"""Models in their authors' style are evaluated through factories of at most ten lines."""

import argparse
import importlib
import inspect
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional

from robustness import api
from robustness.data import load_images

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Imports an example, in a working folder where checkpoints can be put."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


def trained(net: nn.Module, logits, steps: int, lr: float) -> None:
    images = load_images("digits", "train")
    torch.manual_seed(0)
    optimiser = torch.optim.Adam(net.parameters(), lr)
    for batch in torch.randint(len(images), (steps, 64)):
        loss = functional.cross_entropy(logits(images.images[batch]), images.labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def require_short(module: ModuleType) -> None:
    lines = inspect.getsource(module.model).splitlines()
    assert len(lines) <= 10
    assert max(map(len, lines)) <= 100


def test_the_inner_module_of_a_lightning_checkpoint(example) -> None:
    module = example("lightning_model")
    require_short(module)
    net = module.LyapunovNet()
    trained(net, lambda x: net((x - 0.3) / 0.38)[0], 150, 1e-2)
    state = {f"model.{key}": value for key, value in net.state_dict().items()}
    checkpoint = {"state_dict": state | {"loss.scale": torch.ones(1)}, "epoch": 3, "callbacks": {}}
    torch.save(checkpoint, module.CHECKPOINT)
    found = api.doctor("lightning_model:model", data="digits", in_process=True)
    assert found.findings == []
    assert found.accuracy is not None
    assert found.accuracy > 0.8
    row = api.attack(
        "lightning_model:model", "Linf", 0.3, "fgsm", data="digits", samples=32, in_process=True
    )
    assert row.errors == 0
    assert row.robust.value < found.accuracy


@pytest.mark.slow
def test_the_style_of_torchdiffeqs_example(example) -> None:
    module = example("odenet_mnist")
    require_short(module)
    torch.manual_seed(0)
    net = module.odenet(4, 1e-3)
    trained(net, net, 25, 3e-2)
    Path("experiment1").mkdir()
    args = argparse.Namespace(channels=4, tol=1e-3, network="odenet")
    torch.save({"state_dict": net.state_dict(), "args": args}, module.CHECKPOINT)
    found = api.doctor("odenet_mnist:model", data="digits", in_process=True, samples=12)
    # How serious depends on how far it was trained.
    assert [f.check for f in found.findings] == ["adaptive tolerance"]
    row = api.attack(
        "odenet_mnist:model", "Linf", 0.3, "fgsm", data="digits", samples=8, in_process=True
    )
    assert (row.errors, row.subset) == (0, 8)
