"""Boxes that are narrowed by ascents: they hold, are nowhere wider, and prove more."""

from typing import Any

import pytest
import torch
from small import bounds_of
from torch import Tensor, nn

from robustness.certificates import ProgramCertificate, program
from robustness.programs.network import Bounds, margin_rows
from robustness.programs.slopes import narrowed
from robustness.threat import Norm

IMAGES = torch.rand((3, 1, 2, 2), generator=torch.Generator().manual_seed(7))


def deep(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
    return nn.Sequential(nn.Flatten(), *layers).eval()


@pytest.mark.parametrize("norm", list(Norm))
def test_narrowed_boxes_hold_dense_samples_and_are_nowhere_wider(norm: Norm) -> None:
    model, eps = deep(1), 0.3
    bounds = bounds_of(model, IMAGES, eps, norm)
    found = narrowed(bounds, 8)
    at = next(i for i in bounds.network.rectified if bounds.network.is_behind_bend(i))
    narrower = False
    for i, (before, after) in enumerate(zip(bounds.boxes, found.boxes, strict=True)):
        assert (after.low >= before.low).all()
        assert (after.high <= before.high).all()
        narrower |= i > at and bool((after.low > before.low + 1e-3).any())
    before, after = bounds.boxes[at], found.boxes[at]
    assert (before.half - after.half).max() > 0.05 * before.half.max()
    assert narrower
    generator = torch.Generator().manual_seed(1)
    moves = torch.randn((2000, *IMAGES.shape), generator=generator)
    size = moves.flatten(2).norm(p=torch.inf if norm is Norm.LINF else 2, dim=2)
    moves = moves / size.view(2000, 3, 1, 1, 1) * eps * (1 - 1e-6)
    moves[:1000] = moves[:1000].sign() * (eps if norm is Norm.LINF else eps / 2) * (1 - 1e-6)
    with torch.no_grad():
        points = (IMAGES + moves).clamp(0, 1).flatten(0, 1)
        hidden = model[:4](points).double().view(2000, 3, 8)
        logits = model(points).double().view(2000, 3, 3)
        rows, _ = margin_rows(3, torch.arange(3))
        lower = found.lower(len(found.network) - 1, rows)
    assert (hidden >= after.low.flatten(1)).all()
    assert (hidden <= after.high.flatten(1)).all()
    assert ((rows.squeeze(2) @ logits.unsqueeze(3)).squeeze(3) >= lower).all()


def test_ends_are_charged_with_rounding() -> None:
    bounds = bounds_of(deep(1), IMAGES, 0.3)
    at = next(i for i in bounds.network.rectified if bounds.network.is_behind_bend(i))
    exact = narrowed(bounds, 8).boxes[at].low
    bounds.errors[at] = bounds.errors[at] + 0.01
    moved = exact - narrowed(bounds, 8).boxes[at].low
    changed = exact > bounds.boxes[at].low + 0.02
    assert changed.any()
    assert (moved[changed] > 0.009).all()


def test_without_a_rectifier_behind_another_nothing_changes() -> None:
    bounds = bounds_of(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU()).eval(), IMAGES, 0.1)
    assert narrowed(bounds, 8) is bounds


@pytest.mark.slow
def test_the_certificate_reaches_further() -> None:
    model = deep(1)
    labels = model(IMAGES).argmax(dim=1)
    radii = [
        [c.radius for c in ProgramCertificate(narrow=n).certify(model, IMAGES, labels, Norm.LINF)]
        for n in (0, 10)
    ]
    assert all(b >= a * 0.97 for a, b in zip(*radii, strict=True))
    assert any(b > a * 1.02 for a, b in zip(*radii, strict=True))


def test_what_is_split_has_been_narrowed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = deep(1)
    labels = model(IMAGES).argmax(dim=1)
    handed: dict[int, list[float]] = {0: [], 8: []}
    for narrow, widths in handed.items():

        def split(
            bounds: Bounds, step: int, rows: Tensor, found: Tensor, *rest: int, into: Any = widths
        ) -> Tensor:
            at = max(i for i in bounds.network.rectified if bounds.network.is_behind_bend(i))
            into += bounds.boxes[at].half.flatten(1).sum(dim=1).tolist()
            return found

        monkeypatch.setattr(program, "split", split)
        monkeypatch.setattr(program, "_REACH_OF_NARROWING", 10.0)
        monkeypatch.setattr(program, "_REACH_OF_SPLITS", 10.0)
        asked = ProgramCertificate(at=(0.3,), slopes=0, narrow=narrow, splits=1)
        asked.certify(model, IMAGES, labels, Norm.LINF)
    assert len(handed[0]) == len(handed[8]) > 0
    assert all(narrowed_ < plain - 1e-3 for plain, narrowed_ in zip(*handed.values(), strict=True))
