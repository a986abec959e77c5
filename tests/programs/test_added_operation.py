"""An operation that another package adds by one class: every bound speaks of it from then on."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small import boxed, last_box
from torch import nn

from robustness.certificates import CERTIFICATES
from robustness.certificates.base import settings_of
from robustness.programs.graph import Refusal
from robustness.programs.live import LiveProgram
from robustness.programs.network import Network
from robustness.programs.operations.base import REGISTRY
from robustness.programs.record import record
from robustness.registry import load_plugin
from robustness.threat import Norm

SHAPE = (1, 2, 2)
MODULE = "turning_operation"
EXAMPLE = Path(__file__).parents[1] / "plugin_example" / "robustness_example" / "operation.py"


class Turns(nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return 3 * values.atan()


def turning() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Flatten(), nn.Linear(4, 6), Turns(), nn.Linear(6, 3))
    return nn.Sequential(*layers).eval().requires_grad_(False)


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    shutil.copy(EXAMPLE, tmp_path / f"{MODULE}.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    # No other test's workers shall look for it.
    monkeypatch.setattr("robustness.registry._loaded", {})
    load_plugin(MODULE, here=False)
    yield
    REGISTRY.unregister("atan")
    del sys.modules[MODULE]


def test_without_it_the_refusal_names_the_operation_and_the_page() -> None:
    with pytest.raises(Refusal, match=r"the operation atan; see CONTRIBUTING.md, 'An operation'"):
        Network(record(turning(), SHAPE))


@pytest.mark.usefixtures("added")
def test_boxes_lines_and_rounding_of_an_added_operation_hold_what_is_sampled() -> None:
    model, generator = turning(), torch.Generator().manual_seed(1)
    images = torch.rand(3, *SHAPE, generator=generator)
    bounds = boxed(images, 0.1, model)
    box = last_box(bounds)
    rows = torch.randn(3, 5, 3, generator=generator).double()
    floor = bounds.lower(len(bounds.network) - 1, rows.unsqueeze(2))
    by_box = rows @ box.centre.unsqueeze(2) - rows.abs() @ box.half.unsqueeze(2)
    # Lines say more than boxes do, and a rounding that is charged leaves no box a point.
    assert (floor > by_box.squeeze(2)).all()
    still = boxed(images, 0.0, model)
    (turned,) = [i for i, node in enumerate(still.network.program.nodes) if node.name == "atan"]
    assert (torch.as_tensor(still.errors[turned]) > 0).all()
    pixels = bounds.boxes[0]
    for draw in range(200):
        share = torch.rand(pixels.low.shape, generator=generator).double()
        share = share.round() if draw % 2 else share
        moved = (pixels.low + share * (pixels.high - pixels.low)).squeeze(1)
        for values in (model(moved.float()).double(), turning().double()(moved)):
            assert (values >= box.low - 1e-6).all()
            assert (values <= box.high + 1e-6).all()
            assert ((rows @ values.unsqueeze(2)).squeeze(2) >= floor - 1e-6).all()


@pytest.mark.usefixtures("added")
def test_the_certificate_and_training_on_bounds_take_an_added_operation() -> None:
    model, images = turning(), torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    labels = model(images).argmax(dim=1)
    found = CERTIFICATES["program"].certify(model, images, labels, Norm.LINF)
    assert all(radius.radius > 0 for radius in found)
    assert f"{MODULE} of SHA-256" in settings_of(CERTIFICATES["program"])
    assert "SHA-256" not in settings_of(CERTIFICATES["lipschitz-margin"])
    model.requires_grad_(True)
    reached = LiveProgram(model, SHAPE).reach(images, labels, 0.01)
    assert (reached.margins > 0).any()
    reached.margins.sum().backward()
    assert all(bool(parameter.grad.abs().sum() > 0) for parameter in model.parameters())
